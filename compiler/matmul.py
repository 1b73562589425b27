"""A product of two activations as the mapper sees it: positions, column tiles whose weights are B, and how it is cut.

Every tensor's images and heads are one line of runs of channel blocks, a run for each product: product i reads run i
of A, takes its weights from run i of B (NATURAL or TRANSPOSED loads, arch/stream.py), and writes run i of Y. All
products have the same shape, so one mapping and one list of offsets serve all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import CapacityError, ModelError
from gossamer.arch.layout import Placement
from gossamer.arch.numerics import code_range
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.layers import MatMul
from gossamer.compiler.tiling import Cost, burst_cost, sub_tile

__all__ = [
    "Macro",
    "MatMulMapping",
    "MatMulProblem",
    "kept_share",
    "make_matmul",
    "matmul_bound",
    "matmul_mapping",
    "padded_tokens",
]

Runs = tuple[tuple[int, int], ...]
"""Steps [first, last) of a column tile that have to be done."""


def padded_tokens(layer: MatMul, tokens: int, spec: ArchSpec) -> int:
    """Tokens that loads of b take: whole blocks of columns if transposed, else whole steps."""
    unit = spec.block if layer.transposed else spec.macs
    return -(-tokens // unit) * unit


@dataclass(frozen=True, kw_only=True, eq=False)
class MatMulProblem:
    """A MatMul with its tensors placed. out : positions of a product as (rows, pixels)."""

    layer: MatMul
    spec: ArchSpec
    a: Placement
    b: Placement
    output: Placement
    out: tuple[int, int]

    def _channels(self, p: Placement) -> int:
        """Channels of a run."""
        return p.shape[0] * p.shape[1] // self.layer.products

    def run_blocks(self, p: Placement) -> int:
        """Channel blocks of a run."""
        return -(-self._channels(p) // p.block)

    @property
    def tokens(self) -> int:
        """Rows of Y."""
        return self.a.shape[3]

    @property
    def reduction(self) -> int:
        """Columns of A."""
        return self._channels(self.a)

    @property
    def columns(self) -> int:
        """Columns of Y."""
        return self._channels(self.output)

    @property
    def steps(self) -> int:
        """Steps of a column tile without a mask."""
        return -(-self.reduction // self.spec.macs)

    @property
    def loaded_steps(self) -> int:
        """Steps that the loads of a column tile fill: of TRANSPOSED, whole channel blocks."""
        if self.layer.transposed:
            return self.run_blocks(self.b) * self.spec.block // self.spec.macs
        return self.steps

    @property
    def tiles_per_block(self) -> int:
        """Column tiles of an output block."""
        return self.spec.block // self.spec.columns

    @cached_property
    def tiles(self) -> int:
        """Column tiles of a product."""
        return self.run_blocks(self.output) * self.tiles_per_block

    @cached_property
    def pieces(self) -> Runs:
        """Steps of a column tile that are on chip at once; most often all."""
        spec = self.spec
        most = min(spec.weight_steps // 2, spec.offset_steps)
        unit = max(spec.weight_banks if self.layer.transposed else 1, spec.group // spec.macs)
        whole = spec.block // spec.macs  # a piece of TRANSPOSED is whole channel blocks, or part of one
        if not self.layer.transposed:
            # rows and beats of an instruction
            most = min(most, 4095 // spec.macs, 65535 // (spec.macs * max(1, spec.columns // spec.axi_bytes)))
            whole = self.loaded_steps
        elif most >= whole:
            unit = whole
        size = max(unit, most // unit * unit)
        out = []
        for begin in range(0, self.loaded_steps, max(size, whole)):
            end = min(begin + max(size, whole), self.loaded_steps)
            out += [(s, min(s + size, end)) for s in range(begin, end, size)]
        return tuple(out)

    def runs(self, low: int, high: int, output_block: int) -> Runs:
        """What positions low .. high - 1 need of an output block's tiles; nothing where all is masked."""
        mask, (rows, keys) = self.layer.mask, self.layer.mask_tile
        if mask is None:
            return ((0, self.steps),)
        kept: NDArray[np.bool_] = np.any(mask[low // rows : -(-high // rows)], axis=0)
        if self.layer.transposed:
            first = output_block * self.spec.block
            return ((0, self.steps),) if kept[first // keys : -(-(first + self.spec.block) // keys)].any() else ()
        need = np.zeros(self.steps, dtype=bool)
        for tile in np.flatnonzero(kept):
            need[int(tile) * keys // self.spec.macs : -(-((tile + 1) * keys) // self.spec.macs)] = True
        need[0] |= not need.any()  # Y is written in any case
        edges = np.flatnonzero(np.diff(need, prepend=False, append=False))
        return tuple((int(s), int(e)) for s, e in edges.reshape(-1, 2))


def make_matmul(layer: MatMul, placements: Mapping[str, Placement], spec: ArchSpec) -> MatMulProblem:
    """Put a layer and the places of its tensors together.

    Raises CapacityError when the spec has no dynamic operands or sums could overflow, ModelError when b is not int8
    with zero point 0.
    """
    if not spec.dynamic_operands:
        raise CapacityError(
            f"layer {layer.name!r} multiplies two activations, and spec {spec.name!r} has array.dynamic_operands = "
            "false; set it to true"
        )
    a, b, output = placements[layer.a], placements[layer.b], placements[layer.output]
    if not b.signed or b.zero_point != 0:
        raise ModelError(f"layer {layer.name!r}: {b.name!r} must be int8 with zero point 0 to be an operand of weights")
    flat = layer.mask is None and a.border == output.border == (0, 0, 0, 0)
    rows = _rows(spec.lanes, a.shape[3]) if flat else 1
    problem = MatMulProblem(layer=layer, spec=spec, a=a, b=b, output=output, out=(rows, a.shape[3] // rows))
    low, high = code_range(a.signed)
    largest = 128 * max(a.zero_point - low, high - a.zero_point) * problem.reduction
    if largest >= 1 << 31:
        raise CapacityError(f"layer {layer.name!r}: sums of {problem.reduction} products may not fit 32 bits")
    return problem


def _rows(lanes: int, tokens: int) -> int:
    """Rows that tokens are seen as, so that lanes which are no power of two have work: their odd part, or one."""
    odd = lanes // (lanes & -lanes)
    return odd if tokens % odd == 0 else 1


@dataclass(frozen=True, kw_only=True)
class Macro:
    """A macro tile of a product: where it begins, its positions, and those of a lane."""

    y: int
    x: int
    rows: int
    pixels: int
    tile: tuple[int, int]

    def tokens(self, width: int) -> tuple[int, int]:
        """First token and the one behind the last, for maps of this width."""
        return self.y * width + self.x, (self.y + self.rows - 1) * width + self.x + self.pixels


@dataclass(frozen=True, kw_only=True)
class MatMulMapping:
    """How every product is cut. grid : log2 of the lane grid's width.  tile : (rows, pixels) of positions per lane.

    resident : all of B's weights stay on chip through a product.
    """

    grid: int
    lane_rows: int
    tile: tuple[int, int]
    resident: bool
    cost: Cost

    def macros(self, out: tuple[int, int]) -> Iterator[Macro]:
        """Macro tiles of a product in order."""
        width = 1 << self.grid
        for y in range(0, out[0], self.lane_rows * self.tile[0]):
            rows = min(out[0] - y, self.lane_rows * self.tile[0])
            for x in range(0, out[1], width * self.tile[1]):
                pixels = min(out[1] - x, width * self.tile[1])
                yield Macro(y=y, x=x, rows=rows, pixels=pixels, tile=(-(-rows // self.lane_rows), -(-pixels // width)))

    def describe(self) -> str:
        """One line for reports."""
        kept = "operand resident" if self.resident else "operand loaded for every tile"
        return f"{self.lane_rows}x{1 << self.grid} lanes of {self.tile[0]}x{self.tile[1]} positions, {kept}"


def matmul_mapping(problem: MatMulProblem) -> MatMulMapping:
    """The cheapest mapping. Raises CapacityError when not even one position a lane fits."""
    spec, (rows, pixels) = problem.spec, problem.out
    best: MatMulMapping | None = None
    for grid in range(spec.lanes.bit_length()):
        lane_rows = max(1, min(spec.lanes >> grid, rows))
        for ty in _even(-(-rows // lane_rows)):
            for tx in _even(-(-pixels // (1 << grid))):
                if not _fits(problem, (ty, tx)):
                    continue
                found = _priced(problem, grid, lane_rows, (ty, tx))
                if best is None or found.cost.cycles < best.cost.cycles:
                    best = found
    if best is None:
        need = problem.run_blocks(problem.a) * spec.block
        raise CapacityError(
            f"layer {problem.layer.name!r} does not fit spec {spec.name!r}: a position reads {need} bytes and writes "
            f"{spec.block}, and a lane holds activation_bytes = {spec.activation_bytes}, output_bytes = "
            f"{spec.output_bytes}; steps of a tile take up to {problem.pieces[0][1]} of weight_steps = "
            f"{spec.weight_steps} and of offset_steps = {spec.offset_steps}"
        )
    return best


def _even(size: int) -> list[int]:
    """Sizes that cut `size` into equal pieces, each once."""
    return sorted({-(-size // k) for k in range(1, size + 1)})


def _fits(problem: MatMulProblem, tile: tuple[int, int]) -> bool:
    """Whether a macro tile's data stand in the buffers, and its sizes in the instructions."""
    spec, positions = problem.spec, tile[0] * tile[1]
    bank = problem.run_blocks(problem.a) * positions * spec.block
    steps = max(e - s for s, e in problem.pieces)
    return (
        bank <= spec.activation_bytes
        and positions * spec.block <= spec.output_bytes
        and steps <= spec.weight_steps
        and -(-steps // (spec.axi_bytes // 2)) * (spec.axi_bytes // 2) <= spec.offset_steps
        and tile[1] * spec.block_beats < 1 << 12
        and tile[0] < 1 << 10
        and bank // spec.hop <= 1 << 16
    )


def _priced(problem: MatMulProblem, grid: int, lane_rows: int, tile: tuple[int, int]) -> MatMulMapping:
    """A mapping with the cycles of all products: the slowest of array, buses and FETCH, and what cannot overlap."""
    spec, layer = problem.spec, problem.layer
    whole = problem.tiles * problem.loaded_steps
    resident = whole <= spec.weight_steps
    mapping = MatMulMapping(grid=grid, lane_rows=lane_rows, tile=tile, resident=resident, cost=_NOTHING)
    blocks, blocks_read = problem.run_blocks(problem.output), problem.run_blocks(problem.a)
    array = ppu = read = write = 0.0
    items = 0
    operand = _operand_beats(problem)
    row = tile[1] * spec.block_beats << grid
    read_row, write_row = (float(burst_cost(spec, row, write=w)) for w in (False, True))
    for macro in mapping.macros(problem.out):
        ny, nx = sub_tile(macro.tile, spec.depth)
        corners = -(-macro.tile[0] // ny) * -(-macro.tile[1] // nx)
        positions = macro.tile[0] * macro.tile[1]
        beats = macro.rows * macro.pixels * spec.block_beats
        for block in range(blocks):
            runs = problem.runs(*macro.tokens(problem.out[1]), block)
            if not runs:
                continue
            steps = sum(e - s for s, e in runs)
            array += problem.tiles_per_block * max(steps, spec.column_groups) * positions
            ppu += problem.tiles_per_block * spec.column_groups * positions
            items += problem.tiles_per_block * corners * len(runs) * len(problem.pieces)
            write += beats * write_row
            if not resident:
                read += operand / blocks * (corners if len(problem.pieces) > 1 else 1)
        read += beats * blocks_read * read_row
    read += operand if resident else 0.0
    # A buffer that holds only one tile stands idle while the next one is loaded or stored.
    held = tile[0] * tile[1] * spec.block
    single = (
        read if 2 * held * blocks_read > spec.activation_bytes or (resident and 2 * whole > spec.weight_steps) else 0
    )
    single += write if 2 * held > spec.output_bytes else 0
    array, ppu, read, write, single = (
        layer.products * cycles for cycles in (array, ppu, *(spec.beat_interval * b for b in (read, write, single)))
    )
    start = spec.read_latency + (held * blocks_read / spec.axi_bytes * spec.lanes + operand / problem.tiles)
    finish = spec.write_latency + held / spec.axi_bytes * spec.lanes
    fetch = layer.products * items * 3 * spec.fetch_beats
    cost = Cost(
        cycles=max(array, read, write, fetch) + single + start + finish + 2.0 * layer.products * items,
        array=array,
        ppu=ppu,
        read=read,
        write=write,
        start=start,
        finish=finish,
    )
    return replace(mapping, cost=cost)


_NOTHING = Cost(cycles=0, array=0, ppu=0, read=0, write=0, start=0, finish=0)


def _operand_beats(problem: MatMulProblem) -> float:
    """Beats for all weights of a product, short bursts counted as what they cost."""
    spec = problem.spec
    if problem.layer.transposed:
        beats = problem.tiles * spec.columns * problem.run_blocks(problem.b) * spec.block_beats
        return beats * float(burst_cost(spec, spec.columns * spec.block_beats, write=False))
    of_token = max(1, spec.columns // spec.axi_bytes)
    beats = problem.tiles * problem.steps * spec.macs * of_token
    row = problem.steps * spec.macs * of_token if of_token == spec.block_beats else of_token
    return beats * float(burst_cost(spec, row, write=False))


def matmul_bound(problem: MatMulProblem) -> tuple[float, int, int]:
    """Lower bound of a layer: (array cycles with the steps it takes, beats read, beats written, each once)."""
    spec, layer = problem.spec, problem.layer
    steps = problem.tiles * problem.steps * problem.tokens * kept_share(problem)
    inputs = problem.tokens * problem.reduction + problem.reduction * problem.columns
    read = layer.products * inputs // spec.axi_bytes
    return (
        layer.products * steps / spec.lanes,
        read,
        layer.products * problem.tokens * problem.columns // spec.axi_bytes,
    )


def kept_share(problem: MatMulProblem) -> float:
    """Share of the positions times keys that the mask keeps."""
    mask, (rows, keys) = problem.layer.mask, problem.layer.mask_tile
    if mask is None:
        return 1.0
    of_keys = problem.columns if problem.layer.transposed else problem.reduction
    height = np.diff(np.minimum(np.arange(mask.shape[0] + 1) * rows, problem.tokens))
    width = np.diff(np.minimum(np.arange(mask.shape[1] + 1) * keys, of_keys))
    return float((mask * height[:, None] * width).sum() / (problem.tokens * of_keys))
