"""A small program with known results, made by hand for any spec: the example bench of a bundle runs it."""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.isa import Encoding, Instruction, LoadKind, Op, Unit, semaphore
from gossamer.arch.numerics import Requant, requantise
from gossamer.arch.program import AcceleratorStage, Program, Segment
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import StepStream, encode_offsets, encode_steps, implied_selects

__all__ = ["example"]


def example(spec: ArchSpec, *, shift: int = 8, largest: int = 127, seed: int = 1) -> tuple[Program, NDArray[np.uint8]]:
    """A Program that multiplies one window by a dense matrix in every lane, and its memory at the end.

    Codes are uint8 with zero point 0, weights random, every channel is scaled by 2**-shift and clamped to -128..127.
    largest : of codes and weights; with small ones and a small shift, many sums lie halfway between two codes.
    """
    rng = np.random.default_rng(seed)
    beat, window = spec.axi_bytes, spec.activation_row_bytes
    steps = min(spec.group // spec.macs, spec.weight_steps, spec.offset_steps)
    shape = (steps, spec.columns, spec.macs)
    values = rng.integers(-largest, largest + 1, shape, dtype=np.int8)
    selects = np.broadcast_to(implied_selects(spec, steps), shape)
    stream = StepStream(offsets=np.zeros(steps, dtype=np.int64), values=values, selects=selects)
    codes = rng.integers(0, largest + 1, window, dtype=np.uint8)
    bias = rng.integers(-largest, largest + 1, spec.columns, dtype=np.int32)

    channels = np.zeros((-(-spec.columns * 8 // beat) * beat // 8 or 1, 2), dtype="<u4")
    channels[: spec.columns, 0] = bias.view(np.uint32)
    channels[: spec.columns, 1] = 1 | shift << 24
    out_beats = -(-spec.columns // beat)
    parts = [
        codes,
        encode_offsets(stream.offsets, spec),
        encode_steps(stream, spec, Encoding.DENSE),
        _whole(channels.view(np.uint8).reshape(-1), beat),
        np.zeros(out_beats * beat, dtype=np.uint8),
    ]
    starts = np.cumsum([0, *(p.size // beat for p in parts)])
    kinds = (LoadKind.ACTIVATION, LoadKind.OFFSET, LoadKind.WEIGHT, LoadKind.PARAMETER, LoadKind.OUTPUT)
    rows = []
    for kind, part, start in zip(kinds, parts, starts[:-1].tolist(), strict=True):
        beats = part.size // beat
        per_lane = kind in (LoadKind.ACTIVATION, LoadKind.OUTPUT)
        tile = {"tile_beats": beats, "tile_rows": 1} if per_lane else {}
        rows.append({"kind": int(kind), "address": start, "beats": beats, "rows": 1, "blocks": 1, **tile})
    after = {
        2: 1 << semaphore(Unit.LOAD, Unit.MATMUL).index,
        4: 1 << semaphore(Unit.LOAD, Unit.DRAIN).index,
    }
    to_drain, to_store = semaphore(Unit.MATMUL, Unit.DRAIN).index, semaphore(Unit.DRAIN, Unit.STORE).index
    program = [Instruction.make(Op.LOAD, post=after.get(k, 0), **row) for k, row in enumerate(rows)]
    program += [
        Instruction.make(Op.MATMUL, wait=after[2], post=1 << to_drain, steps=steps, nx=1, ny=1),
        Instruction.make(
            Op.DRAIN, wait=after[4] | 1 << to_drain, post=1 << to_store,
            nx=1, ny=1, column_groups=spec.column_groups, lo=-128, hi=127,
        ),
        Instruction.make(
            Op.STORE, wait=1 << to_store, address=int(starts[-1]), beats=out_beats, rows=spec.lanes, blocks=1,
            row_stride=out_beats, tile_beats=out_beats, tile_rows=1,
        ),
        Instruction.make(Op.END),
    ]  # fmt: skip
    image = np.concatenate([*parts, np.zeros(spec.lanes * out_beats * beat, dtype=np.uint8)])
    matrix = isa.to_matrix(program)
    made = Program(
        spec=spec,
        instructions=matrix,
        dram_bytes=image.size,
        segments=(Segment(address=0, data=image),),
        stages=(AcceleratorStage(name="example", first=0, count=len(matrix)),),
        name="example",
    )
    chosen = codes[selects].astype(np.int64) * values
    acc = chosen.sum(axis=(0, 2)).astype(np.int32)
    ones = np.ones(spec.columns, dtype=np.int64)
    result = (
        requantise(acc, bias, Requant(multiplier=ones, shift=shift * ones, lo=-128, hi=127))
        .astype(np.int8)
        .view(np.uint8)
    )
    expected = image.copy()
    at = int(starts[-1]) * beat
    for r in range(spec.lanes):
        expected[at + r * out_beats * beat :][: spec.columns] = result
    return made, expected


def _whole(data: NDArray[np.uint8], beat: int) -> NDArray[np.uint8]:
    return np.pad(data, (0, -data.size % beat))
