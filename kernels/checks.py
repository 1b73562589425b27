"""Checks the public kernels share: they speak to people, so that the jitted kernels under them need not.

Every function here raises ModelError naming the argument, the value found and what is legal.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.numerics import code_range

__all__ = ["check_array", "check_int", "check_per_channel", "check_zero_point", "to_int_tuple", "to_operand"]


def check_array(name: str, array: object, dtypes: Sequence[type[np.generic]], ndim: int | None = None) -> None:
    """Refuse what is not an ndarray of one of these dtypes and, if given, of this many dimensions."""
    if (
        isinstance(array, np.ndarray)
        and array.dtype.type in dtypes
        and array.dtype.isnative
        and ndim in (None, array.ndim)
    ):
        return  # first, for this stands in the way of every call
    legal = " or ".join(np.dtype(d).name for d in dtypes)
    rank = "" if ndim is None else f" with {ndim} dimensions"
    if not isinstance(array, np.ndarray):
        raise ModelError(f"{name} must be an ndarray of {legal}{rank}, not {type(array).__name__}")
    if array.dtype not in [np.dtype(d) for d in dtypes] or (ndim is not None and array.ndim != ndim):
        raise ModelError(f"{name} must be an ndarray of {legal}{rank}, not {array.dtype} of shape {array.shape}")


def check_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """The value as a plain int, refused outside of [low, high]."""
    legal = f"an integer from {low} to {high}" if high is not None else f"an integer of at least {low}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ModelError(f"{name} must be {legal}, not {value!r}")
    if value < low or (high is not None and value > high):
        raise ModelError(f"{name} must be {legal}, not {int(value)}")
    return int(value)


def check_per_channel(name: str, value: NDArray[np.int64], channels: int, low: int, high: int) -> NDArray[np.int64]:
    """Parameters int64 [channels] within [low, high], C-contiguous."""
    check_array(name, value, [np.int64], 1)
    if value.shape != (channels,):
        raise ModelError(f"{name} must have shape ({channels},), one a channel, not {value.shape}")
    wrong = np.flatnonzero((value < low) | (value > high))
    if wrong.size:
        raise ModelError(f"{name}[{wrong[0]}] must be from {low} to {high}, not {value[wrong[0]]}")
    return np.ascontiguousarray(value)


def to_int_tuple(name: str, value: Sequence[int], count: int, low: int) -> tuple[int, ...]:
    """The value as `count` plain ints of at least `low`."""
    if not isinstance(value, Sequence) or len(value) != count:
        raise ModelError(f"{name} must be {count} integers of at least {low}, not {value!r}")
    return tuple(check_int(f"{name}[{i}]", v, low) for i, v in enumerate(value))


def check_zero_point(zero_point: object, dtype: np.dtype[np.generic]) -> int:
    """The zero point as a plain int; it must be a code of this dtype (int8 or uint8)."""
    low, high = code_range(dtype == np.int8)
    return check_int("zero_point", zero_point, low, high)


def to_operand(x: NDArray[np.int8] | NDArray[np.uint8], zero_point: int) -> NDArray[np.int16]:
    """What a multiplier sees: x - zero_point, nine bits signed, int16 and C-contiguous, of the shape of x.

    Signed and unsigned codes meet here, so that every kernel is compiled once and not once per signedness.
    """
    return np.ascontiguousarray(np.subtract(x, np.int16(zero_point), dtype=np.int16))
