"""How large an accumulator can get: the proof, asked of every caller, that int32 is enough."""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.numerics import code_range
from gossamer.kernels.checks import check_array, check_int
from gossamer.kernels.formats import BSR, CSR, NM, Dense, Weight

__all__ = ["max_accumulator"]


def max_accumulator(
    weight: Weight | NDArray[np.int8],
    bias: NDArray[np.integer] | None = None,
    *,
    zero_point: int | None = None,
    signed: bool = True,
) -> NDArray[np.int64]:
    """Largest magnitude that any partial sum of each output can reach, in any order, over all inputs.

        positive = sum of weights > 0,  negative = sum of weights < 0,  a in [a_lo, a_hi] with a_lo <= 0 <= a_hi
        highest = positive * a_hi + negative * a_lo,  lowest = positive * a_lo + negative * a_hi
        bound = max(highest, highest + bias, -lowest, -(lowest + bias))

    weight : any format, or int8 [N, ...].  bias : integers [N] or None.
    zero_point : of the activations, whose codes are int8 if signed, else uint8; None allows every code and zero
        point, a in [-255, 255].
    Returns int64 [N]. No accumulator overflows if all of it is at most ACC_MAX. Raises ModelError.
    """
    matrix = weight.to_dense() if isinstance(weight, Dense | NM | BSR | CSR) else weight
    check_array("weight", matrix, [np.int8])
    if matrix.ndim < 2:
        raise ModelError(f"weight must have at least 2 dimensions, not shape {matrix.shape}")
    a_lo, a_hi = -255, 255
    if zero_point is not None:
        code_lo, code_hi = code_range(signed)
        check_int("zero_point", zero_point, code_lo, code_hi)
        a_lo, a_hi = code_lo - zero_point, code_hi - zero_point
    axes = tuple(range(1, matrix.ndim))
    positive = np.maximum(matrix, 0).sum(axis=axes, dtype=np.int64)
    negative = np.minimum(matrix, 0).sum(axis=axes, dtype=np.int64)
    highest = positive * a_hi + negative * a_lo
    lowest = positive * a_lo + negative * a_hi
    bound: NDArray[np.int64] = np.maximum(highest, -lowest)
    if bias is not None:
        if not isinstance(bias, np.ndarray) or bias.dtype.kind not in "iu" or bias.shape != bound.shape:
            raise ModelError(f"bias must be an ndarray of integers of shape {bound.shape}, not {bias!r}")
        wide = bias.astype(np.int64)
        bound = np.maximum(bound, np.maximum(highest + wide, -(lowest + wide)))
    return bound
