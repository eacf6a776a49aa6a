"""Digests of a model's files: what an identity says about weights that no immutable revision names.

Reading all of a large model would take minutes at every start, so large tensors are sampled. Small
ones are read in full: scales of quantized weights and of FP8 KV memory are small, a recalibration
changes nothing else, and every KV value depends on them. The time is bounded by the number of
tensors and the size of the small ones: less than a MiB for each file of a 140 GB model.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import xxhash

DIGEST_HEX = 32
WEIGHT_FILES = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth")
SMALL_TENSOR_BYTES = 256 << 10
"""Tensors of at most this size are read in full."""
SAMPLE_BYTES = 4096
SAMPLES = 64
"""Evenly spread over a file whose tensors are not known."""
END_BYTES = 1 << 20
"""Read at both ends of such a file: GGUF lists its tensors at the beginning, and a PyTorch archive
lists a CRC-32 of each tensor at the end, as every zip archive does."""
LARGEST_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself (``MAX_HEADER_SIZE``)."""
CONFIGURATION_FILES = ("*.json", "*.py")
_OF_TOKENS = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")
"""Beginnings of names that say how text becomes tokens. A block's key holds the tokens
themselves."""
_PIECE_BYTES = 1 << 20

Span = tuple[int, int]
"""Offsets of the first byte and of the byte behind the last one."""


def weights_fingerprint(source: Path) -> str:
    """Return a digest that changes when weights change.

    It covers each weight file's name and size; of a safetensors file the header, every tensor of at
    most 256 KiB in full, and the first, middle and last 4 KiB of every larger one; of another file
    its first and last MiB and 64 samples of 4 KiB. A change of single values between samples, with
    all sizes kept, is not seen. Name a revision to be exact.

    Args:
        source: the folder that holds the weight files, or a single weight file.

    Raises:
        FileNotFoundError: the folder has no weight files.
        ValueError: a safetensors file's header cannot be read; the message names the file.
    """
    files = [source] if source.is_file() else _files(source, WEIGHT_FILES)
    if not files:
        raise FileNotFoundError(f"no weight files ({', '.join(WEIGHT_FILES)}) in {source}")
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb", buffering=0) as stream:
            spans = safetensors_spans(stream, size) if file.suffix == ".safetensors" else spread_spans(size)
            total.update(_digest(stream, spans))
    return f"sha256:{total.hexdigest()[:DIGEST_HEX]}"


def configuration_fingerprint(folder: Path) -> str:
    """Return a digest of the files that say how weights become a model, or "" if there are none.

    These are the JSON files (configuration, quantization, the index of shards, processors of
    images) and the model's own Python code, each in full. Files that only concern the text's way to
    tokens are left out.
    """
    files = [file for file in _files(folder, CONFIGURATION_FILES) if not file.name.startswith(_OF_TOKENS)]
    if not files:
        return ""
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb", buffering=0) as stream:
            total.update(_digest(stream, [(0, size)]))
    return f"sha256:{total.hexdigest()[:DIGEST_HEX]}"


def safetensors_spans(stream: BinaryIO, size: int) -> list[Span]:
    """Return which bytes of a safetensors file count.

    Args:
        size: of the file, in bytes.

    Raises:
        ValueError: this is no safetensors file, or only a part of one.
    """
    stream.seek(0)
    prefix = stream.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    data = 8 + length
    if not 2 <= length <= LARGEST_HEADER_BYTES or data > size:
        raise ValueError(
            f"{stream.name}: not a safetensors file: it has {size} bytes and announces a header of {length} (at most "
            f"{LARGEST_HEADER_BYTES}); fetch the file again, it may be a Git LFS pointer or a part of a download"
        )
    try:
        header = json.loads(stream.read(length))
        tensors = [tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"]
        offsets = [(data + int(first), data + int(end)) for first, end in tensors]
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ValueError(f"{stream.name}: the header of this safetensors file cannot be read: {error!r}") from None
    if any(not data <= first <= end <= size for first, end in offsets):
        raise ValueError(f"{stream.name}: a tensor lies beyond the file's {size} bytes: fetch the file again")
    return merged([(0, data), *(span for tensor in offsets for span in tensor_spans(*tensor))])


def tensor_spans(first: int, end: int) -> list[Span]:
    """Return which bytes of a tensor count."""
    if end - first <= SMALL_TENSOR_BYTES:
        return [(first, end)]
    middle = (first + end - SAMPLE_BYTES) // 2
    return [(start, start + SAMPLE_BYTES) for start in (first, middle, end - SAMPLE_BYTES)]


def spread_spans(size: int) -> list[Span]:
    """Return which bytes count of a file whose tensors are not known."""
    if size <= 2 * END_BYTES:
        return [(0, size)]
    starts = [(size - SAMPLE_BYTES) * number // (SAMPLES - 1) for number in range(SAMPLES)]
    samples = [(start, start + SAMPLE_BYTES) for start in starts]
    return merged([(0, END_BYTES), (size - END_BYTES, size), *samples])


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return the same bytes as few spans, in order."""
    result: list[Span] = []
    for first, end in sorted(spans):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((first, end))
    return result


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())


def _digest(stream: BinaryIO, spans: Iterable[Span]) -> bytes:
    """XXH3 is enough against accidents, and several times as fast as SHA-256 on many processors."""
    digest = xxhash.xxh3_128()
    for piece in _pieces(stream.fileno(), spans):
        digest.update(piece)
    return digest.digest()


def _pieces(file: int, spans: Iterable[Span]) -> Iterator[bytes]:
    for first, end in spans:
        offset = first
        while offset < end:
            piece = os.pread(file, min(end - offset, _PIECE_BYTES), offset)
            if not piece:  # the file became shorter meanwhile; its next fingerprint will have another size
                return
            yield piece
            offset += len(piece)
