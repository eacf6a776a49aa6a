"""Byte sizes as Kubernetes writes them ("8Gi", "500M", "1e9"), without a Kubernetes client.

Source of the grammar: the documentation of ``resource.Quantity`` in k8s.io/apimachinery.
"""

from __future__ import annotations

import re
from decimal import Decimal

_FACTORS = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
_QUANTITY = re.compile(r"(?P<number>[0-9]+(\.[0-9]*)?|\.[0-9]+)(?P<suffix>k|[MGTPE]i?|Ki|[eE][+-]?[0-9]{1,2})?")


def parse_quantity(text: str | int) -> int:
    """Bytes in a quantity.

    Raises:
        ValueError: not a quantity, negative, or less than a whole byte; the message names the accepted form.
    """
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number with an optional unit, such as 8Gi or 500M")
    suffix = match["suffix"] or ""
    exponent = suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix[1:] != "i"
    value = Decimal(match["number"]) * (Decimal(10) ** int(suffix[1:]) if exponent else _FACTORS[suffix])
    if value != value.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(value)


def format_bytes(count: int) -> str:
    """The size for people: binary units, at most one decimal ("1.5 GiB")."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
