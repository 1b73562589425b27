"""Macro tiles, and the LOADs and STOREs that bring and take what belongs to one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from gossamer.arch.layout import Placement
from gossamer.compiler.backend.problem import Problem
from gossamer.compiler.backend.rings import Load, Region
from gossamer.compiler.backend.tiling import Band, Mapping

__all__ = ["Macro", "activation_loads", "bank", "macros", "regions", "residual_load", "store_fields"]


@dataclass(frozen=True, kw_only=True)
class Macro:
    """A macro tile: where it begins in the output, its size, and its positions per lane. band : index of its band."""

    band: int
    image: int
    y: int
    x: int
    rows: int
    pixels: int
    tile: tuple[int, int]


def macros(problem: Problem, mapping: Mapping) -> Iterator[Macro]:
    """The macro tiles of a layer, image by image."""
    for image in range(problem.images):
        for k, band in enumerate(mapping.bands):
            down, across = band.lane_rows * band.tile[0], band.lane_columns * band.tile[1]
            for y in range(0, band.rows, down):
                for x in range(0, band.pixels, across):
                    rows, pixels = min(band.rows - y, down), min(band.pixels - x, across)
                    step = problem.tile_step if band.lane_columns > 1 else 1
                    tile = (-(-rows // band.lane_rows), -(-pixels // (band.lane_columns * step)) * step)
                    where = {"image": image, "y": band.y + y, "x": band.x + x}
                    yield Macro(band=k, **where, rows=rows, pixels=pixels, tile=tile)


def bank(problem: Problem, band: Band) -> tuple[int, int]:
    """Rows of an input block in the bank, and their bytes; one for all macro tiles, so that offsets are too."""
    return problem.extent(band.tile[0], 0), problem.row_bytes(band.tile[1])


def activation_loads(problem: Problem, blocks: tuple[int, ...], macro: Macro, band: Band) -> list[Load]:
    """A LOAD for every run of neighbouring blocks of one input tensor, a long one in ever shorter pieces.

    The last blocks of the tensor may just be being computed: the fewer of them a LOAD reads, the earlier all
    others can start.
    """
    beat = problem.spec.axi_bytes
    bank_rows, bank_row = bank(problem, band)
    where = [problem.input_blocks[b] for b in blocks]
    loads, start = [], 0
    skip = problem.stride[0] if problem.skips_rows else 1
    rows, pixels = problem.extent(macro.rows, 0), problem.extent(macro.pixels, 1)
    beats = -(-pixels * problem.pixel_bytes // beat)
    short = max(1, problem.spec.read_latency // (rows * beats))
    while start < len(where):
        end = start + 1
        while end < len(where) and where[end] == (where[start][0], where[end - 1][1] + 1):
            end += 1
        if end - start > short:
            end -= max(short, (end - start) // 2)
        segment, first = where[start]
        p = problem.inputs[segment]
        row, plane = p.row_bytes // beat, p.block_bytes // beat
        y = problem.origin[0] + macro.y * problem.stride[0]
        x = problem.origin[1] + macro.x * problem.stride[1]
        fields = {
            "address": p.address // beat + (macro.image * p.blocks + first) * plane + y * row + x * p.block // beat,
            "dest": start * bank_rows * bank_row // beat,
            "beats": beats,
            "rows": rows,
            "blocks": end - start,
            "row_stride": skip * row,
            "block_stride": plane,
            "grid": band.grid,
            "tile_beats": bank_row // beat,
            "tile_rows": bank_rows,
            "step_beats": macro.tile[1] * problem.bank_stride[1] * p.block // beat,
            "step_rows": macro.tile[0] * problem.bank_stride[0],
        }
        low = y * p.pixels + x
        high = low + (rows - 1) * skip * p.pixels + pixels
        every = (_regions(problem, p, macro.image, b, low, high) for b in range(first, first + end - start))
        loads.append(Load(fields=fields, reads=tuple(chain.from_iterable(every))))
        start = end
    return loads


def regions(problem: Problem, p: Placement, output_block: int, macro: Macro) -> tuple[Region, ...]:
    """A macro tile of one output block in a tensor of the output's shape."""
    low = (p.border[0] + macro.y) * p.pixels + p.border[1] + macro.x
    high = low + (macro.rows - 1) * p.pixels + macro.pixels
    return _regions(problem, p, macro.image, output_block, low, high)


def _regions(problem: Problem, p: Placement, image: int, block: int, low: int, high: int) -> tuple[Region, ...]:
    """Pixels low to high of a block; of a stack the blocks that they are in, whole."""
    if problem.stacked == 1:
        return ((p.name, image, block, low, high),)
    plane = p.rows * p.pixels // problem.stacked
    return tuple((p.name, image, b, 0, plane) for b in range(low // plane, (high - 1) // plane + 1))


def store_fields(problem: Problem, output_block: int, macro: Macro, band: Band) -> dict[str, int]:
    """The STORE of a macro tile of one output block."""
    beats = problem.spec.block_beats
    return {
        **_place(problem, problem.output, output_block, macro),
        "beats": macro.pixels * beats,
        "rows": macro.rows,
        "blocks": 1,
        "grid": band.grid,
        "tile_beats": macro.tile[1] * beats,
        "tile_rows": macro.tile[0],
    }


def residual_load(problem: Problem, output_block: int, macro: Macro, band: Band) -> Load:
    """The LOAD that brings the residual to where the output will stand."""
    r = problem.residual
    assert r is not None
    fields = store_fields(problem, output_block, macro, band) | _place(problem, r, output_block, macro)
    fields |= {"dest": 0, "step_beats": fields["tile_beats"], "step_rows": fields["tile_rows"]}
    return Load(fields=fields, reads=regions(problem, r, output_block, macro))


def _place(problem: Problem, p: Placement, output_block: int, macro: Macro) -> dict[str, int]:
    """Where a macro tile of one output block lies in a tensor of the output's shape."""
    beats = problem.spec.block_beats
    row = p.pixels * beats
    address = (
        p.address // problem.spec.axi_bytes
        + (macro.image * p.blocks + output_block) * p.rows * row
        + (p.border[0] + macro.y) * row
        + (p.border[1] + macro.x) * beats
    )
    return {"address": address, "row_stride": row}
