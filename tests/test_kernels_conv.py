"""Convolution and pooling equal six plain loops in int64."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.layers import codes

from gossamer.arch.errors import GossamerError
from gossamer.kernels import conv2d, max_pool2d, sum_pool2d


def padded(x: NDArray[Any], pads: tuple[int, int, int, int], fill: int) -> NDArray[np.int64]:
    top, left, bottom, right = pads
    return np.pad(x.astype(np.int64), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)


def windows(x: NDArray[np.int64], kernel: tuple[int, int], case: dict[str, Any]) -> NDArray[np.int64]:
    """Every window of a padded map, [batch, channels, out_h, out_w, kernel_h, kernel_w]."""
    (sh, sw), (dh, dw) = case["stride"], case["dilation"]
    out_h = len(range(0, x.shape[2] - dh * (kernel[0] - 1), sh))
    out_w = len(range(0, x.shape[3] - dw * (kernel[1] - 1), sw))
    out = np.empty((*x.shape[:2], out_h, out_w, *kernel), dtype=np.int64)
    for oh in range(out_h):
        for ow in range(out_w):
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    out[:, :, oh, ow, i, j] = x[:, :, oh * sh + i * dh, ow * sw + j * dw]
    return out


def conv_oracle(
    x: NDArray[Any], weight: NDArray[np.int8], zero_point: int, groups: int, case: dict[str, Any]
) -> NDArray[np.int64]:
    seen = windows(padded(x, case["pads"], zero_point) - zero_point, weight.shape[2:], case)
    fan_in, per_group = weight.shape[1], weight.shape[0] // groups
    outputs = []
    for n in range(weight.shape[0]):
        first = n // per_group * fan_in
        outputs.append((seen[:, first : first + fan_in] * weight[n].astype(np.int64)[:, None, None]).sum((1, 4, 5)))
    return np.stack(outputs, axis=1)


@st.composite
def maps(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, int], tuple[int, int]]:
    """Stride, pads and dilation, a kernel, and a map that the kernel fits once padded."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    top, left, bottom, right = draw(st.tuples(*[st.integers(0, 3)] * 4))
    smallest_h = max(1, dilation[0] * (kernel[0] - 1) + 1 - top - bottom)
    smallest_w = max(1, dilation[1] * (kernel[1] - 1) + 1 - left - right)
    size = (smallest_h + draw(st.integers(0, 6)), smallest_w + draw(st.integers(0, 6)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return {"stride": stride, "pads": (top, left, bottom, right), "dilation": dilation}, kernel, size


@given(
    seed=st.integers(0, 2**32 - 1),
    geometry=maps(),
    batch=st.integers(0, 2),
    groups=st.integers(1, 4),
    fan_in=st.integers(1, 4),
    per_group=st.integers(1, 3),
    zero=st.sampled_from([0, 128, 255]),
    signed=st.booleans(),
    extreme=st.booleans(),
)
def test_convolutions(
    seed: int,
    geometry: tuple[dict[str, Any], tuple[int, int], tuple[int, int]],
    batch: int,
    groups: int,
    fan_in: int,
    per_group: int,
    zero: int,
    signed: bool,
    extreme: bool,
) -> None:
    rng = np.random.default_rng(seed)
    case, kernel, size = geometry
    x = codes(rng, (batch, groups * fan_in, *size), signed, extreme)
    weight = codes(rng, (groups * per_group, fan_in, *kernel), True, extreme)
    weight[rng.random(weight.shape) < 0.3] = 0
    zero_point = zero - 128 * signed
    out = conv2d(x, weight, zero_point=zero_point, groups=groups, **case)
    expected = conv_oracle(x, weight, zero_point, groups, case)
    assert out.dtype == np.int32
    assert out.shape == expected.shape
    assert np.array_equal(out, expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    geometry=maps(),
    batch=st.integers(0, 2),
    channels=st.integers(1, 5),
    zero=st.sampled_from([0, 128, 255]),
    signed=st.booleans(),
    extreme=st.booleans(),
)
def test_pools(
    seed: int,
    geometry: tuple[dict[str, Any], tuple[int, int], tuple[int, int]],
    batch: int,
    channels: int,
    zero: int,
    signed: bool,
    extreme: bool,
) -> None:
    case, kernel, size = geometry
    x = codes(np.random.default_rng(seed), (batch, channels, *size), signed, extreme)
    largest = max_pool2d(x, kernel, **case)
    assert largest.dtype == x.dtype
    assert np.array_equal(largest, windows(padded(x, case["pads"], -128 * signed), kernel, case).max((4, 5)))
    zero_point = zero - 128 * signed
    total = sum_pool2d(x, kernel, zero_point=zero_point, **case)
    assert total.dtype == np.int32
    assert np.array_equal(total, windows(padded(x, case["pads"], zero_point) - zero_point, kernel, case).sum((4, 5)))


CASE: dict[str, Any] = {"stride": (2, 1), "pads": (1, 0, 0, 2), "dilation": (1, 2)}


def test_small_convolutions_and_pools() -> None:
    rng = np.random.default_rng(2)
    x = codes(rng, (1, 4, 5, 4), False, True)
    for groups in (1, 2, 4):
        weight = codes(rng, (4, 4 // groups, 3, 2), True, True)
        out = conv2d(x, weight, zero_point=255, groups=groups, **CASE)
        assert np.array_equal(out, conv_oracle(x, weight, 255, groups, CASE))
    assert np.array_equal(max_pool2d(x, (3, 2), **CASE), windows(padded(x, CASE["pads"], 0), (3, 2), CASE).max((4, 5)))


def test_window_of_padding_only_gives_the_smallest_code() -> None:
    x = np.full((1, 1, 1, 1), 5, dtype=np.int8)
    assert max_pool2d(x, (1, 1), pads=(0, 1, 0, 1)).tolist() == [[[[-128, 5, -128]]]]


X = np.zeros((1, 4, 5, 5), dtype=np.uint8)
PAIR: Any = (0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: conv2d(X, w(2, 3, 1, 1)), r"^weight must have shape \(multiple of 1, 4 / 1, .* not \(2, 3, 1, 1\)$"),
        (lambda w: conv2d(X, w(3, 2, 1, 1), groups=2), r"^weight must have shape \(multiple of 2, 4 / 2, kernel_h"),
        (lambda w: conv2d(X, w(0, 4, 1, 1)), r"^weight must have shape"),
        (
            lambda w: conv2d(X, w(2, 4, 6, 1)),
            r"^weight must have a kernel that fits the padded map of 5 x 5, not 6 x 1",
        ),
        (lambda w: conv2d(X, w(2, 4, 1, 1), groups=0), r"^groups must be an integer of at least 1, not 0$"),
        (lambda w: conv2d(X, w(2, 4, 1, 1), stride=(0, 1)), r"^stride\[0\] must be an integer of at least 1, not 0$"),
        (lambda w: conv2d(X, w(2, 4, 1, 1), pads=PAIR), r"^pads must be 4 integers of at least 0, not \(0, 0\)$"),
        (lambda w: conv2d(X, w(2, 4, 1, 1), zero_point=-1), r"^zero_point must be an integer from 0 to 255, not -1$"),
        (lambda w: conv2d(X[0], w(2, 4, 1, 1)), r"^x must be an ndarray of int8 or uint8 with 4 dimensions, not uint8"),
        (
            lambda w: max_pool2d(X, (3, 6)),
            r"^kernel must fit the padded map of 5 x 5, not 3 x 6 with dilation \(1, 1\)$",
        ),
        (lambda w: max_pool2d(X, (0, 1)), r"^kernel\[0\] must be an integer of at least 1, not 0$"),
        (lambda w: sum_pool2d(X, PAIR[:1]), r"^kernel must be 2 integers of at least 1, not \(0,\)$"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        call(lambda *shape: np.ones(shape, dtype=np.int8))
