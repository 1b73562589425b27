"""Transposed convolutions: their products run on the array, the host only puts the phases side by side."""

import numpy as np
import pytest

from gossamer.compiler.layers import HostSegment
from tests.support.frontend import Builder, check_structure, worst_lsb

X = {"x": np.random.default_rng(0).standard_normal((2, 5, 6, 7)).astype(np.float32)}


def model(kernel, bias=True, **attributes):
    b = Builder(("x", (2, 5, 6, 7)))
    weight = b.weight(5, 4, *kernel)
    more = [b.weight(4, scale=0.3)] if bias else []
    y = b.op("ConvTranspose", b.op("Relu", "x"), weight, *more, **attributes)
    return b.model(b.op("Relu", y))


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((2, 2), {"strides": [2, 2]}),
        ((3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        ((4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((5, 3), {"strides": [3, 3], "pads": [2, 0, 1, 1]}),
        ((1, 1), {"strides": [2, 2]}),
        ((3, 2), {"strides": [1, 1], "pads": [1, 0, 0, 0]}),
        ((2, 2), {"strides": [3, 3]}),
        ((4, 4), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        ((3, 3), {"strides": [2, 2], "output_shape": [12, 13]}),
        ((5, 5), {"strides": [2, 2], "pads": [4, 4, 4, 4]}),
    ],
)
def test_products_run_on_the_array(kernel, attributes):
    lsb, network = worst_lsb(model(kernel, **attributes), X)
    check_structure(network)
    assert lsb <= 1
    assert sum(s.macs for s in network.stages if isinstance(s, HostSegment)) == 0
    assert sum(hasattr(layer, "weight") and layer.weight.shape[1] == 5 for layer in network.layers) == 1


@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ((2, 5, 6, 7), (4, 3, 3), {"strides": [2, 1], "pads": [1, 0, 0, 2]}),
        ((2, 5, 6, 7), (1, 3, 3), {"group": 5, "strides": [2, 2]}),
        ((2, 6, 6, 7), (2, 4, 4), {"group": 3, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((2, 5, 6, 7), (4, 3, 3), {"dilations": [2, 3], "strides": [1, 2]}),
        ((2, 5, 9), (4, 8), {"strides": [4], "pads": [2, 2]}),
        ((2, 5, 9), (4, 3), {"strides": [1], "dilations": [3], "pads": [3, 3]}),
    ],
    ids=["unequal strides", "depthwise", "groups", "dilated", "one axis", "one axis dilated"],
)
def test_groups_dilation_and_one_axis(shape, kernel, attributes):
    b = Builder(("x", shape))
    k = kernel[0] * attributes.get("group", 1)
    y = b.op("ConvTranspose", b.op("Relu", "x"), b.weight(shape[1], *kernel), b.weight(k, scale=0.3), **attributes)
    x = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    lsb, network = worst_lsb(b.model(b.op("Relu", y)), x)
    check_structure(network)
    assert lsb <= 1
    assert sum(s.macs for s in network.stages if isinstance(s, HostSegment)) == 0
    assert any(hasattr(layer, "weight") and layer.weight.size > k for layer in network.layers)


def test_a_computed_weight_stays_on_the_host():
    b = Builder(("x", (2, 5, 6, 7)))
    total = b.op("ReduceSum", b.op("Erf", "x"), b.constant([3], np.int64), keepdims=0)
    weight = b.op("Reshape", total, b.constant([5, 2, 2, 3], np.int64))
    y = b.op("ConvTranspose", b.op("Relu", "x"), weight)
    lsb, network = worst_lsb(b.model(b.op("Relu", y)), X)
    assert lsb <= 1
    assert any("ConvTranspose" in s.ops for s in network.stages if isinstance(s, HostSegment))


def test_without_a_bias():
    lsb, _ = worst_lsb(model((2, 2), bias=False, strides=[2, 2]), X)
    assert lsb <= 1
