"""What the front end takes in, what it refuses, and in which words."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gossamer.arch.errors import ModelError
from gossamer.compiler.frontend.ops import Host
from gossamer.compiler.passes import PASSES, Options, build_network, import_model, run_passes, stages
from tests.support.frontend import Builder, graph_until


def small(shape=(1, 3, 8, 8)):
    b = Builder(("x", shape))
    return b.model(b.op("Relu", b.conv("x", 3, 4), out="y"))


def with_weight(value):
    b = Builder(("x", (1, 3, 8, 8)))
    return b.model(b.op("Conv", "x", b.constant(value), out="y"))


# --- where a model comes from ---------------------------------------------------------------------------------------


def test_path_bytes_and_proto_give_the_same_graph(tmp_path):
    model = small()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    texts = {str(import_model(source)) for source in (model, model.SerializeToString(), path, str(path))}
    assert len(texts) == 1


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100, b"\x08\x08"])
def test_not_a_model(tmp_path, content):
    path = tmp_path / "picture.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"picture\.onnx: not an ONNX model"):
        import_model(path)


def test_no_such_file(tmp_path):
    with pytest.raises(ModelError, match=r"nothing\.onnx: no such file"):
        import_model(tmp_path / "nothing.onnx")


# --- dimensions -----------------------------------------------------------------------------------------------------


def test_shapes_computed_by_long_chains_are_found():
    """Each turn folds a Shape, which the next shape needs: constants go as shapes come."""
    b = Builder(("x", (1, 3, 8, 8)))
    y = "x"
    for _ in range(6):
        y = b.conv(y, 3, 3, pads=[1, 1, 1, 1])
        size = b.op("Concat", b.op("Slice", b.op("Shape", y), *(b.constant([i], np.int64) for i in (0, 2))),
                    b.constant([64], np.int64), axis=0)  # fmt: skip
        flat = b.op("Reshape", y, size)
        y = b.op("Reshape", flat, b.op("Shape", y))
    graph = run_passes(import_model(b.model(y)), until="infer_shapes")
    assert all(graph.info(t).shape is not None for op in graph for t in op.outputs)


def test_dynamic_batch_is_one():
    assert import_model(small(("batch", 3, 8, 8))).shape("x") == (1, 3, 8, 8)
    assert import_model(small((None, 3, 8, 8))).shape("x") == (1, 3, 8, 8)
    assert import_model(small(("batch", 3, 8, 8)), dims={"batch": 4}).shape("x") == (4, 3, 8, 8)
    behind = Builder(("x", (6, "batch_size", 8)))
    behind = behind.model(behind.op("MatMul", "x", behind.weight(8, 4)))
    assert import_model(behind).shape("x") == (6, 1, 8)
    assert import_model(behind, dims={"batch": 4}).shape("x") == (6, 4, 8)
    with pytest.raises(ModelError, match=r"leaves dimensions open: 'N' \(axis 1 of input 'x'\)"):
        import_model(small((1, "N", 8, 8)))


@pytest.mark.parametrize("kind", ["conv", "pool"])
@pytest.mark.parametrize(("size", "left"), [(2, -2), (4, 0), (5, 1)])
def test_a_window_larger_than_the_map_is_refused(kind, size, left):
    b = Builder(("x", (1, 3, "h", 9)))
    model = b.model(b.conv("x", 3, 3, k=5) if kind == "conv" else b.op("MaxPool", "x", kernel_shape=[5, 5]))
    if left == 1:
        assert len(build_network(model, dims={"h": size}, calibration=[np.ones((1, 3, size, 9))]).layers) == 1
        return
    name = "n_conv0" if kind == "conv" else "n_maxpool0"
    message = (
        rf"^'{name}' is empty: its output would be \[1, 3, {left}, 5\]; the model's inputs are 'x' \[1, 3, {size}, 9\]"
    )
    with pytest.raises(ModelError, match=message):
        build_network(model, dims={"h": size}, calibration=[np.ones((1, 3, size, 9))])


def test_other_dynamic_dimensions_must_be_given():
    model = small(("batch", 3, "height", None))
    both = (
        r"'height' \(axis 2 of input 'x'\), 'x\.3' \(axis 3 of input 'x'\); pass dims=\{'height': size, 'x\.3': size\}"
    )
    with pytest.raises(ModelError, match=rf"^the model leaves dimensions open: {both}$"):
        import_model(model)
    with pytest.raises(ModelError, match=r"open: 'x\.3' \(axis 3 of input 'x'\); pass dims=\{'x\.3': size\}"):
        import_model(model, dims={"height": 8})
    assert import_model(model, dims={"height": 8, "x.3": 9}).shape("x") == (1, 3, 8, 9)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"heigth": 8}, r"^dims: 'heigth' is not a dynamic dimension of this model; they are: height, x\.2$"),
        ({"height": 0}, r"^dims\['height'\] must be a positive integer, not 0$"),
        ({"height": "8"}, r"^dims\['height'\] must be a positive integer, not '8'$"),
    ],
)
def test_wrong_dims(dims, message):
    with pytest.raises(ModelError, match=message):
        import_model(small((1, 3, "height", 8)), dims={"height": 8} | dims)


# --- values and types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_weights_must_be_finite(bad, shown):
    weight = np.ones((4, 3, 3, 3))
    weight[2, 1, 0, 1] = bad
    with pytest.raises(ModelError, match=rf"^weight 'w0': 1 of 108 elements are not finite, the first at .2, 1, 0, 1. "
                                         rf"is {shown}; must be finite$"):  # fmt: skip
        import_model(with_weight(weight))


def test_types_that_are_not_taken():
    model = small()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.COMPLEX64
    with pytest.raises(ModelError, match=r"^input 'x' is complex64; must be real"):
        import_model(model)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_real_types_are_calculated_in_float32(dtype):
    """Inputs, weights, constants inside nodes and casts."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    b = Builder(("x", (1, 3, 8, 8)))
    y = b.op("Conv", b.op("Cast", "x", to=kind), b.constant(b.rng.standard_normal((4, 3, 3, 3)), dtype))
    y = b.op("Mul", y, b.op("Constant", value=numpy_helper.from_array(np.full((4, 1, 1), 0.5, dtype))))
    model = b.model(b.op("Relu", y))
    model.graph.input[0].type.tensor_type.elem_type = kind
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    network = build_network(model, calibration=[x])
    (layer,) = network.stages
    assert network.host_types["x"][0] == "float32"
    assert layer.source == ("n_conv1", "n_mul3", "n_relu4")
    assert any(note.endswith("is calculated in float32") for note in network.notes)


def test_sparse_initialisers_are_written_out():
    b = Builder(("x", (1, 3, 8, 8)))
    model = b.model(b.op("Conv", "x", "w"))
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, -2.0])
    for indices in (helper.make_tensor("i", TensorProto.INT64, [2], [4, 40]),
                    helper.make_tensor("i", TensorProto.INT64, [2, 4], [0, 0, 1, 1, 1, 1, 1, 1])):  # fmt: skip
        del model.graph.sparse_initializer[:]
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3, 3, 3]))
        (conv,) = graph_until(model, "recognise")
        assert (conv.weight[0, 0, 1, 1], conv.weight[1, 1, 1, 1]) == (1.0, -2.0)
        assert np.count_nonzero(conv.weight) == 2


def test_weights_inside_nodes_must_be_finite():
    b = Builder(("x", (1, 3, 8, 8)))
    weight = b.op("Constant", value=numpy_helper.from_array(np.full((4, 3, 1, 1), np.nan, np.float32)))
    with pytest.raises(ModelError, match=r"^node 'n_conv1': weight 'constant0' must be finite; it has nan or inf$"):
        graph_until(b.model(b.op("Conv", "x", weight)), "recognise")


def test_contradicting_shapes():
    message = r"^node 'n_y': weight \[4, 5, 3, 3\] takes 5 input channels, but input 'x' \[1, 3, 8, 8\] has 3$"
    with pytest.raises(ModelError, match=message):
        graph_until(with_weight(np.ones((4, 5, 3, 3))), "recognise")
    b = Builder(("x", (1, 3, 8, 8)))
    model = b.model(b.op("MatMul", "x", b.weight(7, 2)))
    with pytest.raises(ModelError, match=r"^node 'n_matmul0': weight .2, 7. takes 7 input channels"):
        graph_until(model, "recognise")


def test_missing_tensor():
    b = Builder(("x", (1, 3, 8, 8)))
    model = b.model(b.op("Add", "x", "ghost", out="y"))
    with pytest.raises(ModelError, match=r"^node 'n_y' reads 'ghost', which no node, input or initialiser provides$"):
        import_model(model)


def test_accumulator_that_could_overflow():
    k = 70_000
    b = Builder(("x", (1, k)))
    model = b.model(b.op("Gemm", "x", b.constant(np.ones((2, k))), transB=1, out="y"))
    with pytest.raises(ModelError, match=r"layer 'n_y', output channel 0: .* must be at most 2147483647"):
        build_network(model, calibration=[np.ones((1, k))])


# --- calibration ----------------------------------------------------------------------------------------------------


def test_no_calibration_warns():
    with pytest.warns(UserWarning, match=r"^no calibration data: ranges come from 4 samples"):
        build_network(small())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"^calibration data is empty"),
        ([np.zeros((1, 3, 8, 9))], r"^calibration for input 'x' has shape \[1, 3, 8, 9\]; must be \[1, 3, 8, 8\]"),
        ({"z": np.zeros((1, 3, 8, 8))}, r"^calibration: unknown input 'z'; the model's inputs are x$"),
        ([np.full((1, 3, 8, 8), np.nan)], r"^calibration for input 'x' must hold finite numbers$"),
        ([np.full((1, 3, 8, 8), "a")], r"^calibration for input 'x' must hold finite numbers$"),
    ],
)
def test_wrong_calibration(data, message):
    with pytest.raises(ModelError, match=message):
        build_network(small(), calibration=data)


def test_all_forms_of_calibration_agree():
    x = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
    forms = [x, {"x": x}], [{"x": x}], {"x": x}, list(x), [s[np.newaxis] for s in x], ({"x": s} for s in x)
    ranges = {str(run_passes(import_model(small()), options=Options(calibration=f))) for f in forms}
    assert len(ranges) == 1


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_calibration_methods(method):
    x = np.random.default_rng(0).standard_normal((8, 3, 64, 64)).astype(np.float32)
    x[0, 0, 0, 0] = 50.0  # an outlier
    scale = build_network(small((1, 3, 64, 64)), calibration=x, method=method).tensors["x"].scale
    plain = 50 / 256 < scale < 58 / 256
    assert plain if method == "minmax" else scale < 50 / 256 if method == "percentile" else scale < 58 / 256


def test_a_model_without_inputs_needs_no_data():
    b = Builder()
    y = b.op("RandomNormal", shape=[1, 3, 8, 8], seed=1.0)
    assert len(build_network(b.model(b.conv(y, 3, 4))).layers) == 1


def test_a_generator_is_read_once_for_all_passes():
    """Equalisation, pruning and quantisation each measure on it."""
    x = np.random.default_rng(0).standard_normal((3, 1, 3, 8, 8)).astype(np.float32)
    wishes = {"sparsity": "unstructured 50%", "sparsifier": "wanda"}
    ours = build_network(small(), calibration=(sample for sample in x), **wishes)
    theirs = build_network(small(), calibration=list(x), **wishes)
    assert ours.tensors == theirs.tensors
    np.testing.assert_array_equal(ours.layers[0].weight, theirs.layers[0].weight)
    used = iter(x)
    list(used)
    with pytest.raises(ModelError, match=r"calibration data is empty; .*a generator that has been read is empty"):
        build_network(small(), calibration=used)
    with pytest.raises(ModelError, match=r"^calibration must be .* or a sequence of samples, not int$"):
        build_network(small(), calibration=3)


def test_unknown_calibration_method():
    with pytest.raises(ModelError, match=r"^calibration method must be one of minmax, percentile, entropy, not 'max'$"):
        build_network(small(), calibration=[np.ones((1, 3, 8, 8))], method="max")


# --- passes ---------------------------------------------------------------------------------------------------------


def test_each_pass_runs_and_prints_alone():
    options = Options(calibration=[np.ones((1, 3, 8, 8))])
    graph = import_model(small())
    texts = [str(graph)]
    for (name, result), expected in zip(stages(graph, options), PASSES, strict=True):
        assert name == expected
        texts.append(str(result))
    assert texts[0] == str(graph), "a pass changed its input"
    assert texts[0].splitlines()[1:] == [
        "  input  %x : [1, 3, 8, 8] float32",
        "  %conv0 = host.Conv(%x, #w0, #w1) : [?] float32",
        "  %y = host.Relu(%conv0) : [?] float32",
        "  output %y",
    ]
    assert (
        texts[-1]
        .splitlines()[2]
        .startswith(
            "  %y = conv(%x) then relu weight=[4, 3, 3, 3] bias=[4] stride=(1, 1) dilation=(1, 1) pads=(0, 0, 0, 0) "
            "weight_scale=[4] pattern=dense : [1, 4, 6, 6] uint8 scale="
        )
    )


def test_until_and_progress():
    seen = []
    graph = run_passes(import_model(small()), until="cleanup", progress=seen.append)
    assert seen == ["infer_shapes", "unfold", "fold_constants", "recognise", "cleanup"]
    assert not any(isinstance(op, Host) for op in graph)
    with pytest.raises(ModelError, match=r"^until must be one of infer_shapes, .*, not 'later'$"):
        run_passes(import_model(small()), until="later")


def test_shape_arithmetic_is_folded():
    b = Builder(("x", ("batch", 3, 8, 8)))
    y = b.conv("x", 3, 4)
    batch = b.op("Gather", b.op("Shape", y), b.constant(0, np.int64), axis=0)
    batch = b.op("Unsqueeze", batch, b.constant([0], np.int64))
    shape = b.op("Concat", batch, b.constant([-1], np.int64), axis=0)
    y = b.op("Reshape", y, shape)
    y = b.op("Dropout", b.op("Identity", y))
    model = b.model(b.op("MatMul", y, b.weight(144, 5), out="y"))
    graph = graph_until(model, "cleanup")
    assert [type(op).__name__ for op in graph] == ["Conv", "Reshape", "Linear"]


def test_batch_normalisation_is_folded():
    b = Builder(("x", (1, 3, 8, 8)))
    y = b.bn(b.conv("x", 3, 4, bias=False), 4)
    y = b.op("Add", b.op("Mul", y, b.constant(0.5)), b.constant(np.ones((4, 1, 1))))
    graph = graph_until(b.model(y), "cleanup")
    (conv,) = graph
    assert conv.source == ("n_conv0", "n_batchnormalization1", "n_mul2", "n_add3")
    weights = [numpy_helper.to_array(t).astype(np.float64) for t in b.weights[:5]]
    weight, gamma, beta, mean, variance = weights
    factor = gamma / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(conv.weight, weight * 0.5 * factor.reshape(-1, 1, 1, 1), rtol=1e-6)
    np.testing.assert_allclose(conv.bias, 0.5 * (beta - mean * factor) + 1)


@pytest.mark.parametrize(
    ("auto_pad", "pads"), [("SAME_UPPER", (0, 0, 1, 1)), ("SAME_LOWER", (1, 1, 0, 0)), ("VALID", (0, 0, 0, 0))]
)
def test_auto_pad(auto_pad, pads):
    b = Builder(("x", (1, 3, 8, 8)))
    graph = graph_until(b.model(b.conv("x", 3, 4, strides=[2, 2], auto_pad=auto_pad)), "recognise")
    assert next(iter(graph)).pads == pads


def test_zero_padding_joins_the_convolution():
    b = Builder(("x", (1, 3, 8, 8)))
    y = b.op("Pad", "x", b.constant([0, 0, 0, 1, 0, 0, 2, 3], np.int64))
    (conv,) = graph_until(b.model(b.conv(y, 3, 4)), "cleanup")
    assert conv.pads == (0, 1, 2, 3)


def spelt(kind):
    b = Builder(("x", (1, 4, 8, 8)))
    x = b.conv("x", 4, 4)
    c = b.constant
    if kind == "hard_swish":
        y = b.op("Div", b.op("Mul", x, b.op("Clip", b.op("Add", x, c(3.0)), c(0.0), c(6.0))), c(6.0))
    elif kind == "silu":
        y = b.op("Mul", b.op("Sigmoid", x), x)
    elif kind == "gelu":
        gate = b.op("Add", b.op("Erf", b.op("Mul", x, c(0.5**0.5))), c(1.0))
        y = b.op("Mul", b.op("Mul", x, c(0.5)), gate)
    elif kind == "gelu_tanh":
        cubic = b.op("Mul", b.op("Pow", x, c(3.0)), c(0.044715))
        inner = b.op("Tanh", b.op("Mul", b.op("Add", x, cubic), c((2 / np.pi) ** 0.5)))
        y = b.op("Mul", b.op("Mul", x, b.op("Add", inner, c(1.0))), c(0.5))
    else:
        y = b.op("Mul", x, b.op("Tanh", b.op("Softplus", x)))
    return b.model(y)


@pytest.mark.parametrize("kind", ["hard_swish", "silu", "gelu", "gelu_tanh", "mish"])
def test_functions_spelt_out_are_recognised(kind):
    conv, activation = graph_until(spelt(kind), "cleanup")
    assert activation.function.kind == kind
    assert activation.inputs == conv.outputs
    (fused,) = graph_until(spelt(kind), "fuse")
    assert fused.pre == conv.output


def test_host_reasons_are_told():
    b = Builder(("x", (1, 4, 8, 8)))
    y = b.op("LRN", b.conv("x", 4, 4), size=3)
    y = b.op("AveragePool", b.conv(y, 4, 4), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    y = b.op("Concat", y, b.conv("x", 4, 4, k=5), axis=2)
    reasons = {op.node.op_type: op.reason for op in graph_until(b.model(y), "legalise") if isinstance(op, Host)}
    assert reasons == {
        "LRN": "LRN has no equivalent on the array",
        "AveragePool": "AveragePool that does not count its padding: the divisor changes along the border",
        "Concat": "concatenation along axis 2 of [1, 4, 4, 4], which is not the channel axis",
    }


def test_int_inputs_stay_on_the_host():
    b = Builder()
    b.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 5]))
    y = b.op("Gather", b.weight(100, 16), "ids")
    model = b.model(b.op("MatMul", y, b.weight(16, 8), out="y"))
    network = build_network(model, calibration=[np.arange(5).reshape(1, 5)])
    assert [type(s).__name__ for s in network.stages] == ["HostSegment", "Conv"]
    assert network.host_types["ids"] == ("int64", (1, 5))
