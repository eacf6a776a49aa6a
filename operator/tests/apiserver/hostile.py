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


KEYS = ("kvpool.dev/pool", "kvpool.dev/container", "kvpool.dev/memory", "kvpool.dev/injected", "kvpool.dev/skip-reason")
"""Annotations that the operator reads or writes."""
VARIABLE = "VLLM_ADDITIONAL_ARGS"
"""Without it in a script the script is not read any further."""
SCRIPTS = (
    f"vllm serve m ${VARIABLE} " + "# " * 200_000,
    f"vllm serve m ${VARIABLE} " + "# " * 30_000,
    f"vllm serve m ${VARIABLE} '" + "x" * 60_000 + "'",
    f"vllm serve m ${VARIABLE} '" + "x" * (1 << 20) + "'",
    f"vllm serve m ${VARIABLE} " + "$(" * 2000,
    f"vllm serve m ${VARIABLE} " + "'" * 4999,
    f"vllm serve m ${VARIABLE} --kv-transfer-config '" + '{"a":' * 3000,
    f"exec vllm serve m ${VARIABLE} --port 8000 | tee /tmp/x; " * 900,
    "vllm serve ${A:-${B:-${C}}} \\\n" * 5000,
)
"""Long, deeply nested and unfinished texts where a shell script would be."""
WORDS = (
    "'" + "x" * 60_000 + "'",
    "'" + "x" * (1 << 20) + "'",
    "'" * 4999,
    "--kv-transfer-config '" + '{"a":' * 3000,
    "--a " * 15_000,
)
"""The like where arguments for a shell would be."""
CONNECTORS = (
    '{"a":' * 3000,
    "[" * 5000,
    "1" * 5000,
    '{"kv_connector":"Other","a":' + '{"a":' * 500 + "1" + "}" * 501,
    '{"kv_connector":"MultiConnector","kv_connector_extra_config":{"connectors":['
    + '{"a":' * 500
    + "1"
    + "}" * 500
    + "]}}",
    '{"kv_connector":"Other","a":"' + "x" * (1 << 20) + '"}',
    '{"kv_connector":"\\ud800"}',
)
"""The like where the JSON of a connector would be."""


def pods(count: int, seed: int) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield so many pairs of annotations and fields of a container, the same ones for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        annotations = {"kvpool.dev/pool": draw.choice(("demo", draw.choice(TEXTS)))}
        annotations |= {key: draw.choice(TEXTS) for key in draw.sample(KEYS[1:], draw.randrange(3))}
        yield annotations, draw.choice((_script, _variable, _connector, _nothing))(draw)


def _script(draw: random.Random) -> dict[str, Any]:
    return {"command": ["bash", "-c"], "args": [draw.choice((*SCRIPTS, *TEXTS))]}


def _variable(draw: random.Random) -> dict[str, Any]:
    value = draw.choice((*WORDS, *TEXTS))
    script = f"vllm serve m ${VARIABLE}"
    return {"command": ["bash", "-c"], "args": [script], "env": [{"name": VARIABLE, "value": value}]}


def _connector(draw: random.Random) -> dict[str, Any]:
    return {"args": ["--kv-transfer-config", draw.choice((*CONNECTORS, *TEXTS))]}


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
