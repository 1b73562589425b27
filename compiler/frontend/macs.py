"""Multiply-accumulates of operations that the host runs, those inside of If, Loop and Scan included."""

from collections.abc import Callable, Iterable
from math import prod

import numpy as np
import onnx
from onnx import helper

from gossamer.arch.program import UNKNOWN_MACS
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.importer import captured
from gossamer.compiler.frontend.ops import Host

__all__ = ["host_macs"]

Shape = tuple[int, ...] | None
Shapes = Callable[[str], Shape]

_SECOND = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
"""Where the second operand of a product stands, if it is not the second input."""

_RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_CONVOLUTION = ("Conv", "ConvInteger")
_PRODUCT = ("MatMul", "MatMulInteger", "MatMulIntegerToFloat", "Gemm")
"""How their names end, in any domain."""


def host_macs(graph: Graph, ops: Iterable[Host]) -> int:
    """Multiply-accumulates of these operations, UNKNOWN_MACS when they depend on what only a run shows.

    Of a condition's branches the largest counts.
    """
    found = [_macs(graph, op.node, lambda name: graph.info(name).shape) for op in ops]
    return UNKNOWN_MACS if None in found else sum(n for n in found if n is not None)


def _macs(graph: Graph, node: onnx.NodeProto, shapes: Shapes) -> int | None:
    bodies = [a.g for a in node.attribute if a.type == a.GRAPH]
    if not bodies:
        return _product(node, shapes)
    inside = [_body(graph, body, shapes) for body in bodies]
    if node.op_type != "If":  # a loop: how often its body runs is known to nobody
        return None if any(n is None or n > 0 for n in inside) else 0
    return None if None in inside else max(n for n in inside if n is not None)


def _body(graph: Graph, body: onnx.GraphProto, outer: Shapes) -> int | None:
    """Multiply-accumulates of a subgraph, None when shapes are missing."""
    own: dict[str, Shape] = {t.name: tuple(t.dims) for t in body.initializer}
    own |= _inferred(graph, body, outer)

    def shapes(name: str) -> Shape:
        return own[name] if name in own else outer(name)

    found = [_macs(graph, node, shapes) for node in body.node]
    return None if None in found else sum(n for n in found if n is not None)


def _inferred(graph: Graph, body: onnx.GraphProto, outer: Shapes) -> dict[str, Shape]:
    """Shapes that onnx infers of a subgraph's own tensors: None where it does not, or a size is open."""
    whole = onnx.GraphProto()
    whole.CopyFrom(body)
    for name in sorted(captured(helper.make_node("If", [], [], then_branch=body))):
        info = graph.info(name)
        if (shape := outer(name)) is not None:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(info.dtype))
            whole.input.append(helper.make_tensor_value_info(name, kind, shape))
    opsets = [helper.make_opsetid(domain, version) for domain, version in graph.opset.items()]
    try:
        model = onnx.shape_inference.infer_shapes(helper.make_model(whole, opset_imports=opsets))
    except Exception:  # onnx raises classes of its own; then nothing is known
        return {}
    tensors = (*model.graph.value_info, *model.graph.output, *body.input)
    sizes = {v.name: [d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in tensors}
    return {name: None if None in dims else tuple(d for d in dims if d) for name, dims in sizes.items()}


def _product(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Of the operations that do nearly all of them; 0 of any other, None when a shape is missing."""
    kind = node.op_type
    transposed = kind == "ConvTranspose"
    if not (transposed or kind in _RECURRENT or kind.endswith((*_CONVOLUTION, *_PRODUCT))):
        return 0
    at = _SECOND.get(kind, 1)
    first, second = (shapes(node.input[i]) if len(node.input) > i else None for i in (0, at))
    out = shapes(node.output[0]) if node.output[0] else None
    if first is None or second is None:
        return None
    if kind in _RECURRENT:  # every step and sample meets all weights
        recurrent = shapes(node.input[2]) if len(node.input) > 2 else None
        return prod(first[:2]) * (prod(second) + prod(recurrent or (0,)))
    if transposed:
        return prod(first) * prod(second[1:])
    if out is None:
        return None
    if kind.endswith(_CONVOLUTION):
        return prod(out) * prod(second[1:])
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(out) * first[-2 if turned else -1]
