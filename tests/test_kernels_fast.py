"""Prepared layers give the plain int64 product and its requantisation, with vector instructions and without."""

import os
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.layers import check_form, codes

from gossamer.arch.errors import GossamerError
from gossamer.arch.numerics import Requant
from gossamer.kernels import BSR, CSR, NM, Dense, Layer, Weight, aligned_empty, choose, prepare

compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="vectors exist in compiled code")

VECTORS = frozenset({"avx512vnni", "avx512vbmi"})
"""Every kernel is chosen, whatever this machine has: an instruction it lacks is replaced."""


@pytest.fixture(params=["native", "portable"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GOSSAMER_PORTABLE", str(int(request.param == "portable")))
    return str(request.param)


def sparse(rng: np.random.Generator, n: int, k: int, density: float, extreme: bool = False) -> NDArray[np.int8]:
    kept: NDArray[np.int8] = np.where(rng.random((n, k)) < density, codes(rng, (n, k), True, extreme), 0).astype(
        np.int8
    )
    return kept


def as_format(name: str, dense: NDArray[np.int8]) -> Weight:
    """The dense matrix in a format, cut where the format cannot hold it."""
    kind, _, rest = name.partition(" ")
    if kind == "CSR":
        return CSR.from_dense(dense)
    if kind == "NM":
        n, m = map(int, rest.split(":"))
        dense = np.where(np.arange(dense.shape[1]) % m < n, dense, 0).astype(np.int8)
        return NM.from_dense(np.roll(dense, 1, axis=1) if dense.shape[1] % m == 0 else dense, n=n, m=m)
    if kind == "BSR":
        br, bc = map(int, rest.split("x"))
        return BSR.from_dense(dense, block=(br, bc))
    return Dense.from_dense(dense)


KERNELS = {"Dense": "dense", "CSR": "select", "NM 1:4": "select", "BSR 4x1": "shared"} | dict.fromkeys(
    ("BSR 16x8", "BSR 32x4", "BSR 16x4"), "blocks"
)
"""The formats that between them have every shape of tile, and their kernels."""


def product(x: NDArray[Any], zero_point: int, weight: Weight) -> NDArray[np.int64]:
    total: NDArray[np.int64] = (x.astype(np.int64) - zero_point) @ weight.to_dense().astype(np.int64).T
    return total


@compiled
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "k", "extreme"), [(70, 133, False), (17, 65, True)])
def test_sums(path: str, name: str, n: int, k: int, extreme: bool) -> None:
    """Remainders of rows, outputs and inputs; sums at their most extreme; a bias."""
    rng = np.random.default_rng(n)
    weight = as_format(name, sparse(rng, n, k, 0.2, extreme))
    bias = rng.integers(-(2**20), 2**20, n).astype(np.int32)
    layer = prepare(weight, zero_point=255 * extreme, bias=bias, features=VECTORS)
    assert layer.why.kernel == KERNELS[name]
    x = codes(rng, (13, k), False, extreme)
    out = layer(x)
    assert out.dtype == np.int32
    assert np.array_equal(out, product(x, 255 * extreme, weight) + bias)


@compiled
@pytest.mark.parametrize("name", ["Dense", "BSR 4x1"])
def test_signed_activations(path: str, name: str) -> None:
    rng = np.random.default_rng(1)
    weight = as_format(name, sparse(rng, 40, 70, 0.2))
    x = codes(rng, (13, 70), True, True)
    for zero_point in (-128, 0, 127):
        layer = prepare(weight, activation="int8", zero_point=zero_point, features=VECTORS)
        assert np.array_equal(layer(x), product(x, zero_point, weight))


@compiled
@pytest.mark.parametrize("count", [0, 1, 5, 7, 13, 49, 197])
def test_numbers_of_rows(count: int) -> None:
    """Tiles of one height and of two, and rows that are computed twice."""
    rng = np.random.default_rng(2)
    weight = as_format("Dense", sparse(rng, 65, 17, 1.0))
    x = codes(rng, (count, 17), False)
    assert np.array_equal(prepare(weight)(x), product(x, 0, weight))


@compiled
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 4), (2, 15), (1, 63)])
def test_small_weights(n: int, k: int) -> None:
    rng = np.random.default_rng(3)
    x = codes(rng, (13, k), False)
    for name in KERNELS:
        if k >= 4 or "4" not in name.partition(":")[2]:
            weight = as_format(name, sparse(rng, n, k, 0.9))
            assert np.array_equal(prepare(weight, zero_point=9, features=VECTORS)(x), product(x, 9, weight)), name


@compiled
def test_weights_beyond_the_nearest_cache() -> None:
    """Two vectors a group instead of four."""
    rng = np.random.default_rng(8)
    weight = as_format("NM 2:4", sparse(rng, 40, 700, 0.9))
    x = codes(rng, (13, 700), False)
    assert np.array_equal(prepare(weight, features=VECTORS)(x), product(x, 0, weight))


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["NM 2:4", "NM 1:8", "NM 3:16", "NM 8:64", "NM 1:5"] + [
    f"BSR {block}" for block in ("4x4", "8x1", "16x1", "16x16", "32x32", "48x16", "64x12", "5x3")
])  # fmt: skip
def test_other_formats(path: str, name: str, signed: bool) -> None:
    rng = np.random.default_rng(4)
    for count, n, k, density in ((1, 33, 64, 0.1), (29, 130, 200, 0.3), (4, 64, 70, 0.0)):
        weight = as_format(name, sparse(rng, n, k, density))
        x = codes(rng, (count, k), signed)
        layer = prepare(weight, activation="int8" if signed else "uint8", zero_point=3, features=VECTORS)
        assert np.array_equal(layer(x), product(x, 3, weight)), layer.why


def halves(rng: np.random.Generator, n: int, signed: bool) -> Requant:
    """Every shift, many multipliers that are powers of two, so that halves are met."""
    low, high = (-128, 127) if signed else (0, 255)
    return Requant(
        multiplier=np.where(np.arange(n) % 3 > 0, 1 << rng.integers(0, 9, n), rng.integers(0, 1 << 24, n)),
        shift=np.where(np.arange(n) % 4 > 0, 9, rng.integers(9, 48, n)),
        zero_point=5,
        lo=low + 3,
        hi=high - 2,
    )


FORMS = [
    ("Dense", "float32"),
    ("BSR 32x4", "float32"),
    ("BSR 16x8", "float32"),
    ("BSR 16x8", "float64"),
    ("BSR 16x8", "float64 residual"),
    ("BSR 16x8", "int64"),
    ("BSR 16x8", "int64 residual table"),
]


@compiled
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_codes(path: str, name: str, form: str) -> None:
    """Against arch.numerics: halves, saturation, each form of the arithmetic, each width of a tile."""
    rng = np.random.default_rng(6)
    count, n, k = 13, 70, 133
    signed = "table" in form
    weight, x = as_format(name, sparse(rng, n, k, 0.2)), codes(rng, (count, k), False)
    q = halves(rng, n, signed)
    if form == "float32":
        q = replace(q, multiplier=q.multiplier >> 4)
    check_form(rng, form, weight, x, product(x, 3, weight), q, features=VECTORS)


def test_small_layer_by_any_means() -> None:
    """Also in plain Python, by the reference."""
    x = np.arange(8, dtype=np.uint8).reshape(2, 4)
    weight = Dense.from_dense(np.arange(12, dtype=np.int8).reshape(3, 4))
    one = np.ones(3, np.int64)
    assert prepare(weight, bias=np.array([1, 2, 3], np.int32))(x).tolist() == [[15, 40, 65], [39, 128, 217]]
    halved = prepare(weight, requant=Requant(multiplier=one, shift=one, lo=0, hi=100))(x)
    assert halved.tolist() == [[7, 19, 31], [19, 63, 100]]


@compiled
@pytest.mark.slow  # the parallel back end compiles for some seconds
@pytest.mark.parametrize("name", ["Dense", "BSR 4x1"])
def test_threads_change_nothing(name: str) -> None:
    """By rows where there are many, else by outputs; more parts than there are of either."""
    rng = np.random.default_rng(7)
    weight = as_format(name, sparse(rng, 200, 70, 0.2))
    q, table = replace(halves(rng, 200, False), residual_multiplier=99, residual_shift=9), codes(rng, (256,), False)
    for count, threads in ((100, 2), (3, 2), (3, 9), (0, 2)):
        x = codes(rng, (count, 70), False)
        residual = codes(rng, (count, 200), True)
        made = [
            prepare(weight, requant=q, table=table, residual="int8", threads=parts, features=VECTORS)
            for parts in (1, threads)
        ]
        assert np.array_equal(*(layer(x, residual=residual) for layer in made))


@compiled
def test_where_it_is_wanted() -> None:
    layer = prepare(Dense.from_dense(np.arange(12, dtype=np.int8).reshape(3, 4)))
    out = aligned_empty((2, 3), np.int32)
    x = np.ones((4, 4), np.uint8)[::2]
    assert layer(x, out=out) is out
    assert out.tolist() == [[6, 22, 38]] * 2


EYE = np.eye(64, dtype=np.int8)


@compiled
@pytest.mark.parametrize(
    ("weight", "features", "expected"),
    [
        (Dense.from_dense(EYE), VECTORS, r"^dense: every weight is used, and avx512vnni multiplies 64 at a time$"),
        (Dense.from_dense(EYE), frozenset({"avxvnni"}), r"^dense: .* avxvnni multiplies 32 at a time$"),
        (Dense.from_dense(EYE), frozenset(), r"^dense: .* without avx512vnni or avxvnni in 16-bit products$"),
        (NM.from_dense(EYE, n=2, m=4), VECTORS, r"^select: 50% is kept, picked by avx512vbmi; avx512vnni multiplies"),
        (NM.from_dense(EYE, n=4, m=4), VECTORS, r"^dense: 100% is kept: up to 70% select would cost less"),
        (CSR.from_dense(EYE), VECTORS - {"avx512vbmi"}, r"^dense: picking nonzeros .* needs avx512vbmi; avx512vnni"),
        (BSR.from_dense(EYE, block=(16, 16)), VECTORS, r"^blocks: blocks of 16 x 16 fill vectors"),
        (BSR.from_dense(EYE, block=(4, 1)), VECTORS, r"^shared: 6% is kept"),
        (BSR.from_dense(EYE, block=(5, 1)), VECTORS, r"^select: "),
    ],
)
def test_choice_says_why(weight: Weight, features: frozenset[str], expected: str) -> None:
    assert re.match(expected, str(choose(weight, features=features)))
    assert re.match(expected, str(prepare(weight, features=features).why))


WEIGHT = Dense.from_dense(np.ones((2, 4), np.int8))
X = np.zeros((3, 4), np.uint8)
ONES = np.ones(2, np.int64)
HALF = Requant(multiplier=ONES, shift=ONES, lo=0, hi=9)


def made(**more: Any) -> Layer:
    return prepare(WEIGHT, **{"requant": HALF, **more})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made()(X[:, :3]), r"^x must be an ndarray of uint8 of shape \(rows, 4\) for this layer, not uint8 of"),
        (lambda: made()(X.astype(np.int8)), r"^x must be an ndarray of uint8 .*, not int8 of shape \(3, 4\)$"),
        (lambda: made()(X, out=np.zeros((3, 3), np.uint8)), r"^out must be .* \(3, 2\), C-contiguous and writeable"),
        (lambda: made()(X, out=np.zeros((2, 3), np.uint8).T), r"^out must be .* C-contiguous and writeable"),
        (lambda: made()(X, residual=X), r"^residual must be None: the layer was prepared without one$"),
        (lambda: made(residual="int8")(X), r"^residual must be given, of int8, for this layer, not None$"),
        (lambda: made(residual="uint8")(X, residual=X), r"^residual must be .* of shape \(3, 2\) for this layer, not"),
        (lambda: made(activation="int16"), r"^activation must be 'int8' or 'uint8', not 'int16'$"),
        (lambda: made(zero_point=-1), r"^zero_point must be an integer from 0 to 255, not -1$"),
        (lambda: made(bias=np.zeros(3, np.int32)), r"^bias must have shape \(2,\), one an output, not \(3,\)$"),
        (lambda: made(requant=replace(HALF, lo=-1)), r"^lo must be an integer from 0 to 9, not -1$"),
        (lambda: made(table=np.zeros(9, np.uint8)), r"^table must have 256 entries, not 9$"),
        (lambda: made(requant=None, residual="int8"), r"^requant must be given where there is a residual or a table"),
        (lambda: made(requant=replace(HALF, multiplier=-ONES)), r"^multiplier\[0\] must be from 0 to 16777215"),
        (lambda: made(threads=0), r"^threads must be an integer of at least 1, not 0$"),
        (lambda: choose(EYE), r"^weight must be a Dense, NM, BSR or CSR, not ndarray$"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        call()
