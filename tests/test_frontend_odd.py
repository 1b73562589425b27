"""Models that are written unusually: subgraphs, other domains, old and new operator sets, constants as outputs."""

import re
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import gossamer
from gossamer import cli
from gossamer.arch.errors import ModelError
from gossamer.arch.program import UNKNOWN_MACS, HostStage
from gossamer.compiler.layers import HostSegment
from gossamer.compiler.passes import build_network
from gossamer.inspection import inspect_program
from tests.support.frontend import Builder, check_same_function, check_structure, compile_both, run_network, run_onnx

X = np.random.default_rng(5).standard_normal((1, 4, 6, 6)).astype(np.float32)


def agree(model, feeds, steps=1.0001, **options):
    network, twin, graph = compile_both(model, [feeds], **options)
    check_same_function(model, graph, feeds)
    check_structure(network)
    outputs, _ = run_network(network, feeds)
    for name, ours, theirs in zip(network.outputs, outputs, run_onnx(twin, feeds), strict=True):
        scale = network.tensors[name].scale if name in network.tensors else 0.02
        assert np.abs(ours.astype(np.float64) - theirs).max(initial=0) <= steps * scale
    return network


@pytest.mark.parametrize("given_out", [False, True])
def test_subgraphs_that_capture_tensors(given_out):
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Identity", b.op("Relu", b.conv("x", 4, 4, k=1)))
    branches = {}
    for kind in ("Neg", "Exp"):
        out = helper.make_empty_tensor_value_info(f"{kind}_out")
        nodes = [helper.make_node(kind, [y], [f"{kind}_out"])]
        branches[kind] = helper.make_graph(nodes, kind, [], [out])
    flag = b.op("Greater", b.op("ReduceMax", y, keepdims=0), b.constant(0.1))
    z = b.op("If", flag, then_branch=branches["Neg"], else_branch=branches["Exp"])
    b.op("Conv", z, b.weight(2, 4, 1, 1), out="out")
    network = agree(b.model("out", *([y] if given_out else [])), {"x": X})
    assert [type(s).__name__ for s in network.stages] == ["Conv", "HostSegment", "Conv"]


def branch(name, *nodes):
    return helper.make_graph(list(nodes), name, [], [helper.make_empty_tensor_value_info(nodes[-1].output[0])])


def inside(kind: str, node: onnx.NodeProto) -> onnx.ModelProto:
    """An operation on y, of 4 channels on a map of 36, in a branch or a loop whose condition is the input "on"."""
    b = Builder(("x", (1, 4, 6, 6)))
    b.inputs.append(helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    y = b.op("Relu", b.conv("x", 4, 4, k=1), out="y")
    b.weights.append(onnx.numpy_helper.from_array(np.ones((2, 4, 3, 3), "f4"), "weight"))
    if kind == "if":
        nothing = branch("m", helper.make_node("Neg", [y], ["m"]))
        nested = helper.make_node("If", ["on"], ["more"], then_branch=branch("n", node), else_branch=nothing)
        return b.model(b.op("If", "on", then_branch=branch("more", nested), else_branch=nothing))
    info = helper.make_tensor_value_info
    entries = [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, [])]
    go = helper.make_node("Identity", ["go"], ["going"])
    results = [info("going", TensorProto.BOOL, []), helper.make_empty_tensor_value_info("n")]
    once = b.constant(1, np.int64)
    return b.model(b.op("Loop", once, "on", body=helper.make_graph([go, node], "body", entries, results)))


@pytest.mark.parametrize(
    ("kind", "operator", "macs"),
    [("if", "Conv", 2 * 16 * 36), ("if", "Exp", 0), ("loop", "Conv", UNKNOWN_MACS), ("loop", "Exp", 0)],
)
def test_work_inside_of_branches_counts(kind, operator, macs):
    node = helper.make_node(operator, ["y", *(["weight"] if operator == "Conv" else [])], ["n"])
    program = gossamer.compile(inside(kind, node), "tiny", calibration={"x": X, "on": np.array(True)})
    (segment,) = (stage for stage in program.stages if isinstance(stage, HostStage))
    assert segment.macs == macs
    (shown,) = (stage for stage in inspect_program(program)["stages"] if stage["on"] == "host")
    if macs < 0:
        assert (shown["macs"], shown["mac_share"]) == (None, None)
    else:
        assert shown["mac_share"] == macs / (macs + 16 * 36)


def test_a_program_without_an_accelerator_is_worth_a_warning(tmp_path):
    b = Builder(("x", (1, 4, 6, 6)))
    onnx.save(b.model(b.op("Det", b.op("Exp", "x"))), tmp_path / "m.onnx")
    expected = r"^nothing of 'test' runs on the accelerator: "
    with pytest.warns(UserWarning, match=expected):
        gossamer.compile(tmp_path / "m.onnx", "tiny", calibration={"x": X})
    np.savez(tmp_path / "x.npz", x=X)
    files = {name: str(tmp_path / name) for name in ("m.onnx", "x.npz", "p.gsm")}
    command = ["compile", files["m.onnx"], "-s", "tiny", "--calibration", files["x.npz"], "-o", files["p.gsm"]]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = CliRunner().invoke(cli.app, command)
    assert re.fullmatch(r"warning: nothing of 'test' runs on the accelerator: .*\n", done.stderr)


def test_a_condition_on_shapes_leaves_the_branch_that_is_taken():
    """Nested, with names that both branches use, weights inside, and a tensor captured from outside."""
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.conv("x", 4, 4, k=1)
    axes = helper.make_node("Constant", [], ["axes"], value_ints=[0])
    weight = helper.make_node("Constant", [], ["axes"], value=onnx.numpy_helper.from_array(np.ones((2, 4, 1, 1), "f4")))
    inner = branch("inner", weight, helper.make_node("Conv", [y, "axes"], ["out"]))
    other = branch("other", axes, helper.make_node("Squeeze", [y, "axes"], ["out"]))
    four = b.op("Equal", b.op("Size", b.op("Shape", y)), b.constant(4, np.int64))
    nested = helper.make_node("If", [four], ["in"], then_branch=inner, else_branch=other)
    outer = branch("outer", nested, helper.make_node("Relu", ["in"], ["last"]))
    z = b.op("If", four, then_branch=outer, else_branch=branch("never", helper.make_node("Neg", [y], ["last"])))
    network = agree(b.model(b.conv(z, 2, 3, k=1)), {"x": X})
    assert not any(isinstance(stage, HostSegment) for stage in network.stages)
    assert len(network.layers) == 3


def test_a_branch_that_is_not_taken_may_contradict_the_sizes():
    b = Builder(("x", (1, 4, 6, 6)))
    b.inputs.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    y = b.op("Relu", b.conv("x", 4, 4, k=1))
    taken = branch("taken", helper.make_node("Reshape", [y, b.constant([1, 4, 36], np.int64)], ["o"]))
    shape = b.constant([1, 4, 99], np.int64)
    other = branch("other", helper.make_node("Reshape", [y, shape], ["o"]))
    flag = b.op("Equal", "rate", b.constant(16000, np.int64))
    model = b.model(b.op("If", flag, then_branch=taken, else_branch=other))
    network = agree(model, {"x": X, "rate": np.array(16000)})
    (segment,) = (stage for stage in network.stages if isinstance(stage, HostSegment))
    onnxruntime.InferenceSession(segment.model)  # with every optimisation, which look into both branches


def test_operators_of_other_domains():
    """Shapes behind an operator that ONNX does not know are onnxruntime's."""
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Inverse", b.conv("x", 4, 4, k=1), domain="com.microsoft")
    b.conv(y, 4, 2, k=1)
    model = b.model(b.nodes[-1].output[0])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    x = X + 9 * np.eye(6, dtype=np.float32)
    network = agree(model, {"x": x})
    assert [type(s).__name__ for s in network.stages] == ["Conv", "HostSegment", "Conv"]
    assert network.stages[1].reason.startswith("com.microsoft.Inverse is not a standard ONNX operator")


def test_functions_are_inlined():
    opset = helper.make_opsetid("", 17)
    body = [helper.make_node("Conv", ["a", "w"], ["c"]), helper.make_node("Relu", ["c"], ["b"])]
    function = helper.make_function("own", "block", ["a", "w"], ["b"], body, [opset])
    b = Builder(("x", (1, 4, 6, 6)))
    b.op("block", "x", b.weight(4, 4, 1, 1), out="out", domain="own")
    model = b.model("out")
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(function)
    assert len(agree(model, {"x": X}).layers) == 1


def test_constant_and_passed_through_outputs():
    b = Builder(("x", (1, 4, 6, 6)), ("unused", (2,)))
    constant = b.op("Add", b.constant([1.0, 2.0]), b.constant([3.0, 4.0]))
    model = b.model(constant, "x", b.op("Identity", "x"), b.conv("x", 4, 4))
    agree(model, {"x": X, "unused": np.zeros(2, np.float32)})


def test_shapes_that_depend_on_data():
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Relu", b.conv("x", 4, 4))
    network = agree(b.model(b.op("NonZero", y), y), {"x": X})
    assert network.host_types[network.outputs[0]] == ("int64", (-1,))


@pytest.mark.parametrize("opset", [11, 13, 18, 20, 21])
def test_operator_sets(opset):
    b = Builder(("x", (1, 4, 6, 6)), opset=opset)
    y = b.op("Clip", b.bn(b.conv("x", 4, 4), 4), b.constant(-0.5), b.constant(0.6))
    if opset >= 20:
        y = b.op("Gelu", b.conv(y, 4, 4, k=1))
        y = b.op("Gelu", b.conv(y, 4, 4, k=1), approximate="tanh")
    if opset >= 14:
        y = b.op("HardSwish", b.conv(y, 4, 4, k=1))
    if opset >= 18:
        y = b.op("ReduceMean", y, b.constant([2, 3], np.int64), keepdims=0)
    else:
        y = b.op("ReduceMean", y, axes=[-1, -2], keepdims=0)
    y = b.op("Softmax", b.op("Gemm", y, b.weight(4, 3), alpha=0.5), axis=1)
    network = agree(b.model(y), {"x": X})
    assert [s.ops for s in network.stages if isinstance(s, HostSegment)] == [("Softmax",)]


def test_relu6_of_an_old_model():
    b = Builder(("x", (1, 4, 6, 6)), opset=9)
    y = b.op("Clip", b.conv("x", 4, 4), min=0.0, max=6.0)
    network = agree(b.model(b.op("Dropout", y)), {"x": X})
    assert len(network.stages) == 1


def test_nodes_without_names_and_external_weights(tmp_path):
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.conv("x", 4, 16)
    model = b.model(b.conv(y, 16, 16))
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=16)
    network = build_network(tmp_path / "m.onnx", calibration=[X])
    assert [s.name for s in network.stages] == ["conv0", "conv1"]
    (tmp_path / "weights").unlink()
    with pytest.raises(ValueError, match=r"m\.onnx: "):
        build_network(tmp_path / "m.onnx", calibration=[X])


def test_integer_arithmetic_stays_on_the_host():
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Cast", b.conv("x", 4, 4), to=TensorProto.INT32)
    y = b.op("Reshape", b.op("Add", y, y), b.constant([1, -1], np.int64))
    network = agree(b.model(y), {"x": X})
    assert network.stages[1].ops == ("Cast", "Add", "Reshape")


def test_three_dimensional_convolution_stays_on_the_host():
    b = Builder(("x", (1, 2, 4, 4, 4)))
    y = b.op("Relu", b.op("Conv", "x", b.weight(2, 2, 3, 3, 3)))
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4, 4)).astype(np.float32)
    (segment,) = agree(b.model(y), {"x": x}).stages
    assert segment.macs == 2 * 8 * 2 * 27


def test_channels_without_weights_keep_their_bias():
    b = Builder(("x", (1, 4, 6, 6)))
    weight = b.rng.standard_normal((4, 4, 1, 1))
    weight[1] = 0
    weight[2] *= 1e-9
    y = b.op("Conv", "x", b.constant(weight), b.constant([0.1, 0.77, -0.5, 0.0]))
    model = b.model(y)
    network = agree(model, {"x": X})
    (ours,), _ = run_network(network, {"x": X})
    assert np.abs(ours - run_onnx(model, {"x": X})[0])[:, 1:3].max() <= 0.51 * network.tensors[y].scale


def test_tensors_that_are_always_zero():
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Relu", b.op("Conv", "x", b.constant(np.zeros((4, 4, 1, 1))), b.constant([-1.0] * 4)))
    agree(b.model(b.op("Add", b.conv(y, 4, 4, k=1), y)), {"x": X})


@pytest.mark.parametrize("signed", [False, True])
def test_padded_maximum_of_values_below_zero(signed):
    """Padding never wins, though the array pads with zero: the maximum is taken of codes from the lowest one on."""
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("LeakyRelu", b.op("MaxPool", b.conv("x", 4, 4, k=1), kernel_shape=[3, 3], pads=[1, 1, 1, 1]), alpha=0.5)
    network = agree(b.model(b.conv(y, 4, 3)), {"x": X - 2}, signed=signed)
    assert not any(isinstance(stage, HostSegment) for stage in network.stages)


@pytest.mark.parametrize("kind", ["Split", "Slice", "Gather"])
def test_some_channels_stay_on_the_array_with_their_codes(kind):
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Sigmoid", b.conv("x", 4, 6, k=1))
    if kind == "Split":
        parts = b.op("Split", y, b.constant([2, 4], np.int64), axis=1, out="two"), "four"
        b.nodes[-1].output.append("four")
    elif kind == "Slice":
        parts = [b.op("Slice", y, *(b.constant([v], np.int64) for v in (a, 6, 1, 2))) for a in (0, 1)]
    else:
        parts = [b.op("Gather", y, b.constant(i, np.int64), axis=1) for i in ([5, 0], [1, 1, 2])]
    sizes = {"Split": (2, 4), "Slice": (3, 3), "Gather": (2, 3)}[kind]
    ends = [b.conv(part, size, 3) for part, size in zip(parts, sizes, strict=True)]
    network = agree(b.model(*ends), {"x": X})
    assert not any(isinstance(stage, HostSegment) for stage in network.stages)
    assert len({network.tensors[name].scale for name in (y, *parts)}) == 1


def test_what_onnxruntime_does_not_know_is_refused_by_name():
    b = Builder(("x", (1, 4, 6, 6)))
    model = b.model(b.op("Magic", "x", domain="acme"))
    model.opset_import.append(helper.make_opsetid("acme", 1))
    with pytest.raises(ModelError, match=r"^onnxruntime refuses what is left to the host \(Magic\): .*acme:Magic"):
        build_network(model)


def test_sequences_stay_inside_the_host_or_are_refused():
    b = Builder(("x", (1, 4, 6, 6)))
    a = b.conv("x", 4, 4)
    sequence = b.op("SequenceConstruct", a, b.op("Erf", a))
    y = b.conv(b.op("SequenceAt", sequence, b.constant(1, np.int64)), 4, 4)
    assert len(agree(b.model(y), {"x": X}).layers) == 2
    z = b.op("SequenceAt", b.op("SequenceInsert", sequence, y), b.constant(2, np.int64))
    with pytest.raises(ModelError, match=r"'sequenceconstruct2' is not a tensor of known type; sequences and maps"):
        build_network(b.model(z), calibration=[X])


def test_shapes_that_only_onnxruntime_infers():
    b = Builder(("x", (1, 4, 6, 6)), opset=18)
    y = b.op("GroupNormalization", b.conv("x", 4, 4), b.constant(np.ones(2)), b.constant(np.zeros(2)), num_groups=2)
    assert len(agree(b.model(b.conv(y, 4, 3)), {"x": X}).layers) == 2


def test_initialisers_that_are_outputs():
    b = Builder(("x", (1, 4, 6, 6)))
    model = b.model(b.constant([1.0, 2.0]), b.conv("x", 4, 4))
    agree(model, {"x": X})


@pytest.mark.parametrize(
    ("heads", "apart", "causal", "mask"),
    [((4, 4), False, 0, ""), ((4, 2), False, 1, ""), ((4, 1), True, 0, "bool"), ((2, 2), True, 1, "real")],
)
def test_attention_of_opset_23(heads, apart, causal, mask):
    tokens, width = 6, 4
    b = Builder(("x", (1, tokens, 8)), opset=23)

    def operand(count):
        y = b.op("MatMul", "x", b.weight(8, count * width))
        if apart:
            shape = b.constant([1, tokens, count, width], np.int64)
            y = b.op("Transpose", b.op("Reshape", y, shape), perm=[0, 2, 1, 3])
        return y

    numbers = {} if apart else {"q_num_heads": heads[0], "kv_num_heads": heads[1]}
    keep = np.tri(tokens, dtype=bool)
    masks = {"": [], "bool": [b.constant(keep, np.bool_)], "real": [b.constant(np.where(keep, 0.3, -np.inf))]}[mask]
    y = b.op("Attention", operand(heads[0]), operand(heads[1]), operand(heads[1]), *masks, is_causal=causal, **numbers)
    x = {"x": np.random.default_rng(0).standard_normal((1, tokens, 8)).astype(np.float32)}
    network = agree(b.model(y), x, steps=2.01, products=True)
    kinds = [type(stage).__name__ for stage in network.stages]
    assert kinds.count("MatMul") == 2
    assert all("Softmax" in s.ops or not s.macs for s in network.stages if isinstance(s, HostSegment))


def test_a_name_that_the_compiler_gives_is_not_mistaken_for_its_own():
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Conv", "x", b.weight(4, 4, 1, 1), b.weight(4), out="y")
    z = b.op("Pow", y, b.constant(2.0))
    b.weights[-1].name = b.nodes[-1].input[1] = "y/bias"
    with pytest.raises(ModelError, match=r"^the model's tensor 'y/bias' has a name that the compiler gives"):
        build_network(b.model(z), calibration=[X])


def test_scalars_between_host_stages_stay_scalars():
    """A number that one host stage hands to another has no axis, and neither has what comes of it."""
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Softmax", "x")
    total = b.op("ReduceMax", y, keepdims=0)
    b.op("Mul", total, b.op("ReduceMax", b.op("Exp", b.op("Softmax", b.conv(y, 4, 4))), keepdims=0), out="out")
    model = b.model("out")
    run = gossamer.simulate(gossamer.compile(model, "tiny", calibration={"x": X}), {"x": X})
    (expected,) = run_onnx(model, {"x": X})
    assert len([s for s in run.program.stages if isinstance(s, HostStage)]) == 2
    assert run.outputs["out"].shape == expected.shape == ()
    assert run.outputs["out"] == pytest.approx(expected, rel=0.05)
