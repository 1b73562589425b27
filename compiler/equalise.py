"""Channels brought to one range where the host stands between: exact in real numbers, and most of int8's error less.

A transformer's features have a few channels far wider than the rest, and one scale for all leaves the others hardly a
code. Where the host makes a tensor for linear layers, it can subtract each channel's centre and divide by a factor,
and the weights take both up (SmoothQuant: Xiao et al., 2023; shifts: Wei et al., 2023). Where only the host reads what
a layer makes, each channel can have a range of its own: the layer's rows are divided by it, and the host multiplies.
"""

from dataclasses import replace

import numpy as np
from onnx import helper

from gossamer.compiler.calibrate import Calibration, channel_ranges
from gossamer.compiler.graph import Graph
from gossamer.compiler.ops import Array, Conv, Host, Linear, TensorInfo

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
    for tensor in inputs:
        if _has_wide(*ranges[tensor]):
            _smooth(graph, tensor, *ranges[tensor])
    for op in outputs:
        if not _has_wide(*ranges[op.output]):
            continue
        found = graph.op(op.name)
        assert isinstance(found, Conv | Linear)
        _widen(graph, found, axes[op.output], *ranges[op.output])
    return graph


def _has_wide(lo: Array, hi: Array) -> bool:
    """Whether one range for all channels would be ruled by a few of many."""
    return len(lo) >= MANY and bool((hi - lo).max() > WIDE * np.median(hi - lo) or np.ptp(lo + hi) > np.median(hi - lo))


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


def _smooth(graph: Graph, tensor: str, lo: Array, hi: Array) -> None:
    """Let the host centre and divide every channel; the linear layers multiply back and add what was taken off."""
    users = [user for user in graph.consumers(tensor) if isinstance(user, Linear)]
    centre, reach = (lo + hi) / 2, (hi - lo) / 2
    weights = np.max([np.abs(user.weight).max(axis=0) for user in users], axis=0).astype(np.float64)
    factor = np.sqrt(_filled(reach) / _filled(weights))
    factor /= np.exp(np.log(factor).mean())
    target = _host_affine(graph, tensor, len(graph.shape(tensor)) - 1, 1 / factor, -centre / factor, backwards=False)
    for user in users:
        bias = np.zeros(len(user.weight)) if user.bias is None else user.bias
        graph.replace(
            user.name,
            replace(
                user,
                inputs=(target, *user.inputs[1:]),
                weight=(user.weight * factor).astype(np.float32),
                bias=bias + user.weight.astype(np.float64) @ centre,
            ),
        )


def _widen(graph: Graph, op: Products, axis: int, lo: Array, hi: Array) -> None:
    """Let a layer give its wide channels in the range of the others, and the host put them back where they were."""
    reach = (hi - lo) / 2
    reach = _filled(np.maximum(reach, WIDE * np.median(reach)))
    centre = (lo + hi) / 2
    output = op.output
    made = _host_affine(graph, output, axis, reach, centre, backwards=True)
    bias = np.zeros(len(op.weight)) if op.bias is None else op.bias
    weight = op.weight / reach.reshape(-1, *[1] * (op.weight.ndim - 1))
    new = replace(op, outputs=(made,), weight=weight.astype(np.float32), bias=(bias - centre) / reach)
    graph.replace(op.name, new)


def _filled(values: Array) -> Array:
    """Values above zero; where there is none, as for channels that are always the same, 1."""
    return np.where(values > 1e-8 * values.max(initial=0), values, values.max(initial=0) or 1.0)


def _host_affine(graph: Graph, tensor: str, axis: int, scale: Array, shift: Array, *, backwards: bool) -> str:
    """Host operations target = tensor * scale + shift along an axis; returns the name of the array's side.

    backwards : the tensor keeps its name behind them, and its producer has to write the returned name.
    """
    info = graph.info(tensor)
    shape = [1] * len(graph.shape(tensor))
    shape[axis] = -1
    other = graph.fresh(f"{tensor}/equalised")
    middle = graph.fresh(f"{tensor}/scaled")
    source, target = (other, tensor) if backwards else (tensor, other)
    names = []
    for part, value in (("scale", scale), ("shift", shift)):
        name = graph.fresh(f"{tensor}/{part}")
        value = value.astype(np.float32).reshape(shape)
        graph.constants[name] = value
        graph.tensors[name] = TensorInfo(name=name, shape=value.shape, dtype="float32")
        names.append(name)
    graph.tensors[other] = replace(info, name=other)
    graph.tensors[middle] = replace(info, name=middle, layout=None)
    graph.update(tensor, layout=None)
    users = graph.consumers(tensor)
    reason = "brings channels to one range" if not backwards else "brings channels back to their ranges"
    hosts = [
        Host(
            name=graph.fresh(f"{target}/{kind}"),
            inputs=(first, second),
            outputs=(result,),
            source=tuple(s for user in users for s in user.source) if backwards else (),
            node=helper.make_node(kind, [first, second], [result]),
            reason=reason,
        )
        for kind, first, second, result in (("Mul", source, names[0], middle), ("Add", middle, names[1], target))
    ]
    if backwards:  # the producer lets go of the name first
        producer = graph.producer(tensor)
        assert producer is not None
        graph.replace(producer.name, replace(producer, outputs=(other,)))
    for host in hosts:
        graph.add(host)
    return other
