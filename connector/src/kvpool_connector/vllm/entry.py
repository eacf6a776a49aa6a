"""Chooses the class that vLLM gets: kvpool's connector, or one that does nothing where it cannot be imported."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

SERVED = "0.32"
"""The vLLM that the implementation is written for; docs/compatibility.md has the list."""


@functools.cache
def connector_class() -> type[KVConnectorBase_V1]:
    """Return the class for ``kv_connector: KVPoolConnector``.

    Raises:
        ImportError: this vLLM lacks even the base class of connectors.
    """
    try:
        from kvpool_connector.vllm.disabled import unavailable
    except ImportError as error:
        raise ImportError(_sentence(error)) from error
    try:
        from kvpool_connector.vllm.plugin import register

        register()  # a connector on PYTHONPATH may have no entry point, and MultiConnector looks its children up by name
        from kvpool_connector.vllm.connector import KVPoolConnector
    except Exception as error:  # a name that is missing, or a base class that has changed under ours
        return unavailable(_sentence(error))
    return KVPoolConnector


def _sentence(error: Exception) -> str:
    from vllm import __version__

    return f"kvpool's connector cannot be imported ({error}): it serves vLLM {SERVED}, and this is vLLM {__version__}"
