"""Maps that no lane grid divides well: two bands with a grid each.

A 14 x 14 map on 16 lanes takes 14 positions a lane under every grid, though 196 / 16 is little more than 12. Its upper
8 rows on 8 x 2 lanes take 7, its lower 6 rows on 2 x 8 lanes 6. Both bands' inputs are on chip at once and both use a
column tile's weights before the next one comes, so that nothing but the rows between them is loaded twice.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from gossamer.compiler.problem import Problem
from gossamer.compiler.streams import UnitStreams, unit_records
from gossamer.compiler.tiling import Band, Mapping, sub_tile

__all__ = ["split"]


def split(problem: Problem, streams: tuple[UnitStreams, ...], whole: Mapping) -> Mapping | None:
    """The mapping with two bands that saves most positions a lane, or None if none saves any and fits.

    whole : the best mapping with one band. A sliding window (hop < group) packs its steps for one bank: no bands.
    """
    spec = problem.spec
    if spec.hop < spec.group or problem.images > 1 or whole.chunks > 1 or problem.tile_step > 1:
        return None
    if max(int(s.steps.max()) for s in streams) > whole.steps_at_once:
        return None
    if len(streams) > 1 and len({unit_records(s) for s in streams}) == 1:
        return None  # units that share their weights keep them on chip instead
    best, fewest = None, _lane_positions(whole.bands[0])
    for bands in _halves(problem):
        positions = sum(b.tile[0] * b.tile[1] for b in bands)
        if positions < fewest and _fits(problem, streams, bands):
            best, fewest = bands, positions
    if best is None:
        return None
    saved = fewest / _lane_positions(whole.bands[0])
    if max(whole.cost.read, whole.cost.write) > saved * max(whole.cost.array, whole.cost.ppu):
        return None  # the buses would be the limit: nothing to gain, rows to load again
    cost = replace(whole.cost, cycles=whole.cost.cycles * saved, array=whole.cost.array * saved)
    return replace(whole, bands=best, order="tiles", resident=False, cost=cost)


def _lane_positions(band: Band) -> int:
    """Positions that the busiest lane computes of a band in all its macro tiles."""
    return _along(band.rows, band.lane_rows, band.tile[0]) * _along(band.pixels, band.lane_columns, band.tile[1])


def _along(size: int, lanes: int, tile: int) -> int:
    full, rest = divmod(size, lanes * tile)
    return full * tile + -(-rest // lanes)


def _halves(problem: Problem) -> Iterator[tuple[Band, Band]]:
    """Two bands, one above or beside the other, each with its best lane grid."""
    rows, pixels = problem.out
    lanes = problem.spec.lanes
    for y in range(1, rows):
        yield _band(0, 0, y, pixels, lanes), _band(y, 0, rows - y, pixels, lanes)
    for x in range(1, pixels):
        yield _band(0, 0, rows, x, lanes), _band(0, x, rows, pixels - x, lanes)


@lru_cache(maxsize=4096)
def _band(y: int, x: int, rows: int, pixels: int, lanes: int) -> Band:
    """A band as one macro tile, under the grid that leaves fewest lanes idle; of equals, the widest tile."""
    found = []
    for grid in range(lanes.bit_length()):
        lane_rows = max(1, min(lanes >> grid, rows))
        tile = (-(-rows // lane_rows), -(-pixels // (1 << grid)))
        found.append((tile[0] * tile[1], -tile[1], grid, lane_rows, tile))
    _, _, grid, lane_rows, tile = min(found)
    lane_rows = -(-rows // tile[0])
    return Band(y=y, x=x, rows=rows, pixels=pixels, grid=grid, lane_rows=lane_rows, tile=tile)


def _fits(problem: Problem, streams: tuple[UnitStreams, ...], bands: tuple[Band, ...]) -> bool:
    """All bands' inputs on chip at once, two sets of outputs, and every field of a LOAD within its bits."""
    spec, blocks = problem.spec, max(len(s.input_blocks) for s in streams)
    bank = held = 0
    for b in bands:
        rows, row = problem.extent(b.tile[0], 0), problem.row_bytes(b.tile[1])
        bank += blocks * rows * row
        part = spec.output_bytes // spec.output_partitions if problem.residual else spec.axi_bytes
        held += -(-b.tile[0] * b.tile[1] * spec.block // part) * part
        if row // spec.axi_bytes >= 1 << 12 or rows >= 1 << 10 or sub_tile(b.tile, spec.depth) != b.tile:
            return False
    return bank <= spec.activation_bytes and 2 * held <= spec.output_bytes
