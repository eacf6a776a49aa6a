"""The demo: one document, two engines, one store, six steps. ``python -m e2e.demo engine | cluster``."""
