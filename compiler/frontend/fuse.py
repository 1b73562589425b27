"""Join an operation with the addition and the function that follow it: what one layer of the array does.

The value between a product and a fused addition is never rounded; the sum is, once, and then clamped or looked up.
"""

from dataclasses import replace

from gossamer.compiler.frontend.cleanup import may_drop
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import (
    Activation,
    Add,
    Affine,
    AveragePool,
    Compute,
    Conv,
    GlobalAveragePool,
    Linear,
    MaxPool,
)

__all__ = ["fuse"]


def fuse(graph: Graph) -> Graph:
    """Fuse residual additions first, then functions."""
    graph = _fuse_additions(graph)
    graph = _fuse_functions(graph)
    graph.prune()
    return graph


def _fuse_additions(graph: Graph) -> Graph:
    graph = graph.copy()
    place = {op.name: index for index, op in enumerate(graph.order())}
    for op in graph.order():
        if not isinstance(op, Add):
            continue
        candidates = [p for t in op.inputs if (p := graph.producer(t)) is not None and _takes_residual(graph, p, op)]
        if not candidates:
            continue
        # The later one: the other operand is then ready, and no long-lived tensor is kept for it.
        host = max(candidates, key=lambda p: place[p.name])
        assert isinstance(host, Compute)
        other = op.inputs[1] if op.inputs[0] == host.output else op.inputs[0]
        merged = replace(
            host, inputs=(*host.inputs, other), outputs=op.outputs, residual=True, source=host.source + op.source
        )
        graph.remove(op.name)
        graph.replace(host.name, merged)
    return graph


def _takes_residual(graph: Graph, op: object, addition: Add) -> bool:
    """Whether a layer can do the addition itself: nobody else sees its output, and nothing happens in between."""
    if not isinstance(op, Conv | Linear | Affine | AveragePool | GlobalAveragePool):
        return False
    if op.residual or op.activation is not None or not may_drop(graph.info(op.output).quant):
        return False
    return graph.sole_consumer(op.output) is addition


def _fuse_functions(graph: Graph) -> Graph:
    graph = graph.copy()
    for op in graph.order():
        if not isinstance(op, Activation):
            continue
        before = graph.producer(op.inputs[0])
        if not isinstance(before, Compute | MaxPool) or before.activation is not None:
            continue
        if isinstance(before, MaxPool) and not op.function.is_clamp:
            continue
        if graph.sole_consumer(before.output) is not op:
            continue
        merged: Compute | MaxPool = replace(
            before, outputs=op.outputs, activation=op.function, source=before.source + op.source
        )
        if isinstance(merged, Compute) and not op.function.is_clamp:
            merged = replace(merged, pre=before.output)
        graph.remove(op.name)
        graph.replace(before.name, merged)
    return graph
