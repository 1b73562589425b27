"""MATMUL and DRAIN: the PE array and the post-processing unit, exact (meaning: arch/access.py, arch/numerics.py).

The product is that of kernels/steps.py.
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
from gossamer.kernels.epilogue import requantise_rows
from gossamer.kernels.step_vectors import copy_bytes
from gossamer.kernels.steps import Bench, run_steps
from gossamer.sim.machine import Machine, Sizes

__all__ = ["drain", "matmul"]

M_MODE, M_SIGNED, M_ZERO = (column(Op.MATMUL, n) for n in ("mode", "signed", "zero_point"))
D_RSIGNED, D_RZERO, D_RMUL, D_RSHIFT, D_ZERO, D_LO, D_HI = (
    column(Op.DRAIN, n)
    for n in ("residual_signed", "residual_zero", "residual_multiplier", "residual_shift", "zero_point", "lo", "hi")
)
_MAXIMUM = int(MatmulMode.MAXIMUM)


@jit
def matmul(f: NDArray[np.int64], sizes: Sizes, machine: Machine, bench: Bench) -> None:
    """One MATMUL, f its row of the matrix form."""
    first = f[M_BANK] * sizes.depth + f[M_ABASE]
    count = f[M_NX] * f[M_NY]
    positions = np.empty(count, dtype=np.int64)
    for t in range(count):
        positions[t] = (f[M_ACT] + t // f[M_NX] * f[M_SY] + t % f[M_NX] * f[M_SX]) * sizes.group
    values = machine.values[f[M_W] : f[M_W] + f[M_STEPS]]
    selects = machine.selects[f[M_W] : f[M_W] + f[M_STEPS]]
    windows = machine.offsets[f[M_O] : f[M_O] + f[M_STEPS]] * sizes.hop
    flip = 128 if f[M_SIGNED] == 1 else 0
    zero, maximum = f[M_ZERO] ^ flip, f[M_MODE] == _MAXIMUM
    if f[M_ACC] == 0:
        machine.accumulators[:, first : first + count] = ACC_MIN if maximum else 0
    run_steps(
        machine.activations, positions, windows, values, selects, sizes.group, flip, zero, maximum,
        machine.accumulators, first, bench,
    )  # fmt: skip


@jit
def drain(f: NDArray[np.int64], sizes: Sizes, machine: Machine) -> None:
    """One DRAIN, f its row of the matrix form."""
    ppu, count, columns = sizes.ppu, f[D_NX] * f[D_NY], f[D_G] * sizes.ppu
    first = f[D_BANK] * sizes.depth + f[D_ABASE]
    target = machine.activations if f[D_TOACT] == 1 else machine.outputs
    moves = np.empty(count, dtype=np.int64)
    for t in range(count):
        moves[t] = (t // f[D_NX] * f[D_SY] + t % f[D_NX] * f[D_SX]) * ppu
    if f[D_RAW] == 1:
        for lane in range(sizes.lanes):
            for t in range(count):
                at = lane * target.shape[1] + 4 * (f[D_DEST] * ppu + moves[t])
                acc = (lane * 2 * sizes.depth + first + t) * sizes.columns
                copy_bytes(target, at, machine.accumulators, 4 * acc, 4 * columns)
        return
    bias, multiplier, shift = np.empty(columns, np.int64), np.empty(columns, np.int64), np.empty(columns, np.int64)
    for c in range(columns):
        word = np.int64(0)
        for byte in range(8):
            word |= np.int64(machine.parameters[(f[D_PARAM] * ppu + c) * 8 + byte]) << (8 * byte)
        bias[c] = word << 32 >> 32
        multiplier[c] = word >> 32 & 0xFFFFFF
        shift[c] = word >> 56 & 0xFF
    flip = 128 if f[D_RSIGNED] == 1 else 0
    # Codes and residuals apart from the buffers: a result may stand where its residual does.
    residual = np.empty((count if f[D_RES] == 1 else 0, columns), dtype=np.uint8)
    codes = np.empty((count, columns), dtype=np.uint8)
    table = machine.tables[f[D_TAB] : f[D_TAB] + f[D_TEN]]
    for lane in range(sizes.lanes):
        for t in range(residual.shape[0]):
            at = lane * machine.outputs.shape[1] + f[D_RBASE] * ppu + moves[t]
            copy_bytes(residual, t * columns, machine.outputs, at, columns)
        requantise_rows(
            machine.accumulators[lane, first : first + count], bias, multiplier, shift, f[D_ZERO], f[D_LO], f[D_HI],
            residual, flip, f[D_RZERO] ^ flip, f[D_RMUL], f[D_RSHIFT], table, codes,
        )  # fmt: skip
        for t in range(count):
            at = lane * target.shape[1] + f[D_DEST] * ppu + moves[t]
            copy_bytes(target, at, codes, t * columns, columns)
