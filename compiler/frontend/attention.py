"""Attention in one operator, onnxruntime's or ONNX's own, as projections, products, masks and a softmax."""

from dataclasses import dataclass

import numpy as np

from gossamer.compiler.frontend.dynamic import dynamic_source
from gossamer.compiler.frontend.nodes import Nodes

__all__ = ["unfold_attention", "unfold_standard_attention"]


@dataclass(frozen=True, kw_only=True)
class _Heads:
    """What the operators have in common. batch, heads, and tokens of queries and keys."""

    batch: int
    heads: int
    rows: int
    keys: int


def unfold_attention(nodes: Nodes) -> str | None:
    """com.microsoft's Attention, QAttention and MultiHeadAttention; returns why one stays as it is."""
    if any(nodes.op.outputs[1:]):
        return "a cache of keys and values"
    kind = nodes.op.node.op_type
    return _multi_head(nodes) if kind == "MultiHeadAttention" else _packed(nodes, quantised=kind == "QAttention")


def _packed(nodes: Nodes, *, quantised: bool) -> str | None:
    """One projection for queries, keys and values, as they lie side by side in its weight."""
    weight = nodes.graph.info(nodes.input(1)).shape
    shape = nodes.graph.info(nodes.op.inputs[0]).shape
    mask, past, extra = (5, 8, ()) if quantised else (3, 4, (6,))
    if shape is None or weight is None or len(shape) != 3:
        return "inputs of unknown shape"
    if nodes.input(past) or any(nodes.input(i) for i in extra) or nodes.attributes.get("do_rotary", 0):
        return "a cache of keys and values, or rotary embedding"
    sizes = list(nodes.attributes.get("qkv_hidden_sizes", [weight[-1] // 3] * 3))
    batch, tokens, _ = shape
    about = _Heads(batch=batch, heads=nodes.attributes["num_heads"], rows=tokens, keys=tokens)
    reason = _mask_refusal(nodes, mask, about)
    if reason:
        return reason
    x, w = nodes.input(0), nodes.input(1)
    if quantised:
        # Inputs: codes, weight codes, bias, both scales, mask, both zero points.
        real = dynamic_source(nodes.graph, x, nodes.input(6))
        if any(nodes.input(i) and nodes.value(i) is None for i in (1, 4, 7, *(() if real else (3, 6)))):
            return "scales that are computed at run time"
        if real is not None:
            x = real.inputs[0]
        else:
            x = nodes.add("DequantizeLinear", (x, _scalar(nodes, 3), _scalar(nodes, 6)))
        scale = nodes.value(4)
        along = {"axis": 1} if scale is not None and scale.size > 1 else {}
        w = nodes.add("DequantizeLinear", (w, _scalar(nodes, 4), _scalar(nodes, 7)), attributes=along)
    y = nodes.add("MatMul", (x, w), main=True)
    if nodes.input(2):
        y = nodes.add("Add", (y, nodes.input(2)))
    split = nodes.constant("sizes", sizes, np.int64)
    nodes.add("Split", (y, split), count=3, attributes={"axis": -1})
    q, k, v = nodes.outputs()
    bias = "" if quantised else nodes.input(5)
    _attend(nodes, (q, k, v), about, sizes[0] // about.heads, mask=mask, bias=bias)
    return None


def unfold_standard_attention(nodes: Nodes) -> str | None:
    """ONNX's Attention since opset 23: operands [batch, tokens, heads * width] or [batch, heads, tokens, width]."""
    attributes = nodes.attributes
    if any(nodes.op.outputs[1:]) or any(nodes.input(i) for i in (4, 5, 6)):
        return "a cache of keys and values"
    if attributes.get("softcap", 0.0):
        return "a soft cap"
    shapes = [nodes.graph.info(nodes.input(i)).shape for i in range(3)]
    if any(s is None or len(s) not in (3, 4) for s in shapes) or len({len(s or ()) for s in shapes}) > 1:
        return "operands of unknown shape"
    q, k, v = (s or () for s in shapes)
    apart = len(q) == 4
    heads = (q[1], k[1]) if apart else (attributes["q_num_heads"], attributes["kv_num_heads"])
    width = q[-1] // (1 if apart else heads[0])
    about = _Heads(batch=q[0], heads=heads[0], rows=q[-2], keys=k[-2])

    def operand(index: int, count: int, perm: tuple[int, ...]) -> str:
        x, tokens = nodes.input(index), about.rows if index == 0 else about.keys
        if not apart:
            shape = nodes.constant("heads", (about.batch, tokens, count, -1), np.int64)
            x = nodes.add("Transpose", (nodes.add("Reshape", (x, shape)),), attributes={"perm": (0, 2, 1, 3)})
        if count != about.heads:  # each head of keys and values serves several of queries
            size = (q, k, v)[index][-1] // (1 if apart else count)
            x = nodes.add("Unsqueeze", (x, nodes.constant("axis", [2], np.int64)))
            more = (about.batch, count, about.heads // count, tokens, size)
            x = nodes.add("Expand", (x, nodes.constant("more", more, np.int64)))
            merged = (about.batch, about.heads, tokens, size)
            x = nodes.add("Reshape", (x, nodes.constant("all", merged, np.int64)))
        return x if perm == (0, 1, 2, 3) else nodes.add("Transpose", (x,), attributes={"perm": perm})

    queries = operand(0, heads[0], (0, 1, 2, 3))
    keys, values = operand(1, heads[1], (0, 1, 3, 2)), operand(2, heads[1], (0, 1, 2, 3))
    scores = nodes.add("MatMul", (queries, keys), main=True)
    scores = nodes.add("Mul", (scores, nodes.constant("factor", attributes.get("scale", width**-0.5))))
    mask = nodes.input(3)
    if mask and nodes.graph.info(mask).dtype == "bool":
        scores = nodes.add("Where", (mask, scores, nodes.constant("never", -np.inf)))
    elif mask:
        scores = nodes.add("Add", (scores, mask))
    if attributes.get("is_causal", 0):
        later = np.triu(np.full((about.rows, about.keys), -np.inf, np.float32), 1)
        scores = nodes.add("Add", (scores, nodes.constant("causal", later)))
    weights = nodes.add("Softmax", (scores,), attributes={"axis": -1})
    if apart:
        nodes.add("MatMul", (weights, values), outputs=nodes.op.outputs[:1])
        return None
    y = nodes.add("Transpose", (nodes.add("MatMul", (weights, values)),), attributes={"perm": (0, 2, 1, 3)})
    joined = nodes.constant("merged", (about.batch, about.rows, -1), np.int64)
    nodes.add("Reshape", (y, joined), outputs=nodes.op.outputs[:1])
    return None


def _scalar(nodes: Nodes, index: int) -> str:
    value = nodes.value(index)
    if value is None or value.size > 1:
        return nodes.input(index)
    return nodes.constant(f"input{index}", value.reshape(()), value.dtype)


def _multi_head(nodes: Nodes) -> str | None:
    """Queries, keys and values are projected already; only their biases may be left to add."""
    shapes = [nodes.graph.info(nodes.input(i)).shape if nodes.input(i) else None for i in range(3)]
    if any(s is None or len(s) != 3 for s in shapes):
        return "packed or unknown operands"
    if any(nodes.input(i) for i in (6, 7)):
        return "a cache of keys and values"
    (batch, rows, width), keys = shapes[0] or (0, 0, 0), (shapes[1] or (0, 0))[1]
    about = _Heads(batch=batch, heads=nodes.attributes["num_heads"], rows=rows, keys=keys)
    reason = _mask_refusal(nodes, 4, about)
    if reason:
        return reason
    operands = list(nodes.op.inputs[:3])
    if nodes.input(3):
        bias = nodes.value(3)
        if bias is None:
            return "a bias that is computed at run time"
        parts = np.split(bias, np.cumsum([width, width]))
        operands = [
            nodes.add("Add", (x, nodes.constant(f"bias{i}", part)), main=i == 0)
            for i, (x, part) in enumerate(zip(operands, parts, strict=True))
        ]
    _attend(nodes, (operands[0], operands[1], operands[2]), about, width // about.heads, mask=4, bias=nodes.input(5))
    return None


def _mask_refusal(nodes: Nodes, mask: int, about: _Heads) -> str:
    """A mask of ones and zeros for every key is known; lengths and other forms are not."""
    if not nodes.input(mask):
        return ""
    shape = nodes.graph.info(nodes.input(mask)).shape
    known = shape in ((about.batch, about.keys), (about.batch, about.rows, about.keys))
    return "" if known else f"a mask of shape {None if shape is None else list(shape)}"


def _attend(nodes: Nodes, qkv: tuple[str, str, str], about: _Heads, width: int, *, mask: int, bias: str) -> None:
    """softmax(q k / sqrt(width) + masks) v, head by head."""

    def heads(x: str, tokens: int, perm: tuple[int, ...]) -> str:
        shape = nodes.constant("heads", (about.batch, tokens, about.heads, -1), np.int64)
        return nodes.add("Transpose", (nodes.add("Reshape", (x, shape)),), attributes={"perm": perm})

    q, k, v = qkv
    scores = nodes.add("MatMul", (heads(q, about.rows, (0, 2, 1, 3)), heads(k, about.keys, (0, 2, 3, 1))))
    factor = nodes.attributes.get("scale", 0.0) or width**-0.5
    scores = nodes.add("Mul", (scores, nodes.constant("factor", factor)))
    never = nodes.attributes.get("mask_filter_value", -10000.0)
    if bias:
        scores = nodes.add("Add", (scores, bias))
    if nodes.input(mask):
        shape = nodes.graph.shape(nodes.input(mask))
        axes = nodes.constant("axes", [1, 2] if len(shape) == 2 else [1], np.int64)
        kept = nodes.add("Cast", (nodes.input(mask),), attributes={"to": 1})
        lost = nodes.add("Mul", (nodes.add("Sub", (nodes.constant("one", 1.0), kept)), nodes.constant("never", never)))
        scores = nodes.add("Add", (scores, nodes.add("Unsqueeze", (lost, axes))))
    if nodes.attributes.get("unidirectional", 0):
        later = np.triu(np.full((about.rows, about.keys), never, np.float32), 1)
        scores = nodes.add("Add", (scores, nodes.constant("causal", later)))
    weights = nodes.add("Softmax", (scores,), attributes={"axis": -1})
    y = nodes.add("MatMul", (weights, heads(v, about.keys, (0, 2, 1, 3))))
    y = nodes.add("Transpose", (y,), attributes={"perm": (0, 2, 1, 3)})
    merged = nodes.constant("merged", (about.batch, about.rows, -1), np.int64)
    nodes.add("Reshape", (y, merged), outputs=nodes.op.outputs[:1])
