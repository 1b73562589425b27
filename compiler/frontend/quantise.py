"""Static post-training quantisation: a scale and a zero point for everything the array reads or writes.

Tensors that the array moves without rounding (views, concatenations, maxima) share theirs. What a QDQ model brings
along is kept; the rest is calibrated. Weights are int8, symmetric, one scale per output channel.
"""

from collections import defaultdict
from dataclasses import replace

import networkx as nx
import numpy as np

from gossamer.arch.numerics import code_range
from gossamer.compiler.frontend.calibrate import Calibration, calibrate
from gossamer.compiler.frontend.export import host_ops
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.integers import WEIGHT_MAX, integer_weights, weight_scales
from gossamer.compiler.frontend.ops import (
    Activation,
    Add,
    Affine,
    Compute,
    Concat,
    Conv,
    Host,
    Linear,
    MaxPool,
    Op,
    Product,
    Quant,
    View,
)
from gossamer.compiler.frontend.wide import split_wide_weights

__all__ = ["quantise"]

RATIO_LIMIT = 127
"""Residual scale over output scale must be below this (see arch.numerics.quantise_residual)."""


def quantise(
    graph: Graph, calibration: Calibration | None = None, method: str = "minmax", signed: bool = False
) -> Graph:
    """Give every tensor of the array its Quant, and every weight its scales.

    calibration : data to measure ranges on (random, with a warning, when None);  method : see calibrate.METHODS
    signed : int8 activations instead of uint8.
    """
    graph = _symmetric_operands(_separate(graph.copy()))
    groups = _groups(graph)
    missing = [t for group in groups for t in group if all(graph.info(g).quant is None for g in group)]
    ranges = calibrate(graph, missing, calibration, method)
    if _protect_padding(graph, ranges):
        groups = _groups(graph)
    operands = {op.inputs[1] for op in graph if isinstance(op, Product)}
    for group in groups:
        given = next((q for t in group if (q := graph.info(t).quant) is not None), None)
        if given is None:
            lo, hi = min(ranges[t][0] for t in group), max(ranges[t][1] for t in group)
            given = _quant(lo, hi, signed) if operands.isdisjoint(group) else _symmetric(lo, hi)
        for tensor in group:
            graph.update(tensor, quant=given)
    graph.quantised = True
    _adopt_scales(graph, {t for group in groups for t in group if ranges.get(t) == (0.0, 0.0)})
    _check_padding(graph)
    _check_residuals(graph)
    graph = split_wide_weights(graph)
    for op in graph.order():
        if isinstance(op, Conv | Linear | Affine):
            graph.replace(op.name, _with_weights(graph, op))
    return graph


def _quant(lo: float, hi: float, signed: bool) -> Quant:
    """Codes for the range lo..hi, widened so that zero is one of them."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    first, last = code_range(signed)
    scale = float(np.float32((hi - lo) / (last - first)))
    if scale < np.finfo(np.float32).tiny:
        return Quant(scale=1.0, zero_point=first, signed=signed)
    return Quant(scale=scale, zero_point=int(np.clip(round(first - lo / scale), first, last)), signed=signed)


def _symmetric(lo: float, hi: float) -> Quant:
    """Codes from -127 to 127 around zero: what takes the place of weights is quantised as weights are."""
    scale = float(np.float32(max(-lo, hi) / WEIGHT_MAX))
    return Quant(scale=scale if scale >= np.finfo(np.float32).tiny else 1.0, zero_point=0, signed=True)


def _moves(op: Op) -> bool:
    """Whether the operation passes codes on as they are."""
    return isinstance(op, View | Concat | MaxPool)


def _is_wiring(graph: Graph, op: Op) -> bool:
    """Whether the operation only copies channels, and no other codes are asked for behind it."""
    if not isinstance(op, Conv) or not op.fixed or op.residual or op.activation is not None:
        return False
    before, behind = graph.info(op.inputs[0]).quant, graph.info(op.output).quant
    return before is None or behind is None or before == behind


def _separate(graph: Graph) -> Graph:
    """Where a QDQ model asks for different codes on both sides of an operation that cannot round, round beside it."""
    for op in graph.order():
        if not _moves(op):
            continue
        target = graph.info(op.output).quant
        for tensor in dict.fromkeys(op.inputs):
            given = graph.info(tensor).quant
            if target is None or given is None or given == target:
                continue
            if isinstance(op, Concat):
                copy = graph.fresh(f"{tensor}/requantised")
                graph.tensors[copy] = replace(graph.info(tensor), name=copy, quant=target)
                graph.add(_identity(graph, tensor, copy))
                current = graph.op(op.name)
                inputs = tuple(copy if t == tensor else t for t in current.inputs)
                graph.replace(op.name, replace(current, inputs=inputs))
            else:
                moved = graph.fresh(f"{op.output}/moved")
                graph.tensors[moved] = replace(graph.info(op.output), name=moved, quant=given)
                graph.replace(op.name, replace(op, outputs=(moved,)))
                graph.add(_identity(graph, moved, op.output))
    return graph


def _symmetric_operands(graph: Graph) -> Graph:
    """Give a product its second operand as int8 around zero where a QDQ model has it otherwise."""
    for op in graph.order():
        if not isinstance(op, Product):
            continue
        first, second = op.inputs
        given = graph.info(second).quant
        if given is None or (given.signed and given.zero_point == 0):
            continue
        copy = graph.fresh(f"{second}/operand")
        lo, hi = given.dequantise(code_range(given.signed))
        graph.tensors[copy] = replace(graph.info(second), name=copy, quant=_symmetric(float(lo), float(hi)))
        graph.add(_identity(graph, second, copy))
        graph.replace(op.name, replace(op, inputs=(first, copy)))
    return graph


def _identity(graph: Graph, source: str, target: str) -> Affine:
    info = graph.info(source)
    assert info.layout is not None
    assert info.shape is not None
    channels = info.layout.shape[1]
    axis = len(info.shape) - 1 if info.layout.channels_last else 1
    return Affine(
        name=graph.fresh(f"{target}/requantise"), inputs=(source,), outputs=(target,),
        scale=np.ones(channels), shift=np.zeros(channels), axis=axis,
    )  # fmt: skip


def _groups(graph: Graph) -> list[list[str]]:
    """Tensors of the array, and values before tables, in groups that share a Quant."""
    together = nx.Graph()
    for op in graph.order():
        if isinstance(op, Host):
            continue
        tensors = [*op.reads, *op.outputs]
        if isinstance(op, Compute) and op.pre:
            tensors.append(op.pre)
        together.add_nodes_from(tensors)
        if _moves(op) or _is_wiring(graph, op):
            together.add_edges_from((op.output, tensor) for tensor in op.inputs)
    members: dict[int, list[str]] = defaultdict(list)
    component = {t: i for i, found in enumerate(nx.connected_components(together)) for t in found}
    for tensor in together:
        members[component[tensor]].append(tensor)
    return list(members.values())


def _protect_padding(graph: Graph, ranges: dict[str, tuple[float, float]]) -> bool:
    """Keep padded maxima of values above zero out of groups with values below, so that zero stays their lowest code.

    Their output is rounded into the group's codes instead of sharing them. True when something was inserted.
    """
    group = {tensor: members for members in _groups(graph) for tensor in members}
    changed = False
    for op in graph.order():
        if not isinstance(op, MaxPool) or not any(op.pads) or any(t not in ranges for t in group[op.output]):
            continue
        mixed = min(ranges[t][0] for t in group[op.output]) < 0 <= ranges[op.inputs[0]][0]
        if not mixed or op.output in graph.outputs:
            continue
        moved = graph.fresh(f"{op.output}/moved")
        graph.tensors[moved] = replace(graph.info(op.output), name=moved)
        ranges[moved] = ranges[op.output]
        graph.replace(op.name, replace(op, outputs=(moved,)))
        graph.add(_identity(graph, moved, op.output))
        changed = True
    return changed


def _check_padding(graph: Graph) -> None:
    """The array pads with the code of zero; a maximum may only do so where no value is below it.

    Elsewhere the same codes are read with the lowest one as their zero, which padding then is; a copy before the
    maximum and one behind it say so, and neither rounds.
    """
    for op in graph.order():
        if not isinstance(op, MaxPool) or not any(op.pads):
            continue
        quant = graph.info(op.inputs[0]).quant
        assert quant is not None
        lowest = code_range(quant.signed)[0]
        if quant.zero_point == lowest or _never_negative(graph, op.inputs[0]):
            continue
        shift = (quant.zero_point - lowest) * quant.scale
        shifted = replace(quant, zero_point=lowest)
        names = []
        for tensor in (op.inputs[0], op.output):
            names.append(graph.fresh(f"{tensor}/from_lowest"))
            graph.tensors[names[-1]] = replace(graph.info(tensor), name=names[-1], quant=shifted)
        back = _identity(graph, names[1], op.output)
        graph.replace(op.name, replace(op, inputs=(names[0],), outputs=(names[1],), activation=None))
        there = _identity(graph, op.inputs[0], names[0])
        graph.add(replace(there, shift=there.shift + shift, source=op.source))
        graph.add(replace(back, shift=back.shift - shift, source=op.source, activation=op.activation))


def _never_negative(graph: Graph, tensor: str) -> bool:
    """Whether a tensor ends in a function without values below zero."""
    op = graph.producer(tensor)
    if isinstance(op, View | Concat) or (isinstance(op, MaxPool) and op.activation is None):
        return all(_never_negative(graph, t) for t in op.inputs)
    function = op.function if isinstance(op, Activation) else getattr(op, "activation", None)
    return function is not None and (function.lo >= 0 if function.is_clamp else function.kind in _POSITIVE)


_POSITIVE = {"sigmoid", "hard_sigmoid", "softplus", "abs"}
"""Functions without negative values."""


def _adopt_scales(graph: Graph, empty: set[str]) -> None:
    """What was zero on all data, as a branch that training starts at zero, takes the codes of the sum it joins."""
    for op in graph.order():
        if not isinstance(op, Compute) or not op.residual:
            continue
        for tensor in op.inputs:
            users = graph.consumers(tensor)
            if tensor in empty and not any(_moves(user) for user in (*users, graph.producer(tensor)) if user):
                graph.update(tensor, quant=graph.info(op.pre or op.output).quant)


def _check_residuals(graph: Graph) -> None:
    """The residual's multiplier is an integer of 16 bits: it cannot be much coarser than the sum."""
    for op in graph.order():
        if not isinstance(op, Compute) or not op.residual:
            continue
        result = graph.info(op.pre or op.output).quant
        coarse = [q.scale / result.scale >= RATIO_LIMIT for t in op.inputs if (q := graph.info(t).quant) and result]
        if not coarse[-1]:
            continue
        reason = f"the sum is more than {RATIO_LIMIT} times finer than the residual {op.inputs[-1]!r}"
        if isinstance(op, Add) and not coarse[0]:
            graph.replace(op.name, replace(op, inputs=op.inputs[::-1]))
        elif isinstance(op, Add):
            graph.replace(op.name, *host_ops(graph, op, reason))
        else:
            _split_sum(graph, op, reason)


def _split_sum(graph: Graph, op: Compute, reason: str) -> None:
    """Leave the product on the array, and let the host add the residual and apply what follows."""
    *inputs, residual = op.inputs
    product = graph.fresh(f"{op.output}/product")
    graph.tensors[product] = replace(graph.info(op.output), name=product)
    sums = Add(
        name=graph.fresh(f"{op.name}/sum"),
        inputs=(product, residual),
        outputs=op.outputs,
        source=op.source,
        activation=op.activation,
        pre=op.pre,
    )
    graph.replace(
        op.name,
        replace(op, inputs=tuple(inputs), outputs=(product,), residual=False, activation=None, pre=""),
        *host_ops(graph, sums, reason),
    )


def _with_weights(graph: Graph, op: Conv | Linear | Affine) -> Op:
    quant = graph.info(op.inputs[0]).quant
    assert quant is not None
    scales = op.weight_scale
    if scales is None:
        scales = weight_scales(op, quant.scale)
    integer_weights(op, quant.scale, scales)  # refuses what could overflow
    return replace(op, weight_scale=scales)
