"""Rounding inside compiled functions: one definition for kernels and simulator.

The same in NumPy, for arrays, is `gossamer.arch.numerics.round_shift`; tests compare the two.
"""

import numpy as np

from gossamer.arch.jit import jit

__all__ = ["round_half_even"]


@jit
def round_half_even(value: int, shift: int) -> int:
    """value / 2**shift to the nearest integer, a half to the even one; value int64, shift 0..62."""
    quotient = value >> shift
    remainder = value - (quotient << shift)
    half = np.int64(1) << shift >> 1
    # Without a branch, so that loops over channels become vectors.
    return quotient + int((remainder > half) | ((remainder == half) & (half > 0) & (quotient & 1 == 1)))
