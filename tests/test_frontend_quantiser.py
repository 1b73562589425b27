"""Models that onnxruntime's own quantiser makes: the array computes with their codes."""

import logging

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import gossamer
from gossamer.compiler.layers import Conv, HostSegment
from gossamer.compiler.passes import build_network
from tests.support.frontend import (
    Builder,
    check_layers,
    check_same_function,
    check_structure,
    compile_both,
    run_network,
    run_onnx,
)

SHAPE, TOKENS = (1, 3, 12, 12), (1, 9, 16)
TYPES = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cnn():
    """Every operator that has a QLinear form, and some that move codes."""
    b = Builder(("x", SHAPE))
    y = b.op("Relu", b.conv("x", 3, 8, pads=[1, 1, 1, 1]))
    z = b.op("Relu", b.conv(y, 8, 8, pads=[1, 1, 1, 1], groups=8))
    y = b.op("Relu", b.op("Add", b.conv(z, 8, 8, k=1), y))
    y = b.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = b.op("Concat", y, b.op("Sigmoid", b.conv(y, 8, 4, k=1)), axis=1)
    y = b.op("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("LeakyRelu", b.conv(y, 12, 16, k=1, groups=2))
    y = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.model(b.op("Gemm", y, b.weight(16, 10), b.weight(10), out="y"))


def transformer():
    """One block of attention and a feed-forward layer, with a normalisation before each."""
    d, heads, tokens = TOKENS[2], 2, TOKENS[1]
    b = Builder(("x", TOKENS))

    def norm(x):
        return b.op("LayerNormalization", x, b.constant(np.ones(d)), b.constant(np.zeros(d)))

    def linear(x, i, o):
        return b.op("Add", b.op("MatMul", x, b.weight(i, o)), b.weight(o, scale=0.1))

    def split(x, perm):
        shape = b.constant([1, tokens, heads, d // heads], np.int64)
        return b.op("Transpose", b.op("Reshape", x, shape), perm=perm)

    x = norm("x")
    q, k, v = (linear(x, d, d) for _ in range(3))
    scores = b.op("MatMul", split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]))
    scores = b.op("Softmax", b.op("Mul", scores, b.constant((d // heads) ** -0.5)), axis=-1)
    mixed = b.op("Transpose", b.op("MatMul", scores, split(v, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    y = b.op("Add", linear(b.op("Reshape", mixed, b.constant([1, tokens, d], np.int64)), d, d), "x")
    return b.model(linear(b.op("Relu", linear(norm(y), d, 24)), 24, 5))


class Reader(CalibrationDataReader):
    def __init__(self, shape):
        self.feeds = iter([{"x": normal(shape, seed)} for seed in range(3)])

    def get_next(self):
        return next(self.feeds, None)


def quantised(tmp_path, model, shape, *, dynamic=False, **options):
    onnx.save(model, tmp_path / "float.onnx")
    if dynamic:
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", **options)
    else:
        quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Reader(shape), **options)
    return onnx.load(tmp_path / "int8.onnx")


def agree(model, shape, steps=4, **options):
    """Each layer computes what onnxruntime does, and the whole is near the model itself; returns the Network.

    The model rounds before its additions and functions, the network once behind them: a few steps may differ.
    """
    x = {"x": normal(shape, 9)}
    network, twin, _ = compile_both(model, [{"x": normal(shape, seed)} for seed in (0, 1, 9)], **options)
    check_structure(network)
    check_layers(network, twin, x)
    (ours,), _ = run_network(network, x)
    (theirs,) = run_onnx(model, x)
    assert np.abs(ours - theirs).max() <= steps * network.tensors[network.outputs[0]].scale
    return network


def same(model, shape, **options):
    """As agree, for a model of real numbers: before rounding nothing has changed."""
    x = {"x": normal(shape, 9)}
    network, twin, graph = compile_both(model, [x], **options)
    check_same_function(model, graph, x)
    check_structure(network)
    check_layers(network, twin, x)
    return network


def check_codes(model, network):
    """Every weight's codes are the model's, less their zero point, or two parts of them that add up to it."""
    values = {t.name: numpy_helper.to_array(t).astype(int) for t in model.graph.initializer}
    used = [layer.weight.astype(int) for layer in network.layers if isinstance(layer, Conv)]
    used += [w[:, : w.shape[1] // 2] + w[:, w.shape[1] // 2 :] for w in used if w.shape[1] % 2 == 0]
    for name in (n for n in values if n.endswith("_quantized") and values[n].ndim > 1):
        codes, zero = values[name], values[name.replace("_quantized", "_zero_point")]
        if zero.size > 1:
            zero = zero.reshape(-1, 1, 1, 1) if codes.ndim == 4 else zero
        codes = codes - zero
        codes = codes.T if codes.ndim == 2 else codes
        assert any(w.size == codes.size and np.array_equal(codes.reshape(w.shape), w) for w in used), name


def hosts(network):
    return [op for stage in network.stages if isinstance(stage, HostSegment) for op in stage.ops]


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("types", ["u8 s8", "s8 s8", "u8 u8"])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_convolutional_network(tmp_path, form, types, per_channel):
    activation, weight = (TYPES[name] for name in types.split())
    options = {"activation_type": activation, "weight_type": weight, "per_channel": per_channel}
    model = quantised(tmp_path, cnn(), SHAPE, quant_format=QuantFormat[form], **options)
    network = agree(model, SHAPE)
    assert not hosts(network)
    check_codes(model, network)


@pytest.mark.parametrize(
    "options",
    [
        {"reduce_range": True, "per_channel": True},
        {"activation_type": TYPES["s8"], "extra_options": {"ActivationSymmetric": True}},
        {"per_channel": True, "extra_options": {"WeightSymmetric": False}},
        {"extra_options": {"AddQDQPairToWeight": True}},
        {"extra_options": {"DedicatedQDQPair": True}},
        {"extra_options": {"QuantizeBias": False}},
        {"extra_options": {"UseQDQContribOps": True}},
    ],
    ids=str,
)
def test_options_of_the_quantiser(tmp_path, options):
    types = {"activation_type": TYPES["u8"], "weight_type": TYPES["s8"]}
    network = agree(quantised(tmp_path, cnn(), SHAPE, **(types | options)), SHAPE)
    assert not hosts(network)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_transformer(tmp_path, form):
    types = {"activation_type": TYPES["u8"], "weight_type": TYPES["u8"]}
    model = quantised(tmp_path, transformer(), TOKENS, quant_format=QuantFormat[form], **types)
    network = agree(model, TOKENS, steps=5, products=True)
    assert set(hosts(network)) <= {"LayerNormalization", "Softmax", "DequantizeLinear"}
    check_codes(model, network)


@pytest.mark.parametrize("weight", ["u8", "s8"])
@pytest.mark.parametrize("build", [cnn, transformer])
def test_dynamic_quantisation(tmp_path, build, weight):
    """Weights keep their codes; activations, which the model measures at run time, are calibrated, and that is said."""
    shape = SHAPE if build is cnn else TOKENS
    model = quantised(tmp_path, build(), shape, dynamic=True, weight_type=TYPES[weight])
    network = agree(model, shape, steps=5, products=True)
    assert set(hosts(network)) <= {"LayerNormalization", "Softmax", "Add"}
    check_codes(model, network)
    assert any("fixed scales from calibration" in note for note in network.notes)


def test_dynamic_quantisation_with_its_bias_in_whole_numbers():
    """As earlier quantisers wrote it: the bias is divided by the scales and rounded at run time."""
    b = Builder(("x", (1, 4, 6, 6)))
    codes, scale, zero = "codes", "scale", "zero"
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], [codes, scale, zero]))
    weight, step = b.constant(b.rng.integers(0, 255, (5, 4, 3, 3)), np.uint8), b.constant(0.01)
    sums = b.op("ConvInteger", codes, weight, zero, b.constant(130, np.uint8))
    both = b.op("Mul", scale, step)
    whole = b.op("Cast", b.op("Floor", b.op("Div", b.weight(5), both)), to=onnx.TensorProto.INT32)
    sums = b.op("Add", sums, b.op("Reshape", whole, b.constant([1, -1, 1, 1], np.int64)))
    y = b.op("Mul", b.op("Cast", sums, to=onnx.TensorProto.FLOAT), b.op("Mul", scale, step))
    network = agree(b.model(y), (1, 4, 6, 6))
    assert not hosts(network)


def test_points_of_16_bits_are_left_out_and_said_so(tmp_path):
    model = quantised(tmp_path, cnn(), SHAPE, activation_type=QuantType.QUInt16, weight_type=TYPES["s8"])
    network = agree(model, SHAPE, steps=4)
    assert not hosts(network)
    assert any("quantisation points of 16 bits are left out" in note for note in network.notes)


def test_points_that_cut_off_count_when_the_rest_is_calibrated():
    """A quantiser drops a Relu6 where codes from 0 to 6 do the same: what is measured behind must see it."""
    b = Builder(("x", (1, 4, 6, 6)))
    scale, zero = b.constant(6 / 255), b.constant(0, np.uint8)
    y = b.op("Conv", "x", b.constant(np.full((4, 4, 1, 1), 50.0)))
    y = b.op("DequantizeLinear", b.op("QuantizeLinear", y, scale, zero), scale, zero)
    out = b.op("Conv", y, b.constant(np.eye(4).reshape(4, 4, 1, 1)))
    network, _, _ = compile_both(b.model(out), [{"x": normal((1, 4, 6, 6), 0)}])
    assert network.tensors[out].scale == pytest.approx(6 / 255, rel=1e-6)


# --- codes of nine bits ---------------------------------------------------------------------------------------------


def wide(kind):
    """A layer whose codes less their zero point reach from -40 to 215."""
    b = Builder(("x", (1, 4, 6, 6)))
    scale, zero = b.constant(0.03), b.constant(120, np.uint8)
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", "x", scale, zero), scale, zero)
    shape = {"conv": (5, 4, 3, 3), "grouped": (6, 2, 3, 3), "depthwise": (4, 1, 3, 3), "gemm": (5, 144),
             "tokens": (5, 6)}[kind]  # fmt: skip
    codes = b.constant(b.rng.integers(0, 256, shape), np.uint8)
    w = b.op("DequantizeLinear", codes, b.constant(0.01), b.constant(40, np.uint8))
    groups = {"grouped": 2, "depthwise": 4}.get(kind, 1)
    if kind == "gemm":
        y = b.op("Gemm", b.op("Flatten", x), w, transB=1)
    elif kind == "tokens":
        y = b.op("MatMul", x, b.op("Transpose", w))
    else:
        y = b.op("Conv", x, w, group=groups, pads=[1, 1, 1, 1])
    out = b.constant(0.25), b.constant(128, np.uint8)
    return b.model(b.op("DequantizeLinear", b.op("QuantizeLinear", y, *out), *out))


@pytest.mark.parametrize("kind", ["conv", "grouped", "depthwise", "gemm"])
def test_nine_bits_are_two_parts_of_one_sum(kind):
    """Exactly: the simulator's codes are onnxruntime's."""
    model, x = wide(kind), {"x": normal((1, 4, 6, 6), 1)}
    network = build_network(model)  # warns if anything had to be calibrated
    assert not hosts(network)
    (note,) = (note for note in network.notes if "in two parts of one sum" in note)
    assert "n_" in note
    assert "(-40 to 2" in note
    run = gossamer.simulate(gossamer.compile(model, "tiny"), x)
    (ours,), (theirs,) = run.outputs.values(), run_onnx(model, x)
    off = np.abs(ours - theirs) / 0.25
    assert off.max() < 1.01
    assert (off > 0.5).mean() < 0.02  # ties


# --- operators on codes ---------------------------------------------------------------------------------------------


def on_codes(*makers):
    """Operators between a QuantizeLinear and a DequantizeLinear, behind a convolution."""
    b = Builder(("x", (1, 4, 6, 6)))
    scale, zero = b.constant(0.04), b.constant(120, np.uint8)
    y = b.op("QuantizeLinear", b.op("Relu", b.conv("x", 4, 4)), scale, zero)
    for maker in makers:
        y = maker(b, y)
    return b.model(b.conv(b.op("DequantizeLinear", y, scale, zero), 4, 3, k=1))


@pytest.mark.parametrize(
    "maker",
    [
        lambda b, y: b.op("MaxPool", y, kernel_shape=[2, 2]),
        lambda b, y: b.op("Transpose", b.op("Transpose", y, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2]),
        lambda b, y: b.op("Pad", y, b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64), b.constant(120, np.uint8)),
        lambda b, y: b.op("Pad", y, b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)),
        lambda b, y: b.op("Concat", b.op("Slice", y, *(b.constant([i], np.int64) for i in (0, 2, 1))),
                          b.op("Slice", y, *(b.constant([i], np.int64) for i in (2, 4, 1))), axis=1),
    ],
    ids=["maximum", "views", "padding", "padding with the code 0", "slices"],
)  # fmt: skip
def test_moving_codes_is_moving_numbers(maker):
    network = agree(on_codes(maker), (1, 4, 6, 6))
    assert len([layer for layer in network.layers if isinstance(layer, Conv)]) >= 2


def test_codes_that_the_host_reads_and_gives_out():
    b = Builder(("x", (1, 4, 6, 6)))
    scale, zero = b.constant(0.05), b.constant(7, np.int8)
    codes = b.op("QuantizeLinear", b.conv("x", 4, 4), scale, zero, out="codes")
    best = b.op("ArgMax", codes, axis=1)
    y = b.conv(b.op("DequantizeLinear", codes, scale, zero), 4, 3, k=1)
    model = b.model(y, best, codes)
    x = {"x": normal((1, 4, 6, 6), 2)}
    network = build_network(model, calibration=[x])
    (_, ours, given), _ = run_network(network, x)
    _, theirs, taken = run_onnx(model, x)
    assert given.dtype == np.int8
    assert np.abs(given.astype(int) - taken).max() <= 1
    assert (ours == theirs).mean() > 0.9


def test_scales_that_are_not_constant_are_a_reason():
    b = Builder(("x", (1, 4, 6, 6)))
    x, scale, zero = (b.op("DynamicQuantizeLinear", "x", out="a"), "b", "c")
    b.nodes[-1].output.extend([scale, zero])
    codes, step, middle = (
        b.constant(b.rng.integers(-99, 99, (5, 4, 1, 1)), np.int8),
        b.constant(0.1),
        b.constant(0, np.int8),
    )
    b.op("QLinearConv", x, scale, zero, codes, step, middle, step, b.constant(3, np.uint8), out="y")
    network = build_network(b.model("y"), calibration=[normal((1, 4, 6, 6), 0)])
    (segment,) = network.stages
    assert "QLinearConv with a scale that is computed at run time" in segment.reason
    assert segment.macs == 5 * 4 * 36


# --- onnxruntime's fused operators ----------------------------------------------------------------------------------

MS = {"domain": "com.microsoft"}


def fused(*names):
    b = Builder(("x", TOKENS))
    y, d = "x", TOKENS[2]
    for name in names:
        if name == "FusedMatMul":
            y = b.op(name, y, b.weight(d, d), transB=1, alpha=0.5, **MS)
        elif name in ("BiasGelu", "FastGelu"):
            y = b.op(name, y, b.weight(d), **MS)
        elif name in ("Gelu", "QuickGelu"):
            y = b.op(name, y, **MS)
        elif name == "Attention":
            y = b.op(name, y, b.weight(d, 3 * d), b.weight(3 * d), num_heads=2, unidirectional=1, **MS)
        elif name == "MultiHeadAttention":
            y = b.op(name, y, b.op("MatMul", y, b.weight(d, d)), y, b.weight(3 * d), num_heads=2, **MS)
        else:
            y = b.op("MatMul", y, b.weight(d, d))
    model = b.model(b.op("MatMul", y, b.weight(d, 6)))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize("name", ["BiasGelu", "FastGelu", "Gelu", "QuickGelu", "FusedMatMul"])
def test_fused_operators(name):
    network = same(fused("MatMul", name), TOKENS)
    assert not hosts(network)


@pytest.mark.parametrize("name", ["Attention", "MultiHeadAttention"])
def test_fused_attention(name):
    network = same(fused("MatMul", name), TOKENS, products=True)
    assert set(hosts(network)) <= {"Softmax", "Add"}


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "LeakyRelu", "Clip"])
def test_fused_convolution(activation):
    b = Builder(("x", (1, 4, 6, 6)))
    parameters = {"LeakyRelu": [0.3], "Clip": [-0.5, 0.7]}.get(activation)
    more = {"activation_params": parameters} if parameters else {}
    y = b.op("FusedConv", "x", b.weight(5, 4, 3, 3), b.weight(5), activation=activation, **more, **MS)
    model = b.model(b.conv(y, 5, 3, k=1))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    network = same(model, (1, 4, 6, 6))
    assert len(network.layers) == 2
    assert not hosts(network)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_gemm(activation, bias):
    b = Builder(("x", (5, 16)))
    more = {"activation_alpha": 0.3} if activation == "LeakyRelu" else {}
    operands = ("x", b.weight(16, 8), *([b.weight(8)] if bias else []))
    y = b.op("FusedGemm", *operands, activation=activation, alpha=1.0, beta=1.0, **more, **MS)
    model = b.model(b.op("Gemm", y, b.weight(8, 4), b.weight(4)))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    network = same(model, (5, 16))
    assert len(network.layers) == 2
    assert not hosts(network)


def test_codes_with_a_scale_for_each_channel_keep_their_axis():
    """Behind a transposition the scales belong to another axis: such codes are not looked through."""
    b = Builder(("x", (1, 3, 4, 5)))
    scales, zeros = b.constant([0.01, 0.1, 1.0], np.float32), b.constant([0, 0, 0], np.int8)
    codes = b.op("QuantizeLinear", "x", scales, zeros, axis=1)
    real = b.op("DequantizeLinear", b.op("Transpose", codes, perm=[0, 2, 3, 1]), scales, zeros, axis=3)
    model = b.model(b.op("Relu", real))
    x = 3 * normal((1, 3, 4, 5), 0)
    with pytest.warns(UserWarning, match="^nothing of 'test' runs on the accelerator: "):
        program = gossamer.compile(model, "tiny", calibration={"x": x})
    run = gossamer.simulate(program, {"x": x})
    (expected,) = run_onnx(model, {"x": x})
    (found,) = run.outputs.values()
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()
