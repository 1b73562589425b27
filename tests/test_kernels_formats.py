"""Formats give the dense matrix back, and refuse what they cannot hold."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gossamer.arch.errors import GossamerError
from gossamer.kernels import BSR, CSR, NM, Dense

DENSE = np.array([[0, 5, 0, -3, 7], [0, 0, 0, 0, 0], [-128, 0, 127, 0, 0]], dtype=np.int8)

LIST: Any = [[1]]


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.int8]:
    """Int8 matrices of every density, with extreme values and empty rows."""
    rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.choice(np.array([-128, -1, 1, 127]), (rows, columns))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return np.where(rng.random((rows, columns)) < density, values, 0).astype(np.int8)


def fullest_group(dense: NDArray[np.int8], m: int) -> int:
    """Nonzeros of the fullest group of m, found the slow way."""
    groups = range(0, dense.shape[1], m)
    return max(sum(1 for w in row[g : g + m] if w != 0) for row in dense for g in groups)


@given(matrices())
def test_dense_and_csr_round_trip(dense: NDArray[np.int8]) -> None:
    for weight in (Dense.from_dense(dense), CSR.from_dense(dense)):
        assert weight.shape == dense.shape
        assert weight.to_dense().dtype == np.int8
        assert np.array_equal(weight.to_dense(), dense)


@given(matrices(), st.integers(1, 64), st.booleans(), st.integers(0, 64))
def test_nm_round_trip(dense: NDArray[np.int8], m: int, whole_row: bool, spare: int) -> None:
    m = dense.shape[1] if whole_row else m
    n = min(m, max(1, fullest_group(dense, m) + spare))
    weight = NM.from_dense(dense, n=n, m=m)
    assert weight.shape == dense.shape
    assert (weight.n, weight.m) == (n, m)
    assert weight.values.shape == (dense.shape[0], -(-dense.shape[1] // m), n)
    assert np.array_equal(weight.to_dense(), dense)


@given(matrices(), st.integers(1, 24), st.integers(1, 80))
def test_bsr_round_trip(dense: NDArray[np.int8], br: int, bc: int) -> None:
    weight = BSR.from_dense(dense, block=(br, bc))
    assert weight.shape == dense.shape
    assert weight.block == (br, bc)
    assert np.all(weight.data.any(axis=(1, 2)))
    assert np.array_equal(weight.to_dense(), dense)


def test_arrays_are_made_contiguous() -> None:
    turned = np.asfortranarray(DENSE)
    assert Dense(data=turned).data.flags.c_contiguous
    assert np.array_equal(Dense(data=turned).to_dense(), DENSE)


def test_constant_fan_in_may_exceed_64() -> None:
    dense = np.zeros((3, 300), dtype=np.int8)
    dense[:, [1, 64, 299]] = 9
    weight = NM.from_dense(dense, n=3, m=300)
    assert weight.indices.dtype == np.int32
    assert weight.indices[0, 0].tolist() == [1, 64, 299]
    assert np.array_equal(weight.to_dense(), dense)


def i8(*shape: int) -> NDArray[np.int8]:
    return np.ones(shape, dtype=np.int8)


def u8(values: Any) -> NDArray[np.uint8]:
    return np.array(values, dtype=np.uint8)


def i32(values: Any) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(data=DENSE.astype(np.int16)), r"^Dense.data must be an ndarray of int8 .* not int16 of shape"),
        (lambda: Dense(data=LIST), r"^Dense.data must be an ndarray of int8 with 2 dimensions, not list$"),
        (lambda: Dense(data=i8(0, 3)), r"^Dense.data must have at least one row and one column, not shape \(0, 3\)$"),
        (lambda: NM.from_dense(DENSE, n=1, m=4), r"^dense\[0, 0:4\] must have at most n = 1 nonzeros, not 2$"),
        (lambda: NM.from_dense(DENSE, n=5, m=4), r"^n must be an integer from 1 to 4, not 5$"),
        (lambda: NM.from_dense(DENSE, n=2, m=65), r"^m, unless it is in_features, must be .* from 1 to 64, not 65$"),
        (
            lambda: NM(values=i8(1, 1, 2), indices=u8([[[1, 1]]]), m=4, in_features=4),
            r"^NM.indices\[0, 0\] must name an input once, not 1 twice$",
        ),
        (
            lambda: NM(values=i8(1, 2, 1), indices=u8([[[3], [1]]]), m=4, in_features=5),
            r"^NM.indices\[0, 1, 0\] must be from 0 to 0, not 1$",
        ),
        (
            lambda: NM(values=i8(1, 1, 1), indices=u8([[[0]]]), m=4, in_features=5),
            r"^NM.values must have shape \(N >= 1, 2, 1..4\), not \(1, 1, 1\)$",
        ),
        (
            lambda: NM(values=i8(1, 1, 1), indices=i32([[[0]]]), m=4, in_features=4),
            r"^NM.indices must be an ndarray of uint8 with 3 dimensions, not int32 of shape",
        ),
        (lambda: BSR.from_dense(DENSE, block=(0, 2)), r"^block\[0\] must be an integer of at least 1, not 0$"),
        (
            lambda: BSR(data=i8(1, 2, 2), indices=i32([1]), indptr=i32([0, 1]), shape=(2, 3)),
            r"^BSR.data\[0, 0, 1\] lies outside of shape \(2, 3\) and must be 0, not 1$",
        ),
        (
            lambda: BSR(data=i8(1, 2, 2), indices=i32([0]), indptr=i32([0, 1]), shape=(4, 4)),
            r"^BSR.indptr must have 3 entries, not 2$",
        ),
        (
            lambda: CSR(data=i8(2), indices=i32([2, 1]), indptr=i32([0, 2]), in_features=3),
            r"^CSR.indices must rise within row 0, not go from 2 to 1 at entry 0$",
        ),
        (
            lambda: CSR(data=i8(2), indices=i32([1, 3]), indptr=i32([0, 2]), in_features=3),
            r"^CSR.indices\[1\] must be from 0 to 2, not 3$",
        ),
        (
            lambda: CSR(data=i8(2), indices=i32([1, 2]), indptr=i32([0, 3]), in_features=3),
            r"^CSR.indptr must rise from 0 to 2 without a fall, not \[0, 3\]$",
        ),
        (
            lambda: CSR(data=i8(0), indices=i32([]), indptr=i32([0]), in_features=3),
            r"^CSR.indptr must have at least 2 entries \(one row\), not 1$",
        ),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message) as caught:
        make()
    assert isinstance(caught.value, ValueError)
