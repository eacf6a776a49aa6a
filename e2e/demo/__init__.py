"""The demo: one document, two engines, one store, and the steps that show what it is worth.

``python -m e2e.demo engine | cluster`` plays it.
"""

CLUSTER = "demo"
"""The name of the cluster that the demo starts and leaves running."""
