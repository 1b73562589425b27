"""Matrix products that are written in other words: Einsum, Gemm with a transposed or computed operand, odd ranks.

Each becomes MatMul or Gemm as the array knows them, with views and an addition around it.
"""

from collections.abc import Callable

import numpy as np

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.nodes import Nodes, is_standard
from gossamer.compiler.frontend.ops import Host

__all__ = ["unfold_matrices"]


def unfold_matrices(graph: Graph) -> Graph:
    """Rewrite what can be, where its shapes are known; everything else is left as it is."""
    graph = graph.copy()
    for op in graph.order():
        if isinstance(op, Host) and is_standard(op) and op.node.op_type in _UNFOLD:
            nodes = Nodes(graph, op)
            real = all(graph.info(t).dtype == "float32" and graph.info(t).shape is not None for t in op.reads)
            if real and _UNFOLD[op.node.op_type](nodes):
                nodes.place()
    graph.prune()
    return graph


# --- Gemm, MatMul ---------------------------------------------------------------------------------------------------


def _gemm(nodes: Nodes) -> bool:
    """The first operand as it is, and only a constant bias inside."""
    attributes = dict(nodes.attributes)
    turned = attributes.pop("transA", 0)
    c = nodes.input(2)
    columns = nodes.graph.shape(nodes.op.output)[-1]
    fits = not c or (c in nodes.graph.constants and nodes.graph.constants[c].size in (1, columns) and _is_row(nodes, c))
    coded = bool(c) and _is_codes(nodes, c)
    if not turned and (fits or coded):
        return False
    a = nodes.add("Transpose", (nodes.input(0),), attributes={"perm": (1, 0)}) if turned else nodes.input(0)
    if fits or coded:
        nodes.add("Gemm", (a, nodes.input(1), c), outputs=nodes.op.outputs, main=True, attributes=attributes)
        return True
    beta = attributes.pop("beta", 1.0)
    y = nodes.add("Gemm", (a, nodes.input(1)), main=True, attributes=attributes)
    if beta != 1:
        c = nodes.add("Mul", (c, nodes.constant("beta", beta)))
    nodes.add("Add", (y, c), outputs=nodes.op.outputs)
    return True


def _is_row(nodes: Nodes, c: str) -> bool:
    """Whether a constant is one number for each column."""
    value = nodes.graph.constants[c]
    return value.size == 1 or value.shape[-1] == value.size


def _is_codes(nodes: Nodes, c: str) -> bool:
    made = nodes.graph.producer(c)
    return isinstance(made, Host) and made.node.op_type == "DequantizeLinear"


def _matmul(nodes: Nodes) -> bool:
    """A constant of rank 2 as the second operand."""
    first, second = (nodes.graph.shape(t) for t in nodes.op.inputs[:2])
    left, right = nodes.value(0), nodes.value(1)
    if right is not None and left is None and len(first) > 1:
        if right.ndim == 1:
            column = nodes.constant("column", right.reshape(-1, 1))
            y = nodes.add("MatMul", (nodes.input(0), column), main=True)
            axes = nodes.constant("last", [-1], np.int64)
            nodes.add("Squeeze", (y, axes), outputs=nodes.op.outputs)
            return True
        if 2 < right.ndim <= len(first) and max(right.shape[:-2]) == 1:
            flat = nodes.constant("matrix", right.reshape(right.shape[-2:]))
            nodes.add("MatMul", (nodes.input(0), flat), outputs=nodes.op.outputs, main=True)
            return True
    if left is not None and right is None and left.ndim == 2 and len(second) > 1:
        perm = list(range(len(second)))
        perm[-2:] = perm[-1], perm[-2]
        x = nodes.add("Transpose", (nodes.input(1),), attributes={"perm": perm})
        y = nodes.add("MatMul", (x, nodes.constant("turned", left.T)), main=True)
        nodes.add("Transpose", (y,), outputs=nodes.op.outputs, attributes={"perm": perm})
        return True
    return False


# --- Einsum ---------------------------------------------------------------------------------------------------------


def _einsum(nodes: Nodes) -> bool:
    """Two operands whose letters are batch, rows, columns or reduction: a MatMul between transposes and reshapes."""
    text = nodes.attributes["equation"].decode().replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    if "." in text or len(terms) != 2 or len(nodes.op.inputs) != 2 or any(len(set(t)) != len(t) for t in (*terms, out)):
        return False
    if not arrow:
        out = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    tensors = list(nodes.op.inputs)
    if nodes.value(0) is not None:  # the constant is the second operand
        terms, tensors = terms[::-1], tensors[::-1]
    a, b = terms
    size: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, n in zip(term, nodes.graph.shape(tensor), strict=True):
            if size.setdefault(letter, n) != n:
                return False
    batch = [c for c in out if c in a and c in b]
    rows, columns = [c for c in out if c not in b], [c for c in out if c not in a]
    inner = [c for c in a if c in b and c not in out]
    if not inner or set(a + b) != {*batch, *rows, *columns, *inner}:
        return False

    def laid(tensor: str, term: str, order: list[str], shape: list[int]) -> str:
        perm = [term.index(c) for c in order]
        if perm != list(range(len(perm))):
            tensor = nodes.add("Transpose", (tensor,), attributes={"perm": perm})
        if shape != [size[c] for c in order]:
            tensor = nodes.add("Reshape", (tensor, nodes.constant("shape", shape, np.int64)))
        return tensor

    def count(letters: list[str]) -> int:
        return int(np.prod([size[c] for c in letters], dtype=np.int64))

    outer = [size[c] for c in batch]
    # Without a batch the rows may stay apart: the array takes any number of axes in front.
    front = [*outer, count(rows)] if batch else [size[c] for c in rows] or [1]
    x = laid(tensors[0], a, batch + rows + inner, [*front, count(inner)])
    y = laid(tensors[1], b, batch + inner + columns, [*outer, count(inner), count(columns)])
    product = nodes.add("MatMul", (x, y), main=True)
    order = batch + rows + columns
    shape = [size[c] for c in order]
    if shape != [*front, count(columns)]:
        product = nodes.add("Reshape", (product, nodes.constant("shape", shape, np.int64)))
    perm = [order.index(c) for c in out]
    nodes.add("Transpose", (product,), outputs=nodes.op.outputs, attributes={"perm": perm})
    return True


_UNFOLD: dict[str, Callable[[Nodes], bool]] = {"Gemm": _gemm, "MatMul": _matmul, "Einsum": _einsum}
"""By name; each appends nodes, or returns False and appends none."""
