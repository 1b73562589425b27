"""What every instruction reads and writes: the meaning of the fields, and the hazards that follow from it.

Meaning. M = group, H = hop, B = axi_bytes, P = ppu; lane r of a grid of width G = 2**grid is column j = r mod G and
row i = r div G of the grid.

LOAD takes beats in the order blocks, rows, beats: beat (b, y, x) stands in DRAM at
    (address + b * block_stride + y * row_stride + x) * B.
A region has at most REGION_ROWS rows in all.
  ACTIVATION, OUTPUT  lane (i, j) keeps a beat if lx = x - j * step_beats and ly = y - i * step_rows are within
                      tile_beats and tile_rows, at beat dest + (b * tile_rows + ly) * tile_beats + lx of its bank
                      (activation bank or output buffer). One beat may serve several lanes: halos are read once.
  WEIGHT              the beats are one string of records (arch/stream.py); record k becomes row dest + k.
                      Bytes that do not make a whole record are dropped. NATURAL and TRANSPOSED have no records: they
                      fill whole rows from dest on, as arch/stream.py says.
  OFFSET              beats dest, dest + 1, ... of the offset buffer, B / 2 entries each.
  PARAMETER           beats dest, ... of the parameter memory, 8 bytes a channel: bias int32, then a word of
                      multiplier (24 bits) and shift (8 bits), little-endian.
  TABLE               256 / B beats for table dest, then for table dest + 1, ...

MATMUL, step s, position t = y * nx + x: every PE sees, of its lane's bank, the window at element
    act_base * M + offset[offset_base + s] * H + (y * sy + x * sx) * M
and the weights of row weight_base + s, and updates accumulator acc_base + t of the bank. An operand is the code
(int8 or uint8) minus the zero point. SUM adds products; MAXIMUM keeps the largest product, where a value of zero
takes no part. Without `accumulate`, step 0 starts from 0 (SUM) or the smallest int32 (MAXIMUM).

DRAIN takes, for position t = y * nx + x and then for column group g, the columns g * P .. g * P + P - 1 of
accumulator acc_base + t of all lanes at once, requantises them (arch/numerics.py) with channels param_base * P
+ g * P .. of the parameter memory, and writes P codes at element (dest + y * sy + x * sx + g) * P of the lane's
destination; raw writes P int32 at four times that byte. The residual stands at element
(residual_base + y * sy + x * sx + g) * P of the output buffer.

STORE writes beats in the order blocks, rows, beats: beat (b, y, x) comes from lane (i, j), i = y div tile_rows,
j = x div tile_beats, at beat source + (b * tile_rows + y mod tile_rows) * tile_beats + x mod tile_beats of its
output buffer.

Hazards. A Program means what its instructions do one after the other, in program order. Units run side by side, so
whenever an instruction touches what an earlier one of another unit touches (and one of them writes), it must not
start before the earlier one has ended. The same holds for the write port of a partition of the activation bank
(LOAD and DRAIN) and both ports of a partition of the output buffer (LOAD and DRAIN write; DRAIN and STORE read).
A unit may start an instruction before the one before has ended: a DRAIN whose residual an earlier DRAIN wrote needs a
chain of semaphores through another unit. Within one DRAIN a residual stands exactly where the result goes, or apart
from all of it. Offsets are constants: no STORE and no host stage writes DRAM that an OFFSET load reads. Nothing but
DRAM passes from one stage to the next.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.isa import Encoding, LoadKind, Op, Unit, column
from gossamer.arch.jit import jit
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import record_bytes

__all__ = ["REGION_ROWS", "Accesses", "Space", "accesses", "capacities", "dependencies", "offset_ranges"]


REGION_ROWS = 1 << 16
"""Most rows * blocks of a LOAD or a STORE, so that no legal instruction keeps a simulator busy for minutes."""


class Space(IntEnum):
    """What can be touched, each with its own addresses."""

    DRAM = 0  # bytes
    ACTIVATION = 1  # bytes of a lane's bank
    OUTPUT = 2  # bytes of a lane's buffer
    WEIGHT = 3  # steps
    OFFSET = 4  # entries
    PARAMETER = 5  # bytes
    TABLE = 6  # tables
    ACCUMULATOR = 7  # accumulators, bank 1 after bank 0
    ACTIVATION_WRITE_PORT = 8  # partitions
    OUTPUT_WRITE_PORT = 9  # partitions
    OUTPUT_READ_PORT = 10  # partitions


def capacities(spec: ArchSpec, dram_bytes: int) -> NDArray[np.int64]:
    """Size of every space, int64 [len(Space)]."""
    return np.array(
        [
            dram_bytes,
            spec.activation_bytes,
            spec.output_bytes,
            spec.weight_steps,
            spec.offset_steps,
            spec.parameter_channels * 8,
            spec.tables,
            2 * spec.depth,
            spec.activation_partitions,
            spec.output_partitions,
            spec.output_partitions,
        ],
        dtype=np.int64,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Accesses:
    """Half-open ranges that instructions touch, in program order; all arrays int64 [count].

    instruction : index;  space : Space;  low, high : range;  write : 1 for a write, 0 for a read.
    """

    instruction: NDArray[np.int64]
    space: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    write: NDArray[np.int64]


def _c(op: Op, *names: str) -> tuple[int, ...]:
    return tuple(column(op, n) for n in names)


L_KIND, L_ENC, L_ADDR, L_DEST, L_BEATS, L_ROWS, L_BLOCKS, L_RS, L_BS, L_GRID, L_TB, L_TR, L_SB, L_SR = range(
    len(isa.COMMON), len(isa.COMMON) + len(isa.FORMATS[Op.LOAD])
)
M_ACC, M_BANK, M_ABASE, M_STEPS, M_W, M_O, M_ACT, M_NX, M_NY, M_SX, M_SY = _c(
    Op.MATMUL,
    "accumulate",
    "bank",
    "acc_base",
    "steps",
    "weight_base",
    "offset_base",
    "act_base",
    "nx",
    "ny",
    "sx",
    "sy",
)
D_BANK, D_ABASE, D_NX, D_NY, D_G, D_PARAM, D_RAW, D_TOACT, D_DEST, D_SX, D_SY, D_RES, D_RBASE, D_TEN, D_TAB = _c(
    Op.DRAIN, "bank", "acc_base", "nx", "ny", "column_groups", "param_base", "raw", "to_activation", "dest", "sx", "sy",
    "residual", "residual_base", "table_enable", "table",
)  # fmt: skip
S_SRC, S_ADDR, S_BEATS, S_ROWS, S_BLOCKS, S_RS, S_BS, S_GRID, S_TB, S_TR = _c(
    Op.STORE, "source", "address", "beats", "rows", "blocks", "row_stride", "block_stride", "grid", "tile_beats",
    "tile_rows",
)  # fmt: skip

_LOAD, _MATMUL, _DRAIN, _STORE = int(Op.LOAD), int(Op.MATMUL), int(Op.DRAIN), int(Op.STORE)
_ACTIVATION, _OUTPUT, _WEIGHT, _OFFSET, _PARAMETER, _TABLE = (int(k) for k in LoadKind)
_DRAM, _ACT, _OUT, _WGT, _OFF, _PAR, _TAB, _ACCU, _AWP, _OWP, _ORP = (int(s) for s in Space)


def offset_ranges(matrix: NDArray[np.int64], spec: ArchSpec, dram: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Smallest and largest offset, in hops, that each MATMUL reads: int64 [instructions, 2] (0, 0 for others).

    dram : the memory at the start; offsets are constants of the Program.
    Ranges that run out of a buffer are cut; the static checker refuses such a Program.
    """
    words = dram[: dram.size // 2 * 2].view(np.uint16)
    return _offset_ranges(matrix, words, spec.offset_steps, spec.axi_bytes // 2)


@jit
def _offset_ranges(
    matrix: NDArray[np.int64], dram: NDArray[np.uint16], entries: int, per_beat: int
) -> NDArray[np.int64]:
    held = np.zeros(entries, dtype=np.int64)
    out = np.zeros((matrix.shape[0], 2), dtype=np.int64)
    for i in range(matrix.shape[0]):
        if matrix[i, 0] == _LOAD and matrix[i, L_KIND] == _OFFSET:
            at = matrix[i, L_DEST] * per_beat
            for b in range(matrix[i, L_BLOCKS]):
                for y in range(matrix[i, L_ROWS]):
                    row = (matrix[i, L_ADDR] + b * matrix[i, L_BS] + y * matrix[i, L_RS]) * per_beat
                    for k in range(matrix[i, L_BEATS] * per_beat):
                        if at < entries and row + k < dram.size:
                            held[at] = dram[row + k]
                        at += 1
        elif matrix[i, 0] == _MATMUL:
            first = matrix[i, M_O]
            last = min(first + matrix[i, M_STEPS], entries)
            low, high = np.int64(1 << 30), np.int64(0)
            for k in range(first, last):
                low = min(low, held[k])
                high = max(high, held[k])
            out[i, 0], out[i, 1] = min(low, high), high
    return out


def accesses(matrix: NDArray[np.int64], spec: ArchSpec, offsets: NDArray[np.int64]) -> Accesses:
    """Every range the instructions touch. offsets : from `offset_ranges`."""
    records = np.array([record_bytes(spec, e) for e in Encoding], dtype=np.int64)
    numbers = np.array(
        [
            spec.axi_bytes,
            spec.group,
            spec.hop,
            spec.ppu,
            spec.depth,
            spec.activation_bytes // spec.activation_partitions,
            spec.output_bytes // spec.output_partitions,
        ],
        dtype=np.int64,
    )
    count = _touch(matrix, offsets, numbers, records, np.zeros((0, 5), dtype=np.int64))
    rows = np.zeros((count, 5), dtype=np.int64)
    _touch(matrix, offsets, numbers, records, rows)
    return Accesses(instruction=rows[:, 0], space=rows[:, 1], low=rows[:, 2], high=rows[:, 3], write=rows[:, 4])


@jit
def _put(rows: NDArray[np.int64], n: int, i: int, space: int, low: int, high: int, write: int) -> int:
    if rows.shape[0] > 0:
        rows[n, 0], rows[n, 1], rows[n, 2], rows[n, 3], rows[n, 4] = i, space, low, high, write
    return n + 1


@jit
def _region(
    rows: NDArray[np.int64], n: int, i: int, write: int, beat: int, address: int, shape: tuple[int, int, int, int, int]
) -> int:
    """A strided region of DRAM as ranges; rows and blocks that touch each other become one."""
    beats, count, blocks, row_stride, block_stride = shape
    if count == 1 or row_stride == beats:
        beats, count = beats * count, 1
    if count == 1 and (blocks == 1 or block_stride == beats):
        beats, blocks = beats * blocks, 1
    for b in range(blocks):
        for y in range(count):
            at = (address + b * block_stride + y * row_stride) * beat
            n = _put(rows, n, i, _DRAM, at, at + beats * beat, write)
    return n


@jit
def _touch(
    matrix: NDArray[np.int64],
    offsets: NDArray[np.int64],
    numbers: NDArray[np.int64],
    records: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> int:
    """Count the ranges, and write them when `rows` has room."""
    beat, group, hop, ppu, depth, act_part, out_part = numbers
    n = 0
    for i in range(matrix.shape[0]):
        f = matrix[i]
        if f[0] == _LOAD:
            shape = (f[L_BEATS], f[L_ROWS], f[L_BLOCKS], f[L_RS], f[L_BS])
            n = _region(rows, n, i, 0, beat, f[L_ADDR], shape)
            total = f[L_BEATS] * f[L_ROWS] * f[L_BLOCKS]
            kind, dest = f[L_KIND], f[L_DEST]
            if kind in (_ACTIVATION, _OUTPUT):
                low, high = dest * beat, (dest + f[L_BLOCKS] * f[L_TR] * f[L_TB]) * beat
                if kind == _ACTIVATION:
                    n = _put(rows, n, i, _ACT, low, high, 1)
                    n = _put(rows, n, i, _AWP, low // act_part, (high - 1) // act_part + 1, 1)
                else:
                    n = _put(rows, n, i, _OUT, low, high, 1)
                    n = _put(rows, n, i, _OWP, low // out_part, (high - 1) // out_part + 1, 1)
            elif kind == _WEIGHT:
                n = _put(rows, n, i, _WGT, dest, dest + total * beat // records[f[L_ENC]], 1)
            elif kind == _OFFSET:
                n = _put(rows, n, i, _OFF, dest * beat // 2, (dest + total) * beat // 2, 1)
            elif kind == _PARAMETER:
                n = _put(rows, n, i, _PAR, dest * beat, (dest + total) * beat, 1)
            else:
                n = _put(rows, n, i, _TAB, dest, dest + (total * beat + 255) // 256, 1)
        elif f[0] == _MATMUL:
            span = ((f[M_NX] - 1) * f[M_SX] + (f[M_NY] - 1) * f[M_SY]) * group
            low = f[M_ACT] * group + offsets[i, 0] * hop
            n = _put(rows, n, i, _ACT, low, f[M_ACT] * group + offsets[i, 1] * hop + span + group, 0)
            n = _put(rows, n, i, _WGT, f[M_W], f[M_W] + f[M_STEPS], 0)
            n = _put(rows, n, i, _OFF, f[M_O], f[M_O] + f[M_STEPS], 0)
            first = f[M_BANK] * depth + f[M_ABASE]
            n = _put(rows, n, i, _ACCU, first, first + f[M_NX] * f[M_NY], 1)
            if f[M_ACC] == 1:
                n = _put(rows, n, i, _ACCU, first, first + f[M_NX] * f[M_NY], 0)
        elif f[0] == _DRAIN:
            first = f[D_BANK] * depth + f[D_ABASE]
            n = _put(rows, n, i, _ACCU, first, first + f[D_NX] * f[D_NY], 0)
            if f[D_RAW] == 0:
                n = _put(rows, n, i, _PAR, f[D_PARAM] * ppu * 8, (f[D_PARAM] + f[D_G]) * ppu * 8, 0)
                if f[D_TEN] == 1:
                    n = _put(rows, n, i, _TAB, f[D_TAB], f[D_TAB] + 1, 0)
            size = ppu * 4 if f[D_RAW] == 1 else ppu
            if f[D_RES] == 1:
                for y in range(f[D_NY]):
                    for x in range(f[D_NX]):
                        low = (f[D_RBASE] + y * f[D_SY] + x * f[D_SX]) * ppu
                        n = _put(rows, n, i, _OUT, low, low + f[D_G] * ppu, 0)
                span = (f[D_NX] - 1) * f[D_SX] + (f[D_NY] - 1) * f[D_SY] + f[D_G]
                low, high = f[D_RBASE] * ppu, (f[D_RBASE] + span) * ppu
                n = _put(rows, n, i, _ORP, low // out_part, (high - 1) // out_part + 1, 1)
            for y in range(f[D_NY]):
                for x in range(f[D_NX]):
                    low = (f[D_DEST] + y * f[D_SY] + x * f[D_SX]) * size
                    n = _put(rows, n, i, _ACT if f[D_TOACT] == 1 else _OUT, low, low + f[D_G] * size, 1)
            span = (f[D_NX] - 1) * f[D_SX] + (f[D_NY] - 1) * f[D_SY] + f[D_G]
            low, high = f[D_DEST] * size, (f[D_DEST] + span) * size
            part = act_part if f[D_TOACT] == 1 else out_part
            n = _put(rows, n, i, _AWP if f[D_TOACT] == 1 else _OWP, low // part, (high - 1) // part + 1, 1)
        elif f[0] == _STORE:
            low = f[S_SRC] * beat
            high = low + f[S_BLOCKS] * f[S_TR] * f[S_TB] * beat
            n = _put(rows, n, i, _OUT, low, high, 0)
            n = _put(rows, n, i, _ORP, low // out_part, (high - 1) // out_part + 1, 1)
            shape = (f[S_BEATS], f[S_ROWS], f[S_BLOCKS], f[S_RS], f[S_BS])
            n = _region(rows, n, i, 1, beat, f[S_ADDR], shape)
    return n


def dependencies(matrix: NDArray[np.int64], touched: Accesses) -> NDArray[np.int64]:
    """Which instructions must have ended before each may start: int64 [instructions, 5 units], -1 for none.

    Entry (i, u) is the latest instruction of unit u before i, u not being i's own unit, that i conflicts with. Units
    finish in order, so it stands for all earlier ones.
    """
    out = np.full((matrix.shape[0], len(Unit)), -1, dtype=np.int64)
    unit_of = np.zeros(8, dtype=np.int64)
    for op, unit in isa.UNIT_OF.items():
        unit_of[op] = unit
    units = unit_of[matrix[:, 0]]
    for space in Space:
        rows = np.flatnonzero(touched.space == space)
        if not rows.size or not touched.write[rows].any():
            continue
        # Ranges become runs of cells between neighbouring end points: a few cells each, however large the memory.
        low, high = touched.low[rows], touched.high[rows]
        if space is Space.DRAM:  # what nothing writes cannot conflict
            written = touched.write[rows] == 1
            keep = (low < high[written].max()) & (high > low[written].min())
            rows, low, high = rows[keep], low[keep], high[keep]
        points = np.unique(np.concatenate([low, high]))
        first = np.searchsorted(points, low)
        last = np.searchsorted(points, high)
        _conflicts(touched.instruction[rows], units, first, last, touched.write[rows], points.size, out)
    return out


@jit
def _conflicts(
    instruction: NDArray[np.int64],
    units: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    write: NDArray[np.int64],
    cells: int,
    out: NDArray[np.int64],
) -> None:
    """Scan in program order, remembering the last writer and the last reader of each unit for every cell."""
    writer = np.full((cells, 5), -1, dtype=np.int64)
    reader = np.full((cells, 5), -1, dtype=np.int64)
    for k in range(instruction.size):
        i = instruction[k]
        own = units[i]
        for cell in range(first[k], last[k]):
            for u in range(1, 5):
                if u != own:
                    out[i, u] = max(out[i, u], writer[cell, u])
                    if write[k] == 1:
                        out[i, u] = max(out[i, u], reader[cell, u])
            if write[k] == 1:
                writer[cell, own] = i
            else:
                reader[cell, own] = i
