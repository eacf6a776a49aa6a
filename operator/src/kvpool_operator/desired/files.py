"""Configuration files by Jinja2, and hashes. Kubernetes objects are never made from text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("kvpool_operator.desired", "templates"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  (these are not HTML files, and no user's text goes into them)
        keep_trailing_newline=True,
        trim_blocks=True,
    )


def render(template: str, **values: object) -> str:
    """The file, or an error if the template uses a value that is not given."""
    return _environment().get_template(template).render(**values)


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return a file of YAML for content that JSON can hold, in the order of its keys.

    A pool's file is part of each of its engines, and PyYAML takes a millisecond or more for it. So the
    texts of the last contents are kept.
    """
    return _yaml_of(json.dumps(content))


@lru_cache(maxsize=64)
def _yaml_of(content: str) -> str:
    return yaml.safe_dump(json.loads(content), sort_keys=False, allow_unicode=True)


def digest(value: Any) -> str:
    """16 hexadecimal digits that change with the value. For annotations; not for secrets."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
