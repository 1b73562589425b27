"""Fused operators of real numbers, nearly all of them onnxruntime's, as the standard ones they were made of."""

from collections.abc import Callable
from dataclasses import replace

from gossamer.compiler.frontend.attention import unfold_attention, unfold_standard_attention
from gossamer.compiler.frontend.few_bits import unfold_few_bits
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.nodes import Nodes, is_standard
from gossamer.compiler.frontend.ops import Host

__all__ = ["unfold_fused"]


def unfold_fused(graph: Graph) -> Graph:
    """Replace what is known; an operator in a form that is not stays, with the reason."""
    graph = graph.copy()
    for op in graph.order():
        if not isinstance(op, Host):
            continue
        standard = op.node.op_type == "Attention" and is_standard(op)
        if not standard and (op.node.domain != "com.microsoft" or op.node.op_type not in _UNFOLD):
            continue
        nodes = Nodes(graph, op)
        reason = (unfold_standard_attention if standard else _UNFOLD[op.node.op_type])(nodes)
        if reason:
            graph.replace(op.name, replace(op, reason=f"{op.node.op_type} with {reason}"))
        elif reason is None:
            nodes.place()
    graph.prune()
    return graph


def _activated(nodes: Nodes, before: str, parameters: tuple[float, ...]) -> str | None:
    """The activation that a fused product names, appended behind it."""
    kind = nodes.attributes["activation"].decode()
    if kind not in _ACTIVATIONS:
        return f"the activation {kind}"
    if kind == "Clip":
        bounds = [nodes.constant(side, value) for side, value in zip(("low", "high"), parameters, strict=False)]
        nodes.add(kind, (before, *bounds), outputs=nodes.op.outputs)
    else:
        attributes = dict(zip(_ACTIVATIONS[kind], parameters, strict=False))
        nodes.add(kind, (before,), outputs=nodes.op.outputs, attributes=attributes)
    return None


_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": (),
}


def _conv(nodes: Nodes) -> str | None:
    attributes = {k: v for k, v in nodes.attributes.items() if not k.startswith("activation")}
    y = nodes.add("Conv", nodes.op.inputs[:3], main=True, attributes=attributes)
    if nodes.input(3):
        y = nodes.add("Add", (y, nodes.input(3)))
    if not nodes.attributes.get("activation"):
        return "no activation"
    return _activated(nodes, y, tuple(nodes.attributes.get("activation_params", ())))


def _gemm(nodes: Nodes) -> str | None:
    attributes = {k: v for k, v in nodes.attributes.items() if not k.startswith("activation")}
    y = nodes.add("Gemm", nodes.op.inputs, main=True, attributes=attributes)
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    return _activated(nodes, y, tuple(nodes.attributes[n] for n in names if n in nodes.attributes))


def _matmul(nodes: Nodes) -> str | None:
    """alpha * A B, either transposed in its last two axes."""
    if nodes.attributes.get("transBatchA", 0) or nodes.attributes.get("transBatchB", 0):
        return "transposed batches"
    operands = []
    for index, name in enumerate(("transA", "transB")):
        tensor = nodes.input(index)
        if nodes.attributes.get(name, 0):
            shape = nodes.graph.info(tensor).shape
            if shape is None:
                return f"an operand {tensor!r} of unknown rank"
            if len(shape) > 1:
                axes = list(range(len(shape)))
                axes[-2:] = axes[-1], axes[-2]
                tensor = nodes.add("Transpose", (tensor,), attributes={"perm": axes})
        operands.append(tensor)
    alpha = nodes.attributes.get("alpha", 1.0)
    y = nodes.add("MatMul", operands, main=True, outputs=nodes.op.outputs if alpha == 1 else ())
    if alpha != 1:
        nodes.add("Mul", (y, nodes.constant("alpha", alpha)), outputs=nodes.op.outputs)
    return None


def _biased(kind: str) -> Callable[[Nodes], str | None]:
    """A function behind a bias; the function itself is onnxruntime's too, and recognise knows it."""

    def unfold(nodes: Nodes) -> str | None:
        if not nodes.input(1):
            return ""
        y = nodes.add("Add", nodes.op.inputs)
        nodes.add(kind, (y,), outputs=nodes.op.outputs, main=True, attributes={"domain": "com.microsoft"})
        return None

    return unfold


_UNFOLD: dict[str, Callable[[Nodes], str | None]] = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "BiasGelu": _biased("Gelu"),
    "FastGelu": _biased("FastGelu"),
    "MatMulNBits": unfold_few_bits,
    **dict.fromkeys(("Attention", "QAttention", "MultiHeadAttention"), unfold_attention),
}
"""By name; each appends nodes and returns None, or says why it cannot ("" where nothing is to be done)."""
