"""Maps that no lane grid divides well: two bands with a grid each.

A 14 x 14 map on 16 lanes takes 14 positions a lane under every grid, though 196 / 16 is little more than 12. Its upper
8 rows on 8 x 2 lanes take 7, its lower 6 rows on 2 x 8 lanes 6. If both bands' inputs are on chip at once, both use a
column tile's weights before the next one comes, and nothing but the rows between them is loaded twice; else they are
macro tiles like others.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np

from gossamer.arch.timing import drain_latency
from gossamer.compiler.backend.cost import Work, alone, loads_once, tile_traffic
from gossamer.compiler.backend.problem import Problem
from gossamer.compiler.backend.streams import UnitStreams, unit_records
from gossamer.compiler.backend.tiling import Band, Cost, Mapping, burst_cost, compute_cycles, sub_tile

__all__ = ["banded_work", "bands_fit", "may_have_bands", "split"]


def may_have_bands(problem: Problem) -> bool:
    """Whether a layer's inputs can be cut anywhere, in one image.

    A sliding window packs its steps for one bank, and rows of a tensor with few channels are cut between beats only.
    """
    return problem.spec.hop == problem.spec.group and problem.images == 1 and problem.tile_step == 1


def split(problem: Problem, streams: tuple[UnitStreams, ...], whole: Mapping) -> Mapping | None:
    """The mapping with two bands that saves most positions a lane, or None if none saves any and fits.

    whole : the best mapping with one band.
    """
    spec = problem.spec
    if not may_have_bands(problem) or whole.chunks > 1:
        return None
    if len(streams) > 1 and len({unit_records(s) for s in streams}) == 1:
        return None  # units that share their weights keep them on chip instead
    fewest = _lane_positions(whole.bands[0])
    single = max(int(s.steps.max()) for s in streams) <= whole.steps_at_once
    best: Mapping | None = None
    for bands in _halves(problem, fewest):
        if single and bands_fit(problem, streams, bands):
            found: Mapping | None = replace(whole, bands=bands, order="tiles", resident=False)
        else:
            found = _in_macros(problem, streams, whole, bands)
        if found is None:
            continue
        macros = np.array([sum(b.macros for b in found.bands)])
        work = banded_work(problem, streams, found.bands)
        once = loads_once(problem, streams, found.order, resident=found.resident)
        cycles = alone(work, macros, spec, once=once, resident=found.resident)
        cost = Cost(**{k: float(v[0]) for k, v in cycles.items()})
        # A band of whole rows can be loaded when its rows are there, one beside it only with the last.
        flowing = cost.flowing * (1.01 if bands[1].x else 1.0)
        if flowing < (best or whole).cost.flowing:
            best = replace(found, cost=replace(cost, cycles=flowing + cost.start + cost.finish))
    return best


def banded_work(problem: Problem, streams: tuple[UnitStreams, ...], bands: tuple[Band, ...]) -> Work:
    """The work of a layer cut into bands, as mapping.py has it for one."""
    spec, interval = problem.spec, float(problem.spec.beat_interval)
    steps, beats, offsets, _ = tile_traffic(streams, spec)
    positions = np.array([float(sum(_lane_positions(b) for b in bands))])
    subs = np.array([sum(b.macros * _sub_tiles(b, spec.depth) for b in bands)])
    inputs = sum(_input_beats(problem, streams, b) for b in bands)
    outputs = float(math.prod(problem.out) * problem.images * problem.output.blocks * spec.block_beats)
    row = [b.lane_columns * b.tile[1] * spec.block_beats for b in bands]
    last = bands[-1].tile[0] * bands[-1].tile[1]
    sent = last * spec.block_beats * bands[-1].lane_rows * bands[-1].lane_columns * interval
    finish = min(last, spec.depth) * spec.column_groups + drain_latency(spec) + sent + spec.write_latency
    none = np.zeros(1)
    return Work(
        array=steps.sum() * positions,
        ppu=steps.size * spec.column_groups * positions,
        compute=compute_cycles(spec, steps, positions, subs),
        weights=np.array([beats.sum() * interval]),
        inputs=np.array([inputs * interval]),
        residual=outputs * burst_cost(spec, min(row), write=False) * interval if problem.residual else none,
        parameters=(problem.output.blocks * spec.block * 8 / spec.axi_bytes + offsets) * interval,
        write=np.array([outputs * float(burst_cost(spec, min(row), write=True)) * interval]),
        waits_for_inputs=none,
        waits_for_outputs=none,
        first_load=np.array([inputs * interval / sum(b.macros for b in bands)]),
        largest=float(beats.max()) * interval,
        finish=np.array([float(finish)]),
        items=subs.astype(np.float64) * steps.size,
    )


def _input_beats(problem: Problem, streams: tuple[UnitStreams, ...], band: Band) -> float:
    """Beats of a band's inputs, short bursts counted for what they take."""
    spec = problem.spec
    row = problem.row_bytes(band.lane_columns * band.tile[1]) // spec.axi_bytes
    rows = problem.extent(band.lane_rows * band.tile[0], 0)
    blocks = sum(len(s.input_blocks) for s in streams)
    return float(row * rows * blocks * band.macros * burst_cost(spec, row, write=False))


def _sub_tiles(band: Band, depth: int) -> int:
    rows, pixels = sub_tile(band.tile, depth)
    return -(-band.tile[0] // rows) * -(-band.tile[1] // pixels)


def _in_macros(
    problem: Problem, streams: tuple[UnitStreams, ...], whole: Mapping, bands: tuple[Band, ...]
) -> Mapping | None:
    """Bands cut into macro tiles of which two are on chip at once, in the order of the map."""
    cut = tuple(_cut(problem, streams, band) for band in bands)
    if any(band is None for band in cut):
        return None
    steps = max(int(s.steps.sum()) for s in streams)
    resident = steps <= problem.spec.weight_steps
    return replace(whole, bands=tuple(b for b in cut if b), order="map", resident=resident)


def _cut(problem: Problem, streams: tuple[UnitStreams, ...], band: Band) -> Band | None:
    """The band with the largest tile that fits twice and leaves no more lanes idle."""
    spec, positions = problem.spec, band.tile[0] * band.tile[1]
    sizes = (
        (ty * tx, replace(band, tile=(ty, tx)))
        for ty in range(1, band.tile[0] + 1)
        for tx in range(1, band.tile[1] + 1)
    )
    fitting = [
        (area, b)
        for area, b in sizes
        if _lane_positions(b) == positions
        and 2 * _bank_bytes(problem, streams, b) <= spec.activation_bytes
        and 2 * area * spec.block <= spec.output_bytes
        and _legal(problem, b)
    ]
    return max(fitting, key=lambda f: (f[0], f[1].tile[1]))[1] if fitting else None


def _lane_positions(band: Band) -> int:
    """Positions that the busiest lane computes of a band in all its macro tiles."""
    return _along(band.rows, band.lane_rows, band.tile[0]) * _along(band.pixels, band.lane_columns, band.tile[1])


def _along(size: int, lanes: int, tile: int) -> int:
    full, rest = divmod(size, lanes * tile)
    return full * tile + -(-rest // lanes)


def _halves(problem: Problem, fewest: int) -> Iterator[tuple[Band, Band]]:
    """Two bands, one above or beside the other, each with its best lane grid: fewer than `fewest` positions a lane."""
    rows, pixels = problem.out
    lanes = problem.spec.lanes
    cuts = [((0, 0, y, pixels), (y, 0, rows - y, pixels)) for y in range(1, rows)]
    cuts += [((0, 0, rows, x), (0, x, rows, pixels - x)) for x in range(1, pixels)]
    for upper, lower in cuts:
        if _best_grid(*upper[2:], lanes)[0] + _best_grid(*lower[2:], lanes)[0] < fewest:
            yield _band(*upper, lanes), _band(*lower, lanes)


@lru_cache(maxsize=4096)
def _best_grid(rows: int, pixels: int, lanes: int) -> tuple[int, int, int, int, tuple[int, int]]:
    """(positions, - width, grid, lane rows, tile) of a band as one macro tile, with fewest lanes idle."""
    found = []
    for grid in range(lanes.bit_length()):
        lane_rows = max(1, min(lanes >> grid, rows))
        tile = (-(-rows // lane_rows), -(-pixels // (1 << grid)))
        found.append((tile[0] * tile[1], -tile[1], grid, lane_rows, tile))
    return min(found)


def _band(y: int, x: int, rows: int, pixels: int, lanes: int) -> Band:
    """A band as one macro tile, under the grid that leaves fewest lanes idle; of equals, the widest tile."""
    _, _, grid, _, tile = _best_grid(rows, pixels, lanes)
    return Band(y=y, x=x, rows=rows, pixels=pixels, grid=grid, lane_rows=-(-rows // tile[0]), tile=tile)


def bands_fit(
    problem: Problem, streams: tuple[UnitStreams, ...], bands: tuple[Band, ...], room: int | None = None
) -> bool:
    """All bands' inputs on chip at once, in `room` bytes of a bank (None: all of it), and two sets of outputs."""
    spec = problem.spec
    part = spec.output_bytes // spec.output_partitions if problem.residual else spec.axi_bytes
    held = sum(-(-b.tile[0] * b.tile[1] * spec.block // part) * part for b in bands)
    bank = sum(_bank_bytes(problem, streams, b) for b in bands)
    whole = all(sub_tile(b.tile, spec.depth) == b.tile and _legal(problem, b) for b in bands)
    twice = 2 if len(streams) > 1 else 1  # the next unit's inputs come while this one computes
    return whole and twice * bank <= (spec.activation_bytes if room is None else room) and 2 * held <= spec.output_bytes


def _bank_bytes(problem: Problem, streams: tuple[UnitStreams, ...], band: Band) -> int:
    blocks = max(len(s.input_blocks) for s in streams)
    return blocks * problem.extent(band.tile[0], 0) * problem.row_bytes(band.tile[1])


def _legal(problem: Problem, band: Band) -> bool:
    """Every field of a LOAD within its bits."""
    row = problem.row_bytes(band.tile[1]) // problem.spec.axi_bytes
    return row < 1 << 12 and problem.extent(band.tile[0], 0) < 1 << 10
