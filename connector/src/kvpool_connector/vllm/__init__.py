"""The part that vLLM loads: ``kv_connector: KVPoolConnector``, ``kv_connector_module_path: kvpool_connector.vllm``.

The only package of the connector that imports vLLM's connector interface. Written for vLLM 0.32; every symbol of vLLM that is
touched is listed in ``docs/compatibility.md``. The class is imported when vLLM asks for it, so that the package itself can be
imported beside any vLLM (:mod:`kvpool_connector.vllm.entry`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvpool_connector.vllm.connector import KVPoolConnector

__all__ = ["KVPoolConnector"]


def __getattr__(name: str) -> object:
    if name != "KVPoolConnector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvpool_connector.vllm.entry import connector_class

    return connector_class()
