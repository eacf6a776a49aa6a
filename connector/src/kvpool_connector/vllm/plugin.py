"""Entry point in vLLM's group ``vllm.general_plugins``, called in each of its processes before a configuration is built.

1. The class becomes known by name: vLLM rebuilds the statistics of a `MultiConnector`'s children by looking the class up in its
   registry, where a class that was loaded by module path alone is missing. Engines and ranks have the
   registry imported by then; a front end imports it only if it has a connector.
2. Configurations with kvpool are completed under its eyes; see :mod:`kvpool_connector.vllm.guard`.
3. Where the environment has kvpool's configuration, kvpool is switched on in engines that do not
   name it; see :mod:`kvpool_connector.vllm.arguments`.

vLLM calls this in engines without kvpool as well. These must start whatever vLLM is like, and pay
next to nothing: what is not needed there is imported when it is.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvpool_connector.log import get_logger
from kvpool_connector.names import CONNECTOR, CONNECTOR_MODULE, ENV_CONFIG_FILE

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig

logger = get_logger(__name__)

FACTORY = "vllm.distributed.kv_transfer.kv_connector.factory"
"""vLLM's module with the registry of connectors."""


def register() -> None:
    """Make kvpool known to vLLM. May be called more than once in a process; the connector itself is not imported."""
    try:
        if FACTORY in sys.modules:
            _known_by_name()
        _guarded()
    except Exception as error:
        logger.warning("this vLLM's configurations are not watched: %s: %s", type(error).__name__, error)
    if os.environ.get(ENV_CONFIG_FILE):
        _switched_on()


def _known_by_name() -> None:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    with contextlib.suppress(ValueError):  # known already
        KVConnectorFactory.register_connector(CONNECTOR, CONNECTOR_MODULE, CONNECTOR)


def _guarded() -> None:
    """Wrap the completion of configurations, once. Those of other connectors pass through untouched."""
    from vllm.config import VllmConfig

    complete: Callable[..., None] = VllmConfig.__post_init__
    if hasattr(complete, "kvpool"):
        return

    @functools.wraps(complete)
    def watched(self: VllmConfig, *args: Any, **kwargs: Any) -> None:
        transfer = self.kv_transfer_config
        if transfer is None or not _has_ours(transfer):
            complete(self, *args, **kwargs)
            return
        _known_by_name()
        from kvpool_connector.vllm import guard

        guard.completed(self, functools.partial(complete, self, *args, **kwargs))

    watched.kvpool = True  # type: ignore[attr-defined]
    VllmConfig.__post_init__ = watched  # type: ignore[method-assign]


def _has_ours(transfer: KVTransferConfig) -> bool:
    """Return whether kvpool is configured, alone or in a `MultiConnector`, with what every vLLM has."""
    inner = (transfer.kv_connector_extra_config or {}).get("connectors")
    names = [one.get("kv_connector") for one in inner if isinstance(one, dict)] if isinstance(inner, list) else []
    return CONNECTOR in (transfer.kv_connector, *names)


def _switched_on() -> None:
    """Wrap the building of configurations, or say why this vLLM's engines start without kvpool."""
    try:
        from vllm.engine.arg_utils import EngineArgs

        from kvpool_connector.vllm import arguments

        arguments.watch(EngineArgs)
    except Exception as error:
        from kvpool_connector.vllm import engine_state
        from kvpool_connector.vllm.choice import State

        engine_state.tell(State.SKIPPED, f"unsupported: {type(error).__name__}: {error}")
