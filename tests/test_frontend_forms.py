"""Matrix products in other words: Einsum, Gemm and MatMul with odd operands, weights of few bits."""

import numpy as np
import pytest
from onnx import helper

from gossamer.compiler.layers import HostSegment
from tests.support.frontend import Builder, check_layers, check_same_function, check_structure, compile_both


def run(model, *shapes):
    """The Network, which agrees with the model layer by layer, with all products on the array."""
    names = [i.name for i in model.graph.input]
    rng = np.random.default_rng(0)
    x = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in zip(names, shapes, strict=True)}
    network, twin, graph = compile_both(model, [x], products=True)
    check_same_function(model, graph, x)
    check_structure(network)
    check_layers(network, twin, x)
    assert sum(s.macs for s in network.stages if isinstance(s, HostSegment)) == 0
    assert network.layers
    return network


def one(shape, build):
    b = Builder(("x", shape))
    return run(b.model(build(b)), shape)


@pytest.mark.parametrize(
    ("equation", "x", "weight"),
    [
        ("bik,kj->bij", (2, 5, 7), (7, 3)),
        ("btd,dhe->bhte", (1, 6, 8), (8, 2, 4)),
        ("bthe,hed->btd", (1, 6, 2, 4), (2, 4, 8)),
        ("ik, jk", (5, 7), (3, 7)),
        ("bck,kd->dbc", (2, 3, 4), (4, 5)),
    ],
)
def test_einsum_with_a_weight(equation, x, weight):
    one(x, lambda b: b.op("Einsum", "x", b.weight(*weight), equation=equation))
    swapped = ",".join(reversed(equation.split("->")[0].split(","))) + ("->ij" if "->" not in equation else "")
    swapped += "->" + equation.split("->")[1] if "->" in equation else ""
    one(x, lambda b: b.op("Einsum", b.weight(*weight), "x", equation=swapped))


@pytest.mark.parametrize(
    ("equation", "a", "c"),
    [
        ("bhte,bhse->bhts", (1, 2, 6, 4), (1, 2, 5, 4)),
        ("bhts,bshe->bthe", (1, 2, 6, 5), (1, 5, 2, 4)),
    ],
)
def test_einsum_of_two_activations(equation, a, c):
    b = Builder(("x", a), ("y", c))
    run(b.model(b.op("Einsum", "x", "y", equation=equation)), a, c)


@pytest.mark.parametrize("equation", ["bij->bi", "bii->b", "bij,bik->bjk", "...ij,jk->...ik", "bij,cij->b"])
def test_other_einsums_are_left_alone(equation):
    shape = (2, 3, 3)
    b = Builder(("x", shape), ("y", {"...ij,jk->...ik": (3, 3)}.get(equation, shape)))
    y = b.op("Einsum", "x", *(["y"] if "," in equation else []), equation=equation)
    model = b.model(b.op("Relu", y))
    shapes = [[d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input]
    x = {n: np.random.default_rng(0).standard_normal(s).astype(np.float32) for n, s in zip("xy", shapes, strict=True)}
    network, _, graph = compile_both(model, [x])
    check_same_function(model, graph, x)
    check_structure(network)


@pytest.mark.parametrize(
    "build",
    [
        lambda b: b.op("Gemm", "x", b.weight(6, 5), b.weight(5), transA=1),
        lambda b: b.op("Gemm", "x", b.weight(7, 5), b.weight(6, 5), beta=0.5),
        lambda b: b.op("Gemm", "x", b.weight(7, 7), b.op("Relu", "x"), alpha=2.0),
        lambda b: b.op("MatMul", "x", b.weight(7)),
        lambda b: b.op("MatMul", b.weight(5, 6), "x"),
    ],
    ids=["transposed", "bias for every element", "computed bias", "vector", "weight first"],
)
def test_gemm_and_matmul(build):
    one((6, 7), build)


def test_matmul_with_unit_axes():
    one((2, 3, 6, 7), lambda b: b.op("MatMul", "x", b.weight(1, 1, 7, 5)))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_of_few_bits(bits, zeros):
    """Two blocks along the reduction, the second one not full."""
    k, n, block = 40, 6, 32
    b = Builder(("x", (3, k)))
    codes = b.constant(b.rng.integers(0, 256, (n, 2, block * bits // 8)), np.uint8)
    scales = b.constant(b.rng.uniform(0.02, 0.1, n * 2))
    row = -(-2 * bits // 8)
    points = [b.constant(b.rng.integers(0, 256, n * row), np.uint8)] if zeros else []
    y = b.op("MatMulNBits", "x", codes, scales, *points, K=k, N=n, bits=bits, block_size=block, domain="com.microsoft")
    model = b.model(y)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    network = run(model, (3, k))
    assert any(f"its weight has {bits} bits" in note for note in network.notes)
