"""Dynamic quantisation as what it approximates: products of real numbers with weights that are codes.

The model measures its activations at run time and scales them by what it finds; the array's scales are fixed. So the
activations are calibrated like those of a floating-point model, and the weights keep their codes.
"""

from dataclasses import replace

import numpy as np

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.nodes import Nodes
from gossamer.compiler.frontend.ops import Array, Host, Op

__all__ = ["dynamic_source", "unfold_dynamic"]

_INTEGER = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_WHOLE = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
"""onnxruntime's fused forms, which give real numbers."""


def unfold_dynamic(graph: Graph) -> Graph:
    """Replace products behind a DynamicQuantizeLinear, with the scaling behind them; a note says what changes."""
    graph = graph.copy()
    count = 0
    for op in graph.order():
        if not isinstance(op, Host) or op.name not in graph.dag:
            continue
        if op.node.op_type in _INTEGER and op.node.domain == "":
            count += _unfold_integer(graph, op)
        elif op.node.op_type in _WHOLE and op.node.domain == "com.microsoft":
            count += _unfold_whole(graph, op)
    if count:
        graph.notes.append(
            f"{count} products of dynamic quantisation: weights keep their codes, activations have fixed scales from "
            "calibration instead of scales measured at run time"
        )
    graph.prune()
    return graph


def dynamic_source(graph: Graph, codes: str, zero: str) -> Host | None:
    """The DynamicQuantizeLinear that makes these codes and this zero point."""
    op = graph.producer(codes)
    if not isinstance(op, Host) or op.node.op_type != "DynamicQuantizeLinear" or op.outputs[0] != codes:
        return None
    return op if len(op.outputs) > 2 and op.outputs[2] == zero else None


def _refuse(graph: Graph, op: Host, reason: str) -> int:
    graph.replace(op.name, replace(op, reason=f"{op.node.op_type} {reason}"))
    return 0


def _unfold_integer(graph: Graph, op: Host) -> int:
    """MatMulInteger or ConvInteger, a Cast, and products with the scales of both operands."""
    nodes = Nodes(graph, op)
    first = dynamic_source(graph, op.inputs[0], nodes.input(2))
    if first is None:
        return _refuse(graph, op, "of codes that no DynamicQuantizeLinear makes")
    second = dynamic_source(graph, op.inputs[1], nodes.input(3))
    if second is None and nodes.value(1) is None:
        return _refuse(graph, op, "with a weight that is computed at run time")
    bias, divisor, sums = _bias(graph, op)
    cast = graph.sole_consumer(op.output if sums is None else sums.output)
    if not isinstance(cast, Host) or cast.node.op_type != "Cast":
        return _refuse(graph, op, "whose sums are not turned into real numbers")
    wanted = {first.outputs[1]} | ({second.outputs[1]} if second else set())
    passed, factors = _scaling(graph, cast, wanted)
    if passed is None:
        return _refuse(graph, op, "whose sums are not scaled by the scales of its operands")
    if bias:  # what it is divided by has to be what the sums are multiplied with
        scales, constant = _product(graph, divisor)
        if scales != wanted or constant is None or not np.array_equal(constant.reshape(-1), factors.reshape(-1)):
            return _refuse(graph, op, "with a bias that is divided by other scales than the sums are multiplied with")
    weight = second.inputs[0] if second else _weight(nodes, 1, factors, nodes.input(3), op.node.op_type)
    if weight is None:
        return _refuse(graph, op, "with weight scales along an axis that is not the output channel")
    last = passed[-1]
    graph.remove(op.name)
    for gone in (*passed, *([sums] if sums else [])):
        graph.remove(gone.name)
    kind, reads = _INTEGER[op.node.op_type], (first.inputs[0], weight, *([bias] if bias else []))
    nodes.add(kind, reads, outputs=(last.output,), main=True, attributes=nodes.attributes)
    nodes.append()
    return 1


def _bias(graph: Graph, op: Host) -> tuple[str, str, Host | None]:
    """A constant that is quantised at run time and added to a convolution's sums, what it is divided by, the addition.

    Earlier quantisers wrote it so: whole numbers of bias / scales, in the shape of channels.
    """
    add = graph.sole_consumer(op.output)
    if op.node.op_type != "ConvInteger" or not isinstance(add, Host) or add.node.op_type != "Add":
        return "", "", None
    at, divisor = add.inputs[1] if add.inputs[0] == op.output else add.inputs[0], ""
    for kind in ("Reshape", "Cast", "Floor", "Div"):
        made = graph.producer(at)
        if not isinstance(made, Host) or made.node.op_type != kind:
            return "", "", None
        at, divisor = made.inputs[0], made.inputs[-1]
    known = at in graph.constants and graph.constants[at].ndim == 1
    return (at, divisor, add) if known else ("", "", None)


def _scaling(graph: Graph, cast: Host, wanted: set[str]) -> tuple[list[Op] | None, Array]:
    """The operations from a Cast to the value that has been multiplied by all wanted scales, and constant factors."""
    passed: list[Op] = [cast]
    factors: Array = np.ones((), np.float32)
    left = set(wanted)
    while left or len(passed) < 2:
        user = graph.sole_consumer(passed[-1].output)
        if not isinstance(user, Host) or user.node.op_type != "Mul":
            return None, factors
        other = user.inputs[1] if user.inputs[0] == passed[-1].output else user.inputs[0]
        scales, constant = _product(graph, other)
        if constant is None or not scales <= left:
            return None, factors
        left -= scales
        factors = factors * constant
        passed.append(user)
    return passed, factors


def _product(graph: Graph, tensor: str) -> tuple[set[str], Array | None]:
    """A tensor as a product of scales measured at run time and constants."""
    if tensor in graph.constants:
        return set(), graph.constants[tensor]
    op = graph.producer(tensor)
    if isinstance(op, Host) and op.node.op_type == "DynamicQuantizeLinear" and tensor == op.outputs[1]:
        return {tensor}, np.ones((), np.float32)
    if not isinstance(op, Host) or op.node.op_type != "Mul":
        return set(), None
    (a, one), (b, two) = (_product(graph, name) for name in op.inputs)
    return a | b, None if one is None or two is None else one * two


def _weight(nodes: Nodes, index: int, scales: Array, zero: str, kind: str) -> str | None:
    """The weight's codes behind a DequantizeLinear; scales: one, or one for each output channel."""
    codes = nodes.value(index)
    assert codes is not None
    axis = 0 if kind == "ConvInteger" else codes.ndim - 1
    if scales.size not in (1, codes.shape[axis]):
        return None
    flat = scales.reshape(()) if scales.size == 1 else scales.reshape(-1)
    points = nodes.graph.constants.get(zero)
    if zero and (points is None or points.size not in (1, codes.shape[axis])):
        return None
    if points is not None:  # as many as there are scales
        count = max(flat.size, points.size)
        flat = np.broadcast_to(flat.reshape(-1), (count,)) if count > 1 else flat
        points = np.broadcast_to(points.reshape(-1), (count,)) if count > 1 else points.reshape(())
    names = [nodes.input(index), nodes.constant("scale", flat)]
    if points is not None:
        names.append(nodes.constant("zero_point", points, points.dtype))
    return nodes.add("DequantizeLinear", names, attributes={"axis": axis} if flat.size > 1 else {})


def _unfold_whole(graph: Graph, op: Host) -> int:
    """com.microsoft.DynamicQuantizeMatMul and MatMulIntegerToFloat."""
    nodes = Nodes(graph, op)
    if op.node.op_type == "DynamicQuantizeMatMul":
        x, (scale, zero, bias) = op.inputs[0], (nodes.value(2), nodes.input(3), nodes.input(4))
    else:
        first = dynamic_source(graph, op.inputs[0], nodes.input(4))
        if first is None or first.outputs[1] != nodes.input(2):
            return _refuse(graph, op, "of codes that no DynamicQuantizeLinear makes")
        x, (scale, zero, bias) = first.inputs[0], (nodes.value(3), nodes.input(5), nodes.input(6))
    if nodes.value(1) is None or scale is None:
        return _refuse(graph, op, "with a weight that is computed at run time")
    weight = _weight(nodes, 1, scale, zero, op.node.op_type)
    if weight is None:
        return _refuse(graph, op, "with weight scales along an axis that is not the output channel")
    product = nodes.add("MatMul", (x, weight), main=True, outputs=() if bias else op.outputs[:1])
    if bias:
        nodes.add("Add", (product, bias), outputs=op.outputs[:1])
    nodes.place()
    return 1
