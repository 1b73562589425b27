"""What follows an accumulation, fused into one pass: bias, requantise, residual, clamp, table.

The arithmetic is defined by gossamer.arch.numerics; this is the same, compiled, and checked against it bit for bit.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import jit
from gossamer.arch.numerics import MULTIPLIER_BITS, SHIFT_MAX, SHIFT_MIN, Requant
from gossamer.arch.rounding import round_half_even
from gossamer.kernels.checks import check_array, check_int, check_per_channel

__all__ = ["requantise", "requantise_rows"]


def requantise(
    acc: NDArray[np.int32],
    bias: NDArray[np.int32],
    q: Requant,
    residual: NDArray[np.integer] | None = None,
    table: NDArray[np.integer] | None = None,
    *,
    axis: int = -1,
) -> NDArray[np.int16]:
    """Accumulators to output codes; equals `gossamer.arch.numerics.requantise` for channels last.

        y = clamp(zero_point + rhe(((acc + bias) * multiplier + residual_term) / 2**shift), lo, hi)
        residual_term = ((residual - residual_zero_point) * residual_multiplier) << (shift - residual_shift)

    and then table[y & 0xFF], if there is a table. rhe rounds half to even.

    acc : int32 [..., channels, ...];  axis : where the channels are (1 for NCHW).  bias : int32 [channels].
    q : multiplier and shift per channel.  residual : codes of the shape of acc, int8, uint8 or int16, or None.
    table : 256 codes, int8, uint8 or int16, or None.  Returns int16, of the shape of acc.
    Raises ModelError when a shape, a dtype or a parameter of q is not legal.
    """
    check_array("acc", acc, [np.int32])
    if acc.ndim < 1:
        raise ModelError(f"acc must have at least 1 dimension, not shape {acc.shape}")
    axis = check_int("axis", axis, -acc.ndim, acc.ndim - 1) % acc.ndim
    channels = acc.shape[axis]
    check_array("bias", bias, [np.int32], 1)
    if bias.shape != (channels,):
        raise ModelError(f"bias must have shape ({channels},), one a channel, not {bias.shape}")
    multiplier = check_per_channel("multiplier", q.multiplier, channels, 0, (1 << MULTIPLIER_BITS) - 1)
    shift = check_per_channel("shift", q.shift, channels, SHIFT_MIN, SHIFT_MAX)
    if q.lo > q.hi:
        raise ModelError(f"lo must be at most hi ({q.hi}), not {q.lo}")
    # An array with no elements stands for an absent one, so that there is one compiled variant.
    residuals = np.empty((0, 0), dtype=np.int16)
    if residual is not None:
        check_array("residual", residual, [np.int8, np.uint8, np.int16])
        if residual.shape != acc.shape:
            raise ModelError(f"residual must have the shape of acc {acc.shape}, not {residual.shape}")
        check_int("residual_shift", q.residual_shift, 0, int(shift.min(initial=SHIFT_MAX)))
        residuals = _channels_last(residual.astype(np.int16), axis)
    codes = np.empty((0, 256), dtype=np.int16)
    if table is not None:
        check_array("table", table, [np.int8, np.uint8, np.int16], 1)
        if table.size != 256:
            raise ModelError(f"table must have 256 entries, not {table.size}")
        codes = np.ascontiguousarray(table, dtype=np.int16).reshape(1, 256)
    sums = _channels_last(acc, axis)
    out = np.empty(sums.shape, dtype=np.int16)
    requantise_rows(
        sums,
        bias.astype(np.int64),
        multiplier,
        shift,
        q.zero_point,
        q.lo,
        q.hi,
        residuals,
        0,
        q.residual_zero_point,
        q.residual_multiplier,
        q.residual_shift,
        codes,
        out,
    )
    shape = np.moveaxis(acc, axis, -1).shape
    return np.ascontiguousarray(np.moveaxis(out.reshape(shape), -1, axis))


def _channels_last(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """[rows, channels], C-contiguous."""
    moved = np.ascontiguousarray(np.moveaxis(array, axis, -1))
    return moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])


@jit
def requantise_rows(
    acc: NDArray[np.int32],
    bias: NDArray[np.int64],
    multiplier: NDArray[np.int64],
    shift: NDArray[np.int64],
    zero_point: int,
    lo: int,
    hi: int,
    residual: NDArray[Any],
    flip: int,
    residual_zero: int,
    residual_multiplier: int,
    residual_shift: int,
    table: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Channels last: bias, multiplier, shift [channels]; acc [rows, at least channels]; residual, out [rows, channels].

    table : [1, 256]. A residual or table without rows: there is none. All C-contiguous, so that loops become vectors.
    flip : 128 if the residual is bytes of int8 codes and its zero point moved by 128; else 0.
    """
    channels = bias.size
    for row in range(acc.shape[0]):
        sums, codes = acc[row], out[row]
        if residual.size > 0:
            added = residual[row]
            for c in range(channels):
                term = ((np.int64(added[c]) ^ flip) - residual_zero) * residual_multiplier
                total = (np.int64(sums[c]) + bias[c]) * multiplier[c] + (term << (shift[c] - residual_shift))
                codes[c] = min(max(round_half_even(total, shift[c]) + zero_point, lo), hi)
        else:
            for c in range(channels):
                total = (np.int64(sums[c]) + bias[c]) * multiplier[c]
                codes[c] = min(max(round_half_even(total, shift[c]) + zero_point, lo), hi)
        if table.size > 0:
            for c in range(channels):
                codes[c] = table[0, np.int64(codes[c]) & 0xFF]
