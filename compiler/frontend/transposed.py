"""Transposed convolutions as plain ones: every output pixel of a phase sees the same few input pixels.

With stride s, output (s y + a, s x + b) is an ordinary convolution of the input with the taps of phase (a, b). All
phases together are one convolution with s * s times the channels; what is left is to put the phases side by side,
which moves elements and is done by the host. A dilated kernel is a larger one with zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from onnx import helper

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array, Conv, Host, TensorInfo
from gossamer.compiler.frontend.reading import weight_value

__all__ = ["split_phases"]

_REASON = "puts the phases of a transposed convolution side by side"


def split_phases(graph: Graph) -> Graph:
    """Replace transposed convolutions with constant weights by a convolution, and views and a Slice for the host."""
    graph = graph.copy()
    for op in graph.order():
        if isinstance(op, Host) and op.node.op_type == "ConvTranspose":
            _split(graph, op)
    graph.prune()
    return graph


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """One spatial axis. taps : kernel tap at each place of each phase, -1 for none;  crop : outputs cut off in front.

    Before anything is cut off, tap t of input i falls on output stride * i + t. So phase a at place p sees input p - j
    through tap a + stride * j: a window of ceil(kernel / stride) inputs, the last tap first.
    """

    stride: int
    taps: list[list[int]]
    before: int
    after: int
    crop: int


def _split(graph: Graph, op: Host) -> None:
    attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}
    weight, scale = weight_value(graph, op.inputs[1])
    biased = len(op.inputs) > 2 and bool(op.inputs[2])
    bias = weight_value(graph, op.inputs[2])[0] if biased else None
    x, y = graph.info(op.inputs[0]), graph.info(op.output)
    if weight is None or weight.ndim not in (3, 4) or x.shape is None or y.shape is None or x.dtype != "float32":
        return
    if (biased and bias is None) or weight.dtype not in (np.float32, np.float64):
        return
    rank, groups = weight.ndim - 2, attributes.get("group", 1)
    weight = _dilated(weight, attributes.get("dilations", [1] * rank))
    axes = _axes(attributes, weight.shape[2:], x.shape[2:], y.shape[2:])
    if any(min(axis.before, axis.after) < 0 for axis in axes):
        return
    phases = prod(axis.stride for axis in axes)
    scales = None if scale is None else _channel_scales(scale, weight.shape[1] * groups, groups)
    if scale is not None and (scales is None or not (scales > 0).all()):
        return
    direct = phases == 1
    wide = op.output if direct else graph.fresh(f"{op.output}/phases")
    inside = tuple(n + a.before + a.after - len(a.taps[0]) + 1 for n, a in zip(x.shape[2:], axes, strict=True))
    conv = Conv(
        name=op.name if direct else f"{op.name}/phases",
        inputs=op.inputs[:1],
        outputs=(wide,),
        source=op.source,
        weight=_phase_weights(weight, axes, groups),
        bias=None if bias is None else np.repeat(bias.astype(np.float64).reshape(-1), phases),
        stride=(1,) * rank,
        dilation=(1,) * rank,
        pads=tuple(a.before for a in axes) + tuple(a.after for a in axes),
        groups=groups,
        weight_scale=None if scales is None else np.repeat(scales, phases),
    )
    if direct:
        graph.replace(op.name, conv)
        return
    graph.tensors[wide] = TensorInfo(name=wide, shape=(x.shape[0], conv.weight.shape[0], *inside))
    graph.replace(op.name, conv, *_side_by_side(graph, op, wide, axes, y.shape))


def _dilated(weight: Array, dilation: list[int]) -> Array:
    """The kernel with zeros between its taps."""
    size = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    whole = np.zeros((*weight.shape[:2], *size), weight.dtype)
    whole[(slice(None), slice(None), *(slice(None, None, d) for d in dilation))] = weight
    return whole


def _channel_scales(scale: Array, channels: int, groups: int) -> Array | None:
    """One scale for each output channel; None where they vary along another axis than the second."""
    if scale.size == 1:
        return np.full(channels, scale.reshape(-1)[0])
    return np.tile(scale.reshape(-1), groups) if scale.shape[1] == scale.size else None


def _axes(
    attributes: Mapping[str, Any], kernel: tuple[int, ...], sizes: tuple[int, ...], outputs: tuple[int, ...]
) -> list[_Axis]:
    """Phases, padding and crop of every axis."""
    rank = len(kernel)
    strides = attributes.get("strides", [1] * rank)
    given = attributes.get("pads", [0] * 2 * rank)
    extra = attributes.get("output_padding", [0] * rank)
    auto = attributes.get("auto_pad", b"NOTSET")
    found = []
    for i, (k, s, size, out) in enumerate(zip(kernel, strides, sizes, outputs, strict=True)):
        begin = given[i] if auto == b"NOTSET" else 0
        if auto.startswith(b"SAME") or "output_shape" in attributes:
            total = max(0, s * (size - 1) + extra[i] + k - out)
            begin = total // 2 if auto == b"SAME_UPPER" else total - total // 2
        width = -(-k // s)
        taps = [[a + s * j if a + s * j < k else -1 for j in range(width - 1, -1, -1)] for a in range(s)]
        first, last = begin // s, (begin + out - 1) // s
        found.append(
            _Axis(stride=s, taps=taps, before=width - 1 - first, after=last - size + 1, crop=begin - first * s)
        )
    return found


def _phase_weights(weight: Array, axes: list[_Axis], groups: int) -> Array:
    """float32 [out_channels * phases, in / groups, *taps]: an output channel's phases stand together, rows outermost.

    weight : [in, out / groups, *kernel]
    """
    rank = len(axes)
    c, k = weight.shape[0] // groups, weight.shape[1]
    picked = weight.reshape(groups, c, k, *weight.shape[2:])
    for number, axis in enumerate(axes):  # the taps of a phase take the place of the kernel's axis
        at = 3 + 2 * number
        padded = np.pad(picked, [(0, 1) if a == at else (0, 0) for a in range(picked.ndim)])  # tap -1 is a zero
        picked = np.take(padded, np.array(axis.taps), axis=at)
    phases, places = [3 + 2 * i for i in range(rank)], [4 + 2 * i for i in range(rank)]
    turned = picked.transpose(0, 2, *phases, 1, *places)  # [groups, k, *phases, c, *taps]
    shape = (groups * k * prod(a.stride for a in axes), c, *(len(a.taps[0]) for a in axes))
    return np.ascontiguousarray(turned.reshape(shape).astype(np.float32))


def _side_by_side(graph: Graph, op: Host, wide: str, axes: list[_Axis], shape: tuple[int, ...]) -> list[Host]:
    """Host operations from all phases as channels to the output: [n, k, s, t, h, w] to [n, k, h, s, w, t], cropped."""
    n, _, *inside = graph.shape(wide)
    rank, channels = len(axes), shape[1]
    strides = [a.stride for a in axes]
    full = [size * s for size, s in zip(inside, strides, strict=True)]
    hosts: list[Host] = []

    def constant(stem: str, value: list[int]) -> str:
        name = graph.fresh(f"{op.output}/{stem}")
        graph.constants[name] = np.array(value, np.int64)
        graph.tensors[name] = TensorInfo(name=name, shape=(len(value),), dtype="int64")
        return name

    def host(kind: str, inputs: list[str], size: list[int], output: str = "", **attributes: Any) -> str:
        written = output or graph.fresh(f"{op.output}/{kind}")
        if not output:
            graph.tensors[written] = TensorInfo(name=written, shape=tuple(size))
        node = helper.make_node(kind, inputs, [written], **attributes)
        new = replace(op, inputs=tuple(inputs), outputs=(written,), node=node, reason=_REASON)
        hosts.append(new if output else replace(new, name=graph.fresh(f"{op.name}/{kind}{len(hosts)}")))
        return written

    apart = [n, channels, *strides, *inside]
    y = host("Reshape", [wide, constant("apart", apart)], apart)
    perm = [0, 1, *(axis for i in range(rank) for axis in (2 + rank + i, 2 + i))]
    y = host("Transpose", [y], [apart[axis] for axis in perm], perm=perm)
    whole = [n, channels, *full]
    y = host("Reshape", [y, constant("whole", whole)], whole)
    crop = [a.crop for a in axes]
    ends = [c + size for c, size in zip(crop, shape[2:], strict=True)]
    bounds = [constant("starts", crop), constant("ends", ends), constant("axes", list(range(2, 2 + rank)))]
    host("Slice", [y, *bounds], list(shape), op.output)
    return hosts
