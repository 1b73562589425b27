"""A prepared convolution equals `conv2d`, which is checked against plain NumPy."""

import os
from typing import Any

import numpy as np
import pytest

from gossamer.arch import numerics
from gossamer.arch.errors import GossamerError
from gossamer.arch.numerics import make_requant
from gossamer.kernels import BSR, CSR, NM, Dense, conv2d, prepare_conv

pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="vectors exist in compiled code")

CASES = [
    ((5, 7), 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((6, 9), 16, (3, 2), (2, 2), (0, 1, 2, 0), (1, 1)),
    ((7, 8), 5, (2, 3), (1, 1), (1, 0, 0, 1), (2, 2)),
    ((4, 3), 20, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((4, 6), 20, (1, 1), (2, 1), (0, 0, 0, 0), (1, 1)),
]
"""Map, channels, kernel, stride, pads, dilation."""


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


def test_a_map_of_another_size_is_refused() -> None:
    layer = prepare_conv(WEIGHT, size=(4, 4), channels=3, kernel=(2, 2))
    with pytest.raises(GossamerError, match=r"^x must have shape \(batch, 4, 4, 3\), not \(1, 4, 5, 3\)$"):
        layer(np.zeros((1, 4, 5, 3), np.uint8))
