"""A cluster on this machine without Docker: every program comes from Go modules, Debian packages and PyPI."""
