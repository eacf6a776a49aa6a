#!/usr/bin/env bash
# An OpenAI-compatible server with a memory tier: the same request twice, and what the log says about it.
#
#   MODEL=Qwen/Qwen3-8B ./online.sh [further options of vLLM]
#
# VLLM is how the server is started: "vllm serve", or "python3 -m vllm.entrypoints.openai.api_server --model".
# vLLM's own prefix cache is off, or the second request would find everything on the device and nothing would be loaded.
# Without KVPOOL_CONFIG_FILE and LMCACHE_* variables, 5 GB of memory are used.
set -euo pipefail
MODEL=${MODEL:-Qwen/Qwen3-8B}
PORT=${PORT:-8000}
VLLM=${VLLM:-vllm serve}
if [ -z "${KVPOOL_CONFIG_FILE:-}${LMCACHE_CONFIG_FILE:-}" ]; then
  export LMCACHE_MAX_LOCAL_CPU_SIZE=${LMCACHE_MAX_LOCAL_CPU_SIZE:-5.0}
fi
log=$(mktemp)

# shellcheck disable=SC2086
$VLLM "$MODEL" --host 127.0.0.1 --port "$PORT" --served-model-name example --no-enable-prefix-caching "$@" --kv-transfer-config '{
  "kv_connector": "KVPoolConnector",
  "kv_connector_module_path": "kvpool_connector.vllm",
  "kv_role": "kv_both"
}' >"$log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null; rm -f "$log"' EXIT

until curl -sf "http://127.0.0.1:$PORT/health" >/dev/null; do
  kill -0 $server 2>/dev/null || { cat "$log"; exit 1; }
  sleep 1
done

document=$(for day in $(seq 40); do printf 'Day %d: wind from the west, two ships, the lamp was cleaned. ' "$day"; done)
for _ in first second; do
  curl -sf "http://127.0.0.1:$PORT/v1/completions" -H "Content-Type: application/json" -d "{
    \"model\": \"example\", \"prompt\": \"$document\nWhat did the keeper clean?\", \"max_tokens\": 24, \"temperature\": 0
  }"
  echo
  kill -0 $server
done
grep -oE 'kvpool: .*|request [^ ]+: (hit|stored) .*' "$log"
