"""What starts reconciliations: kopf's watches onto a work queue, and workers that empty it."""
