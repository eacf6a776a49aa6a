"""The server that the API server asks at the creation of Pods, and the certificates that it needs.

``admission`` brings what ``injection`` decides by; ``server`` speaks HTTPS; ``certificates`` and ``keeper`` make, keep and
rotate the certificates.
"""
