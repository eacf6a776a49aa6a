"""Is a recomputed block the cached one?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from kvpool_connector.worker.differ import QUANTISED_TOLERANCE, TOLERANCE, differs

Numbers = npt.NDArray[np.float32]


@pytest.fixture
def numbers() -> Numbers:
    """A block's."""
    return np.random.default_rng(3).standard_normal(4096).astype(np.float32)


def as_payload(numbers: Numbers, dtype: str) -> npt.NDArray[np.uint8]:
    """In KV memory of this type; bfloat16 is cut."""
    if dtype == "bfloat16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return numbers.astype(dtype).view(np.uint8)


@pytest.mark.parametrize("dtype", [*TOLERANCE, "fp8_e4m3"])
def test_equal_bytes_do_not_differ(numbers: Numbers, dtype: str) -> None:
    """Of any type."""
    payload = as_payload(numbers, dtype if dtype in TOLERANCE else "float32")
    assert not differs(payload, payload.copy(), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rounding_is_no_difference(numbers: Numbers, dtype: str) -> None:
    """A tenth of the tolerance."""
    noise = np.random.default_rng(4).standard_normal(4096).astype(np.float32)
    other = numbers + noise * np.float32(0.1 * TOLERANCE[dtype])
    assert not np.array_equal(as_payload(numbers, dtype), as_payload(other, dtype))
    assert not differs(as_payload(numbers, dtype), as_payload(other, dtype), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_other_numbers_are_a_difference(numbers: Numbers, dtype: str, share: float) -> None:
    """A whole block of another prompt, or one token in twenty."""
    other = numbers.copy()
    count = int(share * other.size)
    other[:count] = np.random.default_rng(5).standard_normal(count)
    assert differs(as_payload(numbers, dtype), as_payload(other, dtype), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_block_of_zeros_is_a_difference(numbers: Numbers, dtype: str) -> None:
    """In both directions: a block that was never computed."""
    zeros = np.zeros_like(numbers)
    assert differs(as_payload(numbers, dtype), as_payload(zeros, dtype), dtype)
    assert differs(as_payload(zeros, dtype), as_payload(numbers, dtype), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_numbers_that_are_none_must_be_in_the_same_places(numbers: Numbers, dtype: str) -> None:
    """NaN equals nothing, and would hide everything in a norm."""
    broken = numbers.copy()
    broken[7] = np.nan
    rounded = broken * np.float32(1 + TOLERANCE[dtype] / 10)
    assert differs(as_payload(numbers, dtype), as_payload(broken, dtype), dtype)
    assert not differs(as_payload(broken, dtype), as_payload(rounded, dtype), dtype)
    rounded[8:] = 0
    assert differs(as_payload(broken, dtype), as_payload(rounded, dtype), dtype)


def test_types_that_are_no_numbers_here_are_compared_by_bytes() -> None:
    """A few codes may round the other way."""
    cached = np.zeros(1000, np.uint8)
    computed = cached.copy()
    computed[: int(1000 * QUANTISED_TOLERANCE)] = 1
    assert not differs(cached, computed, "fp8_e4m3")
    computed[: int(1000 * QUANTISED_TOLERANCE) + 1] = 1
    assert differs(cached, computed, "fp8_e4m3")
