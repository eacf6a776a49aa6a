"""Where the configuration comes from, and errors a person can act on.

Two places of our own, never both: the file named by ``KVPOOL_CONFIG_FILE`` (what the operator mounts), or the mapping under
``kvpool`` in vLLM's ``kv_connector_extra_config`` (what a person starting vLLM by hand writes). Where neither is there, LMCache's
configuration is read, see :mod:`kvpool_connector.config.lmcache`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from kvpool_connector.config import lmcache
from kvpool_connector.config.errors import ConfigError
from kvpool_connector.config.lmcache import Line
from kvpool_connector.config.model import CONFIG_VERSION, ConnectorConfig
from kvpool_connector.names import ENV_CONFIG_FILE

EXTRA_CONFIG_KEY = "kvpool"


@dataclasses.dataclass(frozen=True)
class Found:
    """A configuration, and what should be said about where it came from."""

    config: ConnectorConfig
    lines: tuple[Line, ...] = ()
    from_lmcache: bool = False
    """In LMCache's words: they were written without kvpool in mind, so ``chunk_tokens`` is what should be come near to."""


def load(extra_config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> ConnectorConfig:
    """The configuration of this process, see :func:`find`, for an engine of one rank."""
    return find(extra_config, environ).config


def find(extra_config: Mapping[str, Any], environ: Mapping[str, str] = os.environ, *, ranks: int = 1) -> Found:
    """The configuration of this process.

    Args:
        extra_config: vLLM's ``kv_connector_extra_config``.
        environ: the process environment.
        ranks: of the engine; only LMCache's sizes depend on it.

    Raises:
        ConfigError: no source, two sources, an unreadable file, or invalid content.
    """
    path = environ.get(ENV_CONFIG_FILE)
    inline = extra_config.get(EXTRA_CONFIG_KEY)
    ours = f"kv_connector_extra_config.{EXTRA_CONFIG_KEY}"
    if path and inline is not None:
        raise ConfigError(f"two configurations: {ENV_CONFIG_FILE}={path} and {ours}; remove one")
    if path:
        return Found(_read(Path(path)), _besides(ENV_CONFIG_FILE, extra_config, environ))
    if inline is not None:
        return Found(parse(inline, ours), _besides(ours, extra_config, environ))
    given = lmcache.find(extra_config, environ)
    if given is None:
        raise ConfigError(
            f"no configuration: set {ENV_CONFIG_FILE} to a file, or {ours} to a mapping such as "
            '{"tiers": {"cpu": {"size": "8Gi"}}}; LMCache\'s are read too: '
            f"{lmcache.ENV_LMCACHE_FILE}, or variables such as LMCACHE_MAX_LOCAL_CPU_SIZE=8"
        )
    translation = lmcache.translate(given, environ, ranks)
    return Found(parse(translation.content, f"{given.source}, in kvpool's words"), translation.lines, True)


def _besides(ours: str, extra_config: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Line, ...]:
    """One line where LMCache's configuration is there as well. Its content does not matter, not even whether it can be read."""
    present = lmcache.present(extra_config, environ)
    return (Line(f"{ours} is used; LMCache's configuration ({present}) is not read"),) if present else ()


def _read(path: Path) -> ConnectorConfig:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{ENV_CONFIG_FILE}={path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML lets a ValueError through for a date that does not exist
        raise ConfigError(f"{path} is not YAML: {error}") from None
    return parse(content, str(path))


def parse(content: object, source: str) -> ConnectorConfig:
    """Check the content of one source.

    Raises:
        ConfigError: one line per fault, each with the field's path and the fix.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{source}: a mapping is expected, not {type(content).__name__}")
    version = content.get("version", CONFIG_VERSION)
    if isinstance(version, int) and version > CONFIG_VERSION:
        raise ConfigError(
            f"{source}: version {version} is newer than this connector reads ({CONFIG_VERSION}): "
            "update the connector in the engine's image, or let the older operator write the file"
        )
    try:
        return ConnectorConfig.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(_explain(fault["type"], fault["loc"], fault["msg"]) for fault in error.errors())
        raise ConfigError(f"{source}: {faults}") from None


def _explain(kind: str, location: tuple[int | str, ...], message: str) -> str:
    models, path = _walk(location)
    field = ".".join(path) or "the file"
    if kind.startswith("union_tag"):
        known = [value for model in models for value in get_args(model.model_fields["type"].annotation)]
        return f"{field}.type: must be one of {', '.join(known)}"
    if kind != "extra_forbidden":
        return f"{field}: {message.removeprefix('Value error, ')}"
    near = difflib.get_close_matches(str(location[-1]), [key for model in models for key in model.model_fields], n=1)
    return f"{field}: unknown key" + (f", did you mean '{near[0]}'?" if near else ": remove it")


def _walk(location: tuple[int | str, ...]) -> tuple[list[type[BaseModel]], list[str]]:
    """The models that describe the innermost mapping of a place, and its path in the file: pydantic names the branch of a
    union between the keys, which the file has not."""
    models: list[type[BaseModel]] = [ConnectorConfig]
    path: list[str] = []
    for part in location:
        tagged = [
            model for model in models if len(models) > 1 and part in get_args(model.model_fields["type"].annotation)
        ]
        if tagged:
            models = tagged
            continue
        path.append(str(part))
        fields = [model.model_fields[str(part)].annotation for model in models if str(part) in model.model_fields]
        models = [model for field in fields for model in _models_in(field)] or models
    return models, path


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
