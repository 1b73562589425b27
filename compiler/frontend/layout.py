"""How tensors of a model lie in the array: feature maps, tokens, and views of either."""

from math import prod

import numpy as np

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array, Conv, Layout, Linear, Reshape, Transpose

__all__ = [
    "array_weight",
    "features_last",
    "is_map",
    "linear_kernel",
    "map_layout",
    "model_weight",
    "token_layout",
    "view_layout",
]

Shape = tuple[int, ...]


def map_layout(shape: Shape) -> Layout | None:
    """Layout of a feature map [N, C], [N, C, L] or [N, C, H, W]."""
    if not 2 <= len(shape) <= 4:
        return None
    n, c, *rest = shape
    h, w = [1] * (2 - len(rest)) + rest
    return Layout(shape=(n, c, h, w))


def token_layout(shape: Shape) -> Layout | None:
    """Layout of tokens [..., features]; a batch [images, tokens, features] of several tokens keeps its images apart."""
    if len(shape) < 2:
        return None
    images = shape[0] if len(shape) == 3 and shape[1] > 1 else 1
    return Layout(shape=(images, shape[-1], 1, prod(shape[:-1]) // images), channels_last=True)


def features_last(layout: Layout, shape: Shape) -> bool:
    """Whether the model's last axis is the array's channel axis."""
    _, c, h, w = layout.shape
    return shape[-1] == c and (layout.channels_last or h * w == 1 or c == 1)


def is_map(layout: Layout, shape: Shape) -> bool:
    """Whether the model's axes are the array's: [N, C, H, W], or [N, C, L] with H = 1, or [N, C]."""
    n, c, h, w = layout.shape
    same = map_layout(shape)
    return same is not None and same.shape == (n, c, h, w) and (not layout.channels_last or h * w == 1 or c == 1)


def linear_kernel(layout: Layout, shape: Shape) -> tuple[int, int] | None:
    """Kernel of the convolution that a linear layer over the model's last axis is, None when it is none.

    (1, 1) when the last axis is the channels, (H, W) when it is a whole flattened map.
    """
    n, c, h, w = layout.shape
    if features_last(layout, shape):
        return 1, 1
    if shape[-1] == c * h * w and prod(shape[:-1]) == n:
        return h, w
    return None


def view_layout(op: Reshape | Transpose, layout: Layout, shape: Shape) -> Layout | None:
    """Layout of a view's output when the array's own elements need not move; None when they do."""
    index = np.arange(prod(layout.shape)).reshape(layout.shape)
    moved = op.apply(layout.to_model(index, shape))
    for channels_last in (layout.channels_last, not layout.channels_last):
        found = Layout(shape=layout.shape, channels_last=channels_last)
        if np.array_equal(found.to_model(index, moved.shape), moved):
            return found
    return None


def _as_conv(graph: Graph, op: Linear) -> tuple[tuple[int, int], Layout]:
    """Kernel of the convolution that a linear layer is, and its input's layout."""
    info = graph.info(op.inputs[0])
    assert info.layout is not None
    assert info.shape is not None
    kernel = linear_kernel(info.layout, info.shape)
    assert kernel is not None
    return kernel, info.layout


def array_weight(graph: Graph, op: Conv | Linear, weight: Array) -> Array:
    """A weight of the operation's shape as the array sees it: [out, in / groups, kernel_h, kernel_w]."""
    if isinstance(op, Conv):
        return weight if weight.ndim == 4 else weight[:, :, np.newaxis, :]
    (h, w), layout = _as_conv(graph, op)
    c = layout.shape[1]
    return weight.reshape(-1, h, w, c).transpose(0, 3, 1, 2) if layout.channels_last else weight.reshape(-1, c, h, w)


def model_weight(graph: Graph, op: Conv | Linear, weight: Array) -> Array:
    """Inverse of array_weight."""
    if isinstance(op, Linear) and _as_conv(graph, op)[1].channels_last:
        weight = weight.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(weight).reshape(op.weight.shape)
