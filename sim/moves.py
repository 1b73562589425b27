"""LOAD and STORE: bytes between DRAM and the memories of a machine (meaning: arch/access.py)."""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.access import (
    L_ADDR,
    L_BEATS,
    L_BLOCKS,
    L_BS,
    L_DEST,
    L_ENC,
    L_GRID,
    L_KIND,
    L_ROWS,
    L_RS,
    L_SB,
    L_SR,
    L_TB,
    L_TR,
    S_ADDR,
    S_BEATS,
    S_BLOCKS,
    S_BS,
    S_GRID,
    S_ROWS,
    S_RS,
    S_SRC,
    S_TB,
    S_TR,
)
from gossamer.arch.isa import Encoding, LoadKind
from gossamer.arch.jit import jit
from gossamer.kernels.step_vectors import copy_bytes
from gossamer.sim.machine import Machine, Sizes

__all__ = ["decode_records", "load", "load_operand", "read_string", "store"]

_ACTIVATION, _OUTPUT, _WEIGHT, _OFFSET, _PARAMETER, _TABLE = (int(k) for k in LoadKind)
_DENSE, _INDEX, _NATURAL = int(Encoding.DENSE), int(Encoding.INDEX), int(Encoding.NATURAL)


@jit
def load(f: NDArray[np.int64], sizes: Sizes, machine: Machine, dram: NDArray[np.uint8]) -> None:
    """One LOAD, f its row of the matrix form."""
    kind, beat = f[L_KIND], sizes.beat
    if kind == _ACTIVATION:
        _scatter(f, beat, dram, machine.activations)
        return
    if kind == _OUTPUT:
        _scatter(f, beat, dram, machine.outputs)
        return
    data = read_string(f, beat, dram)
    if kind == _WEIGHT and f[L_ENC] >= _NATURAL:
        load_operand(f, sizes, data, machine.values, machine.selects)
    elif kind == _WEIGHT:
        decode_records(data, f[L_ENC], sizes, f[L_DEST], machine.values, machine.selects)
    elif kind == _OFFSET:
        for k in range(data.size // 2):
            machine.offsets[f[L_DEST] * beat // 2 + k] = np.int64(data[2 * k]) | np.int64(data[2 * k + 1]) << 8
    elif kind == _PARAMETER:
        copy_bytes(machine.parameters, f[L_DEST] * beat, data, 0, data.size)
    else:
        copy_bytes(machine.tables, f[L_DEST] * 256, data, 0, data.size)


@jit
def _scatter(f: NDArray[np.int64], beat: int, dram: NDArray[np.uint8], bank: NDArray[np.uint8]) -> None:
    """Every lane keeps its tile of the region."""
    width = 1 << f[L_GRID]
    for lane in range(bank.shape[0]):
        x, y = (lane % width) * f[L_SB], (lane // width) * f[L_SR]
        keep_x = min(f[L_TB], f[L_BEATS] - x) * beat
        keep_y = min(f[L_TR], f[L_ROWS] - y)
        if keep_x <= 0:
            continue
        for b in range(f[L_BLOCKS]):
            for ly in range(keep_y):
                at = (f[L_ADDR] + b * f[L_BS] + (y + ly) * f[L_RS] + x) * beat
                to = (f[L_DEST] + (b * f[L_TR] + ly) * f[L_TB]) * beat
                copy_bytes(bank, lane * bank.shape[1] + to, dram, at, keep_x)


@jit
def read_string(f: NDArray[np.int64], beat: int, dram: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All bytes of the region one after the other."""
    row = f[L_BEATS] * beat
    if f[L_ROWS] * f[L_BLOCKS] == 1:
        return dram[f[L_ADDR] * beat : f[L_ADDR] * beat + row]
    out = np.empty(row * f[L_ROWS] * f[L_BLOCKS], dtype=np.uint8)
    n = 0
    for b in range(f[L_BLOCKS]):
        for y in range(f[L_ROWS]):
            copy_bytes(out, n, dram, (f[L_ADDR] + b * f[L_BS] + y * f[L_RS]) * beat, row)
            n += row
    return out


@jit
def decode_records(
    data: NDArray[np.uint8],
    encoding: int,
    sizes: Sizes,
    first: int,
    values: NDArray[np.int8],
    selects: NDArray[np.uint8],
) -> None:
    """Records to rows first, first + 1, ... of values and selects [rows, C, V], as arch.stream.decode_steps does."""
    macs, group = sizes.macs, sizes.group
    size, width, period = sizes.step_bytes[encoding], sizes.columns * macs, group // macs
    row = np.empty(width, dtype=np.uint8)
    for k in range(data.size // size):
        to = (first + k) * width
        copy_bytes(values, to, data, k * size, width)
        if encoding == _DENSE and k >= period:
            copy_bytes(selects, to, selects, to - period * width, width)
            continue
        if encoding == _DENSE:
            for i in range(width):
                row[i] = k * macs + i % macs
        elif encoding == _INDEX:
            _unpack(data, k * size + width, sizes.select_bits, row)
        else:
            _unmask(data, k * size + width, group, macs, row)
        copy_bytes(selects, to, row, 0, width)


@jit
def _unpack(data: NDArray[np.uint8], at: int, bits: int, row: NDArray[np.uint8]) -> None:
    """INDEX: numbers of `bits` bits from data[at] on, eight in as many bytes as they have bits."""
    for i in range(0, row.size, 8):
        count = min(8, row.size - i)
        word = np.int64(0)
        for byte in range((bits * count + 7) >> 3):
            word |= np.int64(data[at + (i >> 3) * bits + byte]) << (8 * byte)
        for k in range(count):
            row[i + k] = (word >> (bits * k)) & ((1 << bits) - 1)


@jit
def _unmask(data: NDArray[np.uint8], at: int, group: int, macs: int, row: NDArray[np.uint8]) -> None:
    """MASK: `group` bits a column from data[at] on; values beyond its set bits select 0."""
    for i in range(0, row.size, macs):
        bit, v = i // macs * group, 0
        for m in range(group):
            if (data[at + ((bit + m) >> 3)] >> ((bit + m) & 7)) & 1 and v < macs:
                row[i + v] = m
                v += 1
        for idle in range(v, macs):
            row[i + idle] = 0


@jit
def load_operand(
    f: NDArray[np.int64],
    sizes: Sizes,
    data: NDArray[np.uint8],
    values: NDArray[np.int8],
    selects: NDArray[np.uint8],
) -> None:
    """Activations to rows of values and selects, [rows, C, V]; data : all bytes of the load."""
    beat, columns, macs, group = sizes.beat, sizes.columns, sizes.macs, sizes.group
    natural = f[L_ENC] == _NATURAL
    per = max(1, columns // beat) if natural else f[L_TB]
    low, count = np.int64(0), beat
    if natural and columns < beat:
        low, count = f[L_SB] * columns, columns
    for i in range(data.size // beat):
        if natural:
            k, c = i // per, i % per * beat
        else:
            k, c = (i // (per * columns) * per + i % per) * beat, i // per % columns
        for byte in range(count):
            step = f[L_DEST] + k // macs
            values[step, c, k % macs] = np.int8(data[i * beat + low + byte])
            selects[step, c, k % macs] = k % group
            if natural:
                c += 1
            else:
                k += 1


@jit
def store(f: NDArray[np.int64], sizes: Sizes, machine: Machine, dram: NDArray[np.uint8]) -> None:
    """One STORE: rows of the region, lane by lane."""
    beat, width = sizes.beat, 1 << f[S_GRID]
    tile_beats, tile_rows = f[S_TB], f[S_TR]
    for b in range(f[S_BLOCKS]):
        for y in range(f[S_ROWS]):
            at = (f[S_ADDR] + b * f[S_BS] + y * f[S_RS]) * beat
            source = (f[S_SRC] + (b * tile_rows + y % tile_rows) * tile_beats) * beat
            for j in range((f[S_BEATS] + tile_beats - 1) // tile_beats):
                lane = y // tile_rows * width + j
                x = j * tile_beats
                keep = min(tile_beats, f[S_BEATS] - x) * beat
                to = at + x * beat
                copy_bytes(dram, to, machine.outputs, lane * machine.outputs.shape[1] + source, keep)
