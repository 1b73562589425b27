"""How a product of two activations is cut: lane grid and macro tile, the same for all products, by closed-form cost."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gossamer.arch.errors import CapacityError
from gossamer.compiler.backend.matmul import MatMulProblem, kept_share
from gossamer.compiler.backend.tiling import Cost, burst_cost, sub_tile

__all__ = ["Macro", "MatMulMapping", "matmul_bound", "matmul_mapping"]


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
    spec, layer, together = problem.spec, problem.layer, problem.together
    whole = problem.operands * problem.loaded_steps
    resident = whole <= spec.weight_steps
    mapping = MatMulMapping(grid=grid, lane_rows=lane_rows, tile=tile, resident=resident, cost=_NOTHING)
    blocks_read = problem.run_blocks(problem.a)
    # Of the products that are computed together, in cycles of the array and beats.
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
        work = problem.work(*macro.tokens(problem.out[1]))
        array += together * work.steps * positions
        ppu += together * work.tiles * spec.column_groups * positions
        items += together * work.runs * corners * len(problem.pieces)
        write += beats * write_row * work.blocks * together / problem.heads_of_block(problem.output)
        read += beats * read_row * blocks_read * together / problem.heads_of_block(problem.a)
        if not resident:
            read += operand * together * work.tiles * (corners if len(problem.pieces) > 1 else 1)
    read += operand * problem.operands if resident else 0.0
    # A buffer that holds only one tile stands idle while the next one is loaded or stored.
    held = tile[0] * tile[1] * spec.block
    alone = 2 * held * blocks_read > spec.activation_bytes or (resident and 2 * whole > spec.weight_steps)
    single = (read if alone else 0.0) + (write if 2 * held > spec.output_bytes else 0.0)
    times = layer.products // together
    array, ppu, fetch = times * array, times * ppu, times * items * 3 * spec.fetch_beats
    read, write, single = (times * spec.beat_interval * beats for beats in (read, write, single))
    start = spec.read_latency + held * blocks_read / spec.axi_bytes * spec.lanes + operand
    finish = spec.write_latency + held / spec.axi_bytes * spec.lanes
    cost = Cost(
        cycles=max(array, read, write, fetch) + single + start + finish + 2.0 * times * items,
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
    """Beats for the weights of a column tile, short bursts counted as what they cost."""
    spec = problem.spec
    if problem.layer.transposed:
        row = problem.loaded_steps * spec.macs // spec.axi_bytes
        beats = spec.columns * row
        row = beats if row % spec.block_beats == 0 else row
    else:
        of_token = max(1, spec.columns // spec.axi_bytes)
        beats = problem.steps * spec.macs * of_token
        row = beats if of_token == spec.block_beats else of_token
    return beats * float(burst_cost(spec, row, write=False))


def matmul_bound(problem: MatMulProblem) -> tuple[float, int, int]:
    """Lower bound of a layer: (array cycles with the steps it takes, beats read, beats written, each once)."""
    spec, layer = problem.spec, problem.layer
    steps = problem.tile_count * problem.steps * problem.tokens * kept_share(problem)
    of_a, of_y = float(problem.tokens * problem.reduction), float(problem.tokens * problem.columns)
    if layer.mask is not None:  # of what is masked, neither scores are written nor probabilities read
        share = kept_share(problem)
        of_a, of_y = (of_a, of_y * share) if layer.transposed else (of_a * share, of_y)
    kept_keys = 1.0 if layer.mask is None else float(layer.mask.any(axis=0).mean())
    read = int(layer.products * (of_a + kept_keys * problem.reduction * problem.columns) // spec.axi_bytes)
    return (
        layer.products * steps / spec.lanes,
        read,
        int(layer.products * of_y // spec.axi_bytes),
    )
