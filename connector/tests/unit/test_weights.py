"""Digests of a model's files: which changes they see, what they refuse, how little they read."""

from __future__ import annotations

import itertools
import json
import os
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpool_connector.weights import (
    LARGEST_HEADER_BYTES,
    SAMPLE_BYTES,
    SMALL_TENSOR_BYTES,
    configuration_fingerprint,
    merged,
    safetensors_spans,
    tensor_spans,
    weights_fingerprint,
)

KIB = 1 << 10
MIB = 1 << 20


def safetensors(**tensors: bytes) -> bytearray:
    """A file of these tensors, one after the other, of bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    return bytearray(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def model(folder: Path, **files: bytes | bytearray) -> Path:
    """A folder with such files. Two underscores in a name stand for a dot."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


SHARD = safetensors(
    embed=bytes(4 * MIB),
    k_scale=struct.pack("<f", 0.5),
    norm=bytes(SMALL_TENSOR_BYTES),
    v_scale=struct.pack("<f", 0.5),
    head=bytes(2 * MIB),
)
DATA = len(SHARD) - (4 * MIB + 4 + SMALL_TENSOR_BYTES + 4 + 2 * MIB)
K_SCALE = DATA + 4 * MIB
NORM = K_SCALE + 4
V_SCALE = NORM + SMALL_TENSOR_BYTES
HEAD = V_SCALE + 4


def changed(position: int, content: bytearray = SHARD) -> bytearray:
    """The same file with another byte there."""
    other = bytearray(content)
    other[position] ^= 1
    return other


def test_shards_that_differ_in_one_scale(tmp_path: Path) -> None:
    """A recalibration of FP8 KV memory changes four bytes of a shard."""
    other = bytearray(SHARD)
    other[K_SCALE : K_SCALE + 4] = struct.pack("<f", 0.75)
    first = weights_fingerprint(model(tmp_path / "first", a__safetensors=SHARD))
    assert weights_fingerprint(model(tmp_path / "second", a__safetensors=other)) != first


@pytest.mark.parametrize(
    "position",
    [K_SCALE, K_SCALE + 3, NORM, NORM + 100_001, V_SCALE - 1, V_SCALE, DATA, HEAD, len(SHARD) - 1],
)
def test_a_byte_that_counts(position: int, tmp_path: Path) -> None:
    """Each byte of small tensors, both ends of large ones."""
    before = weights_fingerprint(model(tmp_path / "before", a__safetensors=SHARD))
    assert weights_fingerprint(model(tmp_path / "after", a__safetensors=changed(position))) != before


def test_the_header_counts(tmp_path: Path) -> None:
    """The same bytes under another name are another model."""
    before = weights_fingerprint(model(tmp_path / "before", a__safetensors=safetensors(q=bytes(4), k=bytes(4))))
    assert weights_fingerprint(model(tmp_path / "after", a__safetensors=safetensors(k=bytes(4), q=bytes(4)))) != before


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_byte_of_a_small_tensor(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Wherever it lies between large ones."""
    sizes = data.draw(
        st.lists(st.sampled_from([1, 4, 4096, SMALL_TENSOR_BYTES, 300 * KIB, MIB]), min_size=1, max_size=6)
    )
    content = safetensors(**{f"t{number}": bytes(size) for number, size in enumerate(sizes)})
    number = data.draw(st.integers(0, len(sizes) - 1))
    begin = len(content) - sum(sizes) + sum(sizes[:number])
    size = sizes[number] if sizes[number] <= SMALL_TENSOR_BYTES else SAMPLE_BYTES
    position = begin + data.draw(st.integers(0, size - 1))
    folder = tmp_path_factory.mktemp("any")
    before = weights_fingerprint(model(folder / "before", a__safetensors=content))
    assert weights_fingerprint(model(folder / "after", a__safetensors=changed(position, content))) != before


def test_another_training_is_seen(tmp_path: Path) -> None:
    """Every value of one large tensor differs, as after fine-tuning."""
    other = bytearray(SHARD)
    other[HEAD:] = b"\1" * (len(SHARD) - HEAD)
    first = weights_fingerprint(model(tmp_path / "first", a__safetensors=SHARD))
    assert weights_fingerprint(model(tmp_path / "second", a__safetensors=other)) != first


def test_what_is_read_is_bounded() -> None:
    """Three samples of a tensor of 100 GB."""
    spans = tensor_spans(1000, 1000 + 100 * 1000**3)
    assert len(spans) == 3
    assert sum(end - first for first, end in spans) == 3 * SAMPLE_BYTES
    assert spans[0][0] == 1000
    assert spans[-1][1] == 1000 + 100 * 1000**3


def test_a_large_model_needs_few_reads(tmp_path: Path) -> None:
    """A sparse shard of 5 GB as a 70B model has it: some MB in some dozens of pieces."""
    tensors = {
        f"layers.{n}.{kind}": 28672 * 8192 * 2 if kind == "mlp" else 16384
        for n in range(10)
        for kind in ("mlp", "norm")
    }
    offset = 0
    header = {}
    for name, size in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    file = tmp_path / "model-00001-of-00030.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + offset)
    with file.open("rb") as stream:
        spans = safetensors_spans(stream, file.stat().st_size)
    assert len(spans) <= 2 * len(tensors)
    assert sum(end - first for first, end in spans) < MIB
    assert weights_fingerprint(tmp_path).startswith("sha256:")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=12))
def test_merged_spans_hold_the_same_bytes(pairs: list[tuple[int, int]]) -> None:
    """In order, and none touches the next."""
    spans = [(first, first + length) for first, length in pairs]
    result = merged(spans)
    assert {byte for span in spans for byte in range(*span)} == {byte for span in result for byte in range(*span)}
    assert all(end < first for (_, end), (first, _) in itertools.pairwise(result))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        struct.pack("<Q", LARGEST_HEADER_BYTES + 1) + bytes(100),
        struct.pack("<Q", (1 << 64) - 1) + bytes(100),
        struct.pack("<Q", 101) + bytes(100),
        struct.pack("<Q", 0) + bytes(100),
    ],
    ids=["empty", "short", "LFS pointer", "above the limit", "2**64 - 1", "beyond the file", "none"],
)
def test_an_absurd_header(content: bytes, tmp_path: Path) -> None:
    """The message names the file and says what may have happened."""
    folder = model(tmp_path / "model", a__safetensors=content)
    with pytest.raises(ValueError, match=r"a\.safetensors: not a safetensors file: .* Git LFS pointer"):
        weights_fingerprint(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"{ ", b"[]", b"[1]", b'{"a": 1}', b'{"a": {}}', b'{"a": {"data_offsets": [0]}}', b'{"a": {"data_offsets": [0, null]}}',
        b'{"a": {"data_offsets": [0, 1e999]}}', b'"\xff"', b"[" * 50_000,
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_read(header: bytes, tmp_path: Path) -> None:
    """No other error than this one comes out."""
    folder = model(tmp_path / "model", a__safetensors=struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"a\.safetensors: the header of this safetensors file cannot be read"):
        weights_fingerprint(folder)


@pytest.mark.parametrize("offsets", [[0, 11], [-1, 4], [4, 3], [100, 104]])
def test_tensors_beyond_the_file(offsets: list[int], tmp_path: Path) -> None:
    """A download that stopped."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": offsets}}).encode()
    folder = model(tmp_path / "model", a__safetensors=struct.pack("<Q", len(header)) + header + bytes(10))
    with pytest.raises(ValueError, match=r"a\.safetensors: a tensor lies beyond the file"):
        weights_fingerprint(folder)


def test_path_time_and_other_files_do_not_matter(tmp_path: Path) -> None:
    """The same weights, downloaded twice."""
    one = model(tmp_path / "one", a__safetensors=SHARD, config__json=b"{}")
    two = model(tmp_path / "two", a__safetensors=SHARD, README__md=b"text")
    os.utime(two / "a.safetensors", (1, 1))
    assert weights_fingerprint(one) == weights_fingerprint(two)


@pytest.mark.parametrize(
    "files",
    [
        {"a__bin": b"abd"},
        {"a__bin": b"abcd"},
        {"a__bin": b""},
        {"b__bin": b"abc"},
        {"a__pt": b"abc"},
        {"a__bin": b"abc", "b__bin": b""},
        {"a__bin": b"ab", "b__bin": b"c"},
    ],
)
def test_content_size_and_names_matter(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Each difference alone."""
    assert weights_fingerprint(model(tmp_path / "x", a__bin=b"abc")) != weights_fingerprint(
        model(tmp_path / "y", **files)
    )


@pytest.mark.parametrize("suffix", ["gguf", "bin", "pt", "pth"])
@pytest.mark.parametrize("position", [0, MIB - 1, 4 * MIB, 5 * MIB - 1])
def test_other_files_are_seen_at_both_ends(tmp_path: Path, position: int, suffix: str) -> None:
    """The first and the last MiB, where such files list their tensors."""
    content = bytearray(5 * MIB)
    before = weights_fingerprint(model(tmp_path / "before", **{f"a__{suffix}": content}))
    assert weights_fingerprint(model(tmp_path / "after", **{f"a__{suffix}": changed(position, content)})) != before


def test_other_files_are_sampled_between(tmp_path: Path) -> None:
    """Every value behind the header differs a little, as after fine-tuning."""
    first = model(tmp_path / "first", a__gguf=bytes(6 * MIB))
    second = model(tmp_path / "second", a__gguf=bytes(2 * MIB) + b"\1" * (2 * MIB) + bytes(2 * MIB))
    assert weights_fingerprint(first) != weights_fingerprint(second)


def test_one_value_of_a_pytorch_file_is_seen(tmp_path: Path) -> None:
    """``torch.save`` writes a zip archive of uncompressed records, whose directory at the end holds
    each record's CRC-32. A zip archive made here stands in for it: this environment has no
    torch."""

    def archive(value: bytes) -> bytes:
        content = BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as records:
            for number in range(40):
                data = bytearray(MIB)
                data[500_000:500_001] = value if number == 20 else b"\0"
                records.writestr(zipfile.ZipInfo(f"archive/data/{number}"), bytes(data))
        return content.getvalue()

    first = model(tmp_path / "first", a__bin=archive(b"\0"))
    second = model(tmp_path / "second", a__bin=archive(b"\1"))
    assert weights_fingerprint(first) != weights_fingerprint(second)


def test_a_single_file(tmp_path: Path) -> None:
    """A GGUF model is named by its file."""
    folder = model(tmp_path / "model", a__gguf=b"abc", b__gguf=b"def")
    assert weights_fingerprint(folder / "a.gguf") != weights_fingerprint(folder / "b.gguf")
    assert weights_fingerprint(folder / "a.gguf") == weights_fingerprint(model(tmp_path / "other", a__gguf=b"abc"))


def test_no_weights(tmp_path: Path) -> None:
    """A folder with a configuration alone must not have an identity."""
    with pytest.raises(FileNotFoundError, match=r"no weight files .*safetensors"):
        weights_fingerprint(model(tmp_path / "empty", config__json=b"{}"))
    with pytest.raises(FileNotFoundError):
        weights_fingerprint(tmp_path / "missing")


# ---- files beside the weights --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "params.json", "generation_config.json", "preprocessor_config.json", "hf_quant_config.json",
        "model.safetensors.index.json", "modeling_own.py",
    ],
)  # fmt: skip
def test_files_that_make_a_model(name: str, tmp_path: Path) -> None:
    """Other content, and no such file."""
    none = model(tmp_path / "none")
    one = model(tmp_path / "one")
    other = model(tmp_path / "other")
    (one / name).write_text('{"rope_theta": 1}')
    (other / name).write_text('{"rope_theta": 2}')
    assert len({configuration_fingerprint(folder) for folder in (none, one, other)}) == 3


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "chat_template.json", "README.md"]
)
def test_files_that_do_not(name: str, tmp_path: Path) -> None:
    """A mended chat template does not empty the pool."""
    with_it = model(tmp_path / "with", config__json=b"{}")
    (with_it / name).write_text("{}")
    without = model(tmp_path / "without", config__json=b"{}")
    assert configuration_fingerprint(with_it) == configuration_fingerprint(without)


def test_no_configuration(tmp_path: Path) -> None:
    """As of a GGUF file, which holds its own."""
    assert configuration_fingerprint(model(tmp_path / "empty")) == ""
