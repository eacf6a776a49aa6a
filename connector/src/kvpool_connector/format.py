"""The 64 bytes in front of every stored part, in every tier. The page ``docs/format.md`` describes them for others.

A part is what one rank stores for one block: header and payload, contiguous. The header says what the payload is
(identity of the model and its layout, name of the part) and how to know that it is whole (length, checksum). It guards
against accidents: a damaged disk, another key's bytes, another model's bytes. It is no protection against an attacker.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from typing import Final

import xxhash

HEADER_BYTES: Final = 64
MAGIC: Final = b"KVPB"
VERSION: Final = 1
CODEC_RAW: Final = 0

_LAYOUT = struct.Struct("<4sHHQQ16s16sQ")
"""Little-endian: magic, version, codec, payload length, xxh3_64 of the payload, identity, digest of the name, zeros."""
assert _LAYOUT.size == HEADER_BYTES


class Verdict(enum.Enum):
    """What a check of a part found. Everything but INTACT is a miss."""

    INTACT = "intact"
    NO_PART = "no part"  # no magic: never written, or overwritten by something else
    OTHER_VERSION = "other version"
    OTHER_LENGTH = "other length"
    OTHER_IDENTITY = "other identity"
    OTHER_NAME = "other name"
    DAMAGED = "damaged"


def part_name(identity: str, rank: int, key: bytes) -> bytes:
    """The key of a part in a shared store.

    Args:
        identity: 32 hexadecimal digits, see :mod:`kvpool_connector.identity`.
        rank: the rank whose part it is.
        key: vLLM's block hash with the group index behind it.
    """
    return f"kvpool:{VERSION}:{identity}:{rank}:{key.hex()}".encode()


def seal(part: memoryview, identity: str, name: bytes) -> None:
    """Write the header for the payload behind it.

    Args:
        part: header and payload, writable, of format "B".
    """
    part[:HEADER_BYTES] = _header(part, identity, name)


def check(part: memoryview, identity: str, name: bytes) -> Verdict:
    """Whether the part holds exactly what was sealed under this name, for this identity and of this length."""
    magic, version, codec, length, checksum, its_identity, its_name, reserved = _LAYOUT.unpack_from(part)
    if magic != MAGIC:
        return Verdict.NO_PART
    if version != VERSION or codec != CODEC_RAW or reserved:
        return Verdict.OTHER_VERSION
    payload = part[HEADER_BYTES:]
    if length != len(payload):
        return Verdict.OTHER_LENGTH
    if its_identity != bytes.fromhex(identity):
        return Verdict.OTHER_IDENTITY
    if its_name != _name_digest(name):
        return Verdict.OTHER_NAME
    return Verdict.INTACT if checksum == xxhash.xxh3_64_intdigest(payload) else Verdict.DAMAGED


def _header(part: memoryview, identity: str, name: bytes) -> bytes:
    payload = part[HEADER_BYTES:]
    checksum = xxhash.xxh3_64_intdigest(payload)
    digests = bytes.fromhex(identity), _name_digest(name)
    return _LAYOUT.pack(MAGIC, VERSION, CODEC_RAW, len(payload), checksum, *digests, 0)


def _name_digest(name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=16).digest()
