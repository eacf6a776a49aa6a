"""The part that vLLM loads: ``kv_connector: KVPoolConnector``, ``kv_connector_module_path: kvpool_connector.vllm``.

The only package of the connector that imports vLLM's connector interface. Written for vLLM 0.32; every symbol of vLLM that is
touched is listed in ``docs/compatibility.md``.
"""

from kvpool_connector.vllm.connector import KVPoolConnector
from kvpool_connector.vllm.plugin import register
from kvpool_connector.vllm.spec import KVPoolSpec

register()  # a connector on PYTHONPATH has no entry point, and MultiConnector looks its children up by name

__all__ = ["KVPoolConnector", "KVPoolSpec"]
