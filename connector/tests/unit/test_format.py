"""Header and checksum of a part. The page docs/format.md is the specification; its examples are checked here."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpool_connector import format as part_format
from kvpool_connector.format import HEADER_BYTES, Verdict, check, part_name, seal

PAGE = Path(__file__).resolve().parents[3] / "docs/format.md"
IDENTITY = "00112233445566778899aabbccddeeff"
KEY = bytes(range(36))
NAME = part_name(IDENTITY, 0, KEY)


def sealed(payload: bytes) -> bytearray:
    """A part with this payload."""
    part = bytearray(HEADER_BYTES) + payload
    seal(memoryview(part), IDENTITY, NAME)
    return part


def verdict(part: bytearray) -> Verdict:
    """What a reader finds."""
    return check(memoryview(part), IDENTITY, NAME)


@given(st.binary(max_size=300))
def test_what_was_sealed_is_intact(payload: bytes) -> None:
    """And the payload is as it was."""
    part = sealed(payload)
    assert verdict(part) is Verdict.INTACT
    assert part[HEADER_BYTES:] == payload


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 4, Verdict.NO_PART),
        (4, 2, Verdict.OTHER_VERSION),
        (6, 2, Verdict.OTHER_VERSION),  # codec
        (8, 8, Verdict.OTHER_LENGTH),
        (16, 8, Verdict.DAMAGED),  # checksum
        (24, 16, Verdict.OTHER_IDENTITY),
        (40, 16, Verdict.OTHER_NAME),
        (56, 8, Verdict.OTHER_VERSION),  # reserved
        (64, 100, Verdict.DAMAGED),
    ],
)
def test_each_field_has_a_verdict_of_its_own(offset: int, length: int, expected: Verdict) -> None:
    """Each byte of each field counts."""
    whole = sealed(bytes(range(100)))
    for position in range(offset, offset + length):
        part = bytearray(whole)
        part[position] ^= 0xFF
        assert verdict(part) is expected, position


@given(st.binary(min_size=1, max_size=200), st.data())
@settings(max_examples=300)
def test_no_flipped_bit_is_intact(payload: bytes, data: st.DataObject) -> None:
    """Anywhere in header or payload."""
    part = sealed(payload)
    bit = data.draw(st.integers(0, 8 * len(part) - 1))
    part[bit // 8] ^= 1 << bit % 8
    assert verdict(part) is not Verdict.INTACT


def test_memory_that_was_never_written() -> None:
    """A row as the kernel gives it."""
    assert verdict(bytearray(4096)) is Verdict.NO_PART


def test_a_part_of_another_length_is_not_read() -> None:
    """A shorter or longer row than the writer's."""
    part = sealed(bytes(100))
    assert verdict(part[:-1]) is Verdict.OTHER_LENGTH
    assert verdict(part + b"\0") is Verdict.OTHER_LENGTH


def test_a_part_of_another_rank_key_or_model_is_not_read() -> None:
    """The bytes are whole, but they belong to somebody else."""
    part = memoryview(sealed(bytes(100)))
    assert check(part, IDENTITY, part_name(IDENTITY, 1, KEY)) is Verdict.OTHER_NAME
    assert check(part, IDENTITY, part_name(IDENTITY, 0, KEY[::-1])) is Verdict.OTHER_NAME
    assert check(part, IDENTITY[::-1], NAME) is Verdict.OTHER_IDENTITY


def test_names_are_printable_and_differ() -> None:
    """Rank and key cannot run into each other."""
    assert b"kvpool:1:00112233445566778899aabbccddeeff:0:" + KEY.hex().encode() == NAME
    assert part_name(IDENTITY, 1, b"\x11") != part_name(IDENTITY, 11, b"\x01")


# ---- docs/format.md ------------------------------------------------------------------------------------------

EXAMPLE = re.compile(
    r"```text\nidentity (?P<identity>[0-9a-f]{32})\nrank +(?P<rank>\d+)\nkey +(?P<key>[0-9a-f]+)\n"
    r"name +(?P<name>\S+)\npayload +(?P<payload>-|[0-9a-f]+)\nheader +(?P<header>[0-9a-f]{128})\n```"
)
EXAMPLES = [match.groupdict() for match in EXAMPLE.finditer(PAGE.read_text())]


def test_the_page_has_examples() -> None:
    """A changed form of the page must not turn the next test into nothing."""
    assert len(EXAMPLES) == PAGE.read_text().count("```text") == 3


@pytest.mark.parametrize("example", EXAMPLES, ids=[example["rank"] for example in EXAMPLES])
def test_the_examples_of_the_page(example: dict[str, str]) -> None:
    """Written and read."""
    payload = bytes.fromhex(example["payload"].strip("-"))
    name = part_name(example["identity"], int(example["rank"]), bytes.fromhex(example["key"]))
    part = bytearray(HEADER_BYTES) + payload
    seal(memoryview(part), example["identity"], name)
    assert name.decode() == example["name"]
    assert part[:HEADER_BYTES].hex() == example["header"]
    read = bytearray(bytes.fromhex(example["header"]) + payload)
    assert check(memoryview(read), example["identity"], name) is Verdict.INTACT


def test_the_table_of_the_page_is_the_layout() -> None:
    """Offsets and sizes in the order of the fields."""
    rows = re.findall(r"^\| (\d+) \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    layout = part_format._LAYOUT.format
    fields = re.findall(r"\d*[a-zA-Z]", layout.removeprefix("<"))
    sizes = [struct.calcsize(f"<{field}") for field in fields]
    assert [(int(offset), int(size)) for offset, size in rows] == [
        (sum(sizes[:number]), size) for number, size in enumerate(sizes)
    ]
    assert f"version, {part_format.VERSION}" in PAGE.read_text()
