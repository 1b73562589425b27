"""The permute pass: an order of channels in which sparse layers take fewer steps, or keep more of their weights.

The outputs of the network do not change: a channel's producer and all its consumers move together, and where the order
is seen from outside (channels.py) nothing moves. All that is added to the network is what puts channels in order for
the host.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.packing import pack
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import array_weight
from gossamer.compiler.frontend.ops import Conv, Linear
from gossamer.compiler.sparsity.channels import Space, find_channels, reindex
from gossamer.compiler.sparsity.patterns import NM, channel_rows
from gossamer.compiler.sparsity.reorder import Grid, keep_order, step_order, steps_of

__all__ = ["Reordered", "layer_steps", "permute", "permute_for_nm", "reorder_steps", "useful_steps"]

Used = NDArray[np.bool_]

NEARLY_FULL = 0.95
"""From this density on, a layer's steps do not depend on the order of its channels."""

GATHERING = 0.01
"""Channels that the host sees are reordered for this share of the steps: the host then has to gather them."""


@dataclass(frozen=True, kw_only=True)
class Reordered:
    """What a new order did for the layers that make or read some channels. Steps are those of aligned windows."""

    layers: tuple[str, ...]
    channels: int
    before: int
    after: int


def permute(graph: Graph, spec: ArchSpec) -> Graph:
    """Reorder channels to save steps on a spec, with a note of what it saved. See reorder_steps."""
    graph, report = reorder_steps(graph, spec)
    for change in report:
        graph.notes.append(
            f"{', '.join(change.layers)}: {change.channels} channels reordered, "
            f"{change.before:,} steps become {change.after:,}"
        )
    return graph


def reorder_steps(graph: Graph, spec: ArchSpec, rounds: int = 120) -> tuple[Graph, tuple[Reordered, ...]]:
    """The graph with channels in an order that takes fewer steps, and what changed.

    graph : with layouts; best after quantise, for then every code stays the same and outputs are equal to the bit.
    A space of channels after the other is ordered, given the order of the others, in the graph's order.
    """
    grid = Grid(group=spec.group, macs=spec.macs, columns=spec.columns)
    channels = find_channels(graph)
    report = []
    for number, space in enumerate(channels.spaces):
        if space.fixed or space.size < 2:
            continue
        readers = list(_readers(graph, space))
        writers = list(_writers(graph, space))
        if not readers and not writers:
            continue
        order, before, after = step_order(
            space.size, [used for _, used in readers], [used for _, used in writers], grid, rounds, space.run
        )
        if after < before * (1.0 - GATHERING if space.host else 1.0):
            graph = reindex(graph, channels, {number: order})
            names = dict.fromkeys(name for name, _ in (*writers, *readers))
            report.append(Reordered(layers=tuple(names), channels=space.size, before=before, after=after))
    return graph, tuple(report)


def permute_for_nm(graph: Graph, patterns: Mapping[str, NM], rounds: int = 60) -> tuple[Graph, dict[str, float]]:
    """The graph with input channels in an order in which N:M pruning by magnitude keeps more.

    patterns : what will be imposed, by layer. Channels are reordered where all layers that read them will be N:M with
    the same M. Returns the graph, and for each layer the magnitude that is kept over what the old order kept.
    """
    channels = find_channels(graph)
    gains: dict[str, float] = {}
    index = {}
    for number, space in enumerate(channels.spaces):
        names = [name for name, _ in space.readers]
        wanted = [patterns.get(name) for name in names]
        found = [p for p in wanted if p is not None and not p.flat]
        if space.fixed or not found or len(found) < len(wanted) or len({p.m for p in found}) > 1:
            continue
        if any(first % found[0].m for _, first in space.readers):
            continue  # groups of a concatenation reach over the border
        scores = []
        for (name, first), pattern in zip(space.readers, found, strict=True):
            rows = np.abs(_rows(graph, name)[:, :, first : first + space.size]).reshape(-1, space.size)
            scores.append((np.ascontiguousarray(rows.T, dtype=np.float32), pattern.n))
        order, before, after = keep_order(scores, found[0].m, rounds, run=space.run)
        if after > before:
            index[number] = order
            gains |= dict.fromkeys(names, after / before)
    return reindex(graph, channels, index), gains


def layer_steps(used: Used, spec: ArchSpec) -> int:
    """Steps of a layer, as the packer makes them. used : bool [out, taps, in], which weights are not zero."""
    if spec.hop == spec.group:
        return steps_of(used, Grid(group=spec.group, macs=spec.macs, columns=spec.columns))
    out, taps, inputs = used.shape
    wide = np.pad(used, ((0, 0), (0, 0), (0, -inputs % spec.block)))
    blocks = wide.reshape(out, taps, -1, spec.block).transpose(2, 1, 3, 0).reshape(-1, out).astype(np.int8)
    addresses = np.arange(len(blocks))
    starts = range(0, out, spec.columns)
    return sum(pack(addresses, blocks[:, s : s + spec.columns], spec).steps for s in starts)


def useful_steps(used: Used, spec: ArchSpec) -> float:
    """The bound of layer_steps: useful nonzeros over the MACs of a step, for every column tile and at least one."""
    starts = range(0, len(used), spec.columns)
    size = spec.columns * spec.macs
    return sum(max(1.0, np.count_nonzero(used[s : s + spec.columns]) / size) for s in starts)


def _rows(graph: Graph, name: str) -> NDArray[np.float32]:
    """Weights as [out, taps, in], as they will be in the array where that is known already."""
    op = graph.op(name)
    assert isinstance(op, Conv | Linear)
    weight = op.weight
    if op.weight_scale is not None:  # small ones become zero
        weight = np.rint(weight / op.weight_scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return channel_rows(array_weight(graph, op, weight))


def _readers(graph: Graph, space: Space) -> Iterator[tuple[str, Used]]:
    """Sparse layers that read the channels, with their nonzeros [out, taps, channels]."""
    for name, first in space.readers:
        used = _rows(graph, name)[:, :, first : first + space.size] != 0
        if used.mean() < NEARLY_FULL:
            yield name, used


def _writers(graph: Graph, space: Space) -> Iterator[tuple[str, Used]]:
    """Sparse layers that make the channels, with their nonzeros [channels, taps, in]."""
    for name in space.writers:
        used = _rows(graph, name) != 0
        if used.mean() < NEARLY_FULL:
            yield name, used
