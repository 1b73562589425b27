"""MATMUL and DRAIN: the PE array and the post-processing unit, exact (meaning: arch/access.py, arch/numerics.py).

A sum is done as a product of matrices. The elements that nonzero weights select, in all steps together, are gathered
once as float64 operands [lanes * positions, elements] and multiplied with the weights [elements, columns]. Every
partial sum is an integer below 2**53, so float64 is exact; accumulators then wrap like 32-bit registers.
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
)
from gossamer.arch.isa import MatmulMode, Op, column
from gossamer.arch.jit import jit
from gossamer.arch.numerics import ACC_MIN
from gossamer.arch.rounding import round_half_even
from gossamer.sim.machine import Machine, Sizes

__all__ = ["drain", "matmul"]

M_MODE, M_SIGNED, M_ZERO = (column(Op.MATMUL, n) for n in ("mode", "signed", "zero_point"))
D_RSIGNED, D_RZERO, D_RMUL, D_RSHIFT, D_ZERO, D_LO, D_HI = (
    column(Op.DRAIN, n)
    for n in ("residual_signed", "residual_zero", "residual_multiplier", "residual_shift", "zero_point", "lo", "hi")
)
_MAXIMUM = int(MatmulMode.MAXIMUM)
Integer = int | np.int64
_CHUNK = 256
"""Elements multiplied at once: keeps gathered operands in the cache."""
_PRODUCT = 1 << 18
"""Multiplications given to BLAS at once: few enough that it does not call on other threads, which costs more than it
gains at this size and far more on a busy machine."""


@jit
def matmul(f: NDArray[np.int64], sizes: Sizes, machine: Machine) -> None:
    """One MATMUL, f its row of the matrix form."""
    first = f[M_BANK] * sizes.depth + f[M_ABASE]
    count = f[M_NX] * f[M_NY]
    acc = machine.accumulators[:, first : first + count, :]
    positions = np.empty(count, dtype=np.int64)
    for t in range(count):
        positions[t] = (f[M_ACT] + t // f[M_NX] * f[M_SY] + t % f[M_NX] * f[M_SX]) * sizes.group
    values = machine.values[f[M_W] : f[M_W] + f[M_STEPS]]
    selects = machine.selects[f[M_W] : f[M_W] + f[M_STEPS]]
    windows = machine.offsets[f[M_O] : f[M_O] + f[M_STEPS]] * sizes.hop
    zero = _code(f[M_ZERO], f[M_SIGNED])
    if f[M_ACC] == 0:
        acc[:] = ACC_MIN if f[M_MODE] == _MAXIMUM else 0
    if f[M_MODE] == _MAXIMUM:
        _largest(machine.activations, positions, windows, values, selects, sizes.group, f[M_SIGNED], zero, acc)
    else:
        elements, weights = _expand(windows, values, selects, sizes.group)
        _add(machine.activations, positions, elements, weights, f[M_SIGNED], zero, acc)


@jit
def _code(byte: Integer, signed: int) -> Integer:
    """The number that an 8-bit pattern stands for."""
    return byte - 256 if signed == 1 and byte > 127 else byte


@jit
def _expand(
    windows: NDArray[np.int64], values: NDArray[np.int8], selects: NDArray[np.uint8], group: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Distinct elements that nonzero values select, int64 [K] ascending, and their weights, float64 [K, columns]."""
    steps, columns, macs = values.shape
    low = windows.min()
    place = np.full(windows.max() - low + group, -1, dtype=np.int64)
    for s in range(steps):
        window = windows[s]
        for c in range(columns):
            for v in range(macs):
                if values[s, c, v] != 0:
                    place[window - low + (np.int64(selects[s, c, v]) - window) % group] = 1
    elements = np.empty(place.size, dtype=np.int64)
    used = 0
    for e in range(place.size):
        if place[e] == 1:
            place[e] = used
            elements[used] = low + e
            used += 1
    weights = np.zeros((used, columns), dtype=np.float64)
    for s in range(steps):
        window = windows[s]
        for c in range(columns):
            for v in range(macs):
                if values[s, c, v] != 0:
                    weights[place[window - low + (np.int64(selects[s, c, v]) - window) % group], c] += values[s, c, v]
    return elements[:used], weights


@jit
def _add(
    bank: NDArray[np.uint8],
    positions: NDArray[np.int64],
    elements: NDArray[np.int64],
    weights: NDArray[np.float64],
    signed: int,
    zero: Integer,
    acc: NDArray[np.int32],
) -> None:
    """acc [lanes, T, columns] += operands [lanes, T, K] @ weights [K, columns], modulo 2**32."""
    lanes, count, columns = acc.shape
    flip = 128 if signed == 1 else 0  # two's complement: code = (byte ^ 128) - 128
    for k in range(0, elements.size, _CHUNK):
        part = elements[k : k + _CHUNK]
        most = max(1, _PRODUCT // (part.size * columns))
        for first in range(0, lanes * count, most):
            rows = min(most, lanes * count - first)
            operands = np.empty((rows, part.size), dtype=np.float64)
            for row in range(rows):
                lane, t = divmod(first + row, count)
                at = positions[t]
                for e in range(part.size):
                    operands[row, e] = (np.int64(bank[lane, at + part[e]]) ^ flip) - flip - zero
            sums = np.dot(operands, weights[k : k + _CHUNK])
            for row in range(rows):
                lane, t = divmod(first + row, count)
                for c in range(columns):
                    acc[lane, t, c] = _wrap(np.int64(acc[lane, t, c]) + np.int64(sums[row, c]))


@jit
def _wrap(x: Integer) -> Integer:
    """What a 32-bit register keeps of a sum."""
    return (x + (1 << 31)) % (1 << 32) - (1 << 31)


@jit
def _largest(
    bank: NDArray[np.uint8],
    positions: NDArray[np.int64],
    windows: NDArray[np.int64],
    values: NDArray[np.int8],
    selects: NDArray[np.uint8],
    group: int,
    signed: int,
    zero: Integer,
    acc: NDArray[np.int32],
) -> None:
    """acc [lanes, T, columns] becomes the largest of itself and every product of a nonzero value."""
    steps, columns, macs = values.shape
    lanes, count, _ = acc.shape
    flip = 128 if signed == 1 else 0
    for s in range(steps):
        window = windows[s]
        for c in range(columns):
            for v in range(macs):
                value = np.int64(values[s, c, v])
                if value != 0:
                    element = window + (np.int64(selects[s, c, v]) - window) % group
                    for lane in range(lanes):
                        for t in range(count):
                            code = (np.int64(bank[lane, positions[t] + element]) ^ flip) - flip
                            acc[lane, t, c] = max(np.int64(acc[lane, t, c]), (code - zero) * value)


@jit
def drain(f: NDArray[np.int64], sizes: Sizes, machine: Machine) -> None:
    """One DRAIN, f its row of the matrix form."""
    ppu = sizes.ppu
    first = f[D_BANK] * sizes.depth + f[D_ABASE]
    target = machine.activations if f[D_TOACT] == 1 else machine.outputs
    columns = f[D_G] * ppu
    channels = 0 if f[D_RAW] == 1 else columns
    bias, multiplier, shift = np.empty(channels, np.int64), np.empty(channels, np.int64), np.empty(channels, np.int64)
    for c in range(channels):
        p = machine.parameters[(f[D_PARAM] * ppu + c) * 8 : (f[D_PARAM] * ppu + c + 1) * 8].astype(np.int64)
        bias[c] = _wrap(p[0] | p[1] << 8 | p[2] << 16 | p[3] << 24)
        multiplier[c] = p[4] | p[5] << 8 | p[6] << 16
        shift[c] = p[7]
    residual_zero = _code(f[D_RZERO], f[D_RSIGNED])
    for lane in range(sizes.lanes):
        for t in range(f[D_NX] * f[D_NY]):
            move = (t // f[D_NX] * f[D_SY] + t % f[D_NX] * f[D_SX]) * ppu
            acc = machine.accumulators[lane, first + t]
            at = f[D_DEST] * ppu + move
            if f[D_RAW] == 1:
                for c in range(columns):
                    for k in range(4):
                        target[lane, 4 * (at + c) + k] = (np.int64(acc[c]) >> (8 * k)) & 0xFF
                continue
            for c in range(columns):
                total = (np.int64(acc[c]) + bias[c]) * multiplier[c]
                if f[D_RES] == 1:
                    code = _code(np.int64(machine.outputs[lane, f[D_RBASE] * ppu + move + c]), f[D_RSIGNED])
                    total += ((code - residual_zero) * f[D_RMUL]) << (shift[c] - f[D_RSHIFT])
                code = min(max(round_half_even(total, shift[c]) + f[D_ZERO], f[D_LO]), f[D_HI]) & 0xFF
                target[lane, at + c] = machine.tables[f[D_TAB], code] if f[D_TEN] == 1 else code
