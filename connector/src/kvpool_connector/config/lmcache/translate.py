"""What a configuration in LMCache's words means here: kvpool's configuration, and a few lines that answer every key.

A contradiction, and a value that would lose data or hit nothing, is an error; what is merely not needed or not offered is said.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from kvpool_connector.config.errors import ConfigError
from kvpool_connector.config.lmcache.keys import KEYS, Verdict
from kvpool_connector.config.lmcache.read import Given
from kvpool_connector.config.lmcache.urls import Extra, remote_section
from kvpool_connector.config.lmcache.values import as_bool, as_bytes, as_int, as_mapping, is_off

_POLICIES = {"LRU": "lru", "LFU": "slru", "FIFO": "lru", "MRU": "lru"}
_DEFAULT_GB = 5.0
"""LMCache's memory tier of a rank where nothing is said."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Something to say at start. No secret is in it."""

    text: str
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Translation:
    """``content`` is what kvpool's own file would say."""

    content: dict[str, Any]
    lines: tuple[Line, ...]


def translate(given: Given, environ: Mapping[str, str], ranks: int) -> Translation:
    """Args:
        environ: for what LMCache's clients of stores read from it.
        ranks: of the engine. LMCache's sizes are a rank's, ours are the engine's.

    Raises:
        ConfigError: names the key as the user wrote it, and the fix.
    """
    values, name = given.values, given.name
    content: dict[str, Any] = {
        "tiers": _tiers(given, ranks),
        "offload_generated_tokens": as_bool(name("save_decode_cache"), values.get("save_decode_cache", False)),
    }
    if values.get("chunk_size") is not None:
        content["chunk_tokens"] = as_int(name("chunk_size"), values["chunk_size"], 1, 65_536)
    extra = Extra(as_mapping(name("extra_config"), values.get("extra_config")))
    serde = values.get("remote_serde")
    if str(serde or "naive").strip().lower() != "naive":
        raise ConfigError(f"{name('remote_serde')}: {serde!r} is not offered: KV is stored as it is: set it to naive")
    if values.get("remote_url"):
        content["remote"] = remote_section(name("remote_url"), values["remote_url"], extra, environ) | _timeouts(given)
    return Translation(content, tuple(_answers(given, content, extra, ranks)))


def _tiers(given: Given, ranks: int) -> dict[str, Any]:
    values, name = given.values, given.name
    local_cpu = as_bool(name("local_cpu"), values.get("local_cpu", True))
    folders = _folders(values.get("local_disk"))
    if not local_cpu and not folders and not values.get("remote_url"):
        raise ConfigError(
            f"{name('local_cpu')}: off, and there is neither {name('local_disk')} nor {name('remote_url')}: nothing could be "
            "kept; set it to True, or name one of them"
        )
    policy = str(values.get("cache_policy") or "LRU").strip().upper()
    if policy not in _POLICIES:
        raise ConfigError(f"{name('cache_policy')}: {policy!r} must be one of {', '.join(_POLICIES)}")
    size = as_bytes(name("max_local_cpu_size"), values.get("max_local_cpu_size", _DEFAULT_GB)) * ranks
    tiers: dict[str, Any] = {"cpu": {"size": size, "eviction_policy": _POLICIES[policy]}}
    if folders:
        if is_off(values.get("max_local_disk_size")):
            raise ConfigError(
                f"{name('max_local_disk_size')}: {name('local_disk')} is set, but not how many GB it may use"
            )
        tiers["disk"] = {
            "path": folders[0],
            "size": as_bytes(name("max_local_disk_size"), values["max_local_disk_size"]) * ranks,
            "eviction_policy": _POLICIES[policy],
        }
    elif not is_off(values.get("max_local_disk_size")):
        raise ConfigError(
            f"{name('local_disk')}: missing, though {name('max_local_disk_size')} is set: name the folder"
        )
    return tiers


def _folders(local_disk: object) -> list[str]:
    return [part.strip().removeprefix("file://") for part in str(local_disk or "").split(",") if part.strip()]


def _timeouts(given: Given) -> dict[str, Any]:
    values, name = given.values, given.name
    timeouts: dict[str, int] = {}
    if values.get("blocking_timeout_secs") is not None:
        seconds = as_int(name("blocking_timeout_secs"), values["blocking_timeout_secs"], 1, 1 << 31)
        timeouts |= dict.fromkeys(("fetch_ms", "put_ms"), min(seconds, 120) * 1000)
    if values.get("lookup_timeout_ms") is not None:
        timeouts["lookup_ms"] = min(as_int(name("lookup_timeout_ms"), values["lookup_timeout_ms"], 1, 1 << 31), 10_000)
    return {"timeouts": timeouts} if timeouts else {}


def _answers(given: Given, content: Mapping[str, Any], extra: Extra, ranks: int) -> list[Line]:
    """One line for each verdict that some given key has. Only what is honoured is told with its value, and no URL is."""
    honoured: list[str] = []
    because: dict[Verdict, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key, value in given.values.items():
        verdict, why = KEYS[key]
        if verdict is Verdict.HONOURED:
            honoured.append(given.name(key) if key in ("remote_url", "extra_config") else f"{given.name(key)}={value}")
        elif verdict is Verdict.NOT_OFFERED and is_off(value):
            honoured.append(f"{given.name(key)} (off)")
        else:
            because[verdict][why].append(given.name(key))
    if extra.unused:
        because[Verdict.NO_EFFECT]["kvpool's clients of stores have no such setting"] += [
            f"extra_config.{key}" for key in extra.unused
        ]
    size, first = content["tiers"]["cpu"]["size"], f"honoured: {', '.join(honoured)}; " if honoured else ""
    per_rank = f"{size / ranks / 2**30:g} GiB for each of {ranks} ranks" if ranks > 1 else f"{size / 2**30:g} GiB"
    lines = [Line(f"configuration of LMCache from {given.source}: {first}memory tier of {per_rank}")]
    for verdict, warning in ((Verdict.NO_EFFECT, False), (Verdict.NOT_OFFERED, True)):
        reasons = "; ".join(f"{', '.join(keys)} ({why})" for why, keys in because[verdict].items())
        if reasons:
            lines.append(Line(f"LMCache's keys, {verdict.value}: {reasons}", warning))
    return lines + _warnings(given)


def _warnings(given: Given) -> list[Line]:
    lines: list[Line] = []
    if not as_bool(given.name("local_cpu"), given.values.get("local_cpu", True)):
        lines.append(
            Line(f"{given.name('local_cpu')} is off: the memory stays the way to disk and store, and is hit too")
        )
    if len(folders := _folders(given.values.get("local_disk"))) > 1:
        lines.append(
            Line(f"{given.name('local_disk')}: of {len(folders)} folders only {folders[0]} is used", warning=True)
        )
    if given.ignored:
        lines.append(Line(f"{', '.join(given.ignored)}: not read, since {given.source} is there", warning=True))
    if given.others:
        lines.append(Line(f"nothing about the cache, not read: {', '.join(given.others)}"))
    if given.unknown:
        lines.append(
            Line(f"no configuration keys of lmcache 0.5.6, not read: {', '.join(given.unknown)}", warning=True)
        )
    return lines
