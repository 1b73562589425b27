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


@pytest.mark.parametrize("attributes", [{"strides": [2, 1]}, {"group": 5}, {"dilations": [2, 2]}])
def test_the_others_stay_on_the_host(attributes):
    b = Builder(("x", (2, 5, 6, 7)))
    weight = b.weight(5, 1 if "group" in attributes else 4, 3, 3)
    y = b.op("ConvTranspose", b.op("Relu", "x"), weight, **attributes)
    lsb, network = worst_lsb(b.model(b.op("Relu", y)), X)
    assert lsb <= 1
    (host,) = (s for s in network.stages if isinstance(s, HostSegment))
    assert "ConvTranspose" in host.ops


def test_without_a_bias():
    lsb, _ = worst_lsb(model((2, 2), bias=False, strides=[2, 2]), X)
    assert lsb <= 1
