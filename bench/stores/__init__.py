"""Throughput of the stores' clients, each against what its path can carry or against the usual client."""
