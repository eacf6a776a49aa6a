"""Stores that the operator runs, as Pods on a real node, and the connector's own client in the Pods of engines."""
