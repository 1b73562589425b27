"""The closed-form cost of mappings: what a layer asks of array, PPUs and buses, for all candidates at once.

It only ranks; the cycles that count are the simulator's.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import offset_beats
from gossamer.arch.timing import drain_latency, matmul_latency
from gossamer.compiler.backend.problem import Problem
from gossamer.compiler.backend.streams import UnitStreams, blocks_stay, unit_records
from gossamer.compiler.backend.tiling import burst_cost, compute_cycles, overlapped

__all__ = [
    "Cut",
    "Work",
    "alone",
    "extents",
    "layer_work",
    "loads_once",
    "make_cut",
    "pieces",
    "row_bytes",
    "steps_at_once",
    "tile_traffic",
]

Cycles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Candidate tiles of ty x tx positions per lane under one lane grid; int64 or float64 [candidates].

    macros : macro tiles of all images.  subs : MATMULs of a column tile in one of them.
    per_lane : positions that a lane computes over the whole map.
    """

    lane_rows: int
    width: int
    ty: NDArray[np.int64]
    tx: NDArray[np.int64]
    down: NDArray[np.int64]
    across: NDArray[np.int64]
    macros: NDArray[np.int64]
    subs: NDArray[np.int64]
    per_lane: Cycles


def make_cut(problem: Problem, lane_rows: int, width: int, ty: NDArray[np.int64], tx: NDArray[np.int64]) -> Cut:
    """Candidates and what follows from their sizes."""
    depth = problem.spec.depth
    rows, pixels = problem.out
    down = -(-rows // (lane_rows * ty))
    across = -(-pixels // (width * tx))
    # Positions per lane over the whole map; the last tile of a row or column is cut to what is left.
    left_rows = rows - (down - 1) * lane_rows * ty
    step = problem.tile_step if width > 1 else 1
    left_pixels = pixels - (across - 1) * width * tx
    per_lane = (
        problem.images
        * ((down - 1) * ty + -(-left_rows // lane_rows))
        * ((across - 1) * tx + -(-left_pixels // (width * step)) * step)
    ).astype(np.float64)
    nx_pieces = -(-tx // depth)
    sub_rows = np.maximum(1, depth // (-(-tx // nx_pieces)))
    return Cut(
        lane_rows=lane_rows,
        width=width,
        ty=ty,
        tx=tx,
        down=down,
        across=across,
        macros=problem.images * down * across,
        subs=nx_pieces * -(-ty // sub_rows),
        per_lane=per_lane,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What a layer asks of every unit, in cycles, float64 [candidates] or alike for all.

    weights : all weights once;  inputs : activations, as often as the loop order reads them;
    residual, parameters (and offsets that stay), write : once.
    waits_for_inputs, waits_for_outputs : where a buffer holds one tile only, and stands idle while another one moves.
    first_load : inputs of the first macro tile;  largest : beats of the largest column tile.
    finish : from the last MATMUL to the last response.  items : MATMULs, as a number.
    """

    array: Cycles
    ppu: Cycles
    compute: Cycles
    weights: Cycles
    inputs: Cycles
    residual: Cycles
    parameters: float
    write: Cycles
    waits_for_inputs: Cycles
    waits_for_outputs: Cycles
    first_load: Cycles
    largest: float
    finish: Cycles
    items: Cycles

    def start(self, spec: ArchSpec) -> Cycles:
        """From nothing to the first MATMUL."""
        return self.first_load + spec.read_latency + self.largest + matmul_latency(spec)


def layer_work(
    problem: Problem,
    streams: tuple[UnitStreams, ...],
    cut: Cut,
    bank: NDArray[np.int64],
    *,
    chunks: int = 1,
    order: str = "map",
    resident: bool = False,
) -> Work:
    """The work of a layer under each candidate. bank : bytes of a macro tile's inputs."""
    spec, ty, tx = problem.spec, cut.ty, cut.tx
    interval = float(spec.beat_interval)
    rows, pixels = problem.out
    steps, beats, offsets, alike = tile_traffic(streams, spec)
    largest = float(beats.max()) * interval
    compute = compute_cycles(spec, steps, cut.per_lane, cut.macros * cut.subs)
    split = bool(steps.max() > steps_at_once(spec)) or chunks > 1
    again = cut.subs if split else np.ones_like(cut.subs)
    if alike and (resident or order == "columns"):
        beats = beats[: len(streams[0].tiles)]  # all units share what the first one loads

    hy, hx = extents(problem, ty, 0), extents(problem, tx, 1)
    seen_rows = problem.images * np.minimum(
        cut.down * extents(problem, cut.lane_rows * ty, 0), rows * problem.bank_stride[0] + (cut.down * (hy - ty))
    )
    seen_pixels = np.minimum(
        cut.across * extents(problem, cut.width * tx, 1), pixels * problem.bank_stride[1] + cut.across * (hx - tx)
    )
    reading = burst_cost(spec, row_bytes(problem, cut.width * tx) // spec.axi_bytes, write=False)
    plane = seen_rows * -(-seen_pixels * problem.pixel_bytes // spec.axi_bytes) * reading
    output_blocks = problem.output.blocks
    inputs = plane * sum(len(u.input_blocks) for u in problem.units)
    if order == "columns":
        inputs = np.where(cut.macros > 1, inputs * output_blocks / len(problem.units), inputs)
    if chunks > 1:
        inputs = inputs * problem.tiles_per_block * output_blocks / len(problem.units) * cut.subs
    out_beats = problem.images * rows * pixels * output_blocks * spec.block_beats
    reading = burst_cost(spec, cut.width * tx * spec.block_beats, write=False)
    writing = burst_cost(spec, cut.width * tx * spec.block_beats, write=True)
    write = out_beats * writing * interval

    per_unit = cut.macros * len(problem.units)
    first_load = inputs / np.maximum(per_unit, 1) * interval
    last = ty * tx * spec.block_beats * cut.lane_rows * cut.width * interval
    finish = np.minimum(ty * tx, spec.depth) * spec.column_groups + drain_latency(spec) + last + spec.write_latency
    return Work(
        array=steps.sum() * cut.per_lane,
        ppu=steps.size * spec.column_groups * cut.per_lane,
        compute=compute,
        weights=(beats.sum() * again).astype(np.float64) * interval,
        inputs=inputs * interval,
        residual=out_beats * reading * interval if problem.residual else np.zeros_like(write),
        parameters=(output_blocks * spec.block * 8 / spec.axi_bytes + offsets) * interval,
        write=write,
        waits_for_inputs=np.where(
            (bank * 2 > spec.activation_bytes) & (per_unit > 1), first_load * (per_unit - 1), 0.0
        ),
        waits_for_outputs=np.where(ty * tx * spec.block * 2 > spec.output_bytes, write, 0.0),
        first_load=first_load,
        largest=largest,
        finish=finish.astype(np.float64),
        items=cut.per_lane / np.maximum(1, ty * tx) * cut.subs * steps.size,
    )


@lru_cache(maxsize=64)
def tile_traffic(
    streams: tuple[UnitStreams, ...], spec: ArchSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64], float, bool]:
    """Of every column tile its steps and beats, int64 [tiles]; beats of offsets; whether all units' records are alike.

    Offsets are in a tile's beats where it loads them with its weights, and apart where all lists stay on chip.
    """
    tiles = [t for s in streams for t in s.tiles]
    steps = np.concatenate([s.steps for s in streams])
    beats = np.array([t.beats(spec) for t in tiles])
    alike = len(streams) == 1 or len({unit_records(s) for s in streams}) == 1
    lists = {t.stream.offsets.tobytes(): offset_beats(spec, t.steps) for t in tiles}
    together = sum(lists.values())
    if together * spec.axi_bytes // 2 <= spec.offset_steps:
        return steps, beats, together, alike
    return steps, beats + np.array([offset_beats(spec, t.steps) for t in tiles]), 0, alike


def loads_once(problem: Problem, streams: tuple[UnitStreams, ...], order: str, *, resident: bool) -> bool:
    """Whether every weight is loaded once and not for every macro tile. order, resident : see mapping.py."""
    if order != "columns":
        return resident or order == "tiles"
    per_block = problem.tiles_per_block
    blocks = [u.steps[a : a + per_block] for u in streams for a in range(0, len(u.tiles), per_block)]
    whole = all(int(u.steps.max()) <= steps_at_once(problem.spec) for u in streams)
    return whole and blocks_stay(problem.spec, blocks)


def alone(work: Work, macros: NDArray[np.int64], spec: ArchSpec, *, once: bool, resident: bool) -> dict[str, Cycles]:
    """Cycles of a layer by itself, from a cold start to the last response, and what they are made of.

    macros : macro tiles of all images.  once : see `loads_once`.  resident : see mapping.py.
    """
    weights = work.weights * (1 if once else macros)
    read = weights + work.inputs + work.residual + work.parameters
    small = 2.0 * work.items  # of equal mappings the one with fewer instructions
    # Weights that stay are loaded while the first macro tile is computed, and only then.
    share = 1 / macros if resident else np.zeros_like(read)
    held_back = weights if resident else np.zeros_like(read)
    first = np.maximum(work.compute * share, held_back + (read - held_back) * share) * (share > 0)
    rest = overlapped(work.compute, read - held_back, work.write) * (1 - share)
    streamed = overlapped(work.compute, read, work.write)
    start, waits = work.start(spec), work.waits_for_inputs + work.waits_for_outputs
    return {
        "cycles": np.maximum(streamed, first + rest) + waits + start + work.finish + small,
        "array": work.array,
        "ppu": work.ppu,
        "read": read,
        "write": work.write,
        "start": start,
        "finish": work.finish,
    }


def pieces(size: int, step: int = 1) -> list[int]:
    """Sizes that cut `size` into equal pieces: ceil(size / k) for every k, in multiples of `step`, each size once."""
    return sorted({-(-size // (k * step)) * step for k in range(1, size + 1)})


def extents(problem: Problem, positions: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
    """Problem.extent of many."""
    span = (problem.kernel[axis] - 1) * problem.dilation[axis] + 1
    return (positions - 1) * problem.bank_stride[axis] + span


def row_bytes(problem: Problem, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Problem.row_bytes of many."""
    row = problem.row_unit
    return -(-(extents(problem, positions, 1) * problem.pixel_bytes) // row) * row


def steps_at_once(spec: ArchSpec) -> int:
    """Most steps of one MATMUL: half the weight buffer and half the offset buffer, so that two can be on chip."""
    beat = spec.axi_bytes // 2
    return max(1, min(spec.weight_steps // 2, spec.offset_steps // 2 // beat * beat, (1 << 16) - 1))
