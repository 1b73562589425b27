"""Channel shuffles: a Reshape, a Transpose and a Reshape that together only permute the channels of a feature map.

A permutation is a 1x1 convolution with a single one in every row. Its zeros cost a sparse machine nothing, and its
codes are exact.
"""

from math import prod

import numpy as np

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Conv, Op, Reshape, Transpose

__all__ = ["recognise_shuffles"]


def recognise_shuffles(graph: Graph) -> Graph:
    """Replace each channel shuffle by a convolution."""
    graph = graph.copy()
    for last in graph.order():
        chain = _chain(graph, last)
        if chain is None:
            continue
        first = chain[0]
        order = _permutation(graph, chain)
        if order is None:
            continue
        for op in chain:
            graph.remove(op.name)
        weight = np.zeros((len(order), len(order), 1, 1), dtype=np.float32)
        weight[np.arange(len(order)), order] = 1.0
        graph.add(
            Conv(
                name=last.name,
                inputs=first.inputs,
                outputs=last.outputs,
                source=tuple(name for op in chain for name in op.source),
                weight=weight,
                fixed=True,
                stride=(1, 1),
                dilation=(1, 1),
                pads=(0, 0, 0, 0),
            )
        )
    return graph


def _chain(graph: Graph, last: Op) -> tuple[Reshape, Transpose, Reshape] | None:
    """The three operations that end in last, if nobody else reads what lies between them."""
    if not isinstance(last, Reshape):
        return None
    middle = graph.producer(last.inputs[0])
    if not isinstance(middle, Transpose) or graph.sole_consumer(middle.output) is not last:
        return None
    first = graph.producer(middle.inputs[0])
    if not isinstance(first, Reshape) or graph.sole_consumer(first.output) is not middle:
        return None
    return first, middle, last


def _permutation(graph: Graph, chain: tuple[Reshape, Transpose, Reshape]) -> list[int] | None:
    """Which input channel each output channel is, when whole channels of a map move and nothing else does."""
    shape = graph.shape(chain[0].inputs[0])
    if len(shape) != 4 or graph.shape(chain[-1].output) != shape:
        return None
    index = np.arange(prod(shape)).reshape(shape)
    moved = index
    for op in chain:
        moved = op.apply(moved)
    area = shape[2] * shape[3]
    order = moved[0, :, 0, 0] // area
    if not np.array_equal(index[:, order], moved) or np.array_equal(order, np.arange(shape[1])):
        return None
    return [int(channel) for channel in order]
