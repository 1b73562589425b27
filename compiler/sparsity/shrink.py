"""Structured removal: whole channels go, and every layer that makes or reads them becomes smaller.

Channels are removed where the network lets them: not where their order is seen from outside or by the host
(see channels.py), and in all layers that an addition or a depthwise convolution ties together at once.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.frontend.functions import Function
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import array_weight
from gossamer.compiler.frontend.ops import Activation, Affine, Compute, Conv, Linear, MaxPool, Op
from gossamer.compiler.sparsity.channels import Channels, Space, channel_axis, find_channels, reindex
from gossamer.compiler.sparsity.patterns.pattern import channel_rows, percent
from gossamer.compiler.sparsity.permute import layer_steps
from gossamer.compiler.sparsity.sparsifiers.moments import Moments, grouped_rows

__all__ = ["drop_dead_channels", "remove_channels"]


def remove_channels(
    graph: Graph, shares: Mapping[str, float], moments: Mapping[str, Moments] | None = None
) -> tuple[Graph, dict[str, float]]:
    """Remove a share of the output channels of the named layers: those that carry the least energy.

    shares : by layer; where several layers make the same channels, the largest counts for all of them.
    moments : of the layers' inputs; without them, energy is the sum of the squared weights.
    Returns the smaller graph and, for every layer named, the share of its output's energy that went. A layer whose
    channels cannot go is left as it is, with a note.
    """
    channels = find_channels(graph)
    index: dict[int, NDArray[np.int64]] = {}
    lost: dict[str, float] = {}
    notes = []
    for number, space in enumerate(channels.spaces):
        named = [name for name in space.writers if name in shares]
        if not named:
            continue
        refusal = _refusal(graph, channels, number)
        if refusal:
            notes += [f"{name}: left as it is instead of channels {percent(shares[name])}: {refusal}" for name in named]
            continue
        energies = {name: _energy(graph, name, (moments or {}).get(name)) for name in space.writers}
        score = np.sum([e / max(e.sum(), np.finfo(float).tiny) for e in energies.values()], axis=0)
        count = max(1, space.size - round(space.size * max(shares[name] for name in named)))
        keep = np.sort(np.argsort(-score, kind="stable")[:count])
        index[number] = keep
        for name in named:
            whole = float(energies[name].sum())
            lost[name] = 1.0 - float(energies[name][keep].sum()) / whole if whole else 0.0
    graph = reindex(graph, channels, index)
    graph.notes += notes
    return graph, lost


def drop_dead_channels(graph: Graph, granule: int = 8, spec: ArchSpec | None = None) -> Graph:
    """Remove channels whose absence changes nothing: nobody reads them, or they are always zero.

    What a pruner that only sets zeros leaves behind becomes smaller layers, exactly.
    granule : the number that stays is a multiple of it. Less than a channel block of the spec saves nothing, and a
    dense layer whose last window is not full needs selects in all its records.
    spec : where given, channels go only if the layers around them then take no more steps: those behind them move to
    other windows, and a layer that was N:M of whole windows may be so no longer.
    """
    while True:
        channels = find_channels(graph)
        index: dict[int, NDArray[np.int64]] = {}
        for number, space in enumerate(channels.spaces):
            if space.kept or space.size < 2 or not space.writers:
                continue
            dead = _unread(graph, space) | _always_zero(graph, channels, number)
            spare = np.flatnonzero(dead)[: max(granule, -(-int((~dead).sum()) // granule) * granule) - (~dead).sum()]
            dead[spare] = False
            if not dead.any() or _refusal(graph, channels, number):
                continue
            chosen = {number: np.flatnonzero(~dead)}
            if spec is None or _steps(reindex(graph, channels, chosen), space, spec) <= _steps(graph, space, spec):
                index |= chosen
        if not index:
            return graph
        graph = reindex(graph, channels, index)


def _steps(graph: Graph, space: Space, spec: ArchSpec) -> int:
    """Steps of the layers that make and read some channels."""
    names = dict.fromkeys((*space.writers, *(name for name, _ in space.readers)))
    return sum(layer_steps(channel_rows(_weight(graph, name)) != 0, spec) for name in names)


def _refusal(graph: Graph, channels: Channels, number: int) -> str:
    """Why channels of a space cannot be removed, "" when they can."""
    if channels.spaces[number].kept:
        return channels.spaces[number].kept
    for tensor, parts in channels.parts.items():
        if number in parts and channel_axis(graph, tensor) is None:
            return f"the channels of {tensor!r} lie along several axes"
    return ""


def _weight(graph: Graph, name: str) -> NDArray[np.float64]:
    op = graph.op(name)
    assert isinstance(op, Conv | Linear)
    return array_weight(graph, op, op.weight)


def _energy(graph: Graph, name: str, moments: Moments | None) -> NDArray[np.float64]:
    """Energy of each output channel, float64 [out]."""
    rows = grouped_rows(_weight(graph, name).astype(np.float64), 1)
    seen = rows if moments is None else rows @ moments.gram
    energy: NDArray[np.float64] = np.einsum("gok,gok->o", seen, rows)
    return energy


def _unread(graph: Graph, space: Space) -> NDArray[np.bool_]:
    """Channels that no layer gives a weight."""
    unread = np.full(space.size, bool(space.readers))
    for name, first in space.readers:
        weight = _weight(graph, name)[:, first : first + space.size]
        unread &= ~weight.any(axis=(0, 2, 3))
    return unread


def _always_zero(graph: Graph, channels: Channels, number: int) -> NDArray[np.bool_]:
    """Channels that nobody writes anything but zero to, and whose zeros stay zeros on the way."""
    space = channels.spaces[number]
    zero = np.ones(space.size, dtype=bool)
    for name in space.writers:
        op = graph.op(name)
        assert isinstance(op, Conv | Linear)
        zero &= ~_weight(graph, name).any(axis=(1, 2, 3)) & ~_added(op)
    for name in space.along:
        op = graph.op(name)
        added = op.shift != 0 if isinstance(op, Affine) else _added(op)
        zero &= ~_part(channels, op, number, added)
    passed = [op for op in graph.order() if number in channels.parts.get(op.output, ())]
    return zero if all(_keeps_zero(op) for op in passed) else np.zeros_like(zero)


def _added(op: Op) -> NDArray[np.bool_]:
    """Output channels to which a bias is added."""
    assert isinstance(op, Conv | Linear)
    return np.zeros(len(op.weight), dtype=bool) if op.bias is None else op.bias != 0


def _part(channels: Channels, op: Op, number: int, values: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What one space has of values that stand for all channels of an operation; any of its occurrences counts."""
    found = np.zeros(channels.spaces[number].size, dtype=bool)
    first = 0
    for i in channels.parts[op.output]:
        size = channels.spaces[i].size
        if i == number:
            found |= values[first : first + size]
        first += size
    return found


def _keeps_zero(op: Op) -> bool:
    function: Function | None = None
    if isinstance(op, Activation):
        function = op.function
    elif isinstance(op, Compute | MaxPool):
        function = op.activation
    return function is None or bool(function(np.zeros(1))[0] == 0.0)
