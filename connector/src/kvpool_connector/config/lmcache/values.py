"""Values as LMCache writes them. What LMCache would take for something else in silence is refused here."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from typing import Any

from kvpool_connector.config.errors import ConfigError

GIB = 1 << 30
"""LMCache says GB and multiplies by 1024^3 (local_cpu_backend.py, local_disk_backend.py)."""


def unquoted(text: str) -> str:
    """A variable's value without the quotes around it, which LMCache takes away too."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        try:
            return str(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            return text[1:-1]
    return text


def is_off(value: object) -> bool:
    """Whether the value only says that a feature is not wanted."""
    return (
        value is None or value in (False, 0, [], {}) or str(value).strip().lower() in ("", "false", "0", "none", "null")
    )


def as_bool(key: str, value: object) -> bool:
    """Raises:
    ConfigError: neither true nor false. LMCache takes any such word, "yes" too, for false.
    """
    word = str(value).strip().lower()
    if word not in ("true", "1", "false", "0"):
        raise ConfigError(f"{key}: {value!r} is neither True nor False: write one of them")
    return word in ("true", "1")


def as_int(key: str, value: object, least: int, most: int) -> int:
    """Raises:
    ConfigError: not a whole number, or out of bounds.
    """
    wanted = f"a whole number from {least} to {most}"
    number = _number(key, value, wanted)
    if number != int(number) or not least <= number <= most:
        raise ConfigError(f"{key}: {value!r} is not {wanted}")
    return int(number)


def as_bytes(key: str, value: object) -> int:
    """A size in GB, as bytes.

    Raises:
        ConfigError: not a number, or less than 1 MiB.
    """
    number = _number(key, value, "a number of GB, such as 5.0")
    if not (1 << 20) <= number * GIB <= 1 << 50:
        raise ConfigError(f"{key}: {value!r} GB holds nothing: write the GB that each rank may use, such as 5.0")
    return int(number * GIB)


def as_mapping(key: str, value: object) -> dict[str, Any]:
    """Of the file a mapping, of a variable JSON; absent: empty.

    Raises:
        ConfigError: neither.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{key}: not JSON (line {error.lineno}, column {error.colno}): write a JSON object"
            ) from None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: a mapping is expected, not {type(value).__name__}")
    return {str(name): each for name, each in value.items()}


def _number(key: str, value: object, what: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise ConfigError(f"{key}: {value!r} is not {what}") from None
    return number
