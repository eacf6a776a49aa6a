"""The number types that a host is run in, decided from its features and from KVPOOL_DTYPE."""

from __future__ import annotations

import pytest

from testkit import host

AVX2 = frozenset({"avx2"})
AVX512 = AVX2 | {"avx512f"}
AVX512_BF16 = AVX512 | {"avx512_bf16"}
AMX = AVX512_BF16 | {"amx_tile", "amx_bf16"}


@pytest.fixture(params=[AVX2, AVX512, AVX512_BF16, AMX], ids=["avx2", "avx512", "avx512_bf16", "amx"])
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> frozenset[str]:
    """A host with these features, on which nothing is forced."""
    features: frozenset[str] = request.param
    monkeypatch.setattr(host, "cpu_flags", lambda: features)
    monkeypatch.delenv(host.DTYPE_VARIABLE, raising=False)
    return features


def test_the_faster_type_is_chosen(flags: frozenset[str]) -> None:
    assert host.chosen_dtype() == ("bfloat16" if flags == AMX else "float32")


def test_a_type_can_be_forced(flags: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in host.DTYPES:
        monkeypatch.setenv(host.DTYPE_VARIABLE, dtype)
        assert host.chosen_dtype() == dtype


def test_an_unknown_type_is_refused_with_the_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(host.DTYPE_VARIABLE, "float16")
    with pytest.raises(ValueError, match=r"KVPOOL_DTYPE is 'float16': set it to float32 or bfloat16"):
        host.chosen_dtype()


def test_bfloat16_is_fast_where_the_processor_has_it(flags: frozenset[str]) -> None:
    assert host.is_fast("float32")
    assert host.is_fast("bfloat16") == (flags in (AVX512_BF16, AMX))


def test_mla_follows_the_tiles(flags: frozenset[str]) -> None:
    assert host.mla_dtype() == ("bfloat16" if flags == AMX else "float32")
    assert host.continues_mla_prefixes() == (flags == AMX)


def test_the_description_holds_what_figures_depend_on() -> None:
    description = host.describe()
    assert {"cpu", "features", "cores", "memory_gib", "dtype", "kernel"} == description.keys()
    assert description["cpu"]
