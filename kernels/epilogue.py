"""What follows an accumulation, fused into one pass: bias, requantise, residual, clamp, table.

The arithmetic is defined by gossamer.arch.numerics; this is the same, compiled, and checked against it bit for bit.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import jit
from gossamer.arch.numerics import MULTIPLIER_BITS, SHIFT_MAX, SHIFT_MIN, Requant
from gossamer.arch.rounding import round_half_even
from gossamer.kernels.checks import check_array, check_int, check_per_channel

__all__ = ["requantise"]


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
    # Outer, channel, inner: one kernel for channels anywhere. An array with no elements stands for an absent one,
    # so that there is one compiled variant.
    view = (int(np.prod(acc.shape[:axis])), channels, int(np.prod(acc.shape[axis + 1 :])))
    residuals = np.empty((0, 0, 0), dtype=np.int16)
    if residual is not None:
        check_array("residual", residual, [np.int8, np.uint8, np.int16])
        if residual.shape != acc.shape:
            raise ModelError(f"residual must have the shape of acc {acc.shape}, not {residual.shape}")
        check_int("residual_shift", q.residual_shift, 0, int(shift.min(initial=SHIFT_MAX)))
        residuals = np.ascontiguousarray(residual, dtype=np.int16).reshape(view)
    codes = np.empty(0, dtype=np.int16)
    if table is not None:
        check_array("table", table, [np.int8, np.uint8, np.int16], 1)
        if table.size != 256:
            raise ModelError(f"table must have 256 entries, not {table.size}")
        codes = np.ascontiguousarray(table, dtype=np.int16)
    out = np.empty(view, dtype=np.int16)
    _requantise(
        np.ascontiguousarray(acc).reshape(view),
        np.ascontiguousarray(bias),
        multiplier,
        shift,
        q.zero_point,
        q.lo,
        q.hi,
        residuals,
        q.residual_multiplier,
        q.residual_shift,
        q.residual_zero_point,
        codes,
        out,
    )
    return out.reshape(acc.shape)


@jit
def _requantise(
    acc: NDArray[np.int32],
    bias: NDArray[np.int32],
    multiplier: NDArray[np.int64],
    shift: NDArray[np.int64],
    zero_point: int,
    lo: int,
    hi: int,
    residual: NDArray[np.int16],
    residual_multiplier: int,
    residual_shift: int,
    residual_zero_point: int,
    table: NDArray[np.int16],
    out: NDArray[np.int16],
) -> None:
    """acc, residual, out : [outer, channels, inner]; residual and table may be empty, for none."""
    outer, channels, inner = acc.shape
    with_residual = residual.size > 0
    with_table = table.size > 0
    for o in range(outer):
        for c in range(channels):
            add = np.int64(bias[c])
            scale = multiplier[c]
            right = shift[c]
            for i in range(inner):
                total = (np.int64(acc[o, c, i]) + add) * scale
                if with_residual:
                    term = (np.int64(residual[o, c, i]) - residual_zero_point) * residual_multiplier
                    total += term << (right - residual_shift)
                code = min(max(round_half_even(total, right) + zero_point, lo), hi)
                if with_table:
                    code = int(table[code & 0xFF])
                out[o, c, i] = code
