"""Float32 layers stay within the bound they state, whatever the pattern, the tile, the vectors and the threads."""

import os
import re
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray

from gossamer.arch.errors import GossamerError
from gossamer.kernels import FloatCodes, Layer, prepare_float
from gossamer.kernels.float_layer import Activation
from gossamer.kernels.float_panels import find_nonzeros, lay_out
from gossamer.kernels.float_rows import lay_out_rows

compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="there is no vector in plain Python")

FEATURES = {16: frozenset({"avx", "avx512f"}), 8: frozenset({"avx"}), 4: frozenset[str]()}
"""By lanes: every length of vector works on every machine."""

PATTERNS = ["dense", "2:4", "4x1", "16x16", "unstructured", "empty"]


def weights(rng: np.random.Generator, n: int, k: int, pattern: str) -> NDArray[np.float32]:
    keep = np.ones((n, k), dtype=bool)
    if pattern == "2:4":
        keep = (rng.random((n, -(-k // 4), 4)).argsort(axis=2).argsort(axis=2) < 2).reshape(n, -1)[:, :k]
    elif "x" in pattern:
        br, bc = map(int, pattern.split("x"))
        keep = np.kron(rng.random((-(-n // br), -(-k // bc))) < 0.2, np.ones((br, bc), dtype=bool))[:n, :k]
    elif pattern == "unstructured":
        keep = rng.random((n, k)) < 0.1
    elif pattern == "empty":
        keep[:] = False
    return np.where(keep, rng.standard_normal((n, k)), 0).astype(np.float32)


def floats(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def gamma(terms: NDArray[np.intp]) -> NDArray[np.float64]:
    return terms * 2.0**-24 / (1 - terms * 2.0**-24)


def check(layer: Layer, rng: np.random.Generator, w: Any, bias: Any, rows: int, low: float, high: float) -> None:
    """Against float64, whose own error is nothing beside the bound."""
    x = floats(rng, rows, w.shape[1])
    residual = floats(rng, rows, w.shape[0]) if layer.residual is not None else None
    out = layer(x, residual=residual)
    second = 0.0 if residual is None else residual.astype(np.float64)
    exact = np.clip(x.astype(np.float64) @ w.T.astype(np.float64) + bias.astype(np.float64) + second, low, high)
    size = np.abs(x).astype(np.float64) @ np.abs(w).T.astype(np.float64) + np.abs(bias) + np.abs(second)
    bound = gamma(np.count_nonzero(w, axis=1) + 3) * size
    assert out.shape == exact.shape
    assert np.all(np.abs(out - exact) <= bound), np.max(np.abs(out - exact) - bound)


@compiled
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (70, 67), (18, 300), (36, 1100)])
def test_error(pattern: str, n: int, k: int) -> None:
    """Rows for one vector and for four, the last of them not full; one block of inputs and several."""
    rng = np.random.default_rng(7)
    w, bias = weights(rng, n, k, pattern), floats(rng, n)
    layer = prepare_float(w, bias=bias, features=FEATURES[16])
    for rows in (0, 3, 61):
        check(layer, rng, w, bias, rows, -np.inf, np.inf)


@compiled
@pytest.mark.parametrize("lanes", FEATURES)
@pytest.mark.parametrize("pattern", ["dense", "16x16", "4x1", "unstructured"])
def test_vectors_of_every_length(lanes: int, pattern: str) -> None:
    rng = np.random.default_rng(8)
    w, bias = weights(rng, 21, 150, pattern), floats(rng, 21)
    layer = prepare_float(w, bias=bias, activation="relu6", residual=True, features=FEATURES[lanes])
    check(layer, rng, w, bias, lanes - 1, 0.0, 6.0)


@compiled
@pytest.mark.parametrize("pattern", ["dense", "16x16", "2:4", "4x1", "unstructured"])
def test_rows_and_threads_change_nothing(pattern: str) -> None:
    """To the bit: a row alone, which may have another kernel, among others, in another tile, and by another thread."""
    rng = np.random.default_rng(9)
    w, x, bias = weights(rng, 40, 200, pattern), floats(rng, 61, 200), floats(rng, 40)
    out = prepare_float(w)(x)
    assert np.array_equal(prepare_float(w)(x[7:8]), out[7:8])
    assert np.array_equal(*(prepare_float(w, bias=bias)(some)[-1] for some in (x[6:7], x[:7])))
    assert np.array_equal(prepare_float(w, threads=2)(x), out)
    kept = np.full((61, 40), 7, dtype=np.float32)
    assert prepare_float(w)(x[::-1], out=kept) is kept
    assert np.array_equal(kept, out[::-1])


@compiled
@pytest.mark.parametrize("lanes", [16, 4])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_gates(activation: Activation, lanes: int) -> None:
    """At values that pass the layer as they are: all magnitudes, and what is not finite."""
    rng = np.random.default_rng(16)
    x = (floats(rng, 200, 5) * np.float32(10.0) ** rng.integers(-6, 3, (200, 5))).astype(np.float32)
    out = prepare_float(np.eye(5, dtype=np.float32), activation=activation, features=FEATURES[lanes])(x)
    v = x.astype(np.float64)
    t = np.sqrt(8 / np.pi) * (v + 0.044715 * v**3) if activation == "gelu" else v
    exact = v / (1 + np.exp(-np.clip(t, -700, 700)))
    assert np.all(np.abs(out - exact) <= 4 * 2.0**-24 * np.abs(v)), np.max(np.abs(out - exact) / np.abs(v)) * 2**24
    x[0, 0] = np.nan
    again = prepare_float(np.eye(5, dtype=np.float32), activation=activation, features=FEATURES[lanes])(x)
    assert np.array_equal(np.isnan(again), np.isnan(x))


@compiled
@pytest.mark.parametrize("signed", [False, True])
def test_codes(signed: bool) -> None:
    """Sums of small integers are exact in any order, so codes are compared to the bit; scales make many halves."""
    rng = np.random.default_rng(10)
    w = (weights(rng, 37, 90, "4x1") != 0) * rng.integers(-9, 10, (37, 90)).astype(np.float32)
    x, bias = rng.integers(-9, 10, (9, 90)).astype(np.float32), rng.integers(-99, 99, 37).astype(np.float32)
    scale = rng.choice(np.array([0.5, 2, 3, 16], dtype=np.float32), 37)
    zero_point = -5 if signed else 130
    layer = prepare_float(w, bias=bias, codes=FloatCodes(scale=scale, zero_point=zero_point, signed=signed))
    real = (x @ w.T + bias) * (np.float32(1) / scale)
    assert np.any(real - np.floor(real) == 0.5)
    low, high = (-128, 127) if signed else (0, 255)
    expected = np.clip(np.rint(real) + zero_point, low, high)
    assert np.any(expected == low)
    assert np.any(expected == high)
    out = layer(x)
    assert out.dtype == (np.int8 if signed else np.uint8)
    assert np.array_equal(out, expected)


@compiled
def test_what_is_not_finite() -> None:
    """An infinite input reaches the outputs that have a weight for it; not a number stays, or is the lowest code."""
    rng = np.random.default_rng(11)
    w = weights(rng, 64, 200, "unstructured")
    assert prepare_float(w).why.kernel == "own"
    x = floats(rng, 5, 200)
    x[2, 3] = np.inf
    assert np.array_equal(~np.isfinite(prepare_float(w)(x)), (np.arange(5) == 2)[:, None] & (w[:, 3] != 0))
    x[2, 3] = np.nan
    hit = np.isnan(prepare_float(w, activation="relu")(x))
    assert np.array_equal(hit, (np.arange(5) == 2)[:, None] & (w[:, 3] != 0))
    codes = prepare_float(w, codes=FloatCodes(scale=0.1))(x)
    assert np.all(codes[hit] == -128)


def test_small() -> None:
    """The same without the compiler."""
    rng = np.random.default_rng(12)
    w, bias = weights(rng, 6, 9, "unstructured"), floats(rng, 6)
    check(prepare_float(w, bias=bias, activation="relu", residual=True), rng, w, bias, 3, 0.0, np.inf)
    coded = prepare_float(np.eye(3, dtype=np.float32), codes=FloatCodes(scale=2.0, zero_point=1))
    x = np.array([[1, 3, 5], [-1, 999, np.nan]], dtype=np.float32)
    assert coded(x).tolist() == [[1, 3, 3], [1, 127, -128]]
    gated = prepare_float(np.eye(3, dtype=np.float32), activation="gelu")(x[:1])
    assert np.allclose(gated, [[0.8412, 2.9964, 5.0]], atol=1e-3)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (70, 67), (18, 300), (9, 1100)])
def test_layout(pattern: str, n: int, k: int) -> None:
    """Nothing is lost, from an array or a sparse one in any format, sorted or not."""
    rng = np.random.default_rng(13)
    w = weights(rng, n, k, pattern)
    panels = lay_out(find_nonzeros(w))
    assert np.array_equal(panels.to_dense(), w)
    assert panels.nonzeros == np.count_nonzero(w)
    coo = scipy.sparse.coo_array(w)
    shuffled = rng.permutation(coo.nnz)
    mixed = scipy.sparse.coo_array((coo.data[shuffled], (coo.row[shuffled], coo.col[shuffled])), shape=w.shape)
    for other in (scipy.sparse.csr_array(w), scipy.sparse.csc_matrix(w), scipy.sparse.bsr_array(w), mixed):
        again = lay_out(find_nonzeros(other))
        for name in ("pointers", "inputs", "weights", "lines"):
            assert np.array_equal(getattr(again, name), getattr(panels, name)), (type(other), name)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("n", "k", "length"), [(1, 1, 1), (70, 67, 67), (100, 96, 6), (40, 64, 64)])
def test_layout_of_rows(pattern: str, n: int, k: int, length: int) -> None:
    """Nothing is lost, no entry reaches over the end of a piece, and blocks of 16 x 16 are not filled up."""
    w = weights(np.random.default_rng(19), n, k, pattern)
    cost, packed = lay_out_rows(find_nonzeros(w), length=length, widest=4)
    cells = packed.data.view(np.float32).reshape(-1, packed.run, packed.width, 16)
    dense = np.zeros((packed.slots, k), dtype=np.float32)
    for group in range(packed.pointers.size - 1):
        for e in range(packed.pointers[group], packed.pointers[group + 1]):
            first = packed.places[e] // 4
            assert first // length == (first + packed.run - 1) // length
            outputs = packed.outputs[group]
            for j in range(packed.run):
                dense[outputs, first + j] = cells[e, j]
    assert np.array_equal(dense[:n], w)
    assert not dense[n:].any()
    assert cost >= packed.data.size // 4 >= np.count_nonzero(w)
    if pattern == "16x16" and n % 16 == k % 16 == 0:
        assert packed.data.size // 4 == 256 * np.count_nonzero(w[::16, ::16])


@compiled
@pytest.mark.parametrize(
    ("pattern", "kernel"),
    [("dense", "dense"), ("16x16", "blocks"), ("4x1", "shared"), ("2:4", "own"), ("unstructured", "own")],
)
def test_choice(pattern: str, kernel: str) -> None:
    layer = prepare_float(weights(np.random.default_rng(14), 64, 256, pattern))
    assert layer.why.kernel == kernel


def test_outputs_are_sorted() -> None:
    """Four outputs with inputs of their own hardly differ in number: few weights of 0 are multiplied."""
    w = weights(np.random.default_rng(15), 256, 1024, "unstructured")
    panels = lay_out(find_nonzeros(w))
    assert panels.nonzeros <= 4 * panels.pointers[-1] < 1.02 * panels.nonzeros


EYE = np.eye(4, 6, dtype=np.float32)
X = np.zeros((2, 6), dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: prepare_float(EYE.astype(np.float64)),
            r"^weight must be an ndarray of float32 with 2 dimensions, not f",
        ),
        (
            lambda: prepare_float(scipy.sparse.csr_array(EYE.astype(int))),
            r"^weight must be float32 with 2 dimensions, n",
        ),
        (lambda: prepare_float(EYE[:0]), r"^weight must have at least one row and one column, not shape \(0, 6\)$"),
        (lambda: prepare_float(EYE, bias=X[0]), r"^bias must have shape \(4,\), one an output, not \(6,\)$"),
        (lambda: prepare_float(EYE, threads=0), r"^threads must be an integer of at least 1, not 0$"),
        (
            lambda: prepare_float(EYE, activation="tanh"),
            r"^activation must be one of none, relu, relu6, gelu, silu, not 'tanh'$",
        ),  # type: ignore[arg-type]  # what is tested
        (lambda: FloatCodes(scale=0.0), r"^scale must be finite and above 0, as its inverse in float32, not 0.0$"),
        (lambda: FloatCodes(scale=1e-42), r"^scale must be finite and above 0"),
        (lambda: FloatCodes(scale=1.0, zero_point=200), r"^zero_point must be an integer from -128 to 127, not 200$"),
        (
            lambda: prepare_float(EYE, codes=FloatCodes(scale=np.ones(3, dtype=np.float32))),
            r"^scale must be one number or have shape \(4,\), not \(3,\)$",
        ),
        (
            lambda: prepare_float(EYE)(X[:, :5]),
            r"^x must be .* of shape \(rows, 6\) for this layer, not float32 of shape \(2, 5\)$",
        ),
        (
            lambda: prepare_float(EYE)(X.astype(np.float64)),
            r"^x must be an ndarray of float32 of shape \(rows, 6\) for",
        ),
        (lambda: prepare_float(EYE)(X, residual=X), r"^residual must be None: the layer was prepared without one$"),
        (
            lambda: prepare_float(EYE, residual=True)(X),
            r"^residual must be given, of float32, for this layer, not None$",
        ),
        (
            lambda: prepare_float(EYE, residual=True)(X, residual=X),
            r"^residual must be .* of shape \(2, 4\) for this layer",
        ),
        (
            lambda: prepare_float(EYE)(X, out=X),
            r"^out must be .* \(2, 4\), C-contiguous and writeable for this layer, not float32 of shape \(2, 6\)$",
        ),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        call()


def test_reason_is_told() -> None:
    assert re.match(
        r"own: \d+% is kept, at inputs", str(prepare_float(weights(np.random.default_rng(1), 64, 256, "2:4")).why)
    )
