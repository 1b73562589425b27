"""The step stream on a CPU: what the PE array adds up in one MATMUL, for all lanes, positions and columns.

MAC (s, c, v) of step s reads, in every lane l and at every position t, the one element of the window of `group`
elements from offsets[s] * hop on whose address is selects[s, c, v] modulo group:

    e(s, c, v) = offsets[s] * hop + (selects[s, c, v] - offsets[s] * hop) mod group
    a(l, t, s, c, v) = bank[l, positions[t] + e(s, c, v)] - zero_point
    acc[l, t, c] += sum over s, v of values[s, c, v] * a(l, t, s, c, v)

or, in the maximum mode, the largest of the products instead of their sum. A MAC whose value is 0 takes no part.

How it is done: the stream is sorted by column into lists of (element, value), each element is laid out over lanes and
positions as one contiguous row of operands, and a column is the sum of its rows times its values. Work grows with the
nonzeros and not with the addresses they span, so a sparse stream costs no more than a dense one of as many MACs.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError, ProgramError
from gossamer.arch.jit import jit
from gossamer.arch.numerics import ACC_MIN
from gossamer.kernels.checks import check_array, check_int, check_zero_point, to_operand

__all__ = ["stream_matmul"]

_ROW_LENGTH = 256
"""Operands of a row worked on at once: long enough to pay for its loop, short enough for rows to stay in L2."""


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

    The caller proves that no sum overflows int32; nothing here looks at it. Raises ModelError when shapes, dtypes or
    scalars do not fit, and ProgramError when the stream reads outside of the bank or a position is not legal.
    """
    _check_shapes(bank, offsets, values, selects, positions, acc)
    check_int("group", group, 1, 256)
    if group & (group - 1):
        raise ModelError(f"group must be a power of two, not {group}")
    check_int("hop", hop, 1, group)
    zero_point = check_zero_point(zero_point, bank.dtype)
    columns = values.shape[1]
    _check_addresses(offsets, selects, positions, group)
    starts, elements, weights = _sort_by_column(
        offsets.astype(np.int64), np.ascontiguousarray(values), np.ascontiguousarray(selects), hop, group
    )
    lanes, length = bank.shape
    depth = positions.size
    result = np.full((columns, depth * lanes), ACC_MIN if maximum else 0, dtype=np.int32)
    if elements.size and result.size:
        first, last = int(elements.min()), int(elements.max())
        nearest = int(positions.min())
        low, high = nearest + first, int(positions.max()) + last
        if high >= length:
            raise ProgramError(f"the stream must read within the bank's {length} elements, not element {high}")
        used, rows = _compress(elements - first, last - first + 1)
        _run(
            to_operand(bank[:, low : high + 1].T, zero_point),
            used,
            positions.astype(np.int64) - nearest,
            starts,
            rows,
            weights,
            maximum,
            max(1, _ROW_LENGTH // lanes),
            result,
        )
    total = result.reshape(columns, depth, lanes).transpose(2, 1, 0)
    if not accumulate:
        acc[...] = total
    elif maximum:
        np.maximum(acc, total, out=acc)
    else:
        acc += total


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


@jit
def _sort_by_column(
    offsets: NDArray[np.int64], values: NDArray[np.int8], selects: NDArray[np.uint8], hop: int, group: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Nonzeros by column: those of column c are entries starts[c] to starts[c + 1] of elements and weights.

    The remainder is a mask because group is a power of two.
    """
    steps, columns, macs = values.shape
    starts = np.zeros(columns + 1, dtype=np.int64)
    for s in range(steps):
        for c in range(columns):
            for v in range(macs):
                if values[s, c, v] != 0:
                    starts[c + 1] += 1
    for c in range(columns):
        starts[c + 1] += starts[c]
    following = starts[:-1].copy()
    elements = np.empty(starts[columns], dtype=np.int64)
    weights = np.empty(starts[columns], dtype=np.int32)
    for s in range(steps):
        window = offsets[s] * hop
        for c in range(columns):
            for v in range(macs):
                if values[s, c, v] != 0:
                    i = following[c]
                    following[c] += 1
                    elements[i] = window + ((np.int64(selects[s, c, v]) - window) & (group - 1))
                    weights[i] = values[s, c, v]
    return starts, elements, weights


@jit
def _compress(elements: NDArray[np.int64], span: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct elements, ascending, and for each entry its place among them; elements lie in [0, span)."""
    place = np.full(span, -1, dtype=np.int64)
    for i in range(elements.size):
        place[elements[i]] = 0
    used = np.empty(span, dtype=np.int64)
    count = 0
    for e in range(span):
        if place[e] == 0:
            place[e] = count
            used[count] = e
            count += 1
    rows = np.empty(elements.size, dtype=np.int64)
    for i in range(elements.size):
        rows[i] = place[elements[i]]
    return used[:count], rows


@jit
def _run(
    bank: NDArray[np.int16],
    used: NDArray[np.int64],
    positions: NDArray[np.int64],
    starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    weights: NDArray[np.int32],
    maximum: bool,
    block: int,
    out: NDArray[np.int32],
) -> None:
    """bank : operands [elements, lanes];  out : [C, T * lanes], worked on `block` positions at a time."""
    lanes = bank.shape[1]
    window = np.empty((used.size, block * lanes), dtype=np.int16)
    for first in range(0, positions.size, block):
        count = min(block, positions.size - first)
        for row in range(used.size):
            for t in range(count):
                element = used[row] + positions[first + t]
                for lane in range(lanes):
                    window[row, t * lanes + lane] = bank[element, lane]
        begin, end = first * lanes, (first + count) * lanes
        for c in range(starts.size - 1):
            if maximum:
                _largest(window, rows[starts[c] : starts[c + 1]], weights[starts[c] : starts[c + 1]], out[c, begin:end])
            else:
                _sum(window, rows[starts[c] : starts[c + 1]], weights[starts[c] : starts[c + 1]], out[c, begin:end])


@jit
def _sum(
    window: NDArray[np.int16], rows: NDArray[np.int64], weights: NDArray[np.int32], out: NDArray[np.int32]
) -> None:
    """out += weights @ window[rows]. Four rows at a time, so that out is loaded and stored once for four MACs.

    Casts to int32: numba widens int32 arithmetic to int64, which would halve the width of the vector code.
    """
    fours = rows.size // 4 * 4
    for i in range(0, fours, 4):
        x0, x1, x2, x3 = window[rows[i]], window[rows[i + 1]], window[rows[i + 2]], window[rows[i + 3]]
        w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for j in range(out.size):
            low = np.int32(np.int32(w0 * x0[j]) + np.int32(w1 * x1[j]))
            high = np.int32(np.int32(w2 * x2[j]) + np.int32(w3 * x3[j]))
            out[j] += np.int32(low + high)
    for i in range(fours, rows.size):
        x0, w0 = window[rows[i]], weights[i]
        for j in range(out.size):
            out[j] += np.int32(w0 * x0[j])


@jit
def _largest(
    window: NDArray[np.int16], rows: NDArray[np.int64], weights: NDArray[np.int32], out: NDArray[np.int32]
) -> None:
    """out = maximum of out and every weights[i] * window[rows[i]]."""
    for i in range(rows.size):
        x0, w0 = window[rows[i]], weights[i]
        for j in range(out.size):
            out[j] = max(out[j], np.int32(w0 * x0[j]))
