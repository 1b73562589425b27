"""Heads in channels: where a tensor's heads stand as runs of channels, each run fills channel blocks of its own.

A product of two activations works on whole channel blocks of a head. If a head's channels are no multiple of a block,
the tensor's placement spreads them, and layers that read or write it without knowing heads get weights with zeros for
the channels in between, which hold the zero point like any other filling.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import CapacityError
from gossamer.arch.layout import Placement
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.matmul import packable
from gossamer.compiler.layers import Conv, Layer, MatMul, MaxPool, Network

__all__ = ["check_padding", "place_heads", "spread"]


def place_heads(network: Network, spec: ArchSpec) -> dict[str, int]:
    """Heads of every tensor that has to be spread.

    Raises CapacityError when two layers want the same channels spread differently.
    """
    heads: dict[str, int] = {}
    for layer in network.layers:
        if isinstance(layer, MatMul):
            for name in _spread_by(layer, network, spec):
                _agree(heads, name, layer.products // network.tensors[name].shape[0], layer.name)
    changed = bool(heads)
    while changed:  # layers that keep channels apart pass them on
        changed = False
        for layer in network.layers:
            alike = _alike(layer)
            runs = max((heads.get(name, 1) for name in alike), default=1)
            for name in alike:
                if heads.get(name, 1) != runs and not (isinstance(layer, MatMul) and _is_image(layer, name, network)):
                    _agree(heads, name, runs, layer.name)
                    changed = True
    return heads


def _spread_by(layer: MatMul, network: Network, spec: ArchSpec) -> Iterator[str]:
    """Tensors whose heads can neither fill whole blocks nor share them."""
    for name in (layer.a, layer.b, layer.output):
        n, c = network.tensors[name].shape[:2]
        runs = layer.products // n
        partners = (layer.b, layer.output) if not layer.transposed and name != layer.a else (name,)
        alike = {network.tensors[p].shape[:2] for p in partners} == {(n, c)}  # V and Y share columns of tiles
        shared = alike and all(packable(layer, p, c // runs, runs, spec) for p in partners)
        if runs > 1 and (c // runs) % spec.block and not shared:
            yield name


def _agree(heads: dict[str, int], name: str, runs: int, layer: str) -> None:
    if heads.setdefault(name, runs) != runs:
        raise CapacityError(f"layer {layer!r} takes {name!r} as {runs} heads, and another layer as {heads[name]}")


def _is_image(layer: MatMul, name: str, network: Network) -> bool:
    """Whether a tensor's heads are its images."""
    return network.tensors[name].shape[0] == layer.products


def _alike(layer: Layer) -> tuple[str, ...]:
    """Tensors of a layer whose channels stand in the same places."""
    if isinstance(layer, MatMul):
        return () if layer.transposed else (layer.b, layer.output)
    others: tuple[str, ...] = (layer.residual,) if isinstance(layer, Conv) and layer.residual else ()
    if isinstance(layer, MaxPool) or layer.groups > 1:
        others += layer.inputs
    return (layer.output, *others) if others else ()


def spread(layer: Conv | MaxPool, placements: dict[str, Placement]) -> tuple[Conv | MaxPool, dict[str, Placement]]:
    """The layer and its tensors' places with every slot of spread channels as a channel of its own.

    Raises CapacityError for a grouped layer that is not depthwise.
    """
    names = [*layer.inputs, layer.output, *([layer.residual] if isinstance(layer, Conv) and layer.residual else [])]
    if all(placements[name].heads == 1 for name in names):
        return layer, placements
    wide = {name: _widened(placements[name]) for name in names}
    if isinstance(layer, MaxPool):
        return layer, placements | wide
    out = placements[layer.output].slots
    channels = wide[layer.output].shape[1]
    weight = layer.weight
    groups = layer.groups
    if groups == 1:
        first, into = 0, []
        for name in layer.inputs:
            into.append(first + placements[name].slots)
            first += wide[name].shape[1]
        weight = _scattered(weight, np.concatenate(into), first, axis=1)
    elif groups == layer.weight.shape[0] == placements[layer.inputs[0]].shape[1] and len(layer.inputs) == 1:
        groups = channels
    else:
        raise CapacityError(f"layer {layer.name!r} has {groups} groups of channels that are heads of a product")
    scale = np.full(channels, layer.scale.min(initial=np.inf))  # a scale of zero is none
    scale[out] = layer.scale
    weight, bias = (_scattered(values, out, channels, axis=0) for values in (weight, layer.bias))
    return replace(layer, weight=weight, bias=bias, scale=scale, groups=groups), placements | wide


def check_padding(network: Network, spec: ArchSpec) -> None:
    """Refuse (CapacityError) products whose last step would read filling that is not zero.

    A layer with a table writes the table's code for zero into the channels that fill up a block. Where a reduction
    over channels is no whole number of steps, one operand's filling has to be real zero.
    """
    tables = {layer.output: layer.table for layer in network.layers if not isinstance(layer, MaxPool)}
    zero_of = {layer.output: layer.zero_point for layer in network.layers if not isinstance(layer, MaxPool)}

    def clean(name: str) -> bool:
        table = tables.get(name)
        return table is None or int(table[zero_of[name] & 0xFF]) == network.tensors[name].zero_point & 0xFF

    for layer in network.layers:
        if not isinstance(layer, MatMul) or not layer.transposed or clean(layer.a) or clean(layer.b):
            continue
        n, c = network.tensors[layer.a].shape[:2]
        if (n * c // layer.products) % spec.macs:
            raise CapacityError(
                f"layer {layer.name!r} reduces over {n * c // layer.products} channels, no multiple of macs "
                f"({spec.macs}), and both operands end in a table that does not keep zero"
            )


def _widened(p: Placement) -> Placement:
    """The same bytes with all slots as channels."""
    if p.heads == 1:
        return p
    n, _, h, w = p.shape
    return replace(p, shape=(n, p.blocks * p.block, h, w), heads=1)


def _scattered(values: NDArray, places: NDArray[np.int64], size: int, axis: int) -> NDArray:  # type: ignore[type-arg]
    """Values at their places along an axis of `size`, zeros elsewhere."""
    shape = list(values.shape)
    shape[axis] = size
    out = np.zeros(shape, dtype=values.dtype)
    out[(slice(None),) * axis + (places,)] = values
    return out
