"""What readers of ONNX nodes have at hand: attributes, constants, shapes, and weights behind their codes."""

from typing import Any

import numpy as np
from onnx import helper

from gossamer.arch.errors import ModelError
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array, Host

__all__ = ["No", "Node", "read_bias", "read_weight", "weight_value"]

_WIDEST = 255.5
"""Largest magnitude of 8-bit codes less their zero point, with room for a rounded division."""


class No(Exception):
    """Why a node stays on the host."""


class Node:
    """A node with its attributes, constants and shapes at hand."""

    def __init__(self, graph: Graph, op: Host) -> None:
        self.graph, self.op, self.kind = graph, op, op.node.op_type
        self.attributes = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}

    def check_types(self) -> None:
        """The array takes real numbers of known shape."""
        for tensor in (self.op.inputs[0], self.op.output):
            info = self.graph.info(tensor)
            if info.shape is None:
                raise No(f"the shape of {tensor!r} depends on data")
            if info.dtype != "float32":
                raise No(f"computes in {info.dtype}")
            if 0 in info.shape:
                raise No(f"{tensor!r} is empty")
            if not info.shape and tensor not in self.graph.constants:
                raise No(f"{tensor!r} is a single number")
        if any(self.op.outputs[1:]) and self.kind != "BatchNormalization" and self.kind != "Dropout":
            raise No(f"{self.kind} with a second output")

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
            raise No(f"{self.kind} with {what} that is computed at run time")
        return value

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of an input."""
        shape = self.graph.info(self.op.inputs[index]).shape
        if shape is None:
            raise No(f"the shape of {self.op.inputs[index]!r} depends on data")
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
    """A constant's value and, if it is stored as codes behind a DequantizeLinear, their scales, broadcastable to it.

    Values of codes come as float64, so that no code is lost.
    """
    if tensor in graph.constants:
        return graph.constants[tensor], None
    op = graph.producer(tensor)
    if not isinstance(op, Host) or op.node.op_type != "DequantizeLinear":
        return None, None
    if not all(name in graph.constants for name in op.reads):
        return None, None
    codes, scale = graph.constants[op.inputs[0]], graph.constants[op.inputs[1]].astype(np.float32)
    zero = graph.constants[op.inputs[2]] if len(op.inputs) > 2 and op.inputs[2] else np.zeros((), np.float32)
    attributes = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}

    def spread(parameter: Array) -> Array:
        """One number, one for each channel, or one for each block of an axis."""
        if parameter.size == 1:
            return parameter.reshape([1] * codes.ndim)
        axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
        if block:
            return parameter.repeat(block, axis=axis).take(range(codes.shape[axis]), axis=axis)
        shape = [1] * codes.ndim
        shape[axis] = parameter.size
        return parameter.reshape(shape)

    scale = spread(scale)
    return (codes.astype(np.float64) - spread(zero.astype(np.float64))) * scale, scale


def read_weight(node: Node, index: int, channels: int) -> tuple[Array, Array | None]:
    """A weight as float32, and one scale per output channel (on axis `channels`) if it came as codes.

    Codes less their zero point may have nine bits: the quantise pass knows what to do about that.
    """
    value, scale = weight_value(node.graph, node.op.inputs[index])
    if value is None:
        raise No(f"{node.kind} with a weight that is computed at run time")
    if value.dtype not in (np.float32, np.float64):
        raise No(f"{node.kind} with a weight of type {value.dtype}")
    if not np.isfinite(value).all():
        raise ModelError(f"node {node.op.name!r}: weight {node.op.inputs[index]!r} must be finite; it has nan or inf")
    if scale is None:
        return value.astype(np.float32), None
    if (scale <= 0).any() or not np.isfinite(scale).all():
        raise ModelError(
            f"node {node.op.name!r}: weight {node.op.inputs[index]!r} has the scale {scale.min()!r}; "
            "must be finite and above 0"
        )
    largest = float(np.abs(value / scale).max(initial=0))
    others = [n for axis, n in enumerate(scale.shape) if axis != channels % scale.ndim]
    if largest > _WIDEST or any(n != 1 for n in others):
        what = f"codes up to {largest:.0f}" if largest > _WIDEST else "several scales in a channel"
        node.graph.notes.append(f"{node.op.name}: its weight has {what}; it is quantised anew, to 8 bits a channel")
        return value.astype(np.float32), None
    return value.astype(np.float32), np.broadcast_to(scale.reshape(-1), (value.shape[channels],)).copy()


def read_bias(node: Node, index: int, channels: int, factor: float = 1.0) -> Array | None:
    if not node.has(index):
        return None
    value = node.need(index, "a bias").astype(np.float64) * factor
    if not np.isfinite(value).all():
        raise ModelError(f"node {node.op.name!r}: bias {node.op.inputs[index]!r} must be finite; it has nan or inf")
    if value.size not in (1, channels) or (value.ndim > 1 and value.shape[-1] != value.size):
        raise No(f"{node.kind} with a bias of shape {list(value.shape)}")
    return np.broadcast_to(value.reshape(-1), (channels,)).copy()
