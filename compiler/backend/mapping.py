"""The mapper: how a layer is cut into tiles, found by searching all candidates with the closed-form cost.

A macro tile is what the activation banks hold at once: `tile` output positions for each lane of a lane grid, whole
depth of the reduction unless that does not fit. Inside it, column tiles follow each other; inside those, sub-tiles of
at most `depth` positions (one MATMUL each). Which operand stays on chip is the loop order and what is resident:
    order "map"      macro tiles outside, column tiles inside: activations are loaded once, and weights for every
                     macro tile again unless all of them stay in the weight buffer
    order "columns"  output blocks outside, macro tiles inside: weights are loaded once, activations for every block
    order "tiles"    column tiles outside, macro tiles inside: both are loaded once, for all macro tiles are on chip

A map that leaves lanes idle under every grid may be cut into two bands with a grid each (compiler/backend/bands.py).
"""

from math import prod

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import CapacityError
from gossamer.compiler.backend.bands import split
from gossamer.compiler.backend.cost import (
    alone,
    extents,
    layer_work,
    loads_once,
    make_cut,
    pieces,
    row_bytes,
    steps_at_once,
)
from gossamer.compiler.backend.problem import Problem
from gossamer.compiler.backend.streams import UnitStreams
from gossamer.compiler.backend.tiling import Band, Cost, Mapping

__all__ = ["bank_bytes", "bound", "candidates", "grids", "loadable", "search", "tile_sizes", "whole_map"]


def bound(
    problem: Problem, streams: tuple[UnitStreams, ...], *, kept_input: bool = False, kept_output: bool = False
) -> tuple[float, int, int]:
    """Lower bound of a layer: (array cycles with the steps achieved, beats read, beats written, each once).

    kept_input, kept_output : that tensor stays on chip.
    """
    spec = problem.spec
    rows, pixels = problem.out
    steps = sum(int(s.steps.sum()) for s in streams)
    array = steps * problem.images * rows * pixels / spec.lanes
    # Column tiles with the same records (poolings, identities) need them only once.
    distinct = {(t.stream.values.tobytes(), t.stream.selects.tobytes()): t for s in streams for t in s.tiles}
    weights = sum(t.beats(spec) for t in distinct.values())
    n, k = problem.output.shape[:2]
    inputs = 0 if kept_input else _read(problem, 0) * _read(problem, 1) * sum(prod(p.shape[:2]) for p in problem.inputs)
    outputs = n * k * rows * pixels
    residual = outputs if problem.residual else 0
    read = weights + -(-(inputs + residual + 8 * k) // spec.axi_bytes)
    return array, read, 0 if kept_output else -(-outputs // spec.axi_bytes)


def _read(problem: Problem, axis: int) -> int:
    """Rows (axis 0) or pixels of a row (1) of the inputs that some position reads; strides may leave some out."""
    first, size = problem.inputs[0].border[axis], problem.inputs[0].shape[2 + axis]
    positions, taps = np.arange(problem.out[axis]), np.arange(problem.kernel[axis])
    at = problem.origin[axis] - first + positions[:, None] * problem.stride[axis] + taps * problem.dilation[axis]
    return np.unique(at[(at >= 0) & (at < size)]).size


def search(problem: Problem, streams: tuple[UnitStreams, ...]) -> Mapping:
    """The cheapest legal mapping.

    Raises CapacityError, naming the layer, what it needs at least and what the spec has, when there is none.
    """
    found = candidates(problem, streams)
    if found:
        return split(problem, streams, found[0]) or found[0]
    spec = problem.spec
    need = problem.extent(1, 0) * problem.row_bytes(1)
    raise CapacityError(
        f"layer {problem.layer.name!r} does not fit spec {spec.name!r}: one output position reads {need} bytes of one "
        f"channel block, and a lane holds activation_bytes = {spec.activation_bytes}, output_bytes = "
        f"{spec.output_bytes} (one block takes {spec.block}); make them larger"
    )


def candidates(problem: Problem, streams: tuple[UnitStreams, ...], dataflow: str = "") -> list[Mapping]:
    """The best mapping under every lane grid and loop order, the cheapest first; empty when nothing fits.

    dataflow : only mappings that keep one operand still, for comparisons: "output" (sums stay, weights pass for every
    macro tile), "weight" (an output block's weights stay while the map passes) or "input" (a macro tile's inputs stay
    while all weights pass).
    """
    for chunks in _chunk_counts(problem):
        found = [
            mapping
            for grid, lane_rows in grids(problem)
            for mapping in _best_tiles(problem, streams, grid, lane_rows, chunks, dataflow)
        ]
        if found:
            return sorted(found, key=lambda m: m.cost.cycles)
    return []


def _chunk_counts(problem: Problem) -> list[int]:
    """Numbers of runs to cut the reduction into: the whole, then halves, down to single blocks."""
    blocks = max(len(u.input_blocks) for u in problem.units)
    out = [1]
    while out[-1] < blocks:
        out.append(min(2 * out[-1], blocks))
    return out


def grids(problem: Problem) -> list[tuple[int, int]]:
    """(log2 width, rows) of lane grids worth trying."""
    lanes = problem.spec.lanes
    return [(g, max(1, min(lanes >> g, problem.out[0]))) for g in range(lanes.bit_length()) if lanes >> g]


def _best_tiles(
    problem: Problem, streams: tuple[UnitStreams, ...], grid: int, lane_rows: int, chunks: int, dataflow: str
) -> list[Mapping]:
    """The best tile under a lane grid, one for each loop order."""
    spec = problem.spec
    width = 1 << grid
    ty, tx = tile_sizes(problem, lane_rows, width)
    bank = bank_bytes(problem, ty, tx, chunks)
    legal = loadable(problem, lane_rows, width, ty, tx) & (bank <= spec.activation_bytes)
    legal &= ty * tx * spec.block <= spec.output_bytes
    if dataflow == "output":
        legal &= ty * tx <= spec.depth
    if not legal.any():
        return []
    cut, bank = make_cut(problem, lane_rows, width, ty[legal], tx[legal]), bank[legal]
    unit_steps = max(int(s.steps.sum()) for s in streams)
    best = []
    for order in ("map", "columns"):
        if (order == "columns" and chunks > 1) or order == _OTHER_ORDER.get(dataflow):
            continue
        resident = order == "map" and not dataflow and unit_steps <= spec.weight_steps and chunks == 1
        work = layer_work(problem, streams, cut, bank, chunks=chunks, order=order, resident=resident)
        once = loads_once(problem, streams, order, resident=resident)
        cost = alone(work, cut.macros, spec, once=once, resident=resident)
        i = int(np.argmin(cost["cycles"]))
        best.append(
            Mapping(
                bands=(whole_map(problem, grid, lane_rows, (int(cut.ty[i]), int(cut.tx[i]))),),
                chunks=chunks,
                steps_at_once=steps_at_once(spec),
                order=order,
                resident=resident,
                cost=Cost(**{k: float(v[i]) for k, v in cost.items()}),
            )
        )
    return best


_OTHER_ORDER = {"output": "columns", "input": "columns", "weight": "map"}
"""The loop order that a fixed dataflow excludes."""


def tile_sizes(problem: Problem, lane_rows: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and pixels of every tile worth trying under a lane grid, int64 [candidates] each."""
    ty, tx = np.meshgrid(
        np.array(pieces(-(-problem.out[0] // lane_rows))),
        np.array(pieces(-(-problem.out[1] // width), problem.tile_step if width > 1 else 1)),
        indexing="ij",
    )
    return ty.reshape(-1), tx.reshape(-1)


def bank_bytes(problem: Problem, ty: NDArray[np.int64], tx: NDArray[np.int64], chunks: int = 1) -> NDArray[np.int64]:
    """Bytes of a macro tile's inputs in a bank, of the largest run of input blocks."""
    blocks = max(len(u.input_blocks) for u in problem.units)
    tile = -(-blocks // chunks) * extents(problem, ty, 0) * row_bytes(problem, tx)
    return tile + (problem.spec.activation_row_bytes if problem.spec.hop < problem.spec.group else 0)


def loadable(
    problem: Problem, lane_rows: int, width: int, ty: NDArray[np.int64], tx: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether every field of a LOAD of such a tile is within its bits, and every lane begins with a beat."""
    spec = problem.spec
    begins: NDArray[np.bool_] = (tx % problem.tile_step == 0) | ((width * tx >= problem.out[1]) & (width == 1))
    fits: NDArray[np.bool_] = (
        (row_bytes(problem, tx) // spec.axi_bytes < 1 << 12)
        & (extents(problem, ty, 0) < 1 << 10)
        & (ty * problem.bank_stride[0] < 1 << 10)
        & (width * tx * problem.stride[1] * problem.pixel_bytes // spec.axi_bytes < 1 << 15)
        & (lane_rows * ty * problem.stride[0] < 1 << 11)
    )
    return begins & fits


def whole_map(problem: Problem, grid: int, lane_rows: int, tile: tuple[int, int]) -> Band:
    """One band: the output map under a lane grid."""
    rows, pixels = problem.out
    return Band(y=0, x=0, rows=rows, pixels=pixels, grid=grid, lane_rows=lane_rows, tile=tile)
