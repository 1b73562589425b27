"""The step stream on a CPU: what the PE array adds up in one MATMUL, for all lanes, positions and columns.

MAC (s, c, v) of step s reads, in every lane l and at every position t, the one element of the window of `group`
elements from offsets[s] * hop on whose address is selects[s, c, v] modulo group:

    e(s, c, v) = offsets[s] * hop + (selects[s, c, v] - offsets[s] * hop) mod group
    a(l, t, s, c, v) = bank[l, positions[t] + e(s, c, v)] - zero_point
    acc[l, t, c] += sum over s, v of values[s, c, v] * a(l, t, s, c, v)

or, in the maximum mode, the largest of the products instead of their sum. A MAC whose value is 0 takes no part.

How it is done: kernels/steps.py.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError, ProgramError
from gossamer.arch.numerics import ACC_MIN
from gossamer.kernels.checks import check_array, check_int, check_zero_point
from gossamer.kernels.steps import SLACK, make_bench, run_steps

__all__ = ["stream_matmul"]


def stream_matmul(
    bank: NDArray[np.int8] | NDArray[np.uint8],
    offsets: NDArray[np.integer],
    values: NDArray[np.int8],
    selects: NDArray[np.uint8],
    positions: NDArray[np.integer],
    acc: NDArray[np.int32],
    *,
    hop: int,
    group: int,
    zero_point: int = 0,
    accumulate: bool = False,
    maximum: bool = False,
) -> None:
    """Run a step stream over the activation banks of all lanes, into `acc` (formula: see the module).

    bank : int8 or uint8 codes [lanes, bytes].  zero_point : a code of its dtype.
    offsets : integer [S], >= 0, in units of hop, S >= 0.
    values : int8 [S, C, V];  selects : uint8 [S, C, V], each below group.
    positions : integer [T], >= 0, element address that offset 0 means at each position, multiples of group.
    acc : int32 [lanes, T, C], any strides, written in place.
    group : a power of two up to 256;  hop : 1..group.
    accumulate : continue from what acc holds. Otherwise a sum begins at 0 and a maximum at ACC_MIN.
    maximum : take the largest product instead of the sum.

    A sum wraps like a 32-bit register. Raises ModelError when shapes, dtypes or scalars do not fit, and ProgramError
    when the stream reads outside of the bank or a position is not legal.
    """
    _check_shapes(bank, offsets, values, selects, positions, acc)
    check_int("group", group, 1, 256)
    if group & (group - 1):
        raise ModelError(f"group must be a power of two, not {group}")
    check_int("hop", hop, 1, group)
    zero_point = check_zero_point(zero_point, bank.dtype)
    _check_addresses(offsets, selects, positions, group)
    if not accumulate:
        acc[...] = ACC_MIN if maximum else 0
    used = values.any(axis=(1, 2))
    if not (acc.size and used.any()):
        return
    windows, values, selects = offsets[used].astype(np.int64) * hop, values[used], selects[used]
    low, high = int(positions.min() + windows.min()), int(positions.max()) + _last(windows, values, selects, group)
    if high >= bank.shape[1]:
        raise ProgramError(f"the stream must read within the bank's {bank.shape[1]} elements, not element {high}")
    macs = 1 << (values.shape[2] - 1).bit_length()
    flip = 128 if bank.dtype == np.int8 else 0
    result = np.ascontiguousarray(acc)
    run_steps(
        _with_slack(bank.view(np.uint8)[:, low : high + 1], max(SLACK, group)),
        positions.astype(np.int64) - low,
        windows,
        _with_slack(values, SLACK, macs),
        _with_slack(selects, SLACK, macs),
        group,
        flip,
        zero_point + flip,
        maximum,
        result,
        0,
        make_bench(values.shape[1], macs),
    )
    acc[...] = result


def _last(windows: NDArray[np.int64], values: NDArray[np.int8], selects: NDArray[np.uint8], group: int) -> int:
    """The last element that a nonzero value reads, from a position on; every step has one."""
    within = (selects - windows.astype(np.uint8)[:, None, None]) & np.uint8(group - 1)
    return int((windows + within.max(axis=(1, 2), where=values != 0, initial=0)).max())


def _with_slack(array: NDArray[Any], slack: int, last: int | None = None) -> NDArray[Any]:
    """A C-contiguous copy with readable bytes behind it.  last : the length of its last dimension, filled with 0."""
    shape = (*array.shape[:-1], last or array.shape[-1])
    size = math.prod(shape)
    copy: NDArray[Any] = np.zeros(size + slack, array.dtype)[:size].reshape(shape)
    copy[..., : array.shape[-1]] = array
    return copy


def _check_shapes(
    bank: NDArray[np.int8] | NDArray[np.uint8],
    offsets: NDArray[np.integer],
    values: NDArray[np.int8],
    selects: NDArray[np.uint8],
    positions: NDArray[np.integer],
    acc: NDArray[np.int32],
) -> None:
    check_array("bank", bank, [np.int8, np.uint8], 2)
    check_array("values", values, [np.int8], 3)
    check_array("selects", selects, [np.uint8], 3)
    check_array("acc", acc, [np.int32], 3)
    for name, array in (("offsets", offsets), ("positions", positions)):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 1:
            raise ModelError(f"{name} must be an ndarray of integers with 1 dimension, not {array!r}")
    if selects.shape != values.shape:
        raise ModelError(f"selects must have the shape of values {values.shape}, not {selects.shape}")
    if offsets.size != values.shape[0]:
        raise ModelError(f"offsets must have {values.shape[0]} entries, one a step, not {offsets.size}")
    expected = (bank.shape[0], positions.size, values.shape[1])
    if acc.shape != expected:
        raise ModelError(f"acc must have shape (lanes, positions, columns) = {expected}, not {acc.shape}")


def _check_addresses(
    offsets: NDArray[np.integer], selects: NDArray[np.uint8], positions: NDArray[np.integer], group: int
) -> None:
    if offsets.size and offsets.min() < 0:
        raise ProgramError(f"offsets must be at least 0, not {offsets.min()}")
    if selects.size and selects.max() >= group:
        raise ProgramError(f"selects must be below group ({group}), not {selects.max()}")
    if positions.size and (positions.min() < 0 or np.any(positions % group)):
        wrong = positions[(positions < 0) | (positions % group != 0)][0]
        raise ProgramError(f"positions must be multiples of group ({group}) and at least 0, not {wrong}")
