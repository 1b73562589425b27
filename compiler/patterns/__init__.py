"""Patterns of zeros: their names, which shapes can hold them, and which weights stay when one is imposed."""

from gossamer.compiler.patterns.coarse import VNM, Block, BlockDiagonal, Butterfly
from gossamer.compiler.patterns.combined import Combined
from gossamer.compiler.patterns.fine import NM, Dense, FanIn, Grouped, Taps, Transposable, Unstructured
from gossamer.compiler.patterns.notation import parse_pattern
from gossamer.compiler.patterns.pattern import Array, Mask, Pattern, channel_rows, from_channel_rows
from gossamer.compiler.patterns.rebuilt import Channels, LowRank, Monarch

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
    "Taps",
    "Transposable",
    "Unstructured",
    "channel_rows",
    "from_channel_rows",
    "parse_pattern",
]
