"""The one error of the configuration, in a module of its own because every reader of a source raises it."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration cannot be used. The message names each field and what to do about it."""
