"""Entry point in vLLM's group ``vllm.general_plugins``: makes the class known by name.

vLLM rebuilds the statistics of a `MultiConnector`'s children by looking the class up in its registry, where a class that was
loaded by module path alone is missing.
"""

from __future__ import annotations

import contextlib

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

NAME = "KVPoolConnector"


def register() -> None:
    """Make kvpool known to vLLM. May be called more than once in a process; the connector itself is not imported."""
    with contextlib.suppress(ValueError):  # known already
        KVConnectorFactory.register_connector(NAME, "kvpool_connector.vllm", NAME)
