"""How a layer of the graph reads its input: the geometry of the two-dimensional convolution that it is."""

from dataclasses import dataclass

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import array_weight
from gossamer.compiler.frontend.ops import Conv, Linear

__all__ = ["View", "view_of"]


@dataclass(frozen=True, kw_only=True)
class View:
    """What a layer reads. stride, dilation : (vertical, horizontal);  pads : (top, left, bottom, right)."""

    tensor: str
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1


def view_of(graph: Graph, op: Conv | Linear) -> View:
    """The view of a layer of a graph that has layouts."""
    _, _, height, width = array_weight(graph, op, op.weight).shape
    kernel = (height, width)
    if isinstance(op, Linear):
        return View(tensor=op.inputs[0], kernel=kernel)
    if len(op.stride) == 1:  # a single spatial axis is the array's horizontal one
        stride, dilation = (1, op.stride[0]), (1, op.dilation[0])
        pads = (0, op.pads[0], 0, op.pads[1])
    else:
        stride, dilation = (op.stride[0], op.stride[1]), (op.dilation[0], op.dilation[1])
        pads = (op.pads[0], op.pads[1], op.pads[2], op.pads[3])
    return View(tensor=op.inputs[0], kernel=kernel, stride=stride, dilation=dilation, pads=pads, groups=op.groups)
