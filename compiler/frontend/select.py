"""Some channels of a tensor the array holds: wiring, which copies codes, instead of a way over the host.

Split, Slice and Gather only move elements. They are run on element numbers: where an output turns out to be some
channels of every position, a 1x1 convolution with a single one in each row is the same.
"""

from math import prod

import numpy as np

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import is_map, map_layout
from gossamer.compiler.frontend.ops import Array, Conv, Host, Layout
from gossamer.compiler.frontend.shapes import evaluate

__all__ = ["select_channels"]

_MOVES = {"Split", "Slice", "Gather"}

_ELEMENTS = 1 << 24
"""Element numbers of larger tensors are not tracked."""


def select_channels(graph: Graph, op: Host) -> list[tuple[Conv, Layout]]:
    """Wiring for each output with its layout; nothing where the operation is something else.

    The input must lie in the array, and somebody on the array must want the output.
    """
    if op.node.op_type not in _MOVES or op.captured or not all(t in graph.constants for t in op.reads[1:]):
        return []
    source = op.inputs[0]
    layout, shape = graph.info(source).layout, graph.info(source).shape
    if layout is None or shape is None or isinstance(graph.producer(source), Host):
        return []
    if not is_map(layout, shape) or prod(shape) > _ELEMENTS:
        return []
    outputs = [o for o in op.outputs if o]
    if not any(not isinstance(user, Host) for o in outputs for user in graph.consumers(o)):
        return []
    numbers = np.arange(prod(shape)).reshape(shape)
    constants = {name: graph.constants[name] for name in op.reads[1:]}
    moved = evaluate(op, {source: numbers, **constants}, graph.opset)
    if moved is None:
        return []
    found = []
    for number, output in enumerate(outputs):
        name = f"{op.name}/{number}" if len(outputs) > 1 else op.name
        wiring = _wiring(op, source, layout, numbers, output, moved[output], name)
        if wiring is None:
            return []
        found.append(wiring)
    return found


def _wiring(
    op: Host, source: str, layout: Layout, numbers: Array, output: str, moved: Array, name: str
) -> tuple[Conv, Layout] | None:
    """The convolution that gives `output`, and where that lies."""
    result = map_layout(moved.shape)
    n, c, h, w = layout.shape
    if result is None or moved.ndim < 3 or result.shape != (n, result.shape[1], h, w):
        return None
    place, wanted = layout.to_array(numbers), result.to_array(moved)
    channel_of = {int(v): index for index, v in enumerate(place[0, :, 0, 0])}
    order = [channel_of.get(int(v), -1) for v in wanted[0, :, 0, 0]]
    if -1 in order or not np.array_equal(place[:, order], wanted):
        return None
    ones = (1,) * (moved.ndim - 2)
    weight = np.zeros((len(order), c, *ones), np.float32)
    weight[np.arange(len(order)), order] = 1
    conv = Conv(
        name=name,
        inputs=(source,),
        outputs=(output,),
        source=op.source,
        weight=weight,
        fixed=True,
        stride=ones,
        dilation=ones,
        pads=(0, 0) * len(ones),
    )
    return conv, result
