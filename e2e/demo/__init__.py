"""The demo: one document, two engines, one store, and the steps that show what it is worth. ``python -m e2e.demo engine | cluster``."""
