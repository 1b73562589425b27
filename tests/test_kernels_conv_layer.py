"""A prepared convolution equals `conv2d`, which is checked against plain NumPy; a float32 one is within its bound."""

import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer.arch import numerics
from gossamer.arch.errors import GossamerError
from gossamer.arch.numerics import make_requant
from gossamer.kernels import BSR, CSR, NM, Dense, conv2d, prepare_conv, prepare_float_conv
from gossamer.kernels.windows import make_windows

compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="vectors exist in compiled code")

CASES = [
    ((5, 7), 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((6, 9), 16, (3, 2), (2, 2), (0, 1, 2, 0), (1, 1)),
    ((7, 8), 5, (2, 3), (1, 1), (1, 0, 0, 1), (2, 2)),
    ((4, 3), 20, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((4, 6), 20, (1, 1), (2, 1), (0, 0, 0, 0), (1, 1)),
]
"""Map, channels, kernel, stride, pads, dilation."""


@compiled
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "kind", ["Dense", "NM", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("CSR", "BSR", "shared"))]
)
@pytest.mark.parametrize("signed", [False, True])
def test_equals_conv2d(case: Any, kind: str, signed: bool) -> None:
    size, channels, kernel, stride, pads, dilation = case
    rng = np.random.default_rng(0)
    n, inputs, low = 20, channels * kernel[0] * kernel[1], -128 if signed else 0
    dense = np.where(rng.random((n, inputs)) < 0.2, rng.integers(-128, 128, (n, inputs)), 0).astype(np.int8)
    make: dict[str, Any] = {
        "Dense": Dense.from_dense,
        "CSR": CSR.from_dense,
        "BSR": lambda d: BSR.from_dense(d, block=(16, 4)),
        "shared": lambda d: BSR.from_dense(d, block=(4, 1)),
        "NM": lambda d: NM.from_dense(np.where(np.arange(inputs) % 4 < 1, d, 0).astype(np.int8), n=1, m=4),
    }
    weight = make[kind](dense)
    x = rng.integers(low, low + 256, (2, *size, channels)).astype(np.int8 if signed else np.uint8)
    zero_point = low + 100
    options: dict[str, Any] = {"zero_point": zero_point, "stride": stride, "pads": pads, "dilation": dilation}
    plain = weight.to_dense().reshape(n, *kernel, channels).transpose(0, 3, 1, 2)
    expected = conv2d(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), np.ascontiguousarray(plain), **options)
    expected = expected.transpose(0, 2, 3, 1)
    options |= {"size": size, "channels": channels, "kernel": kernel, "activation": x.dtype.name}
    assert np.array_equal(prepare_conv(weight, **options)(x), expected)
    if kind == "Dense" and not signed:
        q = make_requant(np.full(n, 0.001), zero_point=3, lo=0, hi=255, residual_ratio=0.5)
        residual = rng.integers(0, 256, expected.shape).astype(np.uint8)
        out = prepare_conv(weight, requant=q, residual="uint8", **options)(x, residual=residual)
        assert np.array_equal(out, numerics.requantise(expected, np.zeros(n, np.int32), q, residual))


def windows_of(x: NDArray[Any], case: Any) -> NDArray[np.float64]:
    """The windows of a map with channels last as rows, one by one: [batch, out_h, out_w, inputs]."""
    _, _, (high, wide), (down, across), (top, left, bottom, right), (apart_h, apart_w) = case
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    tall, long = apart_h * (high - 1) + 1, apart_w * (wide - 1) + 1
    rows = range(0, padded.shape[1] - tall + 1, down)
    columns = range(0, padded.shape[2] - long + 1, across)
    return np.array([
        [[image[i : i + tall : apart_h, j : j + long : apart_w].ravel() for j in columns] for i in rows]
        for image in padded
    ])  # fmt: skip


FLOAT_WEIGHTS: dict[str, Any] = {
    "dense": lambda rng, n, k: np.ones((n, k), bool),
    "blocks": lambda rng, n, k: np.repeat(rng.random((-(-n // 16), k)) < 0.3, 16, axis=0)[:n],
    "shared": lambda rng, n, k: np.repeat(rng.random((-(-n // 4), k)) < 0.2, 4, axis=0)[:n],
    "own": lambda rng, n, k: rng.random((n, k)) < 0.1,
}
"""By kernel, which weights of a matrix are kept."""


@compiled
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", FLOAT_WEIGHTS)
def test_float_error(case: Any, kernel: str) -> None:
    """Against float64, whose own error is nothing beside the bound."""
    check_float(case, kernel, 40)


def test_small_float_error() -> None:
    """The same without the compiler, where the windows are copied together."""
    check_float(((4, 5), 2, (2, 3), (1, 2), (1, 0, 0, 1), (1, 1)), "own", 3)


def check_float(case: Any, kernel: str, n: int) -> None:
    size, channels, window, stride, pads, dilation = case
    rng, k = np.random.default_rng(1), channels * window[0] * window[1]
    keep = FLOAT_WEIGHTS[kernel](rng, n, k)
    w = np.where(keep, rng.standard_normal((n, k)), 0).astype(np.float32)
    x = rng.standard_normal((2, *size, channels)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    layer = prepare_float_conv(
        w, size=size, channels=channels, kernel=window, stride=stride, pads=pads, dilation=dilation,
        bias=bias, activation="relu", residual=True,
    )  # fmt: skip
    rows = windows_of(x, case)
    residual = rng.standard_normal((*rows.shape[:3], n)).astype(np.float32)
    exact = np.maximum(rows @ w.T.astype(np.float64) + bias + residual, 0)
    terms = np.count_nonzero(w, axis=1) + 3
    bound = terms * 2.0**-24 / (1 - terms * 2.0**-24)
    out = layer(x, residual=residual)
    assert out.shape == exact.shape
    assert np.all(np.abs(out - exact) <= bound * (np.abs(rows) @ np.abs(w).T + np.abs(bias) + np.abs(residual)))


@compiled
def test_float_kernels_are_met() -> None:
    rng = np.random.default_rng(1)
    for kernel, keep in FLOAT_WEIGHTS.items():
        w = keep(rng, 64, 9 * 64).astype(np.float32)
        assert prepare_float_conv(w, size=(5, 5), channels=64, kernel=(3, 3)).why.kernel == kernel


@compiled
@pytest.mark.parametrize("rows", [1, 4])
def test_maps_of_few_pixels(rows: int) -> None:
    """Few rows have kernels of their own, which know of windows too."""
    rng = np.random.default_rng(2)
    w = (rng.random((8, 36)) < 0.1).astype(np.float32)
    x = rng.integers(0, 9, (1, 3, 2 + rows, 4)).astype(np.float32)
    case = (x.shape[1:3], 4, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1))
    out = prepare_float_conv(w, size=(3, 2 + rows), channels=4, kernel=(3, 3))(x)
    assert np.array_equal(out, windows_of(x, case) @ w.T)


def test_small_windows() -> None:
    """Where windows and their inputs lie in the padded map, one by one."""
    for size, channels, kernel, stride, pads, dilation in CASES:
        windows = make_windows(
            size=size, channels=channels, kernel=kernel, stride=stride, pads=pads, dilation=dilation
        )  # fmt: skip
        tall, wide = windows.padded_size
        numbers = np.arange(2 * tall * wide * channels).reshape(2, tall, wide, channels)
        expected = windows_of(numbers, (size, channels, kernel, stride, (0, 0, 0, 0), dilation))
        found = windows.starts(2)[:, None, None] + windows.piece_starts[:, None] + np.arange(windows.pieces[1])
        assert np.array_equal(found.reshape(expected.shape), expected)


WEIGHT = Dense.from_dense(np.ones((2, 12), np.int8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": (3, 3)}, r"^weight must have 3 \* 3 \* 3 inputs, not 12$"),
        ({"size": (1, 5)}, r"^kernel must fit the padded map, not be 2 x 2 with dilation \(1, 1\)$"),
        ({"threads": 2}, r"^threads and segment must not be given"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        prepare_conv(WEIGHT, **{"size": (4, 4), "channels": 3, "kernel": (2, 2), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": (3, 3)}, r"^weight must have 3 \* 3 \* 3 inputs, not 12$"),
        ({"stride": (0, 1)}, r"^stride\[0\] must be an integer of at least 1, not 0$"),
        ({"threads": 2}, r"^threads and pieces must not be given"),
    ],
)
def test_float_refusals(options: dict[str, Any], message: str) -> None:
    weight = np.ones((2, 12), np.float32)
    with pytest.raises(GossamerError, match=message):
        prepare_float_conv(weight, **{"size": (4, 4), "channels": 3, "kernel": (2, 2), **options})


def test_a_map_of_another_size_is_refused() -> None:
    layer = prepare_conv(WEIGHT, size=(4, 4), channels=3, kernel=(2, 2))
    with pytest.raises(GossamerError, match=r"^x must have shape \(batch, 4, 4, 3\), not \(1, 4, 5, 3\)$"):
        layer(np.zeros((1, 4, 5, 3), np.uint8))
