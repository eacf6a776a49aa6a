#!/usr/bin/env bash
# Make what a target needs: `tools/setup.sh [dev] [engine] [servers] [partners] [lmcache] [ray]`.
#
#   dev      .venvs/dev      checks, tests and the harness; no vLLM
#   engine   .venvs/engine   vLLM's CPU build, about 6 GB, kept in the cache
#   lmcache  .venvs/lmcache  the same vLLM with LMCache, for the comparison of make bench-engine; about 7 GB, kept in the cache
#   ray      .venvs/ray      Ray Serve over the engine's environment, for make test-ray; about 0.5 GB, kept in the cache
#   servers  real stores for tests, none of them installed on the machine: redis-server (on the PATH, or unpacked from the
#            distribution's package into the cache); lmcache_server, Mooncake and InfiniStore, each a folder in the cache with a wheel and what
#            it lacks, to be laid over the engine's environment by PYTHONPATH: .venvs/{lmserver,mooncake,infinistore}
#   partners what stands beside the connector in a deployment with prefill and decode, laid over in the same way: NIXL
#            (.venvs/nixl) and vLLM's router (.venvs/router)
#
# Idempotent: a stamp holds the hash of the inputs. Caches live outside the checkout ($KVPOOL_CACHE, and uv's own).
# `tools/setup.sh where engine` makes nothing: it prints the folder that `engine` would make.
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

# uv, from the PATH or installed into the cache when it is first needed.
UV=
uv() {
  [ -n "$UV" ] || find_uv
  "$UV" "$@"
}
find_uv() {
  UV=$(type -P uv || true)
  [ -z "$UV" ] || return 0
  UV=$CACHE/uv-$UV_VERSION/bin/uv
  [ ! -x "$UV" ] || return 0
  say "uv $UV_VERSION into $CACHE"
  "$PYTHON" -m venv "$CACHE/uv-$UV_VERSION"
  "$CACHE/uv-$UV_VERSION/bin/pip" install -q --disable-pip-version-check "uv==$UV_VERSION"
}

hash_of() { cat "$@" <("$PYTHON" --version) | sha256sum | cut -c1-16; }
home_of() { echo "$CACHE/$1-$(hash_of "requirements/$1.txt")"; }
install() { uv pip install -q --python "$1/bin/python" --no-deps "${@:2}"; }

# Small, and with our own packages in it: in the checkout.
dev() {
  local stamp; stamp=$(hash_of requirements/dev.txt connector/pyproject.toml operator/pyproject.toml)
  [ "$(cat .venvs/dev/stamp 2>/dev/null)" = "$stamp" ] && return
  say "virtual environment .venvs/dev ($(grep -c '==' requirements/dev.txt) packages)"
  uv venv -q --clear --python "$PYTHON" .venvs/dev
  install .venvs/dev --require-hashes -r requirements/dev.txt
  install .venvs/dev -e connector -e operator
  echo "$stamp" >.venvs/dev/stamp
}

# Large: in the cache, by the hash of its inputs, shared by all checkouts; .venvs/$1 is a link to it. Compiled to bytecode, since
# Pods mount it read-only, and importing vLLM from sources takes minutes. Our connector is not in it: it comes by PYTHONPATH.
with_vllm() {
  local home; home=$(home_of "$1")
  mkdir -p .venvs
  if [ ! -d "$home" ]; then
    local work; work=$home.$$
    say "$2 into $home ($(grep -c '==' "requirements/$1.txt") packages)"
    uv venv -q --clear --relocatable --python "$PYTHON" "$work"
    install "$work" --require-hashes -r "requirements/$1.txt"
    say "compiling it to bytecode"
    nice "$work/bin/python" -m compileall -q -j 2 "$work/lib" >/dev/null 2>&1 || true  # some packages ship files for other Pythons
    mv -T "$work" "$home" 2>/dev/null || rm -rf "$work"  # someone else was first
    say "$2 is there"
  fi
  ln -sfnT "$home" ".venvs/$1"
}

engine() { with_vllm engine "vLLM's CPU build, about 6 GB,"; }

# Over the engine's environment, which its packages shadow: they are the same versions.
ray() {
  engine
  local home; home=$CACHE/ray-$(hash_of requirements/ray.txt requirements/engine.txt)
  if [ ! -d "$home" ]; then
    local work; work=$home.$$
    say "Ray Serve into $home ($(grep -c '==' requirements/ray.txt) packages)"
    uv venv -q --clear --relocatable --python "$PYTHON" "$work"
    install "$work" --require-hashes -r requirements/ray.txt
    readlink -f .venvs/engine/lib/python3.11/site-packages >"$work/lib/python3.11/site-packages/engine.pth"
    mv -T "$work" "$home" 2>/dev/null || rm -rf "$work"  # someone else was first
  fi
  ln -sfnT "$home" .venvs/ray
}

lmcache() { with_vllm lmcache "LMCache with vLLM's CPU build, about 7 GB,"; }

servers() {
  redis_server
  overlay lmserver
  overlay mooncake mooncake_libraries
  overlay infinistore
}

partners() {
  overlay nixl
  overlay router
}

# A folder for PYTHONPATH with the wheels of requirements/$1.txt and nothing that they depend on; $2 adds to it.
overlay() {
  local home; home=$(home_of "$1")
  mkdir -p .venvs
  if [ ! -d "$home" ]; then
    local work; work=$home.$$
    say "$1 into $home"
    uv pip install -q --python "$PYTHON" --target "$work" --no-deps --require-hashes -r "requirements/$1.txt"
    [ -z "${2:-}" ] || "$2" "$work"
    mv -T "$work" "$home" 2>/dev/null || rm -rf "$work"  # someone else was first
  fi
  ln -sfnT "$home" ".venvs/$1"
}

# Mooncake's programs and client are linked to these.
mooncake_libraries() { unpack "$1/debian" libibverbs1 libnuma1 libnl-3-200 libnl-route-3-200; }

redis_server() {
  command -v redis-server >/dev/null && return
  [ -x "$CACHE/redis/usr/bin/redis-server" ] && return
  say "redis-server, unpacked into $CACHE/redis (nothing is installed on the machine)"
  package_lists redis-server
  local names work; work=$(mktemp -d "$CACHE/redis.XXXX")
  names=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    redis-server | grep '^[a-z0-9]' | sort -u | grep -E '^(redis|lib(jemalloc|lua|lzf|hiredis|atomic))|^lua-' || true)
  # shellcheck disable=SC2086
  unpack "$work/root" $names
  [ -x "$work/root/usr/bin/redis-server" ] || die "redis-server could not be unpacked from its package"
  mv "$work/root" "$CACHE/redis"
  rm -rf "$work"
}

# Debian's packages $2... into the folder $1, without installing them.
unpack() {
  local root=$1 work; shift
  package_lists "$1"
  work=$(mktemp -d "$CACHE/debs.XXXX")
  (cd "$work" && apt-get download -q "$@" >/dev/null 2>&1) || true  # virtual packages among them have nothing to download
  mkdir -p "$root"
  for deb in "$work"/*.deb; do
    [ -e "$deb" ] || die "apt-get could not download any of: $*"
    dpkg-deb -x "$deb" "$root"
  done
  rm -rf "$work"
}

package_lists() {
  command -v apt-get >/dev/null || die "$1 is missing and apt-get is not here to get it: install it"
  [ -n "$(apt-cache pkgnames "$1" 2>/dev/null)" ] && return
  if [ "$(id -u)" = 0 ]; then apt-get update -qq; fi
  [ -n "$(apt-cache pkgnames "$1" 2>/dev/null)" ] || die "the package lists know no $1: run 'apt-get update' as root once"
}

if [ "${1:-}" = where ]; then
  home_of "${2:?the name of an environment}"
  exit
fi
mkdir -p "$CACHE"
for what in "${@:-dev}"; do
  case $what in
    dev) dev ;;
    engine) engine ;;
    servers) servers ;;
    partners) partners ;;
    lmcache) lmcache ;;
    ray) ray ;;
    *) die "unknown part '$what': dev, engine, servers, partners, lmcache, ray" ;;
  esac
done
