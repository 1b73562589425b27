"""The parameters of a fused requantisation, laid out in the fastest form that is proved exact for a layer.

The forms are those of kernels/codes.py, and what decides is how large an accumulator with its bias can get (`bound`,
from `max_accumulator`), by output:

    float32   no residual, bound <= 2**24, bound * multiplier / 2**shift < 2**22
    float64   bound < 2**31, and the result below 2**31; with a residual, the sum before the shift below 2**53
    int64     anything that gossamer.arch.numerics allows
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.numerics import (
    ACC_MAX,
    MULTIPLIER_BITS,
    RESIDUAL_MULTIPLIER_BITS,
    RESIDUAL_SHIFT_MAX,
    SHIFT_MAX,
    SHIFT_MIN,
    Requant,
    code_range,
)
from gossamer.kernels.checks import check_array, check_int, check_per_channel

__all__ = ["Scaling", "make_scaling"]

_LANES = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """What `store_codes` wants, see kernels/codes.py: scale, limits, mixing, table.

    with_bias : whether the bias is in scale; otherwise the accumulators start from it.
    """

    scale: NDArray[Any]
    limits: NDArray[np.int64]
    mixing: NDArray[Any] | None
    table: NDArray[np.uint8] | None
    with_bias: bool


def make_scaling(
    q: Requant,
    bias: NDArray[np.int32],
    bound: NDArray[np.int64],
    result: np.dtype[Any],
    residual: np.dtype[Any] | None,
    table: NDArray[np.int8] | NDArray[np.uint8] | None,
    slots: int,
) -> Scaling:
    """Check a requantisation of N outputs and lay it out.

    bias : int32 [N].  bound : int64 [N], of accumulators with their bias.  result, residual : int8 or uint8; None:
    there is no residual.  table : 256 codes of the result's dtype.
    slots : outputs with those that a kernel adds to N.  Raises ModelError when a parameter does not fit.
    """
    n = bias.size
    multiplier = check_per_channel("multiplier", q.multiplier, n, 0, (1 << MULTIPLIER_BITS) - 1)
    shift = check_per_channel("shift", q.shift, n, SHIFT_MIN, SHIFT_MAX)
    low, high = (-128, 255) if table is not None else code_range(bool(result == np.int8))
    check_int("hi", q.hi, low, high)
    check_int("lo", q.lo, low, q.hi)
    check_int("zero_point", q.zero_point, -128, 255)
    if table is not None:
        check_array("table", table, [result.type], 1)
        if table.size != 256:
            raise ModelError(f"table must have 256 entries, not {table.size}")
    if residual is not None:
        code_low, code_high = code_range(bool(residual == np.int8))
        check_int("residual_zero_point", q.residual_zero_point, code_low, code_high)
        check_int("residual_multiplier", q.residual_multiplier, 0, (1 << RESIDUAL_MULTIPLIER_BITS) - 1)
        check_int("residual_shift", q.residual_shift, 0, min(RESIDUAL_SHIFT_MAX, int(shift.min(initial=SHIFT_MAX))))
    term = 0.0 if residual is None else 255.0 * q.residual_multiplier / 2.0**q.residual_shift
    ratio = multiplier / 2.0**shift
    largest = np.max(bound * ratio + term, initial=0.0)
    short = residual is None or bool(np.all((bound * ratio + term) * 2.0**shift < 2**53))
    pad = (0, slots - n)
    if residual is None and np.all(bound <= 2**24) and largest < 2**22 - 1:
        scale, mixing = np.pad(ratio.astype(np.float32), pad), None
    elif short and np.all(bound <= ACC_MAX) and largest < ACC_MAX:
        by = q.residual_multiplier / 2.0**q.residual_shift
        scale, mixing = np.pad(ratio, pad), np.array([by, -q.residual_zero_point * by])
    else:
        base = bias * multiplier + (np.int64(1) << (shift - 1))
        parts = [np.pad(multiplier, pad), np.pad(shift, pad, constant_values=1), np.pad(base, pad)]
        scale = np.stack([part.reshape(-1, min(_LANES, slots)) for part in parts], axis=1).reshape(-1)
        mixing = np.array([q.residual_multiplier, q.residual_shift, q.residual_zero_point])
    return Scaling(
        scale=scale,
        limits=np.array([q.zero_point, q.lo, q.hi], dtype=np.int64),
        mixing=None if residual is None else mixing,
        table=None if table is None else np.ascontiguousarray(table).view(np.uint8),
        with_bias=scale.dtype == np.int64,
    )
