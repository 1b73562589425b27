"""Products with a packed weight, by vectors, with what follows them fused: bias, requantise, residual, table.

    out = (x - zero_point) @ weight.T     x : uint8 or int8 codes [rows, K], row-major;  weight : [N, K], packed

The multiplier takes unsigned codes: an int8 code is moved by 128, as is its zero point, and the zero point's share,
-zero_point times the sum of an output's weights, is what its accumulators start from. Sums wrap at 32 bits, so they
are exact whenever the true one fits; the caller proves that it does (`max_accumulator`).

Rows are worked on by tiles of `height`; the last tile overlaps the one before it rather than being shorter.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import jit
from gossamer.arch.numerics import MULTIPLIER_BITS, RESIDUAL_SHIFT_MAX, SHIFT_MAX, SHIFT_MIN, Requant, code_range
from gossamer.kernels.checks import check_array, check_int, check_per_channel, check_zero_point
from gossamer.kernels.choose import usable_features
from gossamer.kernels.intrinsics import aligned_empty, mac_dense, mac_select, rows, start, store, store_codes
from gossamer.kernels.pack import Packed

__all__ = ["packed_linear", "packed_matmul"]

Codes = NDArray[np.int8] | NDArray[np.uint8]

_HEIGHTS = {("dense", 4): 6, ("blocks", 1): 10, ("blocks", 2): 8, ("select", 1): 8, ("select", 2): 4}
"""Rows of a tile by kernel and width: what was fastest, with accumulators and operands within 32 registers."""


def packed_matmul(
    x: Codes, packed: Packed, *, zero_point: int = 0, out: NDArray[np.int32] | None = None
) -> NDArray[np.int32]:
    """The product in int32 [rows, N].

    x : uint8 or int8 [rows, K], rows >= 0; zero_point : a code of x's dtype.
    packed : of a kernel other than the reference, see `pack`.
    out : int32 [rows, N], C-contiguous, to write and return; new memory costs a page fault every
        4 KiB. Raises ModelError when x or zero_point does not fit.
    """
    operand, first = _prepare(x, packed, zero_point)
    result = _result(out, (x.shape[0], packed.shape[0]), np.int32)
    _run(operand, first, packed, result, None)
    return result


def packed_linear(
    x: Codes,
    packed: Packed,
    bias: NDArray[np.int32],
    q: Requant,
    *,
    zero_point: int = 0,
    signed: bool = True,
    residual: Codes | None = None,
    table: Codes | None = None,
    out: Codes | None = None,
) -> Codes:
    """The product requantised to codes [rows, N], int8 if signed, else uint8: a layer in one pass.

    Equals `requantise(packed_matmul(x, packed, zero_point=zero_point), bias, q, residual, table)` bit for bit.

    bias : int32 [N].  q : multiplier and shift per output; lo and hi codes of the result (of uint8 or int8 alike
        when there is a table).  residual : int8 or uint8 codes [rows, N].  table : 256 codes of the result's dtype.
    out : codes [rows, N], C-contiguous, to write and return.
    Raises ModelError when an argument does not fit.
    """
    out_features = packed.shape[0]
    operand, first = _prepare(x, packed, zero_point)
    check_array("bias", bias, [np.int32], 1)
    if bias.shape != (out_features,):
        raise ModelError(f"bias must have shape ({out_features},), one an output, not {bias.shape}")
    multiplier = check_per_channel("multiplier", q.multiplier, out_features, 0, (1 << MULTIPLIER_BITS) - 1)
    shift = check_per_channel("shift", q.shift, out_features, SHIFT_MIN, SHIFT_MAX)
    low, high = (-128, 255) if table is not None else code_range(signed)
    check_int("hi", q.hi, low, high)
    check_int("lo", q.lo, low, q.hi)
    shape, dtype = (x.shape[0], out_features), np.int8 if signed else np.uint8
    terms = None
    if residual is not None:
        check_array("residual", residual, [np.int8, np.uint8], 2)
        if residual.shape != shape:
            raise ModelError(f"residual must have shape (rows, N) = {shape}, not {residual.shape}")
        check_int("residual_shift", q.residual_shift, 0, min(RESIDUAL_SHIFT_MAX, int(shift.min())))
        terms = (residual.astype(np.int32) - np.int32(q.residual_zero_point)) * np.int32(q.residual_multiplier)
    codes = np.empty(0, dtype=np.uint8)
    if table is not None:
        check_array("table", table, [dtype], 1)
        if table.size != 256:
            raise ModelError(f"table must have 256 entries, not {table.size}")
        codes = np.ascontiguousarray(table).view(np.uint8)
    extra = packed.sums.size - out_features
    base = bias * multiplier + (np.int64(1) << (shift - 1))
    scale = (
        np.pad(multiplier, (0, extra)).astype(np.int32),
        np.pad(shift, (0, extra), constant_values=1).astype(np.int32),
        np.pad(base, (0, extra)),
        np.array([q.zero_point, q.lo, q.hi, q.residual_shift], dtype=np.int64),
        terms,
        codes,
    )
    result: Codes = _result(out, shape, dtype)
    _run(operand, first, packed, result.view(np.uint8), scale)
    return result


def _result(out: NDArray[Any] | None, shape: tuple[int, int], dtype: type[np.generic]) -> NDArray[Any]:
    """Where the result goes: `out`, if it fits."""
    if out is None:
        return aligned_empty(shape, dtype)
    check_array("out", out, [dtype], 2)
    if out.shape != shape or not (out.flags.c_contiguous and out.flags.writeable):
        raise ModelError(f"out must be C-contiguous, writeable and of shape {shape}, not {out.shape}")
    return out


def _prepare(x: Codes, packed: Packed, zero_point: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Unsigned activations [rows, K padded], C-contiguous, and what accumulators start from, int32 by output."""
    if packed.decision.kernel == "reference":
        raise ModelError("packed must be of a kernel with vectors; spmm takes the reference kernel too")
    check_array("x", x, [np.int8, np.uint8], 2)
    in_features = packed.shape[1]
    if x.shape[1] != in_features:
        raise ModelError(f"x must have shape (rows, {in_features}) for this weight, not {x.shape}")
    zero_point = check_zero_point(zero_point, x.dtype)
    signed = x.dtype == np.int8
    first = (packed.sums * -(zero_point + 128 * signed)).astype(np.int32)
    if not signed and in_features % packed.step == 0 and x.flags.c_contiguous:
        return x.view(np.uint8), first
    operand = aligned_empty((x.shape[0], in_features + -in_features % packed.step), np.uint8)
    np.bitwise_xor(x.view(np.uint8), np.uint8(128 * signed), out=operand[:, :in_features])
    operand[:, in_features:] = 0
    return operand, first


def _run(operand: NDArray[np.uint8], first: NDArray[np.int32], packed: Packed, out: NDArray[Any], scale: Any) -> None:
    if out.size == 0:
        return
    kernel, features = packed.decision.kernel, usable_features()
    mode = None if "avx512vnni" in features else ()
    tallest = _HEIGHTS.get((kernel, packed.width), 4) if mode is None else 2
    height, width = (0,) * min(tallest, out.shape[0]), (0,) * packed.width
    if kernel == "select":
        _select(operand, packed.data, packed.pointers, first, out, scale, height, width, mode)
    else:
        _blocks(
            operand, packed.data, packed.pointers, packed.places, packed.run, first, out, scale, height, width, mode
        )


# scale is None for sums, else (multiplier, shift, base, (zero_point, lo, hi, residual_shift), residual or
# None, table or empty). Height and width are tuples because their lengths are types: see kernels/intrinsics.py. What is
# None is not compiled.


@jit
def _blocks(
    x: NDArray[np.uint8],
    data: NDArray[np.int8],
    pointers: NDArray[np.int64],
    places: NDArray[np.int64],
    run: int,
    first: NDArray[np.int32],
    out: NDArray[Any],
    scale: Any,
    height: Any,
    width: Any,
    mode: Any,
) -> None:
    """out : [rows, N], rows >= the height of a tile."""
    count, columns = out.shape
    tall, panel, stride = len(height), 16 * len(width), x.shape[1]
    for group in range(pointers.size - 1):
        channel = group * panel
        for top in range(0, count, tall):
            row = min(top, count - tall)
            acc = start(height, width, first, channel * 4)
            at = pointers[group] * run * panel * 4
            for entry in range(pointers[group], pointers[group + 1]):
                left = row * stride + places[entry]
                for _ in range(run):
                    acc = mac_dense(acc, height, width, x, left, stride, data, at, mode)
                    left += 4
                    at += panel * 4
            place, left_over = row * columns + channel, columns - channel
            if scale is None:
                store(acc, width, out, place * 4, columns * 4, left_over)
            else:
                multiplier, shift, base, scalars, residual, table = scale
                store_codes(
                    acc, width, out, place, columns, left_over, channel, multiplier, shift, base,
                    scalars[0], scalars[1], scalars[2], residual, scalars[3],
                )  # fmt: skip
                if table.size > 0:
                    for r in range(row, row + tall):
                        for c in range(channel, min(channel + panel, columns)):
                            out[r, c] = table[out[r, c]]


@jit
def _select(
    x: NDArray[np.uint8],
    data: NDArray[np.int8],
    pointers: NDArray[np.int64],
    first: NDArray[np.int32],
    out: NDArray[Any],
    scale: Any,
    height: Any,
    width: Any,
    mode: Any,
) -> None:
    """out : [rows, N], rows >= the height of a tile."""
    count, columns = out.shape
    tall, panel, stride = len(height), 16 * len(width), x.shape[1]
    for group in range(pointers.shape[0]):
        channel = group * panel
        for top in range(0, count, tall):
            row = min(top, count - tall)
            acc = start(height, width, first, channel * 4)
            for window in range(pointers.shape[1] - 1):
                seen = rows(height, x, row * stride + window * 64, stride)
                for step in range(pointers[group, window], pointers[group, window + 1]):
                    acc = mac_select(acc, width, seen, data, step * panel * 8, mode)
            place, left_over = row * columns + channel, columns - channel
            if scale is None:
                store(acc, width, out, place * 4, columns * 4, left_over)
            else:
                multiplier, shift, base, scalars, residual, table = scale
                store_codes(
                    acc, width, out, place, columns, left_over, channel, multiplier, shift, base,
                    scalars[0], scalars[1], scalars[2], residual, scalars[3],
                )  # fmt: skip
                if table.size > 0:
                    for r in range(row, row + tall):
                        for c in range(channel, min(channel + panel, columns)):
                            out[r, c] = table[out[r, c]]
