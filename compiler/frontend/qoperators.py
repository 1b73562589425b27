"""Operators on codes as operators on real numbers between DequantizeLinear and QuantizeLinear.

QLinearConv and its kin are that form folded together, so unfolding them changes nothing, and everything behind has
one form of quantised model to know. Operations that only move codes, or compare them, are the same for the numbers
the codes stand for.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.nodes import Nodes, is_standard
from gossamer.compiler.frontend.ops import Array, Host

__all__ = ["unfold_qoperators"]

CONTRIBUTED = "com.microsoft"
"""onnxruntime's own domain."""


class _No(Exception):
    """Why an operator on codes stays as it is."""


def unfold_qoperators(graph: Graph) -> Graph:
    """Replace every operator on codes whose scales are constants; the others get the reason."""
    graph = graph.copy()
    known: dict[str, tuple[str, str]] = {}
    """Names of scale and zero point ("" for none) of each tensor of codes."""
    for op in graph.order():
        if not isinstance(op, Host):
            continue
        kind = op.node.op_type
        nodes = Nodes(graph, op)
        if kind in ("QuantizeLinear", "DequantizeLinear"):
            _standardise(nodes)
            if kind == "QuantizeLinear" and graph.info(nodes.input(1)).shape in ((), (1,)):
                known[op.output] = nodes.input(1), nodes.input(2)  # one scale: it does not matter where axes go
        elif kind in _UNFOLD and op.node.domain in ("", CONTRIBUTED):
            try:
                known[op.output] = _UNFOLD[kind](nodes)
            except _No as reason:
                graph.replace(op.name, replace(op, reason=f"{kind} with {reason}"))
                continue
            nodes.place()
        elif op.inputs and op.inputs[0] in known and _moves(graph, op, known):
            codes = known[op.inputs[0]]
            known |= dict.fromkeys((o for o in op.outputs if o), codes)
            _unfold_move(nodes, *codes)
            nodes.place()
    graph.prune()
    return graph


def _standardise(nodes: Nodes) -> None:
    """onnxruntime's own QuantizeLinear and DequantizeLinear mean what ONNX's do."""
    op = nodes.op
    if not is_standard(op):
        nodes.add(op.node.op_type, op.inputs, outputs=op.outputs, main=True, attributes=nodes.attributes)
        nodes.place()


# --- parts ----------------------------------------------------------------------------------------------------------


def _constant(nodes: Nodes, index: int, what: str) -> Array:
    value = nodes.value(index)
    if value is None:
        raise _No(f"{what} that is computed at run time")
    return value


def _real(nodes: Nodes, index: int, axis: int | None = None) -> str:
    """The numbers that input `index` stands for; its scale and zero point are the two inputs behind it."""
    scale = _constant(nodes, index + 1, "a scale")
    if scale.size > 1 and axis is None:
        raise _No(f"{scale.size} scales of {nodes.input(index)!r}")
    along = {"axis": axis} if scale.size > 1 else {}
    names = (nodes.input(index), _scalar(nodes, index + 1, scale), _zero(nodes, index + 2))
    return nodes.add("DequantizeLinear", names, attributes=along)


def _scalar(nodes: Nodes, index: int, value: Array) -> str:
    """One number of shape [1] as a scalar: DequantizeLinear takes the first for a scale per channel."""
    if value.size > 1 or value.shape == ():
        return nodes.input(index)
    return nodes.constant(f"{index}", value.reshape(()), value.dtype)


def _zero(nodes: Nodes, index: int) -> str:
    value = nodes.value(index)
    return nodes.input(index) if value is None else _scalar(nodes, index, value)


def _codes(nodes: Nodes, real: str, scale: int, zero: int) -> tuple[str, str]:
    """Let the operation's output be the codes of a tensor; returns the names of scale and zero point."""
    value = _constant(nodes, scale, "a scale")
    if value.size > 1:
        raise _No(f"{value.size} scales of its output")
    names = _scalar(nodes, scale, value), _zero(nodes, zero)
    if not names[1] and nodes.graph.info(nodes.op.output).dtype == "int8":
        names = names[0], nodes.constant("zero_point", 0, np.int8)
    nodes.add("QuantizeLinear", (real, *names), outputs=nodes.op.outputs[:1])
    return names


def _attributes(nodes: Nodes, *dropped: str) -> dict[str, Any]:
    if nodes.attributes.get("channels_last", 0):
        raise _No("channels last")
    return {k: v for k, v in nodes.attributes.items() if k not in ("channels_last", *dropped)}


# --- operators ------------------------------------------------------------------------------------------------------


def _bias(nodes: Nodes, index: int, scale: Array) -> tuple[str, ...]:
    """int32 codes, whose scale is that of the accumulator."""
    if not nodes.input(index):
        return ()
    codes = _constant(nodes, index, "a bias").reshape(-1)
    names = (nodes.constant("bias", codes, np.int32), nodes.constant("bias_scale", scale))
    return (nodes.add("DequantizeLinear", names, attributes={"axis": 0} if scale.size > 1 else {}),)


def _accumulator(nodes: Nodes, a: int, b: int) -> Array:
    """Scales of the product of two inputs, [channels] or one: float32, as onnxruntime multiplies them."""
    scales = _constant(nodes, a, "a scale").reshape(-1) * _constant(nodes, b, "a scale").reshape(-1)
    return scales.reshape(()) if scales.size == 1 else scales


def _conv(nodes: Nodes) -> tuple[str, str]:
    bias = _bias(nodes, 8, _accumulator(nodes, 1, 4))
    x, w = _real(nodes, 0), _real(nodes, 3, axis=0)
    return _codes(nodes, nodes.add("Conv", (x, w, *bias), main=True, attributes=_attributes(nodes)), 6, 7)


def _matmul(nodes: Nodes) -> tuple[str, str]:
    a, b = _real(nodes, 0), _real(nodes, 3, axis=-1)
    return _codes(nodes, nodes.add("MatMul", (a, b), main=True), 6, 7)


def _gemm(nodes: Nodes) -> tuple[str, str]:
    """com.microsoft.QGemm: its bias is added before alpha."""
    if not nodes.input(7):
        raise _No("a real output")
    alpha = np.float32(nodes.attributes.get("alpha", 1.0))
    bias = _bias(nodes, 6, np.asarray(alpha * _accumulator(nodes, 1, 4)))
    a, b = _real(nodes, 0), _real(nodes, 3, axis=0 if nodes.attributes.get("transB", 0) else 1)
    return _codes(nodes, nodes.add("Gemm", (a, b, *bias), main=True, attributes=nodes.attributes), 7, 8)


def _unary(kind: str) -> Callable[[Nodes], tuple[str, str]]:
    def unfold(nodes: Nodes) -> tuple[str, str]:
        attributes = _attributes(nodes, "opset")
        if kind == "Softmax" and nodes.attributes.get("opset", 13) < 13:
            shape = nodes.graph.info(nodes.op.output).shape
            if shape is None or attributes.setdefault("axis", 1) not in (-1, len(shape) - 1):
                raise _No("the meaning of before opset 13 over more than one axis")
        inputs = [_real(nodes, 0)]
        if kind == "ReduceMean" and nodes.graph.opset.get("", 17) >= 18 and "axes" in attributes:
            inputs.append(nodes.constant("axes", attributes.pop("axes"), np.int64))
        return _codes(nodes, nodes.add(kind, inputs, main=True, attributes=attributes), 3, 4)

    return unfold


def _binary(kind: str) -> Callable[[Nodes], tuple[str, str]]:
    return lambda nodes: _codes(nodes, nodes.add(kind, (_real(nodes, 0), _real(nodes, 3)), main=True), 6, 7)


def _concat(nodes: Nodes) -> tuple[str, str]:
    parts = [_real(nodes, index) for index in range(2, len(nodes.op.inputs), 3)]
    return _codes(nodes, nodes.add("Concat", parts, main=True, attributes=nodes.attributes), 0, 1)


_UNFOLD: dict[str, Callable[[Nodes], tuple[str, str]]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearLeakyRelu": _unary("LeakyRelu"),
    "QLinearSoftmax": _unary("Softmax"),
    "QLinearAveragePool": _unary("AveragePool"),
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearReduceMean": _unary("ReduceMean"),
    "QLinearConcat": _concat,
}
"""Operators by name; each appends its nodes and says which codes come out."""


# --- what only moves codes ------------------------------------------------------------------------------------------

_MOVES = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather", "Split", "Expand",
          "DepthToSpace", "SpaceToDepth", "MaxPool", "Tile", "Pad", "Resize", "Concat"}  # fmt: skip


def _moves(graph: Graph, op: Host, known: dict[str, tuple[str, str]]) -> bool:
    """Whether an operation on codes gives out some of them, and can be done on numbers as well."""
    kind, nodes = op.node.op_type, Nodes(graph, op)
    if kind not in _MOVES or not is_standard(op) or not all(t in graph.constants for t in known[op.inputs[0]] if t):
        return False
    if kind == "MaxPool":
        return len(op.outputs) == 1
    if kind == "Resize":
        return bool(nodes.attributes.get("mode", b"nearest") == b"nearest")
    if kind == "Pad":
        filled = not nodes.input(2) or nodes.value(2) is not None
        return bool(nodes.attributes.get("mode", b"constant") != b"constant") or filled
    if kind == "Concat":
        return all(t in known and _same(graph, known[t], known[op.inputs[0]]) for t in op.inputs)
    return True


def _same(graph: Graph, a: tuple[str, str], b: tuple[str, str]) -> bool:
    return all(
        one == two or np.array_equal(graph.constants.get(one, np.nan), graph.constants.get(two, np.nan))
        for one, two in zip(a, b, strict=True)
    )


def _unfold_move(nodes: Nodes, scale: str, zero: str) -> None:
    op = nodes.op
    codes = op.inputs if op.node.op_type == "Concat" else op.inputs[:1]
    reals = [nodes.add("DequantizeLinear", (tensor, scale, zero)) for tensor in codes]
    others = list(op.inputs[len(codes) :])
    if op.node.op_type == "Pad" and nodes.attributes.get("mode", b"constant") == b"constant":
        others[1:2] = [_filling(nodes, scale, zero)]
    nodes.add(op.node.op_type, (*reals, *others), count=len(op.outputs), main=True, attributes=nodes.attributes)
    for real, target in zip(nodes.outputs(), op.outputs, strict=True):
        if target:
            nodes.add("QuantizeLinear", (real, scale, zero), outputs=(target,))


def _filling(nodes: Nodes, scale: str, zero: str) -> str:
    """The number that a padding's code stands for; without one it is the code 0."""
    graph = nodes.graph
    code = nodes.value(2)
    offset = np.float32(graph.constants[zero].reshape(-1)[0] if zero else 0)
    filling = np.float32(0 if code is None else code.reshape(-1)[0]) - offset
    return nodes.constant("filling", filling * graph.constants[scale].reshape(-1)[0])
