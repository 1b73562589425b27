"""Weight codes of nine bits, exactly, as two of eight.

An 8-bit code less its zero point needs nine bits: from -255 to 255. Where some do not fit the array's int8, a layer
reads its input twice, side by side as one of twice the channels: once through the codes cut off at -128 and 127, once
through what was cut off. Both meet in the same accumulator, so nothing is rounded; and as little is cut off where zero
points are near the middle, the second half is mostly zeros, which are steps that are not there.
"""

from dataclasses import replace

import numpy as np

from gossamer.compiler.frontend.export import host_ops
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import array_weight, features_last, model_weight
from gossamer.compiler.frontend.ops import Array, Concat, Conv, Layout, Linear, TensorInfo

__all__ = ["split_wide_weights"]


def split_wide_weights(graph: Graph) -> Graph:
    """Give every layer whose weight codes exceed int8 its input twice, with a note; where that cannot be, the host."""
    graph = graph.copy()
    split: list[str] = []
    for op in graph.order():
        if not isinstance(op, Conv | Linear) or op.weight_scale is None:
            continue
        column = op.weight_scale.reshape(-1, *[1] * (op.weight.ndim - 1))
        codes = np.rint(op.weight / column)
        kept = np.clip(codes, -128, 127)
        cut = float((codes != kept).mean())
        if not cut:
            continue
        extent = f"weight codes less their zero point reach from {codes.min():.0f} to {codes.max():.0f}"
        shape, layout = graph.shape(op.inputs[0]), graph.info(op.inputs[0]).layout
        assert layout is not None
        mixed = isinstance(op, Linear) and layout.channels_last and not features_last(layout, shape)
        if mixed:
            graph.replace(op.name, *host_ops(graph, op, f"{extent}, and its input cannot be read twice"))
            continue
        if isinstance(op, Conv) and op.groups > 1:
            _interleave(graph, op, kept * column, (codes - kept) * column)
        else:
            _repeat(graph, op, layout, kept * column, (codes - kept) * column)
        split.append(f"{op.name} ({codes.min():.0f} to {codes.max():.0f}, {cut:.1%} cut off)")
    if split:
        more = f" and {len(split) - 3} more" if len(split) > 3 else ""
        graph.notes.append(
            f"weight codes less their zero point exceed 8 bits, so they are in two parts of one sum, in "
            f"{', '.join(split[:3])}{more}"
        )
    return graph


def _repeat(graph: Graph, op: Conv | Linear, layout: Layout, first: Array, second: Array) -> None:
    """Input channels x | x, weights first | second."""
    x = op.inputs[0]
    shape = graph.shape(x)
    axis = len(shape) - 1 if isinstance(op, Linear) else 1
    n, c, h, w = layout.shape
    twice = graph.fresh(f"{x}/twice")
    wide = tuple(2 * size if a == axis else size for a, size in enumerate(shape))
    doubled = Layout(shape=(n, 2 * c, h, w), channels_last=layout.channels_last)
    graph.tensors[twice] = replace(graph.info(x), name=twice, shape=wide, layout=doubled)
    name = graph.fresh(f"{op.name}/twice")
    graph.add(Concat(name=name, inputs=(x, x), outputs=(twice,), source=op.source, axis=axis))
    parts = [array_weight(graph, op, part) for part in (first, second)]
    weight = np.concatenate(parts, axis=1)
    whole = replace(op, inputs=(twice, *op.inputs[1:]), weight=np.concatenate([first, second], axis=1))
    weight = model_weight(graph, whole, weight)
    graph.replace(op.name, replace(whole, weight=weight.astype(np.float32)))


def _interleave(graph: Graph, op: Conv, first: Array, second: Array) -> None:
    """Every group has its channels twice: a layer of wiring puts them there, as it copies codes."""
    x = op.inputs[0]
    info, shape = graph.info(x), graph.shape(x)
    assert info.layout is not None
    channels = shape[1]
    each = channels // op.groups
    ones = (1,) * (len(shape) - 2)
    once = np.eye(each, dtype=np.float32)
    wiring = np.tile(once, (2 * op.groups, 1)).reshape(2 * channels, each, *ones)
    twice = graph.fresh(f"{x}/twice")
    n, c, h, w = info.layout.shape
    graph.tensors[twice] = TensorInfo(
        name=twice,
        shape=(shape[0], 2 * channels, *shape[2:]),
        quant=info.quant,
        layout=replace(info.layout, shape=(n, 2 * c, h, w)),
    )
    graph.add(
        Conv(
            name=graph.fresh(f"{op.name}/twice"),
            inputs=(x,),
            outputs=(twice,),
            source=op.source,
            weight=wiring,
            fixed=True,
            groups=op.groups,
            stride=ones,
            dilation=ones,
            pads=(0, 0) * len(ones),
            pattern="fanin",
        )
    )
    weight = np.concatenate([first, second], axis=1).astype(np.float32)
    graph.replace(op.name, replace(op, inputs=(twice, *op.inputs[1:]), weight=weight))
