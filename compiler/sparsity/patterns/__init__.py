"""Patterns of zeros: their names, which shapes can hold them, and which weights stay when one is imposed."""

from gossamer.compiler.sparsity.patterns.coarse import VNM, Block, BlockDiagonal, Butterfly
from gossamer.compiler.sparsity.patterns.combined import Combined
from gossamer.compiler.sparsity.patterns.fine import NM, Dense, FanIn, Grouped, Taps, Transposable, Unstructured
from gossamer.compiler.sparsity.patterns.notation import parse_pattern
from gossamer.compiler.sparsity.patterns.pattern import Array, Mask, Pattern, channel_rows, from_channel_rows
from gossamer.compiler.sparsity.patterns.rebuilt import Channels, LowRank, Monarch, PlusLowRank

__all__ = [
    "NM",
    "VNM",
    "Array",
    "Block",
    "BlockDiagonal",
    "Butterfly",
    "Channels",
    "Combined",
    "Dense",
    "FanIn",
    "Grouped",
    "LowRank",
    "Mask",
    "Monarch",
    "Pattern",
    "PlusLowRank",
    "Taps",
    "Transposable",
    "Unstructured",
    "channel_rows",
    "from_channel_rows",
    "parse_pattern",
]
