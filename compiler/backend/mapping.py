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

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import CapacityError
from gossamer.arch.spec import ArchSpec
from gossamer.arch.timing import drain_latency, matmul_latency
from gossamer.compiler.backend.bands import split
from gossamer.compiler.backend.problem import Problem
from gossamer.compiler.backend.streams import UnitStreams, unit_records
from gossamer.compiler.backend.tiling import Band, Cost, Mapping, burst_cost, compute_cycles, overlapped

__all__ = ["bound", "candidates", "search"]


def bound(problem: Problem, streams: tuple[UnitStreams, ...]) -> tuple[float, int, int]:
    """Lower bound of a layer: (array cycles with the steps achieved, beats read, beats written, each once)."""
    spec = problem.spec
    rows, pixels = problem.out
    steps = sum(int(s.steps.sum()) for s in streams)
    array = steps * problem.images * rows * pixels / spec.lanes
    # Column tiles with the same records (poolings, identities) need them only once.
    distinct = {(t.stream.values.tobytes(), t.stream.selects.tobytes()): t for s in streams for t in s.tiles}
    weights = sum(t.beats(spec) for t in distinct.values())
    n, k = problem.output.shape[:2]
    inputs = sum(p.shape[0] * p.shape[1] * p.shape[2] * p.shape[3] for p in problem.inputs)
    outputs = n * k * rows * pixels
    residual = outputs if problem.residual else 0
    read = weights + -(-(inputs + residual + 8 * k) // spec.axi_bytes)
    return array, read, -(-outputs // spec.axi_bytes)


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
            for grid, lane_rows in _grids(problem)
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


def _grids(problem: Problem) -> list[tuple[int, int]]:
    """(log2 width, rows) of lane grids worth trying."""
    lanes = problem.spec.lanes
    return [(g, max(1, min(lanes >> g, problem.out[0]))) for g in range(lanes.bit_length()) if lanes >> g]


def _pieces(size: int, step: int = 1) -> list[int]:
    """Sizes that cut `size` into equal pieces: ceil(size / k) for every k, in multiples of `step`, each size once."""
    return sorted({-(-size // (k * step)) * step for k in range(1, size + 1)})


def _best_tiles(
    problem: Problem, streams: tuple[UnitStreams, ...], grid: int, lane_rows: int, chunks: int, dataflow: str
) -> list[Mapping]:
    """The best tile under a lane grid, one for each loop order."""
    spec = problem.spec
    width = 1 << grid
    ty, tx = np.meshgrid(
        np.array(_pieces(-(-problem.out[0] // lane_rows))),
        np.array(_pieces(-(-problem.out[1] // width), problem.tile_step if width > 1 else 1)),
        indexing="ij",
    )
    ty, tx = ty.reshape(-1), tx.reshape(-1)
    row = _row_bytes(problem, tx)
    hy = _extents(problem, ty, 0)
    blocks = max(len(u.input_blocks) for u in problem.units)
    in_chunk = -(-blocks // chunks)
    bank = in_chunk * hy * row + (spec.activation_row_bytes if spec.hop < spec.group else 0)
    room = spec.activation_bytes
    held = ty * tx * spec.block
    legal = (
        (bank <= room)
        & (held <= spec.output_bytes)
        & (row // spec.axi_bytes < 1 << 12)
        & ((tx % problem.tile_step == 0) | (width * tx >= problem.out[1]) & (width == 1))
        & (hy < 1 << 10)
        & (ty * problem.bank_stride[0] < 1 << 10)
        & (width * tx * problem.stride[1] * problem.pixel_bytes // spec.axi_bytes < 1 << 15)
        & (lane_rows * ty * problem.stride[0] < 1 << 11)
    )
    if dataflow == "output":
        legal &= ty * tx <= spec.depth
    if not legal.any():
        return []
    ty, tx, bank, held = ty[legal], tx[legal], bank[legal], held[legal]
    best = []
    for order in ("map", "columns"):
        if (order == "columns" and chunks > 1) or order == _OTHER_ORDER.get(dataflow):
            continue
        cost, resident = _cost(problem, streams, lane_rows, width, ty, tx, bank, held, chunks, order, dataflow)
        i = int(np.argmin(cost["cycles"]))
        best.append(
            Mapping(
                bands=(_whole_map(problem, grid, lane_rows, (int(ty[i]), int(tx[i]))),),
                chunks=chunks,
                steps_at_once=_steps_at_once(spec),
                order=order,
                resident=resident,
                cost=Cost(**{k: float(v[i]) for k, v in cost.items()}),
            )
        )
    return best


_OTHER_ORDER = {"output": "columns", "input": "columns", "weight": "map"}
"""The loop order that a fixed dataflow excludes."""


def _whole_map(problem: Problem, grid: int, lane_rows: int, tile: tuple[int, int]) -> Band:
    rows, pixels = problem.out
    return Band(y=0, x=0, rows=rows, pixels=pixels, grid=grid, lane_rows=lane_rows, tile=tile)


def _extents(problem: Problem, positions: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
    span = (problem.kernel[axis] - 1) * problem.dilation[axis] + 1
    return (positions - 1) * problem.bank_stride[axis] + span


def _row_bytes(problem: Problem, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.array([problem.row_bytes(n) for n in positions.tolist()], dtype=np.int64)


def _steps_at_once(spec: ArchSpec) -> int:
    """Most steps of one MATMUL: half the weight buffer and half the offset buffer, so that two can be on chip."""
    beat = spec.axi_bytes // 2
    return max(1, min(spec.weight_steps // 2, spec.offset_steps // 2 // beat * beat, (1 << 16) - 1))


def _cost(
    problem: Problem,
    streams: tuple[UnitStreams, ...],
    lane_rows: int,
    width: int,
    ty: NDArray[np.int64],
    tx: NDArray[np.int64],
    bank: NDArray[np.int64],
    held: NDArray[np.int64],
    chunks: int,
    order: str,
    dataflow: str,
) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """Closed-form cost of all candidates at once."""
    spec = problem.spec
    rows, pixels = problem.out
    down = -(-rows // (lane_rows * ty))
    across = -(-pixels // (width * tx))
    macros = problem.images * down * across
    # Positions per lane over the whole map; the last tile of a row or column is cut to what is left.
    left_rows = rows - (down - 1) * lane_rows * ty
    step = problem.tile_step if width > 1 else 1
    left_pixels = pixels - (across - 1) * width * tx
    per_lane = (
        problem.images
        * ((down - 1) * ty + -(-left_rows // lane_rows))
        * ((across - 1) * tx + -(-left_pixels // (width * step)) * step)
    ).astype(np.float64)

    steps = np.concatenate([s.steps for s in streams])
    beats = np.array([t.beats(spec) for s in streams for t in s.tiles])
    array = steps.sum() * per_lane
    ppu = steps.size * spec.column_groups * per_lane
    unit_steps = max(int(s.steps.sum()) for s in streams)
    resident = order == "map" and not dataflow and unit_steps <= spec.weight_steps and chunks == 1
    nx_pieces = -(-tx // spec.depth)
    sub_rows = np.maximum(1, spec.depth // (-(-tx // nx_pieces)))
    subs = nx_pieces * -(-ty // sub_rows)
    compute = compute_cycles(spec, steps, per_lane, macros * subs)
    split = bool(steps.max() > _steps_at_once(spec)) or chunks > 1
    again = subs if split else np.ones_like(subs)
    if len({unit_records(s) for s in streams}) == 1 and (resident or order == "columns"):
        beats = beats[: len(streams[0].tiles)]  # all units share what the first one loads
    weight_reads = beats.sum() * (1 if resident or order == "columns" else macros) * again

    hy, hx = _extents(problem, ty, 0), _extents(problem, tx, 1)
    seen_rows = problem.images * np.minimum(
        down * _extents(problem, lane_rows * ty, 0), rows * problem.bank_stride[0] + (down * (hy - ty))
    )
    seen_pixels = np.minimum(
        across * _extents(problem, width * tx, 1), pixels * problem.bank_stride[1] + across * (hx - tx)
    )
    reading = burst_cost(spec, _row_bytes(problem, width * tx) // spec.axi_bytes, write=False)
    plane = seen_rows * -(-seen_pixels * problem.pixel_bytes // spec.axi_bytes) * reading
    blocks = sum(len(u.input_blocks) for u in problem.units)
    output_blocks = problem.output.blocks
    act_reads = plane * blocks
    if order == "columns":
        act_reads = np.where(macros > problem.images, act_reads * output_blocks / len(problem.units), act_reads)
    if chunks > 1:
        act_reads = act_reads * problem.tiles_per_block * output_blocks / len(problem.units) * subs
    out_beats = problem.images * rows * pixels * output_blocks * spec.block_beats
    residual = out_beats if problem.residual else 0
    writing = burst_cost(spec, width * tx * spec.block_beats, write=True)
    reading = burst_cost(spec, width * tx * spec.block_beats, write=False)
    read = (weight_reads + act_reads + residual * reading + output_blocks * spec.block * 8 / spec.axi_bytes).astype(
        np.float64
    )
    read *= spec.beat_interval
    write = out_beats * writing * spec.beat_interval

    # A buffer that holds only one tile stands idle while the next one is loaded.
    per_unit = macros * len(problem.units)
    first_load = act_reads / np.maximum(per_unit, 1) * spec.beat_interval
    single = np.where((bank * 2 > spec.activation_bytes) & (per_unit > 1), first_load * (per_unit - 1), 0.0)
    single = single + np.where(held * 2 > spec.output_bytes, write, 0.0)
    start = first_load + spec.read_latency + beats.max() * spec.beat_interval + matmul_latency(spec)
    last = ty * tx * spec.block_beats * lane_rows * width * spec.beat_interval
    finish = np.minimum(ty * tx, spec.depth) * spec.column_groups + drain_latency(spec) + last + spec.write_latency
    small = per_lane / np.maximum(1, ty * tx) * subs * steps.size * 2.0  # prefer fewer instructions
    # Weights that stay are loaded while the first macro tile is computed, and only then.
    share = 1 / macros if resident else np.zeros_like(read)
    held_back = weight_reads * spec.beat_interval if resident else np.zeros_like(read)
    first = np.maximum(compute * share, held_back + (read - held_back) * share) * (share > 0)
    rest = overlapped(compute, read - held_back, write) * (1 - share)
    streamed = overlapped(compute, read, write)
    cycles = np.maximum(streamed, first + rest) + single + start + finish + small
    return {
        "cycles": cycles,
        "array": array,
        "ppu": np.broadcast_to(ppu, cycles.shape),
        "read": read,
        "write": write,
        "start": start.astype(np.float64),
        "finish": finish.astype(np.float64),
    }, bool(resident)
