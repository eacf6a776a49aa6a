#!/usr/bin/env bash
# The server; its settings are LMCACHE_* variables.
vllm serve \
  Qwen/Qwen3-8B \
  --kv-transfer-config \
  '{"kv_connector":"KVPoolConnector",
    "kv_role":"kv_both"
  }'
