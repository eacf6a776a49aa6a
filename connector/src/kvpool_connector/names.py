"""Names that others type, in a module of their own: it costs nothing to import, in every process of
every vLLM that has kvpool installed."""

from __future__ import annotations

CONNECTOR = "KVPoolConnector"
"""kvpool's connector, as ``kv_connector``, and its plug-in, as ``VLLM_PLUGINS`` names it."""
CONNECTOR_MODULE = "kvpool_connector.vllm"
"""Where vLLM loads it from, as ``kv_connector_module_path``."""
ENV_CONFIG_FILE = "KVPOOL_CONFIG_FILE"
"""The variable with the path of kvpool's configuration, which also switches kvpool on."""
ENV_CONFLICT_POLICY = "KVPOOL_CONFLICT_POLICY"
"""The variable that says what becomes of an engine with another KV connector."""
ENV_ON_FAILURE = "KVPOOL_ON_FAILURE"
"""The variable that says what becomes of an engine that cannot have kvpool."""
