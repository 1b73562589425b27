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
from gossamer.compiler.frontend.nodes import is_standard
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
from gossamer.compiler.frontend.reading import No, Node, read_bias, read_weight

__all__ = ["NEVER", "recognise"]

NEVER = -1e4
"""A constant of at most this, added to scores, leaves nothing of them after a softmax: it is a mask."""


def recognise(graph: Graph) -> Graph:
    """Replace ONNX nodes by typed operations where their attributes, shapes and types allow it."""
    graph = graph.copy()
    for op in graph.order():
        if not isinstance(op, Host) or op.reason:
            continue
        try:
            new = _recognised(graph, op)
        except No as reason:
            new = replace(op, reason=str(reason))
        if new is not op:
            graph.replace(op.name, new)
    graph.prune()
    return graph


def _recognised(graph: Graph, op: Host) -> Op:
    kind = op.node.op_type
    if not is_standard(op):
        kind = f"{op.node.domain}.{kind}"
        if kind not in _READERS:
            raise No(f"{kind} is not a standard ONNX operator")
    reader = _READERS.get(kind)
    if reader is None:
        raise No(f"{kind} has no equivalent on the array")
    node = Node(graph, op)
    if kind not in ("QuantizeLinear", "DequantizeLinear"):
        try:
            node.check_types()
        except No:
            if kind in ("Gemm", "MatMul"):
                reader(node)  # its output may have no shape because the weight does not fit: that is an error
            raise
    return reader(node)


# --- convolution, matrix product, pooling ---------------------------------------------------------------------------


def _window(node: Node, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, dilations and explicit pads, with auto_pad and ceil_mode resolved against the shapes."""
    rank = len(kernel)
    if rank not in (1, 2) or len(node.shape(0)) != rank + 2:
        raise No(f"{node.kind} over {rank} spatial axes")
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
        raise No(f"{node.kind} with negative padding {pads}")
    return stride, dilation, tuple(pads)


def _check_width(node: Node, weight: Array, needed: int, axis: int) -> None:
    """The weight must fit the input: ONNX's own shape inference does not look."""
    found = node.shape(0)[axis]
    if needed != found:
        raise ModelError(
            f"node {node.op.name!r}: weight {list(weight.shape)} takes {needed} input channels, but input "
            f"{node.op.inputs[0]!r} {list(node.shape(0))} has {found}"
        )


def _conv(node: Node) -> Op:
    weight, scale = read_weight(node, 1, channels=0)
    _check_width(node, weight, weight.shape[1] * node.get("group", 1), 1)
    stride, dilation, pads = _window(node, weight.shape[2:])
    return Conv(
        **node.common(0),
        weight=weight,
        bias=read_bias(node, 2, weight.shape[0]),
        stride=stride,
        dilation=dilation,
        pads=pads,
        groups=node.get("group", 1),
        weight_scale=scale,
    )


def _gemm(node: Node) -> Op:
    if node.get("transA", 0):
        raise No("Gemm with a transposed first operand")
    transposed = bool(node.get("transB", 0))
    weight, scale = read_weight(node, 1, channels=0 if transposed else 1)
    alpha = np.float32(node.get("alpha", 1.0))
    weight = np.ascontiguousarray(weight if transposed else weight.T)
    _check_width(node, weight, weight.shape[1], -1)
    if alpha != 1:
        weight, scale = weight * alpha, None if scale is None else scale * abs(alpha)
    bias = read_bias(node, 2, weight.shape[0], node.get("beta", 1.0))
    return Linear(**node.common(0), weight=weight, bias=bias, weight_scale=scale)


def _matmul(node: Node) -> Op:
    weight, scale = read_weight(node, 1, channels=-1)
    if weight.ndim != 2 or len(node.shape(0)) < 2:
        raise No(f"MatMul of shapes {list(node.shape(0))} and {list(weight.shape)}")
    weight = np.ascontiguousarray(weight.T)
    _check_width(node, weight, weight.shape[1], -1)
    return Linear(**node.common(0), weight=weight, weight_scale=scale)


def _max_pool(node: Node) -> Op:
    kernel = tuple(node.get("kernel_shape", ()))
    stride, dilation, pads = _window(node, kernel)
    return MaxPool(**node.common(0), kernel=kernel, stride=stride, dilation=dilation, pads=pads)


def _global_max_pool(node: Node) -> Op:
    kernel = node.shape(0)[2:]
    ones = (1,) * len(kernel)
    if len(kernel) not in (1, 2):
        raise No(f"GlobalMaxPool over {len(kernel)} spatial axes")
    return MaxPool(**node.common(0), kernel=kernel, stride=ones, dilation=ones, pads=(0,) * 2 * len(kernel))


def _average_pool(node: Node) -> Op:
    kernel = tuple(node.get("kernel_shape", ()))
    stride, dilation, pads = _window(node, kernel)
    if set(dilation) != {1}:
        raise No("AveragePool with dilation")
    given = tuple(node.get("pads", [0] * len(pads)))
    counted = bool(node.get("count_include_pad", 0)) and (pads == given or not node.get("ceil_mode", 0))
    if any(pads) and not counted:
        raise No("AveragePool that does not count its padding: the divisor changes along the border")
    return AveragePool(**node.common(0), kernel=kernel, stride=stride, pads=pads)


def _global_average_pool(node: Node) -> Op:
    return GlobalAveragePool(**node.common(0), axes=tuple(range(2, len(node.shape(0)))))


def _reduce_mean(node: Node) -> Op:
    rank = len(node.shape(0))
    axes = node.get("axes", None) if not node.has(1) else [int(a) for a in node.need(1, "axes").reshape(-1)]
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            raise No("ReduceMean without axes")
        axes = range(rank)
    return GlobalAveragePool(
        **node.common(0), axes=tuple(sorted(a % rank for a in axes)), keepdims=bool(node.get("keepdims", 1))
    )


# --- element-wise ---------------------------------------------------------------------------------------------------


def _batch_norm(node: Node) -> Op:
    if any(node.op.outputs[1:]) or node.get("training_mode", 0):
        raise No("BatchNormalization in training mode")
    gamma, beta, mean, variance = (node.need(i, "parameters").astype(np.float64) for i in range(1, 5))
    scale = gamma / np.sqrt(variance + node.get("epsilon", 1e-5))
    if not np.isfinite(scale).all():
        raise ModelError(
            f"node {node.op.name!r}: its variance has {variance.min():g}; variance + epsilon must be above 0"
        )
    return Affine(**node.common(0), scale=scale, shift=beta - mean * scale, axis=1)


def _arithmetic(node: Node) -> Op:
    """Add, Sub, Mul, Div: two tensors of one shape (Add), or a tensor and one constant per channel."""
    kind = node.kind
    values = [node.constant(0), node.constant(1)]
    if values[0] is None and values[1] is None:
        if kind != "Add":
            raise No(f"{kind} of two computed tensors")
        if node.shape(0) != node.shape(1):
            raise No(f"Add of different shapes {list(node.shape(0))} and {list(node.shape(1))}")
        return Add(**node.common(0, 1), residual=True)
    index = 0 if values[0] is None else 1
    value = values[1 - index]
    if value is None or value.dtype not in (np.float32, np.float64):
        raise No(f"{kind} with a constant that is not a real number")
    if index == 1 and kind == "Div":
        raise No("division of a constant by a tensor")
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
        raise No(f"{kind} with a constant that is not finite")
    if shift.min() <= NEVER:
        raise No(f"{kind} of a mask: {shift.min():g} leaves nothing of what it is added to")
    return Affine(**node.common(index), scale=scale.copy(), shift=shift.copy(), axis=axis)


def _channel_axis(node: Node, index: int, value: Array) -> tuple[int, int]:
    """The one axis along which a constant varies, and the tensor's size there."""
    shape = node.shape(index)
    if shape != node.graph.info(node.op.output).shape:
        raise No(f"{node.kind} that broadcasts the tensor")
    full = (1,) * (len(shape) - value.ndim) + value.shape
    varying = [axis for axis, n in enumerate(full) if n > 1]
    if len(varying) > 1:
        raise No(f"{node.kind} with a constant of shape {list(value.shape)}: it varies along more than the channels")
    if varying:
        return varying[0], shape[varying[0]]
    # One number for all: call it per channel along the axis that the neighbour would call its channels.
    producer = node.graph.producer(node.op.inputs[index])
    last = isinstance(producer, Linear) or len(shape) in (1, 3) or (isinstance(producer, Affine) and producer.axis > 1)
    axis = len(shape) - 1 if last and not isinstance(producer, Conv) else min(1, len(shape) - 1)
    return axis, shape[axis]


def _sum(node: Node) -> Op:
    if len(node.op.inputs) != 2:
        raise No(f"Sum of {len(node.op.inputs)} tensors")
    if node.constant(0) is not None or node.constant(1) is not None or node.shape(0) != node.shape(1):
        raise No("Sum with a constant or of different shapes")
    return Add(**node.common(0, 1), residual=True)


def _function(function: Callable[[Node], Function]) -> Callable[[Node], Op]:
    return lambda node: Activation(**node.common(0), function=function(node))


def _clip(node: Node) -> Function:
    low, high = (node.need(i, "bounds") if node.has(i) else None for i in (1, 2))
    return Function(
        kind="clip",
        lo=-math.inf if low is None else float(low.reshape(-1)[0]),
        hi=math.inf if high is None else float(high.reshape(-1)[0]),
    )


def _prelu(node: Node) -> Function:
    slope = node.need(1, "a slope")
    if slope.size != 1 and not (slope == slope.reshape(-1)[0]).all():
        raise No("PRelu with a slope per channel")
    return Function(kind="leaky_relu", alpha=float(slope.reshape(-1)[0]))


def _gelu(node: Node) -> Function:
    return Function(kind="gelu_tanh" if node.get("approximate", b"none") == b"tanh" else "gelu")


def _swish(node: Node) -> Function:
    alpha = float(np.float32(node.get("alpha", 1.0)))
    if alpha not in (1.0, float(np.float32(1.702))):
        raise No(f"Swish with alpha {alpha:g}")
    return Function(kind="silu" if alpha == 1.0 else "quick_gelu")


def _quick_gelu(node: Node) -> Function:
    alpha = float(np.float32(node.get("alpha", 1.702)))
    if alpha not in (1.0, float(np.float32(1.702))):
        raise No(f"QuickGelu with alpha {alpha:g}")
    return Function(kind="silu" if alpha == 1.0 else "quick_gelu")


# --- movement, quantisation -----------------------------------------------------------------------------------------


def _reshape(node: Node) -> Op:
    return Reshape(**node.common(0), shape=node.graph.shape(node.op.output))


def _transpose(node: Node) -> Op:
    rank = len(node.shape(0))
    return Transpose(**node.common(0), perm=tuple(node.get("perm", range(rank)[::-1])))


def _concat(node: Node) -> Op:
    inputs = [i for i in node.op.inputs if i]
    constants = [i for i in inputs if i in node.graph.constants]
    if constants:
        raise No(f"Concat with the constant {constants[0]!r}")
    common = node.common() | {"inputs": tuple(inputs)}
    return Concat(**common, axis=node.get("axis", 1) % len(node.shape(0)))


def _quant(node: Node) -> Quant:
    scale = node.graph.constants.get(node.op.inputs[1])
    if scale is None:
        raise No(f"{node.kind} with a scale that is computed at run time")
    zero = node.graph.constants.get(node.op.inputs[2]) if node.has(2) else np.zeros((), _codes_type(node))
    if zero is None or scale.size != 1 or zero.size != 1 or zero.dtype not in (np.uint8, np.int8):
        what = "" if zero is None else f": {scale.size} scales of {zero.dtype}"
        raise No(f"{node.kind} that is not 8-bit with one scale per tensor{what}")
    if not (np.isfinite(scale).all() and scale.reshape(-1)[0] > 0):
        raise ModelError(f"node {node.op.name!r}: scale {scale.reshape(-1)[0]!r} must be finite and above 0")
    return Quant(
        scale=float(np.float32(scale.reshape(-1)[0])),
        zero_point=int(zero.reshape(-1)[0]),
        signed=zero.dtype == np.int8,
    )


def _codes_type(node: Node) -> Any:
    """Type of codes where no zero point says it."""
    if node.kind == "DequantizeLinear":
        found = node.graph.info(node.op.inputs[0]).dtype
        return found if found != "unknown" else "uint8"
    given = node.get("output_dtype", 0)
    return helper.tensor_dtype_to_np_dtype(given) if given else np.uint8


def _quantise(node: Node) -> Op:
    return Quantise(**node.common(0), quant=_quant(node))


def _dequantise(node: Node) -> Op:
    if node.op.inputs[0] in node.graph.constants:
        raise No("a quantised constant that the host reads")
    return Dequantise(**node.common(0), quant=_quant(node))


_READERS: dict[str, Callable[[Node], Op]] = {
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
    "com.microsoft.Gelu": _function(lambda _: Function(kind="gelu")),
    "com.microsoft.FastGelu": _function(lambda _: Function(kind="gelu_tanh")),
    "com.microsoft.QuickGelu": _function(_quick_gelu),
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
