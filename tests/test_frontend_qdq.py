"""int8 models come in with their own scales; what the front end writes out as QDQ can be read back unchanged."""

import numpy as np
import onnx
import pytest
from onnx import helper

from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.importer import import_model
from gossamer.compiler.frontend.lower import lower
from gossamer.compiler.layers import Conv
from gossamer.compiler.passes import Options, build_network, run_passes
from tests.support.frontend import Builder, compile_both, run_network, run_onnx


def normal(*shape, seed=3):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def block():
    b = Builder(("x", (1, 3, 12, 12)))
    y = b.op("Relu", b.bn(b.conv("x", 3, 8, pads=[1, 1, 1, 1]), 8))
    z = b.op("HardSwish", b.conv(y, 8, 8, pads=[1, 1, 1, 1], groups=8))
    y = b.op("Relu", b.op("Add", b.conv(z, 8, 8, k=1), y))
    y = b.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.model(b.op("Gemm", y, b.weight(8, 10), b.weight(10), out="y"))


def test_own_qdq_export_is_read_back_as_the_same_network():
    x = normal(1, 3, 12, 12)
    network, twin, _ = compile_both(block(), [x])
    again = build_network(twin)  # warns (an error here) if anything had to be calibrated
    assert len(again.stages) == len(network.stages)
    for one, two in zip(network.layers, again.layers, strict=True):
        assert type(one) is type(two)
        if isinstance(one, Conv):
            np.testing.assert_array_equal(one.weight, two.weight)
            np.testing.assert_array_equal(one.bias, two.bias)
            np.testing.assert_allclose(one.scale, two.scale, rtol=1e-12)
            assert (one.table is None) == (two.table is None)
            assert (one.zero_point, one.lo, one.hi, one.pads) == (two.zero_point, two.lo, two.hi, two.pads)
    ours, theirs = run_network(network, {"x": x})[0], run_network(again, {"x": x})[0]
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_float_export_computes_what_the_model_does():
    model, x = block(), normal(1, 3, 12, 12)
    graph = run_passes(import_model(model), options=Options(calibration=[x]))
    np.testing.assert_allclose(
        run_onnx(export_model(graph), {"x": x})[0], run_onnx(model, {"x": x})[0], rtol=1e-4, atol=1e-5
    )


def qdq(b, tensor, scale, zero, dtype=np.uint8):
    parameters = b.constant(scale), b.constant(zero, dtype)
    return b.op("DequantizeLinear", b.op("QuantizeLinear", tensor, *parameters), *parameters)


def int8_weight(b, *shape):
    codes = b.constant(b.rng.integers(-127, 128, shape), np.int8)
    return b.op("DequantizeLinear", codes, b.constant(0.01), b.constant(0, np.int8))


def test_different_codes_around_a_concat_are_rounded_beside_it():
    b = Builder(("x", (1, 3, 8, 8)))
    x = qdq(b, "x", 0.03, 128)
    a = qdq(b, b.op("Conv", x, int8_weight(b, 4, 3, 1, 1)), 0.05, 120)
    c = qdq(b, b.op("Conv", x, int8_weight(b, 4, 3, 1, 1)), 0.04, 100)
    y = qdq(b, b.op("Concat", a, c, axis=1), 0.06, 110)
    y = qdq(b, b.op("MaxPool", y, kernel_shape=[2, 2]), 0.07, 128)
    model = b.model(y)
    feeds = {"x": normal(1, 3, 8, 8)}
    network = build_network(model)
    (ours,), _ = run_network(network, feeds)
    (theirs,) = run_onnx(model, feeds)
    assert np.abs(ours - theirs).max() <= 0.0701
    scales = {float(np.float32(s)) for s in (0.03, 0.04, 0.05, 0.06, 0.07)}
    assert {t.scale for t in network.tensors.values()} == scales


def test_quantisation_that_acts_as_relu_is_not_fused_away():
    b = Builder(("x", (1, 3, 8, 8)))
    x = qdq(b, "x", 0.03, 128)
    a = qdq(b, b.op("Conv", x, int8_weight(b, 3, 3, 1, 1)), 0.02, 0)  # cuts off what is negative
    model = b.model(qdq(b, b.op("Add", a, x), 0.05, 90))
    feeds = {"x": normal(1, 3, 8, 8)}
    network = build_network(model)
    (ours,), _ = run_network(network, feeds)
    assert np.abs(ours - run_onnx(model, feeds)[0]).max() <= 0.0501
    assert len(network.layers) == 2


def test_codes_as_input_and_output():
    b = Builder()
    b.inputs.append(helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, 3, 8, 8]))
    scale, zero = b.constant(0.03), b.constant(128, np.uint8)
    x = b.op("DequantizeLinear", "x", scale, zero)
    y = b.op("Conv", x, int8_weight(b, 4, 3, 1, 1))
    model = b.model(b.op("QuantizeLinear", y, b.constant(0.05), zero, out="y"))
    codes = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)
    network = build_network(model)  # warns if anything had to be calibrated
    (ours,), _ = run_network(network, {"x": codes})
    (theirs,) = run_onnx(model, {"x": codes})
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert network.layers


def test_quantised_graph_can_be_lowered_only_once_it_is_quantised():
    graph = run_passes(import_model(block()), until="fuse")
    with pytest.raises(Exception, match=r"run the quantise pass before lower$"):
        lower(graph)
