#!/usr/bin/env bash
# Pins with hashes and no index lines, so that they can be installed from any mirror.
set -euo pipefail
cd "$(dirname "$0")/../requirements"
PATH=$PATH:${KVPOOL_CACHE:-$HOME/.cache/kvpool}/uv-0.13.9/bin  # where tools/setup.sh puts uv
compile() { uv pip compile -q --upgrade --generate-hashes --no-emit-index-url --python-version 3.11 --no-header "$@"; }
for name in operator dev; do compile "$name.in" -o "$name.txt"; done
for name in engine lmcache; do compile "$name.in" --override engine.overrides -o "$name.txt"; done
# Wheels that are laid over the engine's environment: no dependencies of theirs.
for name in lmserver mooncake infinistore nixl router; do compile --no-deps "$name.in" -o "$name.txt"; done
compile ray.in --constraint engine.txt -o ray.txt
