"""Entry point in vLLM's group ``vllm.general_plugins``, called in each of its processes before a configuration is built.

1. The class becomes known by name: vLLM rebuilds the statistics of a `MultiConnector`'s children by looking the class up in its
   registry, where a class that was loaded by module path alone is missing.
2. Configurations are watched; see :mod:`kvpool_connector.vllm.guard`.
"""

from __future__ import annotations

import contextlib

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from kvpool_connector.log import get_logger
from kvpool_connector.vllm import guard

logger = get_logger(__name__)
NAME = guard.NAME


def register() -> None:
    """Make kvpool known to vLLM. May be called more than once in a process; the connector itself is not imported."""
    with contextlib.suppress(ValueError):  # known already
        KVConnectorFactory.register_connector(NAME, "kvpool_connector.vllm", NAME)
    try:
        guard.watch(VllmConfig)
    except Exception as error:
        # This runs in engines without kvpool as well, which must start whatever vLLM's configuration is like.
        logger.warning("this vLLM's configurations are not watched: %s: %s", type(error).__name__, error)
