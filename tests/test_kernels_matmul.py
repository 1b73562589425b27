"""Every format's product equals the plain int64 matrix product."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.layers import codes

from gossamer.arch.errors import GossamerError
from gossamer.kernels import BSR, CSR, NM, Dense, Weight, bsr_matmul, csr_matmul, dense_matmul, nm_matmul, spmm


def oracle(x: NDArray[Any], dense: NDArray[np.int8], zero_point: int) -> NDArray[np.int64]:
    """The product in int64."""
    return (x.astype(np.int64) - zero_point) @ dense.astype(np.int64).T


def formats_of(dense: NDArray[np.int8], m: int, block: tuple[int, int]) -> list[Weight]:
    """The matrix in every format; N:M with few slots, with all, and with one group a row (constant fan-in)."""
    k = dense.shape[1]
    fullest = max(1, *(int(np.count_nonzero(dense[:, g : g + m], axis=1).max()) for g in range(0, k, m)))
    return [
        Dense.from_dense(dense),
        NM.from_dense(dense, n=fullest, m=m),
        NM.from_dense(dense, n=m, m=m),
        NM.from_dense(dense, n=max(1, int(np.count_nonzero(dense, axis=1).max())), m=k),
        BSR.from_dense(dense, block=block),
        CSR.from_dense(dense),
    ]


def check(rng: np.random.Generator, rows: int, n: int, k: int, density: float, **choice: Any) -> None:
    signed, extreme = choice["signed"], choice["extreme"]
    x = codes(rng, (rows, k), signed, extreme)
    values = rng.choice([-128, 127], (n, k)) if extreme else rng.integers(-128, 128, (n, k))
    dense = np.where(rng.random((n, k)) < density, values, 0).astype(np.int8)
    expected = oracle(x, dense, choice["zero_point"])
    for weight in formats_of(dense, choice["m"], choice["block"]):
        out = spmm(x, weight, zero_point=choice["zero_point"])
        assert out.dtype == np.int32
        assert np.array_equal(out, expected), type(weight).__name__


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 9),
    n=st.integers(1, 20),
    k=st.integers(1, 70),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    zero=st.sampled_from([0, 128, 255]),
    signed=st.booleans(),
    extreme=st.booleans(),
    m=st.integers(1, 64),
    block=st.tuples(st.integers(1, 18), st.integers(1, 33)),
)
def test_products(
    seed: int,
    rows: int,
    n: int,
    k: int,
    density: float,
    zero: int,
    signed: bool,
    extreme: bool,
    m: int,
    block: tuple[int, int],
) -> None:
    choice = {"signed": signed, "extreme": extreme, "zero_point": zero - 128 * signed, "m": m, "block": block}
    check(np.random.default_rng(seed), rows, n, k, density, **choice)


def test_small_products() -> None:
    rng = np.random.default_rng(1)
    for signed in (False, True):
        for k in (1, 7, 16):
            choice = {"signed": signed, "extreme": True, "zero_point": 127, "m": 4, "block": (2, 3)}
            check(rng, 3, 5, k, 0.5, **choice)


def test_each_format_has_its_function() -> None:
    x = np.array([[1, 2, 3, 4]], dtype=np.uint8)
    dense = np.array([[0, 5, 0, -3], [0, 0, 0, 0]], dtype=np.int8)
    expected = [[1 * 5 - 3 * 3, 0]]
    assert dense_matmul(x, Dense.from_dense(dense), zero_point=1).tolist() == expected
    assert nm_matmul(x, NM.from_dense(dense, n=2, m=4), zero_point=1).tolist() == expected
    assert bsr_matmul(x, BSR.from_dense(dense, block=(1, 2)), zero_point=1).tolist() == expected
    assert csr_matmul(x, CSR.from_dense(dense), zero_point=1).tolist() == expected


def test_strided_activations() -> None:
    x = np.arange(48, dtype=np.uint8).reshape(6, 8)[::2, 1::2]
    dense = np.arange(-4, 4, dtype=np.int8).reshape(2, 4)
    assert np.array_equal(spmm(x, CSR.from_dense(dense), zero_point=3), oracle(x, dense, 3))


@pytest.mark.parametrize(
    ("x", "zero_point", "message"),
    [
        (np.zeros((2, 3), np.uint8), 0, r"^x must have shape \(rows, 4\) for this weight, not \(2, 3\)$"),
        (np.zeros((2, 4), np.int16), 0, r"^x must be an ndarray of int8 or uint8 with 2 dimensions, not int16"),
        (np.zeros((2, 4), np.uint8), -1, r"^zero_point must be an integer from 0 to 255, not -1$"),
        (np.zeros((2, 4), np.int8), 128, r"^zero_point must be an integer from -128 to 127, not 128$"),
        (np.zeros((2, 4), np.int8), 0.5, r"^zero_point must be an integer from -128 to 127, not 0.5$"),
    ],
)
def test_refusals(x: Any, zero_point: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        spmm(x, Dense.from_dense(np.ones((2, 4), dtype=np.int8)), zero_point=zero_point)


def test_unknown_format_is_refused() -> None:
    bare: Any = np.ones((2, 4), dtype=np.int8)
    with pytest.raises(GossamerError, match=r"^weight must be a Dense, NM, BSR or CSR, not ndarray$"):
        spmm(np.zeros((2, 4), np.int8), bare)
