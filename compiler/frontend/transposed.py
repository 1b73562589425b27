"""Transposed convolutions as plain ones: every output pixel of a phase sees the same few input pixels.

With stride s, output (s y + a, s x + b) is an ordinary convolution of the input with the taps of phase (a, b). All
phases together are one convolution with s * s times the channels; what is left is to put the phases side by side,
which moves elements and is done by the host.
"""

from dataclasses import replace

import numpy as np
from onnx import helper

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array, Conv, Host, TensorInfo

__all__ = ["split_phases"]


def split_phases(graph: Graph) -> Graph:
    """Replace transposed convolutions with constant weights by a convolution, a DepthToSpace and a Slice."""
    graph = graph.copy()
    for op in graph.order():
        if isinstance(op, Host) and op.node.op_type == "ConvTranspose":
            _split(graph, op)
    graph.prune()
    return graph


def _split(graph: Graph, op: Host) -> None:
    attributes = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}
    weight = graph.constants.get(op.inputs[1])
    bias = graph.constants.get(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] else None
    x, y = graph.info(op.inputs[0]), graph.info(op.output)
    if weight is None or weight.ndim != 4 or weight.dtype != np.float32 or x.shape is None or y.shape is None:
        return
    stride = tuple(attributes.get("strides", (1, 1)))
    plain = attributes.get("group", 1) == 1 and set(attributes.get("dilations", (1,))) == {1}
    if not plain or stride[0] != stride[1] or (bias is None and len(op.inputs) > 2 and op.inputs[2]):
        return  # DepthToSpace has one factor for both axes
    s = stride[0]
    sizes, outputs = x.shape[2:], y.shape[2:]
    begins = _begins(attributes, sizes, outputs, weight.shape[2:], s)
    phases, pads, crop, conv_shape = [], [], [], []
    for axis in range(2):
        taps, before, after, first = _axis(weight.shape[2 + axis], s, begins[axis], sizes[axis], outputs[axis])
        phases.append(taps)
        pads.append((before, after))
        crop.append(first)
        conv_shape.append(sizes[axis] + before + after - len(taps[0]) + 1)
    kernel = _phase_weights(weight, phases)
    k = weight.shape[1]
    shape = (x.shape[0], kernel.shape[0], *conv_shape)
    wide = graph.fresh(f"{op.output}/phases")
    whole = graph.fresh(f"{op.output}/whole")
    graph.tensors[wide] = TensorInfo(name=wide, shape=shape)
    graph.tensors[whole] = TensorInfo(name=whole, shape=(x.shape[0], k, conv_shape[0] * s, conv_shape[1] * s))
    conv = Conv(
        name=f"{op.name}/phases",
        inputs=op.inputs[:1],
        outputs=(wide,),
        source=op.source,
        weight=kernel,
        bias=None if bias is None else np.repeat(bias.astype(np.float64), s * s),
        stride=(1, 1),
        dilation=(1, 1),
        pads=(pads[0][0], pads[1][0], pads[0][1], pads[1][1]),
    )
    names = [graph.fresh(f"{op.output}/{part}") for part in ("starts", "ends", "axes")]
    for name, value in zip(names, (crop, [c + n for c, n in zip(crop, outputs, strict=True)], [2, 3]), strict=True):
        graph.constants[name] = np.array(value, np.int64)
        graph.tensors[name] = TensorInfo(name=name, shape=(2,), dtype="int64")
    reason = "puts the phases of a transposed convolution side by side"
    shuffle = replace(
        op,
        name=graph.fresh(f"{op.name}/shuffle"),
        inputs=(wide,),
        outputs=(whole,),
        node=helper.make_node("DepthToSpace", [wide], [whole], blocksize=s, mode="CRD"),
        reason=reason,
    )
    cut = replace(op, inputs=(whole, *names), node=helper.make_node("Slice", [whole, *names], [op.output]),
                  reason=reason)  # fmt: skip
    graph.replace(op.name, conv, shuffle, cut)


def _begins(
    attributes: dict[str, object], sizes: tuple[int, ...], outputs: tuple[int, ...], kernel: tuple[int, ...], s: int
) -> list[int]:
    """Rows and columns that the model cuts off in front, from its pads, or from auto_pad or output_shape."""
    given = attributes.get("pads")
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto in (b"NOTSET", b"VALID") and "output_shape" not in attributes:
        return list(given)[:2] if isinstance(given, list | tuple) and auto == b"NOTSET" else [0, 0]
    extra = attributes.get("output_padding", (0, 0))
    assert isinstance(extra, list | tuple)
    found = []
    for axis in range(2):
        total = max(0, s * (sizes[axis] - 1) + extra[axis] + kernel[axis] - outputs[axis])
        found.append(total // 2 if auto == b"SAME_UPPER" else total - total // 2)
    return found


def _axis(k: int, s: int, begin: int, size: int, out: int) -> tuple[list[list[int]], int, int, int]:
    """Along one axis: the kernel tap at each place of each phase (-1: none), pads before and after, and the crop.

    Before anything is cut off, tap t of input i falls on output s i + t. So phase a at place p sees input p - j
    through tap a + s j: a window of ceil(k / s) inputs, the last tap first.
    """
    width = -(-k // s)
    taps = [[a + s * j if a + s * j < k else -1 for j in range(width - 1, -1, -1)] for a in range(s)]
    first, last = begin // s, (begin + out - 1) // s
    before, after = width - 1 - first, last - size + 1
    return taps, before, after, begin - first * s


def _phase_weights(weight: Array, phases: list[list[list[int]]]) -> Array:
    """float32 [k * s * s, c, taps, taps]: channels of one output channel's phases stand together, rows outermost."""
    c, k = weight.shape[:2]
    s = len(phases[0])
    padded = np.pad(weight, ((0, 0), (0, 0), (0, 1), (0, 1)))  # tap -1 is a zero
    rows, columns = np.array(phases[0]), np.array(phases[1])
    picked = padded[:, :, rows[:, None, :, None], columns[None, :, None, :]]  # [c, k, a, b, y, x]
    shape = (k * s * s, c, rows.shape[1], columns.shape[1])
    return np.ascontiguousarray(picked.transpose(1, 2, 3, 0, 4, 5).reshape(shape).astype(np.float32))
