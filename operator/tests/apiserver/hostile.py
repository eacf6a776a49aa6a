"""Pools and Pods as somebody would write them who wants something of the operator that is not theirs. Pure."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

TEXTS = (
    "../../../kube-system/secrets/admin",
    "..",
    "%2e%2e%2fsecrets",
    "a/b/c",
    "a\x00b",
    "a\r\nAUTH stolen",
    "x" * 5000,
    "x" * (1 << 20),
    "\uff44\uff45\uff4d\uff4f",
    "d\u0435mo",
    "{{ 7 * 7 }}",
    "${jndi:ldap://x}",
    "$(id)",
    "'; FLUSHALL; '",
    "*",
    "&a [*a, *a]",
    "-rf",
    "127.0.0.1:99999",
    "http://169.254.169.254/latest",
    "etcd://a:1;../b:2",
    "",
    " ",
)
"""Paths, encoded paths, NUL, line ends, long texts (one of 1 MB), look-alikes, templates, shells, queries, aliases,
addresses."""
VALUES: tuple[Any, ...] = (None, True, 0, -1, 2**63, 1e30, "1", [], {}, [[]], {"a": {"b": 1}}, ["x"] * 300)
"""Other types and sizes."""
BASES: tuple[dict[str, Any], ...] = (
    {
        "model": {"name": "org/model", "revision": "main", "servedName": "m"},
        "backend": {"type": "Redis", "memory": "1Gi", "image": "redis:8"},
        "tiers": {"cpu": {"size": "1Gi"}, "disk": {"size": "1Gi", "path": "/data"}},
        "engines": [
            {
                "name": "a",
                "image": "vllm:1",
                "args": ["--max-model-len", "4096"],
                "env": [{"name": "E", "value": "v"}],
                "hfTokenSecretRef": {"name": "hf", "key": "token"},
                "podTemplate": {"spec": {"nodeSelector": {"a": "b"}, "volumes": [{"name": "v", "emptyDir": {}}]}},
            }
        ],
        "injection": {"allowedNamespaces": ["kube-public"]},
        "isolation": {"tenant": "t"},
    },
    {
        "backend": {
            "type": "Valkey",
            "external": {"host": "127.0.0.1", "port": 9, "auth": {"secretRef": {"name": "s", "passwordKey": "p"}}},
        }
    },
    {
        "backend": {
            "type": "Redis",
            "external": {
                "sentinel": {
                    "masterName": "m",
                    "endpoints": [{"host": "127.0.0.1", "port": 9}],
                    "primaryHosts": ["10.0.0.0/8"],
                },
                "auth": {"secretRef": {"name": "s"}},
            },
        }
    },
    {"backend": {"type": "Mooncake", "external": {"master": "127.0.0.1:9", "metadataServer": "http://127.0.0.1:9/m"}}},
    {"backend": {"type": "Mooncake", "etcd": {"external": {"endpoints": ["127.0.0.1:9"]}}}},
    {"backend": {"type": "LMCacheServer", "memory": "1Gi"}},
)
Path = tuple[str | int, ...]


def pools(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield so many specs, the same ones for the same seed. Each has one or two things wrong."""
    draw = random.Random(seed)
    for _ in range(count):
        spec = copy.deepcopy(draw.choice(BASES))
        for _ in range(draw.choice((1, 1, 2))):
            _spoil(spec, draw)
        yield spec


KEYS = (
    "kvpool.dev/pool",
    "kvpool.dev/container",
    "kvpool.dev/memory",
    "kvpool.dev/injected",
    "kvpool.dev/skip-reason",
    "kvpool.dev/warning",
)
"""Annotations that the operator reads or writes."""
SCRIPTS = (
    "vllm serve m " + "# " * 200_000,
    "vllm serve m '" + "x" * 60_000 + "'",
    "vllm serve m '" + "x" * (1 << 20) + "'",
    "vllm serve m " + "$(" * 2000,
    "vllm serve m " + "'" * 4999,
    "vllm serve m --kv-transfer-config '" + '{"a":' * 3000,
    "exec vllm serve m --port 8000 | tee /tmp/x; " * 900,
    "vllm serve ${A:-${B:-${C}}} \\\n" * 5000,
)
"""Long, deeply nested and unfinished texts where a shell script would be."""
VARIABLES = ("PYTHONPATH", "PYTHONHASHSEED", "KVPOOL_CONFIG_FILE", "KVPOOL_CONFLICT_POLICY", "KVPOOL_ON_FAILURE")
"""What injection reads or writes of an environment."""


def pods(count: int, seed: int) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield so many pairs of annotations and fields of a container, the same ones for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        annotations = {"kvpool.dev/pool": draw.choice(("demo", draw.choice(TEXTS)))}
        annotations |= {key: draw.choice(TEXTS) for key in draw.sample(KEYS[1:], draw.randrange(3))}
        yield annotations, draw.choice((_script, _variable, _nothing))(draw)


def _script(draw: random.Random) -> dict[str, Any]:
    return {"command": ["bash", "-c"], "args": [draw.choice((*SCRIPTS, *TEXTS))]}


def _variable(draw: random.Random) -> dict[str, Any]:
    names = draw.sample(VARIABLES, draw.randrange(1, 3))
    return {"env": [{"name": name, "value": draw.choice(TEXTS)} for name in names]}


def _nothing(draw: random.Random) -> dict[str, Any]:
    return {}


def _spoil(spec: dict[str, Any], draw: random.Random) -> None:
    path = draw.choice(list(_places(spec)))
    parent: Any = spec
    for key in path[:-1]:
        parent = parent[key]
    kind = draw.random()
    if kind < 0.65:
        parent[path[-1]] = draw.choice(TEXTS)
    elif kind < 0.9:
        parent[path[-1]] = copy.deepcopy(draw.choice(VALUES))
    elif isinstance(parent, dict):
        parent[draw.choice(TEXTS)] = copy.deepcopy(parent[path[-1]])


def _places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of all values, also of those that have others in them."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in entries:
        yield from _places(below, (*path, key))
