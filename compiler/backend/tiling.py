"""What a mapping is: bands of the output map, lane grids, tiles and loop order, with the cost that found it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.spec import ArchSpec
from gossamer.arch.timing import drain_latency, matmul_latency

__all__ = ["Band", "Cost", "Mapping", "burst_cost", "compute_cycles", "overlapped", "sub_tile"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Closed-form cycles of a layer by itself, and what they are made of."""

    cycles: float
    array: float
    ppu: float
    read: float
    write: float
    start: float
    finish: float

    @property
    def flowing(self) -> float:
        """Without start and finish, which overlap with the layers around it."""
        return self.cycles - self.start - self.finish


@dataclass(frozen=True, kw_only=True)
class Band:
    """A rectangle of the output map, (y, x) to (y + rows, x + pixels), cut by one lane grid.

    grid : log2 of the lane grid's width.  tile : (rows, pixels) of outputs per lane.
    """

    y: int
    x: int
    rows: int
    pixels: int
    grid: int
    lane_rows: int
    tile: tuple[int, int]

    @property
    def lane_columns(self) -> int:
        """Width of the lane grid."""
        return 1 << self.grid

    @property
    def macros(self) -> int:
        """Macro tiles of an image."""
        return -(-self.rows // (self.lane_rows * self.tile[0])) * -(-self.pixels // (self.lane_columns * self.tile[1]))


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """How a layer is cut.

    bands : rectangles that cover the output map. More than one only where all of their inputs are on chip at once.
    chunks : runs of input blocks that are on chip at once (1: the whole reduction).
    steps_at_once : steps of one MATMUL at most.  order : "map", "columns" or "tiles" (see mapping.py).
    resident : all weights of a unit stay on chip through the map.
    """

    bands: tuple[Band, ...]
    chunks: int
    steps_at_once: int
    order: str
    resident: bool
    cost: Cost

    def describe(self) -> str:
        """One line for reports."""
        kept = "weights resident" if self.resident else f"{self.order} outside"
        chunk = f", reduction in {self.chunks}" if self.chunks > 1 else ""
        cuts = (f"{b.lane_rows}x{b.lane_columns} lanes of {b.tile[0]}x{b.tile[1]} positions" for b in self.bands)
        return f"{' and '.join(cuts)}, {kept}{chunk}"


def sub_tile(tile: tuple[int, int], depth: int) -> tuple[int, int]:
    """Rows and pixels of a sub-tile: as few and as even pieces as fit the accumulators."""
    rows, pixels = tile
    across = -(-pixels // depth)
    nx = -(-pixels // across)
    down = -(-rows // max(1, depth // nx))
    return -(-rows // down), nx


def burst_cost(spec: ArchSpec, row_beats: NDArray[np.int64] | int, *, write: bool) -> NDArray[np.float64]:
    """Beat intervals per beat in rows of so many beats: a burst ends with its row, and only some are in flight."""
    latency, flying = (
        (spec.write_latency, spec.outstanding_writes) if write else (spec.read_latency, spec.outstanding_reads)
    )
    beats = np.minimum(row_beats, spec.burst_beats) * float(spec.beat_interval)
    taken: NDArray[np.float64] = np.maximum(beats + spec.burst_gap, (latency + beats) / flying) / beats
    return taken


def compute_cycles(
    spec: ArchSpec, steps: NDArray[np.int64], positions: NDArray[np.float64], items: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Cycles of array and PPUs together. steps : of every column tile.

    positions, items : of a lane, and MATMULs that they are cut into. There are two banks of accumulators: a MATMUL
    waits for the DRAIN of the one before the last, so that two of them take at least one's way through both pipelines.
    """
    groups = spec.column_groups
    latency = (matmul_latency(spec) + drain_latency(spec)) * items
    slots, turns = np.maximum(steps, groups)[:, None] * positions, (steps + groups)[:, None] * positions
    taken: NDArray[np.float64] = np.maximum(slots, (turns + latency) / 2).sum(axis=0)
    return taken


def overlapped(*cycles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cycles of units that work side by side: the slowest, and something where another is almost as slow."""
    slowest = np.maximum(np.maximum.reduce(cycles), 1.0)
    shares = sum(((c / slowest) ** 8 for c in cycles), np.zeros_like(slowest))
    taken: NDArray[np.float64] = slowest * shares**0.125
    return taken
