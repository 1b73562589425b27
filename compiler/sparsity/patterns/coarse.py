"""Patterns of blocks of weights: blocks anywhere, V:N:M, block-diagonal, and the flat block butterfly."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.patterns.pattern import (
    Array,
    Mask,
    Pattern,
    best_share,
    channel_rows,
    check_share,
    from_channel_rows,
    largest,
    percent,
)

__all__ = ["VNM", "Block", "BlockDiagonal", "Butterfly"]


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of rows output channels by cols input channels (at one tap) that are zero or full."""

    rows: int
    cols: int
    sparsity: float

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise ModelError(f"block {self.rows}x{self.cols}: both sides must be at least 1")
        check_share("block", self.sparsity)

    def __str__(self) -> str:
        return f"block {self.rows}x{self.cols} {percent(self.sparsity)}"

    @property
    def zeros(self) -> float:
        """As asked for."""
        return self.sparsity

    def with_zeros(self, share: float) -> "Block":
        """Any share."""
        return Block(self.rows, self.cols, share)

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs room for a block."""
        small = shape[0] < self.rows or shape[1] < self.cols
        return f"{shape[0]}x{shape[1]} channels are fewer than a block of {self.rows}x{self.cols}" if small else ""

    def mask(self, scores: Array) -> Mask:
        """Blocks of the largest energy."""
        rows = channel_rows(scores)
        energy = _tiles(np.square(rows, dtype=np.float64), self.rows, self.cols).sum(axis=(1, 4))
        keep = best_share(energy, self.sparsity)
        full = np.repeat(np.repeat(keep, self.rows, axis=0), self.cols, axis=2)[: rows.shape[0], :, : rows.shape[2]]
        return from_channel_rows(full, scores.shape)


@dataclass(frozen=True)
class VNM(Pattern):
    """In each block of v output by m input channels, 4 columns are shared, and each row has n nonzeros among them."""

    shared: ClassVar[int] = 4
    v: int
    n: int
    m: int

    def __post_init__(self) -> None:
        if self.v < 1 or not 1 <= self.n <= self.shared or self.m <= self.shared or self.m > 64:
            raise ModelError(f"vnm {self.v}:{self.n}:{self.m}: needs V >= 1, N from 1 to 4, and M from 5 to 64")

    def __str__(self) -> str:
        return f"vnm {self.v}:{self.n}:{self.m}"

    @property
    def zeros(self) -> float:
        """1 - N / M."""
        return 1.0 - self.n / self.m

    def with_zeros(self, share: float) -> "VNM":
        """The same V and M with the nearest N."""
        return VNM(self.v, min(self.shared, max(1, round(self.m * (1.0 - share)))), self.m)

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs room for a block."""
        small = shape[0] < self.v or shape[1] < self.m
        return f"{shape[0]}x{shape[1]} channels are fewer than a block of {self.v}x{self.m}" if small else ""

    def mask(self, scores: Array) -> Mask:
        """The four columns of the largest sum in each block, then the n largest of those in each row."""
        rows = channel_rows(np.abs(scores))
        tiles = _tiles(rows, self.v, self.m)  # [blocks, v, taps, blocks, m]
        columns = largest(tiles.sum(axis=1), self.shared)[:, np.newaxis]
        keep = largest(np.where(columns, tiles, -1.0), self.n) & columns
        full = keep.reshape(-1, *keep.shape[2:3], keep.shape[3] * keep.shape[4])[: rows.shape[0], :, : rows.shape[2]]
        return from_channel_rows(full, scores.shape)


@dataclass(frozen=True)
class BlockDiagonal(Pattern):
    """Input and output channels in `blocks` equal runs; run i of the outputs reads run i of the inputs and no other."""

    blocks: int

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise ModelError(f"blockdiag {self.blocks}: needs at least 2 blocks")

    def __str__(self) -> str:
        return f"blockdiag {self.blocks}"

    @property
    def zeros(self) -> float:
        """All but one block in each row of blocks."""
        return 1.0 - 1.0 / self.blocks

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs equal runs."""
        uneven = any(side % self.blocks for side in shape[:2])
        return f"{shape[0]}x{shape[1]} channels do not divide into {self.blocks} blocks each" if uneven else ""

    def mask(self, scores: Array) -> Mask:
        """The blocks on the diagonal, whatever the scores."""
        return _stretched(np.eye(self.blocks, dtype=bool), scores.shape)


@dataclass(frozen=True)
class Butterfly(Pattern):
    """Flat block butterfly: block (i, j) of side x side is there when i = j or i xor j is a power of two below stride.

    The fixed pattern of Chen et al., "Pixelated Butterfly" (ICLR 2022), section 3; a matrix that is not square has
    the pattern of its shorter side, stretched.
    """

    side: int
    stride: int

    def __post_init__(self) -> None:
        if self.side < 1 or self.stride < 2 or self.stride & (self.stride - 1):
            raise ModelError(f"butterfly {self.side} {self.stride}: needs SIDE >= 1 and a STRIDE of 2, 4, 8, ...")

    def __str__(self) -> str:
        return f"butterfly {self.side} {self.stride}"

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs whole blocks, and as many as the stride."""
        if any(side % self.side for side in shape[:2]):
            return f"{shape[0]}x{shape[1]} channels do not divide into blocks of {self.side}"
        count = min(shape[:2]) // self.side
        return f"{count} blocks of {self.side} are fewer than the stride {self.stride}" if count < self.stride else ""

    def mask(self, scores: Array) -> Mask:
        """The blocks of the butterfly, whatever the scores."""
        index = np.arange(min(scores.shape[:2]) // self.side)
        apart = index[:, np.newaxis] ^ index
        return _stretched((apart < self.stride) & ((apart & (apart - 1)) == 0), scores.shape)


def _stretched(grid: Mask, shape: tuple[int, ...]) -> Mask:
    """A square grid of blocks as a mask of a whole weight: every element takes the value of its part of the grid."""
    rows = np.arange(shape[0]) * len(grid) // shape[0]
    columns = np.arange(shape[1]) * len(grid) // shape[1]
    full = grid[rows[:, np.newaxis], columns].reshape(*shape[:2], *[1] * (len(shape) - 2))
    return np.broadcast_to(full, shape).copy()


def _tiles(rows: Array, height: int, width: int) -> Array:
    """[out, taps, in] as [out blocks, height, taps, in blocks, width], padded with zeros."""
    padded = np.pad(rows, ((0, -rows.shape[0] % height), (0, 0), (0, -rows.shape[2] % width)))
    return padded.reshape(padded.shape[0] // height, height, rows.shape[1], padded.shape[2] // width, width)
