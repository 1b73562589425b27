"""Who wrote what is read? A walk in program order that knows what every byte of every memory is worth.

A byte is unwritten, good, or garbage: computed from bytes that were unwritten. Idle lanes and the ragged edge of a
feature map compute garbage in any real Program, and that is harmless as long as nobody stores it. So garbage is
followed, lane by lane and byte by byte, through accumulators, output buffers and activation banks, and refused where
it would reach DRAM. An unwritten weight, offset, parameter, table or accumulator spoils every lane and is refused
where it is read, and so is a MATMUL or a residual that reads nothing good at all.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.access import (
    D_ABASE,
    D_BANK,
    D_DEST,
    D_G,
    D_NX,
    D_NY,
    D_PARAM,
    D_RAW,
    D_RBASE,
    D_RES,
    D_SX,
    D_SY,
    D_TAB,
    D_TEN,
    D_TOACT,
    L_BEATS,
    L_BLOCKS,
    L_DEST,
    L_ENC,
    L_GRID,
    L_KIND,
    L_ROWS,
    L_SB,
    L_SR,
    L_TB,
    L_TR,
    M_ABASE,
    M_ACC,
    M_ACT,
    M_BANK,
    M_NX,
    M_NY,
    M_O,
    M_STEPS,
    M_SX,
    M_SY,
    M_W,
    S_BEATS,
    S_BLOCKS,
    S_GRID,
    S_ROWS,
    S_SRC,
    S_TB,
    S_TR,
)
from gossamer.arch.errors import GossamerError, ProgramError, SimulationError
from gossamer.arch.isa import Encoding, LoadKind, Op, column, disassemble
from gossamer.arch.jit import jit
from gossamer.arch.numerics import SHIFT_MAX, SHIFT_MIN
from gossamer.arch.spec import ArchSpec
from gossamer.sim.legal import refuse
from gossamer.sim.machine import Sizes, sizes_of
from gossamer.sim.moves import decode_records, read_string

__all__ = ["check_contents"]

_LOAD, _MATMUL, _DRAIN, _STORE = int(Op.LOAD), int(Op.MATMUL), int(Op.DRAIN), int(Op.STORE)
_ACTIVATION, _OUTPUT, _WEIGHT, _OFFSET, _PARAMETER, _TABLE = (int(k) for k in LoadKind)
_NATURAL = int(Encoding.NATURAL)
_RSHIFT = column(Op.DRAIN, "residual_shift")

_UNWRITTEN, _GOOD, _GARBAGE = 0, 1, 2
"""Mark of a byte or an accumulator; garbage that instruction i made is marked _GARBAGE + i."""

_FINE, _WEIGHTS, _OFFSETS, _WINDOWS, _SUMS, _PARAMETERS, _SHIFT, _TABLES, _RESIDUAL, _STORED = range(10)

_TEXTS = {
    _WEIGHTS: "reads row {0} of the weight buffer, which nobody wrote",
    _OFFSETS: "reads entry {0} of the offset buffer, which nobody wrote",
    _WINDOWS: "reads activations of which, in every lane and at every position, some were written by nobody",
    _SUMS: "reads accumulator {0}, which nobody wrote",
    _PARAMETERS: "reads the parameters of channel {0}, which nobody wrote",
    _SHIFT: "takes shift {1} from channel {0}; it must be from "
    f"{SHIFT_MIN} to {SHIFT_MAX} and not below residual_shift",
    _TABLES: "reads table {0}, which nobody wrote",
    _RESIDUAL: "reads a residual that, in every lane and at every position, nobody wrote",
    _STORED: "stores byte {1} of the output buffer of lane {0}, ",
}


def check_contents(
    matrix: NDArray[np.int64], spec: ArchSpec, dram: NDArray[np.uint8], fixed: NDArray[np.bool_]
) -> None:
    """Refuse (SimulationError) a stage that reads what nobody wrote, and (ProgramError) illegal shifts.

    dram : the memory at the start.  fixed : bool [instructions], the DRAM bytes a LOAD reads are never written.
    The stage must have passed gossamer.sim.legal.
    """
    found = np.zeros(4, dtype=np.int64)
    channels = spec.parameter_channels
    marks = (
        np.zeros((spec.lanes, spec.activation_bytes // spec.group), dtype=np.uint32),
        np.zeros((spec.lanes, spec.output_bytes), dtype=np.int32),
        np.zeros((2 * spec.depth, spec.lanes), dtype=np.int32),
    )
    weights = (np.zeros(spec.weight_steps, dtype=np.bool_), np.zeros(spec.weight_steps, dtype=np.uint32))
    offsets = (np.zeros(spec.offset_steps, dtype=np.bool_), np.zeros(spec.offset_steps, dtype=np.int64))
    parameters = (np.zeros(8 * channels, dtype=np.bool_), np.zeros(channels, dtype=np.int64))
    tables = np.zeros(spec.tables, dtype=np.bool_)
    _walk(np.ascontiguousarray(matrix), sizes_of(spec), dram, fixed, marks, weights, offsets, parameters, tables, found)
    code, i, a, b = found.tolist()
    if code == _FINE:
        return
    text = _TEXTS[code].format(a, b)
    if code == _STORED:
        mark = int(marks[1][a, b])
        cause = mark - _GARBAGE
        text += "which nobody wrote"
        if mark >= _GARBAGE:
            text = text.replace("which nobody wrote", "made from ")
            text += f"bytes that nobody wrote by instruction {cause} ({disassemble(matrix[cause])})"
    error: type[GossamerError] = ProgramError if code == _SHIFT else SimulationError
    refuse(error, matrix, i, text)


Marks = tuple[NDArray[np.uint32], NDArray[np.int32], NDArray[np.int32]]
"""Activations: uint32 [lanes, windows], a bit for every good element.  Outputs: int32 [lanes, bytes], marks.
Accumulators: int32 [2 * depth, lanes], marks."""
Rows = tuple[NDArray[np.bool_], NDArray[np.uint32]]
Entries = tuple[NDArray[np.bool_], NDArray[np.int64]]


@jit
def _walk(
    matrix: NDArray[np.int64],
    sizes: Sizes,
    dram: NDArray[np.uint8],
    fixed: NDArray[np.bool_],
    marks: Marks,
    weights: Rows,
    offsets: Entries,
    parameters: Entries,
    tables: NDArray[np.bool_],
    found: NDArray[np.int64],
) -> None:
    """found : code, instruction and two numbers of the first thing that is wrong."""
    for i in range(matrix.shape[0]):
        f = matrix[i]
        found[1] = i
        if f[0] == _LOAD:
            _load(f, sizes, dram, fixed[i], marks, weights, offsets, parameters, tables)
        elif f[0] == _MATMUL:
            _matmul(f, i, sizes, marks, weights, offsets, found)
        elif f[0] == _DRAIN:
            _drain(f, i, sizes, marks, parameters, tables, found)
        elif f[0] == _STORE:
            _store(f, sizes, marks[1], found)
        if found[0] != _FINE:
            return


@jit
def _load(
    f: NDArray[np.int64],
    sizes: Sizes,
    dram: NDArray[np.uint8],
    fixed: bool,
    marks: Marks,
    weights: Rows,
    offsets: Entries,
    parameters: Entries,
    tables: NDArray[np.bool_],
) -> None:
    kind, beat = f[L_KIND], sizes.beat
    if kind in (_ACTIVATION, _OUTPUT):
        width = 1 << f[L_GRID]
        for lane in range(sizes.lanes):
            keep_x = min(f[L_TB], f[L_BEATS] - lane % width * f[L_SB]) * beat
            keep_y = min(f[L_TR], f[L_ROWS] - lane // width * f[L_SR])
            if keep_x <= 0:
                continue
            for b in range(f[L_BLOCKS]):
                for ly in range(keep_y):
                    to = (f[L_DEST] + (b * f[L_TR] + ly) * f[L_TB]) * beat
                    if kind == _ACTIVATION:
                        _mark_elements(marks[0][lane], sizes.group, to, to + keep_x, True)
                    else:
                        marks[1][lane, to : to + keep_x] = _GOOD
        return
    total = f[L_BEATS] * f[L_ROWS] * f[L_BLOCKS] * beat
    if kind == _TABLE:
        tables[f[L_DEST] : f[L_DEST] + total // 256] = True
        return
    data = read_string(f, beat, dram)
    if kind == _WEIGHT:
        _mark_weights(f, data, fixed, sizes, weights)
    elif kind == _OFFSET:
        first = f[L_DEST] * beat // 2
        for k in range(total // 2):
            offsets[0][first + k] = True
            offsets[1][first + k] = np.int64(data[2 * k]) | np.int64(data[2 * k + 1]) << 8
    elif kind == _PARAMETER:
        first = f[L_DEST] * beat
        parameters[0][first : first + total] = True
        for k in range(total):
            if (first + k) % 8 == 7:
                parameters[1][(first + k) // 8] = np.int64(data[k]) if fixed else SHIFT_MAX


@jit
def _mark_elements(row: NDArray[np.uint32], group: int, low: int, high: int, good: bool) -> None:
    """Elements low .. high - 1 of a lane's bank become good, or garbage."""
    for w in range(low // group, (high - 1) // group + 1):
        first, last = max(low - w * group, 0), min(high - w * group, group)
        bits = np.uint32(((1 << last) - 1) & ~((1 << first) - 1))
        row[w] = row[w] | bits if good else row[w] & ~bits


@jit
def _mark_weights(f: NDArray[np.int64], data: NDArray[np.uint8], fixed: bool, sizes: Sizes, weights: Rows) -> None:
    """Which elements of a window, modulo the group, the nonzero weights of a row select: all, if not known."""
    operand = f[L_ENC] >= _NATURAL
    size = sizes.step_bytes[f[L_ENC]]
    steps = data.size // size
    shape = (0 if operand else steps, sizes.columns, sizes.macs)
    values, selects = np.empty(shape, dtype=np.int8), np.empty(shape, dtype=np.uint8)
    if not operand:
        decode_records(data, f[L_ENC], sizes, 0, values, selects)
    for k in range(steps):
        mask = np.int64(0)
        if operand:  # any value may be zero, but selects are implied
            mask = np.int64((1 << sizes.macs) - 1) << np.int64(k * sizes.macs % sizes.group)
        elif fixed:
            for c in range(sizes.columns):
                for v in range(sizes.macs):
                    if values[k, c, v] != 0:
                        mask |= np.int64(1) << np.int64(selects[k, c, v])
        else:
            mask = np.int64((1 << sizes.group) - 1)
        weights[0][f[L_DEST] + k] = True
        weights[1][f[L_DEST] + k] = mask


@jit
def _matmul(
    f: NDArray[np.int64],
    i: int,
    sizes: Sizes,
    marks: Marks,
    weights: Rows,
    offsets: Entries,
    found: NDArray[np.int64],
) -> None:
    group = sizes.group
    steps, count = f[M_STEPS], f[M_NX] * f[M_NY]
    for s in range(steps):
        if not weights[0][f[M_W] + s]:
            found[0], found[2] = _WEIGHTS, f[M_W] + s
            return
        if not offsets[0][f[M_O] + s]:
            found[0], found[2] = _OFFSETS, f[M_O] + s
            return
    # What the steps need of aligned windows: a step with an offset between two multiples of the group needs two.
    # Steps of the same window follow each other in most streams: they become one.
    window, need = np.empty(2 * steps, dtype=np.int64), np.empty(2 * steps, dtype=np.uint32)
    needs, last = 0, np.int64(-1)
    for s in range(steps):
        at, mask = offsets[1][f[M_O] + s] * sizes.hop, weights[1][f[M_W] + s]
        below = np.uint32((1 << (at % group)) - 1)
        if at != last:
            for half in range(2):
                window[needs + half], need[needs + half] = at // group + half, 0
            needs, last = needs + 2, at
        need[needs - 2] |= mask & ~below
        need[needs - 1] |= mask & below
    first = f[M_BANK] * sizes.depth + f[M_ABASE]
    nothing_good = True
    for t in range(count):
        base = f[M_ACT] + t // f[M_NX] * f[M_SY] + t % f[M_NX] * f[M_SX]
        for lane in range(sizes.lanes):
            good = True
            for k in range(needs):
                if need[k] != 0 and need[k] & ~marks[0][lane, base + window[k]] != 0:
                    good = False
                    break
            if f[M_ACC] == 1 and marks[2][first + t, lane] == _UNWRITTEN:
                found[0], found[2] = _SUMS, first + t
                return
            if not good:
                marks[2][first + t, lane] = _GARBAGE + i
            else:
                nothing_good = False
                if f[M_ACC] == 0:
                    marks[2][first + t, lane] = _GOOD
    if nothing_good:
        found[0] = _WINDOWS


@jit
def _drain(
    f: NDArray[np.int64],
    i: int,
    sizes: Sizes,
    marks: Marks,
    parameters: Entries,
    tables: NDArray[np.bool_],
    found: NDArray[np.int64],
) -> None:
    ppu = sizes.ppu
    if f[D_RAW] == 0:
        for channel in range(f[D_PARAM] * ppu, (f[D_PARAM] + f[D_G]) * ppu):
            shift = parameters[1][channel]
            if not np.all(parameters[0][8 * channel : 8 * channel + 8]):
                found[0], found[2] = _PARAMETERS, channel
                return
            if shift < max(SHIFT_MIN, f[_RSHIFT]) or shift > SHIFT_MAX:
                found[0], found[2], found[3] = _SHIFT, channel, shift
                return
        if f[D_TEN] == 1 and not tables[f[D_TAB]]:
            found[0], found[2] = _TABLES, f[D_TAB]
            return
    first, columns = f[D_BANK] * sizes.depth + f[D_ABASE], f[D_G] * ppu
    size = 4 if f[D_RAW] == 1 else 1
    nothing_good = f[D_RES] == 1
    for t in range(f[D_NX] * f[D_NY]):
        move = (t // f[D_NX] * f[D_SY] + t % f[D_NX] * f[D_SX]) * ppu
        low = (f[D_DEST] * ppu + move) * size
        for lane in range(sizes.lanes):
            mark = marks[2][first + t, lane]
            if mark == _UNWRITTEN:
                found[0], found[2] = _SUMS, first + t
                return
            if f[D_RES] == 1:
                at = f[D_RBASE] * ppu + move
                whole = True
                for byte in range(at, at + columns):
                    other = marks[1][lane, byte]
                    if other != _GOOD:
                        whole = False
                        mark = other if other >= _GARBAGE else np.int32(_GARBAGE + i)
                if whole:
                    nothing_good = False
            if f[D_TOACT] == 1:
                _mark_elements(marks[0][lane], sizes.group, low, low + columns * size, mark == _GOOD)
            else:
                marks[1][lane, low : low + columns * size] = mark
    if nothing_good:
        found[0] = _RESIDUAL


@jit
def _store(f: NDArray[np.int64], sizes: Sizes, outputs: NDArray[np.int32], found: NDArray[np.int64]) -> None:
    beat, width = sizes.beat, 1 << f[S_GRID]
    tile_beats, tile_rows = f[S_TB], f[S_TR]
    for b in range(f[S_BLOCKS]):
        for y in range(f[S_ROWS]):
            source = (f[S_SRC] + (b * tile_rows + y % tile_rows) * tile_beats) * beat
            for j in range((f[S_BEATS] + tile_beats - 1) // tile_beats):
                lane = y // tile_rows * width + j
                keep = min(tile_beats, f[S_BEATS] - j * tile_beats) * beat
                for byte in range(source, source + keep):
                    if outputs[lane, byte] != _GOOD:
                        found[0], found[2], found[3] = _STORED, lane, byte
                        return
