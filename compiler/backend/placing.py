"""Where every tensor stands in DRAM, with the border that its hungriest reader needs."""

import math
from collections.abc import Collection

import numpy as np

from gossamer.arch.layout import Placement
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.heads import check_padding, place_heads
from gossamer.compiler.backend.matmul import padded_tokens
from gossamer.compiler.backend.narrow import narrow_blocks
from gossamer.compiler.layers import MatMul, Network

__all__ = ["page_up", "place_tensors"]

_PAGE = 4096
"""Tensors begin at multiples of a page, so that their bursts are not cut more often than need be."""


def page_up(size: int) -> int:
    """The next multiple of a page."""
    return -(-size // _PAGE) * _PAGE


def place_tensors(network: Network, spec: ArchSpec, kept: Collection[str] = ()) -> dict[str, Placement]:
    """Give every tensor its place in DRAM, with the border that its hungriest consumer needs.

    kept : tensors that never leave the chip and take no room.
    """
    border = {name: np.zeros(4, dtype=np.int64) for name in network.tensors}
    windows = [layer for layer in network.layers if not isinstance(layer, MatMul)]
    for layer in windows:
        for name in layer.inputs:
            border[name] = np.maximum(border[name], layer.pads)
    for product in (layer for layer in network.layers if isinstance(layer, MatMul)):
        tokens = network.tensors[product.b].shape[3]  # loads of an operand take more, to fill columns or steps
        border[product.b][3] = max(border[product.b][3], padded_tokens(product, tokens, spec) - tokens)
    for layer in windows:  # concatenated inputs are read with one set of strides
        shared = np.max([border[name] for name in layer.inputs], axis=0)
        for name in layer.inputs:
            border[name] = np.maximum(border[name], shared)
    narrow, heads = narrow_blocks(network, spec), place_heads(network, spec)
    check_padding(network, spec)
    placements, address = {}, 0
    for name, tensor in network.tensors.items():
        top, left, bottom, right = (int(b) for b in border[name])
        block = narrow.get(name, spec.block)
        row = math.lcm(block, spec.axi_bytes) // block  # pixels in whole beats
        right += -(left + tensor.shape[3] + right) % row
        placements[name] = Placement(
            name=name,
            address=address,
            shape=tensor.shape,
            block=block,
            border=(top, left, bottom, right),
            scale=tensor.scale,
            zero_point=tensor.zero_point,
            signed=tensor.signed,
            model_shape=tensor.model_shape or tensor.shape,
            channels_last=tensor.channels_last,
            heads=heads.get(name, 1),
        )
        if name not in kept:
            address = page_up(address + placements[name].size)
    return placements
