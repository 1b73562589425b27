"""A map of one pixel that is the same for every channel block, seen as a map of many: its blocks one above another.

Lanes share out positions, so a global pooling would keep one of them busy. But its channel blocks lie one behind
another in DRAM, each is summed with the same weights, and their results follow one another as the pixels of one block
would: the same bytes are one block of taller maps, and every lane gets some.
"""

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from gossamer.arch.layout import Placement
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.layers import Conv, MaxPool

__all__ = ["stack"]


def stack(
    layer: Conv | MaxPool, source: Placement, output: Placement, spec: ArchSpec
) -> tuple[Conv | MaxPool, Placement, Placement] | None:
    """The layer, its input and its output as they are seen then; None where blocks are not alike or lie apart."""
    blocks, block = output.blocks, spec.block
    plain = output.border == (0, 0, 0, 0) and source.heads == output.heads == 1
    whole = source.block == block and source.shape[1] == output.shape[1] == blocks * block
    if blocks == 1 or output.shape[2:] != (1, 1) or not plain or not whole or len(layer.inputs) != 1:
        return None
    stride = (source.rows, 1)
    seen: Conv | MaxPool = replace(layer, stride=stride)
    if isinstance(layer, Conv):
        by_channel: dict[str, NDArray[Any]] = {"weight": layer.weight, "bias": layer.bias, "scale": layer.scale}
        if layer.residual or layer.groups != blocks * block or not all(_alike(v, blocks) for v in by_channel.values()):
            return None
        first: dict[str, Any] = {name: values[:block] for name, values in by_channel.items()}
        seen = replace(layer, **first, groups=block, stride=stride)
    n, _, h, w = source.shape
    tall = replace(source, shape=(n, block, (blocks - 1) * source.rows + h, w))
    return seen, tall, replace(output, shape=(n, block, blocks, 1))


def _alike(values: NDArray[Any], blocks: int) -> bool:
    """Whether all blocks have the same values. values : [channels, ...]."""
    parts = values.reshape(blocks, -1)
    return bool((parts == parts[0]).all())
