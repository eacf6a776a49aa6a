"""Sizes as people write them, in both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_connector.config import format_bytes, parse_quantity


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), (0, 0), (1024, 1024), ("1024", 1024), (" 5Gi ", 5 << 30), ("1k", 1000), ("1Ki", 1024), ("1M", 10**6),
        ("1Mi", 1 << 20), ("1.5Gi", 3 << 29), (".5Ki", 512), ("5.Ki", 5120), ("1E", 10**18), ("1Ei", 1 << 60), ("1e9", 10**9),
        ("1E9", 10**9), ("1e+3", 1000), ("15e-1k", None), ("1500e-2", 15), ("2Ti", 2 << 40), ("1P", 10**15), ("0.5", None),
        ("1e-1", None), ("-1", None), ("1K", None), ("1ki", None), ("1KiB", None), ("1 Gi", None), ("Gi", None), ("", None),
        ("1e", None), ("1e100", None), ("0x10", None), ("1_000", None), ("\u0661", None), ("inf", None), ("nan", None),
    ],
)  # fmt: skip
def test_quantities(text: str | int, count: int | None) -> None:
    """As Kubernetes reads them, as far as they are whole bytes."""
    if count is None:
        with pytest.raises(ValueError, match=r"is not a (size|whole number of bytes)"):
            parse_quantity(text)
    else:
        assert parse_quantity(text) == count


UNITS = {
    "": 1,
    "k": 1000,
    "Ki": 1 << 10,
    "M": 10**6,
    "Mi": 1 << 20,
    "G": 10**9,
    "Gi": 1 << 30,
    "T": 10**12,
    "Ti": 1 << 40,
}


@given(st.integers(0, 1 << 63), st.sampled_from(sorted(UNITS)))
def test_a_quantity_that_was_written_is_read(count: int, unit: str) -> None:
    """Exactly, also above what a float holds."""
    whole, rest = divmod(count, UNITS[unit])
    if rest == 0:
        assert parse_quantity(f"{whole}{unit}") == count
    assert parse_quantity(count) == parse_quantity(str(count)) == count


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    """Never another exception, never a negative size."""
    try:
        assert parse_quantity(text) >= 0
    except ValueError as error:
        assert repr(text) in str(error)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 << 30, "8 GiB"), (5 << 50, "5120 TiB"), (-2048, "-2 KiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    """Binary units, at most one decimal."""
    assert format_bytes(count) == text
