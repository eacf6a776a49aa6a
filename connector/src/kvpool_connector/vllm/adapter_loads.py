"""Tells a scheduler's half of kvpool when vLLM loads an adapter (LoRA).

vLLM's front end has an adapter loaded when it starts, or when a client names one, and the first
request with it may come hours later. Files that were replaced in between are not what the engine
computes with, and nothing in the request says so. vLLM has no hook for connectors there, so the
method of its engine's core that loads adapters is wrapped, in engines that have kvpool and adapters
and in no other (vLLM 0.32, ``v1/engine/core.py``, `EngineCore.add_lora`; docs/adr/0010).

Offline engines (``LLM(...).generate(lora_request=...)``) load an adapter with its first request
instead, for which the scheduler's half has looked at the files before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm.v1.engine.core import EngineCore

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
    from vllm.lora.request import LoRARequest


def watch(tell: Callable[[KVConnectorBase_V1, str], None]) -> None:
    """Have each connector of an engine told before the engine loads an adapter, and after it.

    An adapter of the hub may only come to this machine while it is loaded. A second call in a process
    changes nothing.

    Args:
        tell: called with a connector and the adapter's path, on the scheduler's thread. It must
            leave connectors alone that are not kvpool's.
    """
    load: Callable[[EngineCore, LoRARequest], bool] = EngineCore.add_lora
    if hasattr(load, "kvpool"):
        return

    @functools.wraps(load)
    def watched(self: EngineCore, lora_request: LoRARequest) -> bool:
        connector = self.scheduler.get_kv_connector()
        connectors = [] if connector is None else [connector, *getattr(connector, "sub_connectors", ())]
        for each in connectors:
            tell(each, lora_request.lora_path)
        loaded = load(self, lora_request)
        for each in connectors:
            tell(each, lora_request.lora_path)
        return loaded

    watched.kvpool = True  # type: ignore[attr-defined]
    EngineCore.add_lora = watched  # type: ignore[method-assign]
