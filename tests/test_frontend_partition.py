"""Where the border between host and array runs."""

import numpy as np

from gossamer.compiler.layers import Conv, HostSegment
from tests.support.frontend import Builder, check_structure, worst_lsb

CHANNELS, TOKENS = 12, 9
X = {"x": np.random.default_rng(0).standard_normal((1, TOKENS, CHANNELS)).astype(np.float32)}


def norm(b, x):
    return b.op("LayerNormalization", x, b.constant(np.ones(CHANNELS)), b.constant(np.zeros(CHANNELS)))


def linear(b, x):
    return b.op("Add", b.op("MatMul", x, b.weight(CHANNELS, CHANNELS)), b.constant(np.full(CHANNELS, 0.1)))


def hosts(network):
    return [stage for stage in network.stages if isinstance(stage, HostSegment)]


def test_a_residual_stream_that_only_the_host_reads_stays_there_unrounded():
    b = Builder(("x", (1, TOKENS, CHANNELS)))
    x = b.op("Erf", "x")
    for _ in range(3):
        x = b.op("Add", x, linear(b, norm(b, x)))
    lsb, network = worst_lsb(b.model(linear(b, norm(b, x))), X)
    check_structure(network)
    assert lsb <= 2
    assert len(network.layers) == 4
    assert all(layer.residual is None for layer in network.layers)
    crossing = [name for stage in hosts(network) for name in stage.outputs if name not in network.tensors]
    assert len(crossing) == 3  # the stream itself, in floating point from host to host
    assert all(network.host_types[name][0] == "float32" for name in crossing)


def test_a_sum_that_the_array_reads_stays_on_the_array():
    b = Builder(("x", (1, TOKENS, CHANNELS)))
    x = b.op("Relu", linear(b, "x"))
    y = b.op("Add", x, linear(b, x))
    out = norm(b, y), linear(b, y)
    lsb, network = worst_lsb(b.model(*out), X)
    assert lsb <= 2
    assert sum(isinstance(layer, Conv) and layer.residual is not None for layer in network.layers) == 1


def test_what_hands_data_from_host_to_host_stays_there():
    """A normalisation spelt out: its mean would be legal on the array, and would round the variance to 8 bits."""
    b = Builder(("x", (1, TOKENS, CHANNELS)))
    x = b.op("Relu", linear(b, "x"))
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
    variance = b.op("ReduceMean", b.op("Pow", centred, b.constant(2.0)), axes=[-1])
    deviation = b.op("Sqrt", b.op("Add", variance, b.constant(1e-5)))
    y = linear(b, b.op("Div", centred, deviation))
    lsb, network = worst_lsb(b.model(y), X)
    assert lsb <= 2
    (host,) = hosts(network)
    assert host.ops.count("ReduceMean") == 2
    assert len(network.layers) == 2


def test_pooling_between_the_model_s_own_borders_stays_on_the_array():
    b = Builder(("x", (1, 4, 8, 8)))
    model = b.model(b.op("MaxPool", b.op("Relu", "x"), kernel_shape=[2, 2], strides=[2, 2]))
    lsb, network = worst_lsb(model, {"x": np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)})
    assert lsb <= 1
    assert not hosts(network)


def test_the_host_lays_out_anew_what_a_product_finds_in_the_wrong_order():
    """Channels first out of tokens: the convolution keeps its products, the host only moves its input."""
    b = Builder(("x", (1, TOKENS, CHANNELS)))
    tokens = b.op("Relu", linear(b, "x"))
    image = b.op("Reshape", tokens, b.constant([1, 6, 6, 3], np.int64))
    model = b.model(b.op("Relu", b.conv(image, 6, 5, k=[2, 2])))
    lsb, network = worst_lsb(model, X)
    check_structure(network)
    assert lsb <= 1
    (host,) = hosts(network)
    assert host.macs == 0
    assert "lies in the array as" in host.reason
    assert len(network.layers) == 2
