"""Channels brought to one range where the host stands between: exact in real numbers, and most of int8's error less.

A transformer's features have a few channels far wider than the rest, and one scale for all leaves the others hardly a
code. Where the host makes a tensor for linear layers, it can divide each channel by a factor that the weights take up
(SmoothQuant: Xiao et al., 2023). Where only the host reads what a layer makes, wide channels can have a range of their
own: the layer's rows are divided by a factor, and the host multiplies.
"""

from dataclasses import replace

import numpy as np
from onnx import helper

from gossamer.compiler.frontend.calibrate import Calibration, channel_ranges
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array, Conv, Host, Linear, TensorInfo

__all__ = ["equalise"]

Products = Conv | Linear

WIDE = 3.0
"""A channel is given a range of its own when it is this much wider than the median. The others share one: a range of
its own, seen on a few samples, is soon exceeded."""

MANY = 32
"""Fewer channels are left alone."""


def equalise(graph: Graph, calibration: Calibration | None = None) -> Graph:
    """Rewrite what the host makes for linear layers, and what layers make for the host.

    Only where the model says nothing of quantisation, and only with calibration data: noise has no outliers.
    """
    if calibration is None:
        return graph
    graph = graph.copy()
    inputs = [tensor for op in graph if isinstance(op, Host) for tensor in op.outputs if _feeds_linear(graph, tensor)]
    outputs = [op for op in graph if isinstance(op, Conv | Linear) and _feeds_host(graph, op)]
    axes = {tensor: len(graph.shape(tensor)) - 1 for tensor in inputs}
    axes |= {op.output: 1 if isinstance(op, Conv) else len(graph.shape(op.output)) - 1 for op in outputs}
    ranges = channel_ranges(graph, axes, calibration)
    reach = {tensor: np.maximum(-lo, hi) for tensor, (lo, hi) in ranges.items()}
    for tensor in inputs:
        if _has_wide(reach[tensor]):
            _smooth(graph, tensor, reach[tensor])
    for op in outputs:
        if not _has_wide(reach[op.output]):
            continue
        found = graph.op(op.name)
        assert isinstance(found, Conv | Linear)
        _widen(graph, found, axes[op.output], reach[op.output])
    return graph


def _has_wide(reach: Array) -> bool:
    """Whether one range for all channels would be ruled by a few of many."""
    return len(reach) >= MANY and bool(reach.max() > WIDE * np.median(reach) > 0)


def _feeds_linear(graph: Graph, tensor: str) -> bool:
    """Whether linear layers, and nobody else, read a tensor that the model leaves to us."""
    users = graph.consumers(tensor) if tensor else []
    if not users or tensor in graph.outputs or graph.info(tensor).quant is not None:
        return False
    return all(
        isinstance(user, Linear)
        and user.weight_scale is None
        and user.inputs.count(tensor) == 1
        and user.inputs[0] == tensor
        and user.weight.shape[1] == graph.shape(tensor)[-1]
        for user in users
    )


def _feeds_host(graph: Graph, op: Products) -> bool:
    """Whether the host, and nobody else, reads a layer's plain output."""
    users = graph.consumers(op.output)
    plain = not op.residual and op.activation is None and op.weight_scale is None
    known = graph.info(op.output).quant is None and op.output not in graph.outputs
    hosts = [user for user in users if isinstance(user, Host) and op.output not in user.captured]
    scores = all(user.node.op_type == "Softmax" for user in hosts)  # all channels of scores are compared
    return plain and known and len(hosts) == len(users) and not scores


def _smooth(graph: Graph, tensor: str, reach: Array) -> None:
    """Let the host divide every channel, and the linear layers multiply back: widths meet those of the weights."""
    users = [user for user in graph.consumers(tensor) if isinstance(user, Linear)]
    weights = np.max([np.abs(user.weight).max(axis=0) for user in users], axis=0).astype(np.float64)
    factor = np.sqrt(np.maximum(reach, np.median(reach)) / _filled(weights))
    factor /= np.exp(np.log(factor).mean())
    target = _host_product(graph, tensor, len(graph.shape(tensor)) - 1, 1 / factor, backwards=False)
    for user in users:
        weight = (user.weight * factor).astype(np.float32)
        graph.replace(user.name, replace(user, inputs=(target, *user.inputs[1:]), weight=weight))


def _widen(graph: Graph, op: Products, axis: int, reach: Array) -> None:
    """Let a layer give its wide channels in the range of the others, and the host put them back where they were."""
    factor = np.maximum(reach / (WIDE * np.median(reach)), 1.0)
    made = _host_product(graph, op.output, axis, factor, backwards=True)
    weight = op.weight / factor.reshape(-1, *[1] * (op.weight.ndim - 1))
    bias = None if op.bias is None else op.bias / factor
    graph.replace(op.name, replace(op, outputs=(made,), weight=weight.astype(np.float32), bias=bias))


def _filled(values: Array) -> Array:
    """Values above zero; where there is none, as for channels that are always the same, 1."""
    return np.where(values > 1e-8 * values.max(initial=0), values, values.max(initial=0) or 1.0)


def _host_product(graph: Graph, tensor: str, axis: int, factor: Array, *, backwards: bool) -> str:
    """A host operation that multiplies a tensor's channels; returns the name of the array's side.

    backwards : the tensor keeps its name behind it, and its producer has to write the returned name.
    """
    info = graph.info(tensor)
    shape = [1] * len(graph.shape(tensor))
    shape[axis] = -1
    other = graph.fresh(f"{tensor}/equalised")
    source, target = (other, tensor) if backwards else (tensor, other)
    name = graph.fresh(f"{tensor}/factor")
    graph.constants[name] = factor.astype(np.float32).reshape(shape)
    graph.tensors[name] = TensorInfo(name=name, shape=graph.constants[name].shape, dtype="float32")
    graph.tensors[other] = replace(info, name=other)
    graph.update(tensor, layout=None)
    producer = graph.producer(tensor)
    if backwards:  # the producer lets go of the name first
        assert producer is not None
        graph.replace(producer.name, replace(producer, outputs=(other,)))
    graph.add(
        Host(
            name=graph.fresh(f"{target}/Mul"),
            inputs=(source, name),
            outputs=(target,),
            source=() if producer is None else producer.source,
            node=helper.make_node("Mul", [source, name], [target]),
            reason="brings channels back to their ranges" if backwards else "brings channels to one range",
        )
    )
    return other
