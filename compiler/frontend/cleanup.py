"""Rewrites that change how a model is written, not what it computes.

In order: operations that do nothing, Quantise-Dequantise pairs (which become a property of the tensor), functions
spelt out, padding of its own, and per-channel products and sums, which convolutions and linear layers absorb.
"""

import math
from dataclasses import replace

import numpy as np
from onnx import helper

from gossamer.arch.numerics import code_range
from gossamer.compiler.frontend.functions import Function
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.idioms import recognise_functions
from gossamer.compiler.frontend.nodes import is_standard
from gossamer.compiler.frontend.ops import (
    Activation,
    Affine,
    AveragePool,
    Conv,
    Dequantise,
    Host,
    Linear,
    Op,
    Quant,
    Quantise,
    Reshape,
    Transpose,
)
from gossamer.compiler.frontend.shuffle import recognise_shuffles
from gossamer.compiler.frontend.transposed import split_phases

__all__ = ["cleanup", "may_drop"]


def cleanup(graph: Graph) -> Graph:
    """All rewrites of this file, to a fixed point where one makes room for another."""
    graph = _drop_identities(graph)
    graph = _drop_fine_points(graph)
    graph = _absorb_quantisation(graph)
    graph = _codes_at_the_border(graph)
    graph = recognise_functions(graph)
    graph = recognise_shuffles(graph)
    graph = split_phases(graph)
    graph = _absorb_padding(graph)
    graph = _fold_affine(graph)
    graph.prune()
    return graph


def may_drop(quant: Quant | None) -> bool:
    """Whether a quantisation point the model asked for may disappear in a fusion.

    Not when zero is at an end of the codes: such a point cuts off a sign, it is a Relu in disguise.
    """
    if quant is None:
        return True
    lo, hi = code_range(quant.signed)
    return lo < quant.zero_point < hi


def _bypass(graph: Graph, op: Op) -> bool:
    """Take out an operation whose output equals its input; False when the names do not allow it."""
    source, target = op.inputs[0], op.output
    if target not in graph.outputs:
        if not graph.redirect(target, source):
            return False
        graph.remove(op.name)
        return True
    producer = graph.producer(source)
    if (
        producer is None
        or source in graph.outputs
        or any(isinstance(user, Host) and source in user.captured for user in graph.consumers(source))
    ):
        return False
    graph.remove(op.name)
    graph.replace(
        producer.name, replace(producer, outputs=tuple(target if o == source else o for o in producer.outputs))
    )
    graph.redirect(source, target)
    graph.tensors[target] = replace(graph.info(source), name=target)
    return True


def _drop_identities(graph: Graph) -> Graph:
    """Identity, Dropout, casts to the same type, reshapes to the same shape, transposes that keep the order."""
    graph = graph.copy()
    for name in [op.name for op in graph.order()]:
        if _is_identity(graph, op := graph.op(name)):
            _bypass(graph, op)
    return graph


def _is_identity(graph: Graph, op: Op) -> bool:
    if isinstance(op, Reshape):
        return op.shape == graph.info(op.inputs[0]).shape
    if isinstance(op, Transpose):
        return op.perm == tuple(range(len(op.perm)))
    if not isinstance(op, Host) or op.captured or not is_standard(op):
        return False
    if op.node.op_type == "Dropout":
        # The third input turns training on; exporters set it to a constant false.
        training = graph.constants.get(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] else np.array(False)
        mask_used = any(graph.consumers(o) or o in graph.outputs for o in op.outputs[1:] if o)
        return training is not None and not training.any() and not mask_used
    if op.node.op_type == "Cast":
        return graph.info(op.inputs[0]).dtype == graph.info(op.output).dtype != "unknown"
    return op.node.op_type == "Identity" and op.inputs[0] not in graph.constants


def _drop_fine_points(graph: Graph) -> Graph:
    """Quantisation points of 16 bits go, with a note: the array's own codes are coarser than they are.

    One with zero at an end of its codes leaves the Relu behind that it is.
    """
    graph = graph.copy()
    count = 0
    for name in [op.name for op in graph.order()]:
        op = graph.op(name) if name in graph.dag else None
        if op is None or not _is_point(op, "QuantizeLinear") or op.output in graph.outputs:
            continue
        pairs = graph.consumers(op.output)
        codes = graph.info(op.output).dtype
        alike = all(_is_point(p, "DequantizeLinear") and _same_point(graph, op, p) for p in pairs)
        if codes not in ("int16", "uint16") or not pairs or not alike:
            continue
        zero = int(graph.constants[op.inputs[2]].reshape(-1)[0]) if len(op.inputs) > 2 and op.inputs[2] else 0
        end = np.iinfo(codes)
        clip = Function(kind="clip", lo=0.0 if zero == end.min else -math.inf, hi=0.0 if zero == end.max else math.inf)
        for pair in pairs:
            point = Activation(name=pair.name, inputs=op.inputs[:1], outputs=pair.outputs, function=clip)
            graph.replace(pair.name, replace(point, source=pair.source))
            if clip == Function(kind="clip"):
                _bypass(graph, graph.op(pair.name))
        graph.remove(op.name)
        count += 1
    if count:
        graph.notes.append(f"{count} quantisation points of 16 bits are left out: the array rounds to 8 bits")
    return graph


def _is_point(op: Op, kind: str) -> bool:
    return isinstance(op, Host) and op.node.op_type == kind and is_standard(op)


def _same_point(graph: Graph, one: Op, two: Op) -> bool:
    """Whether two operations have the same scale and the same zero point."""
    ours, theirs = ([graph.constants.get(t) for t in op.inputs[1:] if t] for op in (one, two))
    return len(ours) == len(theirs) and all(
        a is not None and b is not None and np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


def _codes_at_the_border(graph: Graph) -> Graph:
    """Where codes come into the model or go out, as inputs, outputs or to the host, the array has the same codes."""
    graph = graph.copy()
    for op in graph.order():
        if isinstance(op, Quantise):
            readers = graph.consumers(op.inputs[0])
            alone = all(isinstance(user, Quantise) and user.quant == op.quant for user in readers)
            if alone and op.inputs[0] not in graph.outputs and graph.info(op.inputs[0]).quant is None:
                graph.update(op.inputs[0], quant=op.quant)
        elif isinstance(op, Dequantise) and graph.info(op.output).quant is None:
            graph.update(op.output, quant=op.quant)
    return graph


def _absorb_quantisation(graph: Graph) -> Graph:
    """Turn each Quantise with its Dequantise into a property of the tensor; the two operations disappear.

    A second, different pair on the same tensor becomes an identity with a quantisation of its own.
    """
    graph = graph.copy()
    for name in [op.name for op in graph.order()]:
        op = graph.op(name) if name in graph.dag else None
        if not isinstance(op, Quantise):
            continue
        for pair in graph.consumers(op.output):
            if not isinstance(pair, Dequantise) or pair.quant != op.quant:
                continue
            source = graph.info(op.inputs[0])
            graph.update(pair.output, shape=source.shape, dtype="float32")
            if source.quant in (None, op.quant):
                graph.update(op.inputs[0], quant=op.quant)
                graph.replace(pair.name, replace(pair, inputs=op.inputs))
                if _bypass(graph, graph.op(pair.name)):
                    continue
            ones = np.ones((source.shape or (1,))[0 if len(source.shape or ()) < 2 else 1])
            graph.update(pair.output, quant=op.quant)
            requantise = Affine(
                name=pair.name, inputs=op.inputs, outputs=pair.outputs, source=pair.source,
                scale=ones, shift=0 * ones, axis=min(1, len(source.shape or (1,)) - 1),
            )  # fmt: skip
            graph.replace(pair.name, requantise)
        if not graph.consumers(op.output) and op.output not in graph.outputs:
            graph.remove(op.name)
    return graph


def _absorb_padding(graph: Graph) -> Graph:
    """Zero padding before convolutions (or averages that count it) becomes theirs."""
    graph = graph.copy()
    for op in graph.order():
        pads = _zero_pads(graph, op)
        if pads is None or op.output in graph.outputs:
            continue
        users = graph.consumers(op.output)
        rank = len(pads) // 2 - 2
        if any(pads[:2]) or any(pads[2 + rank : 4 + rank]) or not users:
            continue  # pads the batch or the channels
        spatial = pads[2 : 2 + rank] + pads[4 + rank :]
        absorbing = all(
            (isinstance(u, Conv) or (isinstance(u, AveragePool) and not any(u.pads)))
            and len(u.pads) == len(spatial)
            and u.inputs == (op.output,)
            for u in users
        )
        if not absorbing or min(spatial) < 0:
            continue
        for user in users:
            assert isinstance(user, Conv | AveragePool)
            total = tuple(a + b for a, b in zip(user.pads, spatial, strict=True))
            merged = replace(user, inputs=op.inputs[:1], pads=total, source=op.source + user.source)
            graph.replace(user.name, merged)
        graph.remove(op.name)
    return graph


def _zero_pads(graph: Graph, op: Op) -> tuple[int, ...] | None:
    if not isinstance(op, Host) or op.node.op_type != "Pad" or (len(op.inputs) > 3 and op.inputs[3]):
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}
    pads = graph.constants.get(op.inputs[1])
    value = graph.constants.get(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] else np.zeros(1)
    if attributes.get("mode", b"constant") != b"constant" or pads is None or value is None or value.any():
        return None
    return tuple(int(p) for p in pads) if pads.size >= 6 else None


def _fold_affine(graph: Graph) -> Graph:
    """Batch normalisation and biases go into the convolution, linear layer or other affine before them."""
    graph = graph.copy()
    for op in graph.order():
        if not isinstance(op, Affine):
            continue
        before = graph.producer(op.inputs[0])
        if not isinstance(before, Conv | Linear | Affine) or before.residual or before.activation is not None:
            continue
        if graph.sole_consumer(before.output) is not op or not may_drop(graph.info(before.output).quant):
            continue
        merged = _merged(graph, before, op)
        if merged is not None:
            graph.remove(op.name)
            graph.replace(before.name, merged)
    return graph


def _merged(graph: Graph, before: Conv | Linear | Affine, op: Affine) -> Op | None:
    rank = len(graph.shape(op.output))
    axis = before.axis if isinstance(before, Affine) else 1 if isinstance(before, Conv) else rank - 1
    scale, shift = op.scale, op.shift
    channels = len(before.scale) if isinstance(before, Affine) else before.weight.shape[0]
    if op.axis != axis:
        if np.ptp(scale) or np.ptp(shift):
            return None
        scale, shift = np.full(channels, scale[0]), np.full(channels, shift[0])
    before = replace(before, outputs=op.outputs, source=before.source + op.source)
    if isinstance(before, Affine):
        return replace(before, scale=before.scale * scale, shift=before.shift * scale + shift)
    if before.weight_scale is not None and not (scale == 1).all():
        return None  # its codes are given; they cannot take another scale exactly
    weight = before.weight
    if not (scale == 1).all():
        weight = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    bias = shift if before.bias is None else before.bias * scale + shift
    return replace(before, weight=weight, bias=bias)
