"""Give ONNX nodes their types: every node the array may be able to run becomes a typed operation.

What is refused here stays a Host operation with the reason. Nothing is rearranged yet.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import helper

from gossamer.arch.errors import ModelError
from gossamer.compiler.frontend.functions import Function
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import (
    Activation,
    Add,
    Affine,
    Array,
    AveragePool,
    Concat,
    Conv,
    Dequantise,
    GlobalAveragePool,
    Host,
    Linear,
    MaxPool,
    Op,
    Quant,
    Quantise,
    Reshape,
    Transpose,
)

__all__ = ["NEVER", "recognise"]

NEVER = -1e4
"""A constant of at most this, added to scores, leaves nothing of them after a softmax: it is a mask."""


class _No(Exception):
    """Why a node stays on the host."""


def recognise(graph: Graph) -> Graph:
    """Replace ONNX nodes by typed operations where their attributes, shapes and types allow it."""
    graph = graph.copy()
    for op in graph.order():
        if not isinstance(op, Host):
            continue
        try:
            new = _recognised(graph, op)
        except _No as reason:
            new = replace(op, reason=str(reason))
        if new is not op:
            graph.replace(op.name, new)
    graph.prune()
    return graph


def _recognised(graph: Graph, op: Host) -> Op:
    kind = op.node.op_type
    if op.node.domain not in ("", "ai.onnx"):
        raise _No(f"{op.node.domain}.{kind} is not a standard ONNX operator")
    reader = _READERS.get(kind)
    if reader is None:
        raise _No(f"{kind} has no equivalent on the array")
    node = _Node(graph, op)
    if kind not in ("QuantizeLinear", "DequantizeLinear"):
        try:
            node.check_types()
        except _No:
            if kind in ("Gemm", "MatMul"):
                reader(node)  # its output may have no shape because the weight does not fit: that is an error
            raise
    return reader(node)


class _Node:
    """A node with its attributes, constants and shapes at hand."""

    def __init__(self, graph: Graph, op: Host) -> None:
        self.graph, self.op, self.kind = graph, op, op.node.op_type
        self.attributes = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}

    def check_types(self) -> None:
        """The array takes real numbers of known shape."""
        for tensor in (self.op.inputs[0], self.op.output):
            info = self.graph.info(tensor)
            if info.shape is None:
                raise _No(f"the shape of {tensor!r} depends on data")
            if info.dtype != "float32":
                raise _No(f"computes in {info.dtype}")
            if 0 in info.shape:
                raise _No(f"{tensor!r} is empty")
        if any(self.op.outputs[1:]) and self.kind != "BatchNormalization" and self.kind != "Dropout":
            raise _No(f"{self.kind} with a second output")

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether an optional input is present."""
        return index < len(self.op.inputs) and bool(self.op.inputs[index])

    def constant(self, index: int) -> Array | None:
        """The value of an input, if it is a constant."""
        if not self.has(index):
            return None
        return weight_value(self.graph, self.op.inputs[index])[0]

    def need(self, index: int, what: str) -> Array:
        """The value of an input that has to be a constant."""
        value = self.constant(index)
        if value is None:
            raise _No(f"{self.kind} with {what} that is computed at run time")
        return value

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of an input."""
        shape = self.graph.info(self.op.inputs[index]).shape
        if shape is None:
            raise _No(f"the shape of {self.op.inputs[index]!r} depends on data")
        return shape

    def common(self, *inputs: int) -> dict[str, Any]:
        """Name, inputs, outputs and source of the typed operation."""
        return {
            "name": self.op.name,
            "inputs": tuple(self.op.inputs[i] for i in inputs),
            "outputs": self.op.outputs[:1],
            "source": self.op.source,
        }


def weight_value(graph: Graph, tensor: str) -> tuple[Array | None, Array | None]:
    """A constant's value and, if it is stored as int8 codes behind a DequantizeLinear, the scales of its channels.

    Values of int32 codes (biases) come as float64, so that no code is lost.
    """
    if tensor in graph.constants:
        return graph.constants[tensor], None
    op = graph.producer(tensor)
    if not isinstance(op, Host) or op.node.op_type != "DequantizeLinear":
        return None, None
    if not all(name in graph.constants for name in op.reads):
        return None, None
    codes, scale = graph.constants[op.inputs[0]], graph.constants[op.inputs[1]].astype(np.float32)
    zero = graph.constants[op.inputs[2]] if len(op.inputs) > 2 and op.inputs[2] else np.zeros(1, codes.dtype)
    attributes = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}
    if zero.any():
        raise _No(f"weight {tensor!r} has a zero point that is not 0")
    if attributes.get("block_size", 0) or codes.dtype not in (np.int8, np.int32):
        raise _No(f"weight {tensor!r} is {codes.dtype} quantised in a way the array does not know")
    if scale.size > 1:
        shape = [1] * codes.ndim
        shape[attributes.get("axis", 1)] = scale.size
        scale = scale.reshape(shape)
    else:
        scale = scale.reshape([1] * codes.ndim)
    return codes.astype(np.float64) * scale, scale


def _weight(node: _Node, index: int, channels: int) -> tuple[Array, Array | None]:
    """A weight as float32, and one scale per output channel (on axis `channels`) if it came as int8 codes."""
    value, scale = weight_value(node.graph, node.op.inputs[index])
    if value is None:
        raise _No(f"{node.kind} with a weight that is computed at run time")
    if value.dtype not in (np.float32, np.float64):
        raise _No(f"{node.kind} with a weight of type {value.dtype}")
    if scale is None:
        return value.astype(np.float32), None
    others = [n for axis, n in enumerate(scale.shape) if axis != channels % scale.ndim]
    if any(n != 1 for n in others):
        raise _No(f"{node.kind} with weight scales along an axis that is not the output channel")
    return value.astype(np.float32), np.broadcast_to(scale.reshape(-1), (value.shape[channels],)).copy()


def _bias(node: _Node, index: int, channels: int, factor: float = 1.0) -> Array | None:
    if not node.has(index):
        return None
    value = node.need(index, "a bias").astype(np.float64) * factor
    if value.size not in (1, channels) or (value.ndim > 1 and value.shape[-1] != value.size):
        raise _No(f"{node.kind} with a bias of shape {list(value.shape)}")
    return np.broadcast_to(value.reshape(-1), (channels,)).copy()


# --- convolution, matrix product, pooling ---------------------------------------------------------------------------


def _window(node: _Node, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, dilations and explicit pads, with auto_pad and ceil_mode resolved against the shapes."""
    rank = len(kernel)
    if rank not in (1, 2) or len(node.shape(0)) != rank + 2:
        raise _No(f"{node.kind} over {rank} spatial axes")
    stride = tuple(node.get("strides", [1] * rank))
    dilation = tuple(node.get("dilations", [1] * rank))
    pads = list(node.get("pads", [0] * 2 * rank))
    auto = node.get("auto_pad", b"NOTSET").decode()
    output = node.graph.shape(node.op.output)
    for axis in range(rank):
        size, out = node.shape(0)[2 + axis], output[2 + axis]
        needed = max(0, (out - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1 - size)
        if auto == "VALID":
            pads[axis] = pads[rank + axis] = 0
        elif auto.startswith("SAME"):
            small, large = needed // 2, needed - needed // 2
            pads[axis], pads[rank + axis] = (small, large) if auto == "SAME_UPPER" else (large, small)
        elif node.get("ceil_mode", 0):
            pads[rank + axis] = max(pads[rank + axis], needed - pads[axis])
    if min(pads) < 0:
        raise _No(f"{node.kind} with negative padding {pads}")
    return stride, dilation, tuple(pads)


def _check_width(node: _Node, weight: Array, needed: int, axis: int) -> None:
    """The weight must fit the input: ONNX's own shape inference does not look."""
    found = node.shape(0)[axis]
    if needed != found:
        raise ModelError(
            f"node {node.op.name!r}: weight {list(weight.shape)} takes {needed} input channels, but input "
            f"{node.op.inputs[0]!r} {list(node.shape(0))} has {found}"
        )


def _conv(node: _Node) -> Op:
    weight, scale = _weight(node, 1, channels=0)
    _check_width(node, weight, weight.shape[1] * node.get("group", 1), 1)
    stride, dilation, pads = _window(node, weight.shape[2:])
    return Conv(
        **node.common(0),
        weight=weight,
        bias=_bias(node, 2, weight.shape[0]),
        stride=stride,
        dilation=dilation,
        pads=pads,
        groups=node.get("group", 1),
        weight_scale=scale,
    )


def _gemm(node: _Node) -> Op:
    if node.get("transA", 0):
        raise _No("Gemm with a transposed first operand")
    transposed = bool(node.get("transB", 0))
    weight, scale = _weight(node, 1, channels=0 if transposed else 1)
    alpha = np.float32(node.get("alpha", 1.0))
    weight = np.ascontiguousarray(weight if transposed else weight.T)
    _check_width(node, weight, weight.shape[1], -1)
    if alpha != 1:
        weight, scale = weight * alpha, None if scale is None else scale * abs(alpha)
    bias = _bias(node, 2, weight.shape[0], node.get("beta", 1.0))
    return Linear(**node.common(0), weight=weight, bias=bias, weight_scale=scale)


def _matmul(node: _Node) -> Op:
    weight, scale = _weight(node, 1, channels=-1)
    if weight.ndim != 2 or len(node.shape(0)) < 2:
        raise _No(f"MatMul of shapes {list(node.shape(0))} and {list(weight.shape)}")
    weight = np.ascontiguousarray(weight.T)
    _check_width(node, weight, weight.shape[1], -1)
    return Linear(**node.common(0), weight=weight, weight_scale=scale)


def _max_pool(node: _Node) -> Op:
    kernel = tuple(node.get("kernel_shape", ()))
    stride, dilation, pads = _window(node, kernel)
    return MaxPool(**node.common(0), kernel=kernel, stride=stride, dilation=dilation, pads=pads)


def _global_max_pool(node: _Node) -> Op:
    kernel = node.shape(0)[2:]
    ones = (1,) * len(kernel)
    if len(kernel) not in (1, 2):
        raise _No(f"GlobalMaxPool over {len(kernel)} spatial axes")
    return MaxPool(**node.common(0), kernel=kernel, stride=ones, dilation=ones, pads=(0,) * 2 * len(kernel))


def _average_pool(node: _Node) -> Op:
    kernel = tuple(node.get("kernel_shape", ()))
    stride, dilation, pads = _window(node, kernel)
    if set(dilation) != {1}:
        raise _No("AveragePool with dilation")
    given = tuple(node.get("pads", [0] * len(pads)))
    counted = bool(node.get("count_include_pad", 0)) and (pads == given or not node.get("ceil_mode", 0))
    if any(pads) and not counted:
        raise _No("AveragePool that does not count its padding: the divisor changes along the border")
    return AveragePool(**node.common(0), kernel=kernel, stride=stride, pads=pads)


def _global_average_pool(node: _Node) -> Op:
    return GlobalAveragePool(**node.common(0), axes=tuple(range(2, len(node.shape(0)))))


def _reduce_mean(node: _Node) -> Op:
    rank = len(node.shape(0))
    axes = node.get("axes", None) if not node.has(1) else [int(a) for a in node.need(1, "axes").reshape(-1)]
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            raise _No("ReduceMean without axes")
        axes = range(rank)
    return GlobalAveragePool(
        **node.common(0), axes=tuple(sorted(a % rank for a in axes)), keepdims=bool(node.get("keepdims", 1))
    )


# --- element-wise ---------------------------------------------------------------------------------------------------


def _batch_norm(node: _Node) -> Op:
    if any(node.op.outputs[1:]) or node.get("training_mode", 0):
        raise _No("BatchNormalization in training mode")
    gamma, beta, mean, variance = (node.need(i, "parameters").astype(np.float64) for i in range(1, 5))
    scale = gamma / np.sqrt(variance + node.get("epsilon", 1e-5))
    if not np.isfinite(scale).all():
        raise ModelError(
            f"node {node.op.name!r}: its variance has {variance.min():g}; variance + epsilon must be above 0"
        )
    return Affine(**node.common(0), scale=scale, shift=beta - mean * scale, axis=1)


def _arithmetic(node: _Node) -> Op:
    """Add, Sub, Mul, Div: two tensors of one shape (Add), or a tensor and one constant per channel."""
    kind = node.kind
    values = [node.constant(0), node.constant(1)]
    if values[0] is None and values[1] is None:
        if kind != "Add":
            raise _No(f"{kind} of two computed tensors")
        if node.shape(0) != node.shape(1):
            raise _No(f"Add of different shapes {list(node.shape(0))} and {list(node.shape(1))}")
        return Add(**node.common(0, 1), residual=True)
    index = 0 if values[0] is None else 1
    value = values[1 - index]
    if value is None or value.dtype not in (np.float32, np.float64):
        raise _No(f"{kind} with a constant that is not a real number")
    if index == 1 and kind == "Div":
        raise _No("division of a constant by a tensor")
    axis, channels = _channel_axis(node, index, value)
    constant = np.broadcast_to(value.astype(np.float64).reshape(-1), (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    with np.errstate(divide="ignore"):
        scale, shift = {
            "Add": (one, constant),
            "Sub": (one, -constant) if index == 0 else (-one, constant),
            "Mul": (constant, zero),
            "Div": (1.0 / constant, zero),
        }[kind]
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise _No(f"{kind} with a constant that is not finite")
    if shift.min() <= NEVER:
        raise _No(f"{kind} of a mask: {shift.min():g} leaves nothing of what it is added to")
    return Affine(**node.common(index), scale=scale.copy(), shift=shift.copy(), axis=axis)


def _channel_axis(node: _Node, index: int, value: Array) -> tuple[int, int]:
    """The one axis along which a constant varies, and the tensor's size there."""
    shape = node.shape(index)
    if shape != node.graph.info(node.op.output).shape:
        raise _No(f"{node.kind} that broadcasts the tensor")
    full = (1,) * (len(shape) - value.ndim) + value.shape
    varying = [axis for axis, n in enumerate(full) if n > 1]
    if len(varying) > 1:
        raise _No(f"{node.kind} with a constant of shape {list(value.shape)}: it varies along more than the channels")
    if varying:
        return varying[0], shape[varying[0]]
    # One number for all: call it per channel along the axis that the neighbour would call its channels.
    producer = node.graph.producer(node.op.inputs[index])
    last = isinstance(producer, Linear) or len(shape) in (1, 3) or (isinstance(producer, Affine) and producer.axis > 1)
    axis = len(shape) - 1 if last and not isinstance(producer, Conv) else min(1, len(shape) - 1)
    return axis, shape[axis]


def _sum(node: _Node) -> Op:
    if len(node.op.inputs) != 2:
        raise _No(f"Sum of {len(node.op.inputs)} tensors")
    if node.constant(0) is not None or node.constant(1) is not None or node.shape(0) != node.shape(1):
        raise _No("Sum with a constant or of different shapes")
    return Add(**node.common(0, 1), residual=True)


def _function(function: Callable[[_Node], Function]) -> Callable[[_Node], Op]:
    return lambda node: Activation(**node.common(0), function=function(node))


def _clip(node: _Node) -> Function:
    low, high = (node.need(i, "bounds") if node.has(i) else None for i in (1, 2))
    return Function(
        kind="clip",
        lo=-math.inf if low is None else float(low.reshape(-1)[0]),
        hi=math.inf if high is None else float(high.reshape(-1)[0]),
    )


def _prelu(node: _Node) -> Function:
    slope = node.need(1, "a slope")
    if slope.size != 1 and not (slope == slope.reshape(-1)[0]).all():
        raise _No("PRelu with a slope per channel")
    return Function(kind="leaky_relu", alpha=float(slope.reshape(-1)[0]))


def _gelu(node: _Node) -> Function:
    return Function(kind="gelu_tanh" if node.get("approximate", b"none") == b"tanh" else "gelu")


def _swish(node: _Node) -> Function:
    alpha = float(np.float32(node.get("alpha", 1.0)))
    if alpha not in (1.0, float(np.float32(1.702))):
        raise _No(f"Swish with alpha {alpha:g}")
    return Function(kind="silu" if alpha == 1.0 else "quick_gelu")


# --- movement, quantisation -----------------------------------------------------------------------------------------


def _reshape(node: _Node) -> Op:
    return Reshape(**node.common(0), shape=node.graph.shape(node.op.output))


def _transpose(node: _Node) -> Op:
    rank = len(node.shape(0))
    return Transpose(**node.common(0), perm=tuple(node.get("perm", range(rank)[::-1])))


def _concat(node: _Node) -> Op:
    inputs = [i for i in node.op.inputs if i]
    constants = [i for i in inputs if i in node.graph.constants]
    if constants:
        raise _No(f"Concat with the constant {constants[0]!r}")
    common = node.common() | {"inputs": tuple(inputs)}
    return Concat(**common, axis=node.get("axis", 1) % len(node.shape(0)))


def _quant(node: _Node) -> Quant:
    scale = node.graph.constants.get(node.op.inputs[1])
    if scale is None:
        raise _No(f"{node.kind} with a scale that is computed at run time")
    zero = node.graph.constants.get(node.op.inputs[2]) if node.has(2) else np.zeros(1, np.uint8)
    if zero is None or scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
        raise _No(f"{node.kind} that is not 8-bit with one scale per tensor")
    if not (np.isfinite(scale).all() and scale.reshape(-1)[0] > 0):
        raise ModelError(f"node {node.op.name!r}: scale {scale.reshape(-1)[0]!r} must be finite and above 0")
    return Quant(
        scale=float(np.float32(scale.reshape(-1)[0])),
        zero_point=int(zero.reshape(-1)[0]),
        signed=zero.dtype == np.int8,
    )


def _quantise(node: _Node) -> Op:
    return Quantise(**node.common(0), quant=_quant(node))


def _dequantise(node: _Node) -> Op:
    if node.op.inputs[0] in node.graph.constants:
        raise _No("a quantised constant that the host reads")
    return Dequantise(**node.common(0), quant=_quant(node))


_READERS: dict[str, Callable[[_Node], Op]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "GlobalMaxPool": _global_max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduce_mean,
    "BatchNormalization": _batch_norm,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Sum": _sum,
    "Relu": _function(lambda _: Function(kind="clip", lo=0.0)),
    "Clip": _function(_clip),
    "LeakyRelu": _function(lambda n: Function(kind="leaky_relu", alpha=n.get("alpha", 0.01))),
    "PRelu": _function(_prelu),
    "HardSigmoid": _function(
        lambda n: Function(kind="hard_sigmoid", alpha=n.get("alpha", 0.2), beta=n.get("beta", 0.5))
    ),
    "HardSwish": _function(lambda _: Function(kind="hard_swish")),
    "Sigmoid": _function(lambda _: Function(kind="sigmoid")),
    "Tanh": _function(lambda _: Function(kind="tanh")),
    "Elu": _function(lambda n: Function(kind="elu", alpha=n.get("alpha", 1.0))),
    "Celu": _function(lambda n: Function(kind="celu", alpha=n.get("alpha", 1.0))),
    "Selu": _function(
        lambda n: Function(
            kind="selu", alpha=n.get("alpha", 1.6732632423543772), beta=n.get("gamma", 1.0507009873554805)
        )
    ),
    "Softsign": _function(lambda _: Function(kind="softsign")),
    "Abs": _function(lambda _: Function(kind="abs")),
    "Softplus": _function(lambda _: Function(kind="softplus")),
    "Gelu": _function(_gelu),
    "Swish": _function(_swish),
    "Mish": _function(lambda _: Function(kind="mish")),
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
}
