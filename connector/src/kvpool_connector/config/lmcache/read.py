"""What was given, and where: LMCache's file in one of its two forms, or its variables. No value is interpreted here.

The file wins over the variables, as LMCache's guides say. (lmcache 0.5.6 itself lets a variable replace the file's value of the
same key, ``lmcache_get_or_create_config`` in ``integration/vllm/utils.py``; such variables are named in a warning.) Keys
``lmcache.*`` of ``kv_connector_extra_config`` replace both, as there.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kvpool_connector.config.errors import ConfigError
from kvpool_connector.config.lmcache.keys import FORMER_NAMES, KEYS
from kvpool_connector.config.lmcache.values import as_bool, unquoted

ENV_LMCACHE_FILE = "LMCACHE_CONFIG_FILE"
_PREFIX = "LMCACHE_"
_EXTRA_PREFIX = "lmcache."
_OF_A_SERVICE = re.compile(r"_(SERVICE_(HOST|PORT)|PORT)(_|$)")
"""Kubernetes tells every Pod about a Service named lmcache-... in variables that begin like LMCache's."""
_FOR_STORES = ("LMCACHE_RESP_USERNAME", "LMCACHE_RESP_PASSWORD")
_NESTED = {
    "local_cpu": {"enabled": "local_cpu", "buffer_size_gb": "max_local_cpu_size"},
    "remote": {"enabled": "", "url": "remote_url", "serde": "remote_serde"},
}
"""Section, its keys, and the flat key of each."""


@dataclasses.dataclass(frozen=True)
class Given:
    """A configuration in LMCache's words. Never shown as a whole: a URL may hold a password."""

    source: str
    """For messages."""
    values: dict[str, Any] = dataclasses.field(repr=False)
    """By flat key."""
    written: dict[str, str]
    """How the user wrote each key: as a variable, inside a section, ..."""
    unknown: tuple[str, ...] = ()
    """Keys that lmcache 0.5.6 does not read either."""
    others: tuple[str, ...] = ()
    """Variables of LMCache that say nothing about the cache: its log level, ..."""
    ignored: tuple[str, ...] = ()
    """Variables beside a file."""

    def name(self, key: str) -> str:
        """The key as the user knows it; where it was not given, as the source would have it."""
        return self.written.get(key) or (key if self.source.startswith(ENV_LMCACHE_FILE) else _PREFIX + key.upper())


def present(extra_config: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """What of LMCache's configuration is there, for people; empty: nothing."""
    if environ.get(ENV_LMCACHE_FILE):
        return ENV_LMCACHE_FILE
    extra = (f"kv_connector_extra_config.{name}" for name in extra_config if name.startswith(_EXTRA_PREFIX))
    return ", ".join([*sorted(_variables(environ)), *extra])


def find(extra_config: Mapping[str, Any], environ: Mapping[str, str]) -> Given | None:
    """LMCache's configuration, if there is one: a file, or a variable or an extra key that LMCache reads.

    Raises:
        ConfigError: a file that cannot be read or is not a mapping, an unknown key of a section.
    """
    keys = _variables(environ)
    others = sorted(
        name
        for name in environ
        if name.startswith(_PREFIX)
        and name not in {*keys, *_FOR_STORES, ENV_LMCACHE_FILE}
        and not _OF_A_SERVICE.search(name)
    )
    path = environ.get(ENV_LMCACHE_FILE)
    if path:
        content = _content(Path(path))
        written = {key: name for key, (name, _) in content.items()}
        values = {key: value for key, (_, value) in content.items()}
        source, ignored = f"{ENV_LMCACHE_FILE}={path}", tuple(sorted(keys))
    else:
        written = {key: name for name, key in keys.items()}
        values = {key: unquoted(environ[name]) for name, key in keys.items()}
        source, ignored = f"{_PREFIX}* variables", ()
    for name, value in extra_config.items():
        if name.startswith(_EXTRA_PREFIX):
            key = _key(name.removeprefix(_EXTRA_PREFIX))
            values[key], written[key] = value, f"kv_connector_extra_config.{name}"
    if not path and not values:
        return None
    unknown = tuple(written[key] for key in values if key not in KEYS)
    return Given(source, {k: v for k, v in values.items() if k in KEYS}, written, unknown, tuple(others), ignored)


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that LMCache reads as configuration, and the key of each."""
    keys = {name: _key(name.removeprefix(_PREFIX).lower()) for name in environ if name.startswith(_PREFIX)}
    return {name: key for name, key in keys.items() if key in KEYS}


def _key(name: str) -> str:
    return FORMER_NAMES.get(name, name)


def _content(path: Path) -> dict[str, tuple[str, Any]]:
    """By flat key: how it was written, and the value."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{ENV_LMCACHE_FILE}={path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        # Where, and not what: the line may hold a password.
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ConfigError(f"{ENV_LMCACHE_FILE}={path} is not YAML{where}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{ENV_LMCACHE_FILE}={path}: a mapping is expected, not {type(content).__name__}")
    flat: dict[str, tuple[str, Any]] = {}
    for name, value in content.items():
        if name in _NESTED and isinstance(value, Mapping):
            flat |= _section(str(name), value)
        else:
            flat[_key(str(name))] = (str(name), value)
    return flat


def _section(section: str, content: Mapping[Any, Any]) -> dict[str, tuple[str, Any]]:
    """A section of the nested form. Both are off unless they say ``enabled: true``."""
    known = _NESTED[section]
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{section}.{name}: unknown key, {hint}")
    enabled = as_bool(f"{section}.enabled", content.get("enabled", False))
    flat = {known[name]: (f"{section}.{name}", value) for name, value in content.items() if known[name]}
    if section == "local_cpu":
        flat["local_cpu"] = (f"{section}.enabled", enabled)
    elif not enabled:
        flat.pop("remote_url", None)
    elif not content.get("url"):
        raise ConfigError("remote.url: missing, though remote.enabled is true: name the server as host:port")
    return {key: entry for key, entry in flat.items() if entry[1] is not None}
