#!/usr/bin/env bash
# Make what a target needs: `tools/setup.sh [dev] [engine] [servers]`.
#
#   dev      .venvs/dev      checks, tests and the harness; no vLLM
#   engine   .venvs/engine   vLLM's CPU build, about 6 GB (files are shared with uv's cache)
#   servers  redis-server on the PATH, or unpacked from the distribution's package into the cache (no root)
#
# Idempotent: a stamp holds the hash of the inputs. Caches live outside the checkout ($KVPOOL_CACHE, and uv's own).
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE=${KVPOOL_CACHE:-$HOME/.cache/kvpool}
UV_VERSION=0.13.9
BEGAN=$SECONDS
say() { printf '[setup %3d s] %s\n' $((SECONDS - BEGAN)) "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "kvpool's tests need Linux; this is $(uname -s)"
PYTHON=$(command -v python3.11 || true)
[ -n "$PYTHON" ] || die "python3.11 is missing: install Python 3.11 and put it on the PATH"

UV=$(type -P uv || true)
if [ -z "$UV" ]; then
  UV=$CACHE/uv-$UV_VERSION/bin/uv
  if [ ! -x "$UV" ]; then
    say "uv $UV_VERSION into $CACHE"
    "$PYTHON" -m venv "$CACHE/uv-$UV_VERSION"
    "$CACHE/uv-$UV_VERSION/bin/pip" install -q --disable-pip-version-check "uv==$UV_VERSION"
  fi
fi

uv() { "$UV" "$@"; }

# venv NAME REQUIREMENTS [PACKAGE...]: a virtual environment that holds exactly the pinned requirements, and our packages as they stand.
venv() {
  local name=$1 requirements=$2 stamp; shift 2
  stamp=$(cat "$requirements" tools/setup.sh "${@/%//pyproject.toml}" <("$PYTHON" --version) | sha256sum)
  if [ "$(cat ".venvs/$name/stamp" 2>/dev/null)" = "$stamp" ]; then return; fi
  say "virtual environment .venvs/$name from $requirements ($(grep -c '==' "$requirements") packages)"
  uv venv -q --clear --python "$PYTHON" ".venvs/$name"
  uv pip install -q --python ".venvs/$name/bin/python" --no-deps --require-hashes -r "$requirements"
  for package in "$@"; do uv pip install -q --python ".venvs/$name/bin/python" --no-deps -e "$package"; done
  echo "$stamp" >".venvs/$name/stamp"
  say "virtual environment .venvs/$name is there"
}

servers() {
  command -v redis-server >/dev/null && return
  [ -x "$CACHE/redis/usr/bin/redis-server" ] && return
  command -v apt-get >/dev/null || die "redis-server is missing and apt-get is not here to get it: install Redis 7 or later"
  say "redis-server, unpacked into $CACHE/redis (nothing is installed on the machine)"
  local work; work=$(mktemp -d "$CACHE/redis.XXXX")
  (
    cd "$work"
    names=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
      redis-server | grep '^[a-z0-9]' | sort -u | grep -E '^(redis|lib(jemalloc|lua|lzf|hiredis|atomic))|^lua-' || true)
    [ -n "$names" ] || die "the package lists know no redis-server: run 'apt-get update' as root once"
    # shellcheck disable=SC2086
    apt-get download -q $names >/dev/null 2>&1 || true
    mkdir root
    for deb in *.deb; do dpkg-deb -x "$deb" root; done
  )
  [ -x "$work/root/usr/bin/redis-server" ] || die "redis-server could not be unpacked from its package"
  mv "$work/root" "$CACHE/redis"
  rm -rf "$work"
}

mkdir -p "$CACHE"
for what in "${@:-dev}"; do
  case $what in
    dev) venv dev requirements/dev.txt connector operator ;;
    engine) venv engine requirements/engine.txt connector ;;
    servers) servers ;;
    *) die "unknown part '$what': dev, engine, servers" ;;
  esac
done
