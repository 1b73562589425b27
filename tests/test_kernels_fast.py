"""Packed weights give the plain int64 product and its requantisation, with vector instructions and without."""

import os
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer.arch import numerics
from gossamer.arch.errors import GossamerError
from gossamer.arch.numerics import Requant
from gossamer.kernels import BSR, CSR, NM, Dense, Weight, choose, pack, packed_linear, packed_matmul, spmm
from gossamer.kernels.pack import Packed

pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="vectors exist in compiled code")

VECTORS = frozenset({"avx512vnni", "avx512vbmi"})
"""Every kernel is chosen, whatever this machine has: an instruction it lacks is replaced."""

SHAPES = [(1, 1, 1), (2, 17, 64), (5, 70, 67), (13, 49, 130), (9, 64, 8)]
"""Rows, N, K: whole vectors and remainders, fewer rows than a tile has and more."""


@pytest.fixture(params=["native", "portable"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GOSSAMER_PORTABLE", str(int(request.param == "portable")))
    return str(request.param)


def codes(rng: np.random.Generator, shape: tuple[int, ...], signed: bool, extreme: bool) -> NDArray[Any]:
    low, high = (-128, 127) if signed else (0, 255)
    values = rng.choice([low, high], shape) if extreme else rng.integers(low, high + 1, shape)
    return values.astype(np.int8 if signed else np.uint8)


def formats_of(dense: NDArray[np.int8]) -> list[Weight]:
    fullest = max(int(np.count_nonzero(dense[:, k : k + 8], axis=1).max()) for k in range(0, dense.shape[1], 8))
    formats: list[Weight] = [Dense.from_dense(dense), CSR.from_dense(dense)]
    if dense.shape[1] >= 8:
        formats.append(NM.from_dense(dense, n=max(1, fullest), m=8))
    formats += [BSR.from_dense(dense, block=block) for block in ((4, 1), (4, 4), (16, 4), (32, 32), (48, 16))]
    return formats


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("extreme", [False, True])
def test_products(path: str, signed: bool, extreme: bool) -> None:
    rng = np.random.default_rng(5)
    for (count, n, k), density in zip(SHAPES, (1.0, 0.3, 0.1, 0.5, 0.0), strict=True):
        x = codes(rng, (count, k), signed, extreme)
        dense = np.where(rng.random((n, k)) < density, codes(rng, (n, k), True, extreme), 0).astype(np.int8)
        zero_point = int(codes(rng, (), signed, True))
        expected = (x.astype(np.int64) - zero_point) @ dense.astype(np.int64).T
        for weight in formats_of(dense):
            out = spmm(x, pack(weight, features=VECTORS), zero_point=zero_point)
            assert out.dtype == np.int32
            assert np.array_equal(out, expected), (type(weight).__name__, choose(weight, features=VECTORS))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("with_residual", "with_table"), [(False, False), (True, False), (False, True), (True, True)])
def test_layers(path: str, signed: bool, with_residual: bool, with_table: bool) -> None:
    """Against arch.numerics, with halves to round, every shift, and remainders of rows and columns."""
    rng = np.random.default_rng(6)
    count, n, k = 13, 70, 130
    x = codes(rng, (count, k), signed, False)
    dense = np.where(rng.random((n, k)) < 0.2, codes(rng, (n, k), True, False), 0).astype(np.int8)
    acc = ((x.astype(np.int64) - 3) @ dense.astype(np.int64).T).astype(np.int32)
    shift = rng.integers(9, 48, n)
    shift[:20] = 9
    low, high = (-128, 127) if signed else (0, 255)
    q = Requant(
        multiplier=np.where(np.arange(n) < 40, 1 << rng.integers(0, 9, n), rng.integers(0, 1 << 24, n)),
        shift=shift,
        zero_point=5,
        lo=low + 3,
        hi=high - 2,
        residual_multiplier=65535,
        residual_shift=9,
        residual_zero_point=2,
    )
    bias = rng.choice([-(2**31), -1, 0, 1, 2**31 - 1, 1000, -5000], n).astype(np.int32)
    residual = codes(rng, (count, n), signed, False) if with_residual else None
    table = codes(rng, (256,), signed, False) if with_table else None
    expected = numerics.requantise(acc, bias, q, residual, table)
    for weight in formats_of(dense):
        packed = pack(weight, features=VECTORS)
        out = packed_linear(x, packed, bias, q, zero_point=3, signed=signed, residual=residual, table=table)
        assert out.dtype == (np.int8 if signed else np.uint8)
        assert np.array_equal(out, expected), str(packed.decision)


def test_no_rows() -> None:
    packed = pack(Dense.from_dense(np.ones((3, 5), np.int8)))
    assert packed_matmul(np.empty((0, 5), np.uint8), packed).shape == (0, 3)


def test_result_where_it_is_wanted() -> None:
    weight = Dense.from_dense(np.arange(12, dtype=np.int8).reshape(3, 4))
    out = np.empty((2, 3), np.int32)
    assert packed_matmul(np.ones((2, 4), np.uint8), pack(weight), out=out) is out
    assert out.tolist() == [[6, 22, 38]] * 2


EYE = np.eye(64, dtype=np.int8)


@pytest.mark.parametrize(
    ("weight", "features", "expected"),
    [
        (Dense.from_dense(EYE), VECTORS, r"^dense: every weight is used, and avx512vnni multiplies 64 at a time$"),
        (Dense.from_dense(EYE), frozenset(), r"^dense: every weight is used, and without avx512vnni in 16-bit"),
        (NM.from_dense(EYE, n=2, m=4), VECTORS, r"^select: 50% is kept, picked by avx512vbmi for avx512vnni$"),
        (NM.from_dense(EYE, n=4, m=4), VECTORS, r"^dense: 100% is kept: multiplying zeros costs less"),
        (CSR.from_dense(EYE), VECTORS - {"avx512vbmi"}, r"^reference: picking nonzeros .* needs avx512vbmi$"),
        (BSR.from_dense(EYE, block=(16, 16)), VECTORS, r"^blocks: blocks of 16 x 16 fill vectors"),
        (BSR.from_dense(EYE, block=(4, 1)), VECTORS, r"^select: "),
    ],
)
def test_choice_says_why(weight: Weight, features: frozenset[str], expected: str) -> None:
    assert re.match(expected, str(choose(weight, features=features)))


def test_reference_is_still_there() -> None:
    packed = pack(CSR.from_dense(EYE), features=frozenset())
    x = np.arange(128, dtype=np.uint8).reshape(2, 64)
    assert np.array_equal(spmm(x, packed, zero_point=1), x.astype(np.int32) - 1)


PACKED = pack(Dense.from_dense(np.ones((2, 4), np.int8)), features=VECTORS)
X = np.zeros((3, 4), np.uint8)
ONES = np.ones(2, np.int64)


def linear(packed: Packed = PACKED, bias: Any = None, q: Requant | None = None, **more: Any) -> Any:
    q = q or Requant(multiplier=ONES, shift=ONES)
    return packed_linear(X, packed, np.zeros(2, np.int32) if bias is None else bias, q, **more)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: packed_matmul(X[:, :3], PACKED), r"^x must have shape \(rows, 4\) for this weight, not \(3, 3\)$"),
        (lambda: packed_matmul(X, PACKED, zero_point=-1), r"^zero_point must be an integer from 0 to 255, not -1$"),
        (lambda: packed_matmul(X, PACKED, out=np.zeros((3, 3), np.int32)), r"^out must be C-contiguous, writeable and"),
        (lambda: linear(bias=np.zeros(3, np.int32)), r"^bias must have shape \(2,\), one an output, not \(3,\)$"),
        (lambda: linear(signed=False), r"^lo must be an integer from 0 to 127, not -128$"),
        (lambda: linear(residual=X), r"^residual must have shape \(rows, N\) = \(3, 2\), not \(3, 4\)$"),
        (lambda: linear(table=np.zeros(9, np.int8)), r"^table must have 256 entries, not 9$"),
        (lambda: linear(q=Requant(multiplier=-ONES, shift=ONES)), r"^multiplier\[0\] must be from 0 to 16777215"),
        (lambda: linear(pack(CSR.from_dense(EYE), features=frozenset())), r"^packed must be of a kernel with vectors"),
        (lambda: choose(EYE), r"^weight must be a Dense, NM, BSR or CSR, not ndarray$"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        call()
