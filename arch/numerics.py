"""Numbers of the machine: operand ranges, accumulation and the one definition of requantisation.

A real value x is held as an 8-bit code q with x = scale * (q - zero_point). Weights are int8 and symmetric
(one scale per output channel). A product is (q - zero_point) * w, nine bits signed by eight, summed in int32.

Requantisation follows the integer-only scheme of Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018, with a 24-bit multiplier (the precision of a float32
significand) and round half to even, as IEEE 754 and ONNX's QuantizeLinear round:

    y = clamp(zero_point + rhe(((acc + bias) * multiplier + residual_term) / 2**shift), lo, hi)
    residual_term = ((residual - residual_zero_point) * residual_multiplier) << (shift - residual_shift)

The sum is rounded once, in 64-bit arithmetic. kernels/, sim/ and rtl/ all follow this page.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ACC_MAX",
    "ACC_MIN",
    "MULTIPLIER_BITS",
    "RESIDUAL_MULTIPLIER_BITS",
    "RESIDUAL_SHIFT_MAX",
    "RESIDUAL_SHIFT_MIN",
    "SHIFT_MAX",
    "SHIFT_MIN",
    "Requant",
    "code_range",
    "make_requant",
    "quantise_multiplier",
    "quantise_residual",
    "requantise",
    "round_shift",
]

ACC_MIN, ACC_MAX = -(2**31), 2**31 - 1
"""Range of an accumulator; ACC_MIN is also the identity of the maximum."""

MULTIPLIER_BITS = 24
"""Requantise multipliers are unsigned integers below 2**24; normalised ones lie in [2**23, 2**24)."""

RESIDUAL_MULTIPLIER_BITS = 16
"""The residual's multiplier is per tensor and unsigned, below 2**16."""

RESIDUAL_SHIFT_MIN, RESIDUAL_SHIFT_MAX = 9, 31
"""Legal residual shifts. At least 9, so that a residual is scaled by less than 2**7."""

SHIFT_MIN, SHIFT_MAX = 1, 47
"""Legal right shifts. With a residual, shift >= residual_shift.

The largest sum is 2**31 * 2**24 + (2**8 * 2**16 << (47 - 9)) < 2**63: it stays within a signed 64-bit word.
"""


def code_range(signed: bool) -> tuple[int, int]:
    """Smallest and largest 8-bit code: (-128, 127) or (0, 255)."""
    return (-128, 127) if signed else (0, 255)


def round_shift(value: ArrayLike, shift: ArrayLike) -> NDArray[np.int64]:
    """Divide by 2**shift, rounding half to even.

    value : int64 [any shape]; shift : int [broadcastable], 0..62. Returns int64.
    Formula: q = value >> shift; add one if the remainder exceeds half, or equals half and q is odd.
    """
    v = np.asarray(value, dtype=np.int64)
    s = np.asarray(shift, dtype=np.int64)
    quotient = v >> s
    remainder = v - (quotient << s)
    half = (np.int64(1) << s) >> 1
    up = (remainder > half) | ((remainder == half) & (half > 0) & ((quotient & 1) == 1))
    return np.asarray(quotient + up, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Requant:
    """Parameters of one requantisation.

    multiplier : int64 [channels], 0..2**24-1      shift : int64 [channels], 1..47
    zero_point : output code of real zero           lo, hi : clamp in output codes
    residual_multiplier, residual_shift, residual_zero_point : the second operand of a fused addition.
    """

    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    zero_point: int = 0
    lo: int = -128
    hi: int = 127
    residual_multiplier: int = 0
    residual_shift: int = 0
    residual_zero_point: int = 0


def requantise(
    acc: NDArray[np.int32],
    bias: NDArray[np.int32],
    q: Requant,
    residual: NDArray[np.integer] | None = None,
    table: NDArray[np.integer] | None = None,
) -> NDArray[np.int16]:
    """Accumulators to output codes, channels last.

    acc : int32 [..., channels]; bias : int32 [channels]; residual : codes [..., channels] or None;
    table : 256 codes indexed by (clamped code) & 0xFF, or None. Returns int16 codes within [lo, hi] (or of the table).
    """
    total = (acc.astype(np.int64) + bias.astype(np.int64)) * q.multiplier
    if residual is not None:
        term = (residual.astype(np.int64) - q.residual_zero_point) * q.residual_multiplier
        total = total + (term << (q.shift - q.residual_shift))
    codes = np.clip(round_shift(total, q.shift) + q.zero_point, q.lo, q.hi)
    if table is not None:
        codes = np.asarray(table)[codes & 0xFF]
    return codes.astype(np.int16)


def quantise_multiplier(scale: ArrayLike, shift_min: int = SHIFT_MIN) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write real scales as multiplier / 2**shift with the most precise legal multiplier.

    scale : float64 [any shape], finite, >= 0 and < 2**(24 - shift_min). Returns (multiplier, shift), int64.
    A scale too small for the largest shift loses low bits, and in the end becomes zero.
    Raises ValueError for a scale that is negative, not finite, or too large.
    """
    real = np.asarray(scale, dtype=np.float64)
    limit = 2.0 ** (MULTIPLIER_BITS - shift_min)
    if not np.all(np.isfinite(real)) or np.any(real < 0) or np.any(real >= limit):
        raise ValueError(f"scale must be finite and in [0, {limit:g}), not {real!r}")
    _, exponent = np.frexp(real)  # real = m * 2**exponent, m in [0.5, 1)
    shift = np.clip(MULTIPLIER_BITS - exponent, shift_min, SHIFT_MAX).astype(np.int64)
    multiplier = np.rint(np.ldexp(real, shift)).astype(np.int64)
    carried = multiplier >= 1 << MULTIPLIER_BITS  # 0.99999999 rounded up to 1.0
    shift = np.where(carried & (shift > shift_min), shift - 1, shift)
    multiplier = np.minimum(np.rint(np.ldexp(real, shift)).astype(np.int64), (1 << MULTIPLIER_BITS) - 1)
    return multiplier, shift


def quantise_residual(ratio: float, shift_max: int = RESIDUAL_SHIFT_MAX) -> tuple[int, int]:
    """Write residual_scale / output_scale as multiplier / 2**shift, a 16-bit multiplier and a shift in 9..shift_max.

    Raises ValueError when the ratio is not finite, negative, or 127 and more.
    """
    if not np.isfinite(ratio) or not 0 <= ratio < 127:
        raise ValueError(f"residual ratio must be in [0, 127), not {ratio!r}")
    _, exponent = np.frexp(ratio)
    shift = int(
        np.clip(RESIDUAL_MULTIPLIER_BITS - int(exponent), RESIDUAL_SHIFT_MIN, min(shift_max, RESIDUAL_SHIFT_MAX))
    )
    multiplier = round(ratio * 2.0**shift)
    if multiplier >= 1 << RESIDUAL_MULTIPLIER_BITS:
        shift -= 1
        multiplier = round(ratio * 2.0**shift)
    return multiplier, shift


def make_requant(
    scale: ArrayLike,
    *,
    zero_point: int,
    lo: int,
    hi: int,
    residual_ratio: float | None = None,
    residual_zero_point: int = 0,
) -> Requant:
    """Integer parameters for real scales.

    scale : float64 [channels], accumulator scale / output scale.  residual_ratio : residual scale / output scale.
    The residual's shift never exceeds a channel's shift. Raises ValueError for scales that cannot be held, with a
    residual also for a scale of 2**15 and more.
    """
    multiplier, shift = quantise_multiplier(scale)
    q = Requant(multiplier=multiplier, shift=shift, zero_point=zero_point, lo=lo, hi=hi)
    if residual_ratio is None:
        return q
    least = int(shift.min(initial=SHIFT_MAX))
    if least < RESIDUAL_SHIFT_MIN:
        raise ValueError(f"scale must be below 2**15 where a residual is added, not {np.max(scale):g}")
    residual_multiplier, residual_shift = quantise_residual(residual_ratio, least)
    return replace(
        q,
        residual_multiplier=residual_multiplier,
        residual_shift=residual_shift,
        residual_zero_point=residual_zero_point,
    )
