"""The operations that kernels/steps.py is written in; their form is that of kernels/intrinsics.py.

    begin         accumulators of a tile, every row from the same int32
    look          64 codes of each row
    mac_sum       codes picked by index, dot4 weights
    mac_largest   the same, but the largest of the products
    keep          accumulators to memory
    weave_steps   steps of the stream to one vector of indices and one of weights
    move_codes    eight codes from here to there
    copy_bytes    any number of bytes; also in plain Python

A tile has one vector for each row. All memory is C-contiguous, and all offsets and strides are bytes.
"""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # it has no types of its own
from numba.core import types
from numpy.typing import NDArray

from gossamer.kernels.vectors import (
    BYTES,
    I8,
    I64,
    VECTOR,
    WORDS,
    Site,
    Vectors,
    has_vectors,
    operation,
    operation_of_any_type,
    splat,
)

__all__ = ["begin", "copy_bytes", "keep", "look", "mac_largest", "mac_sum", "move_codes", "weave_steps"]

_QUARTER = ir.VectorType(I8, 16)
_FIELDS = 4
"""Numbers that weave_steps takes for each quarter of a vector."""


@operation_of_any_type
def begin(typingctx: Any, height: Any, first: Any, offset: Any) -> tuple[Any, Any]:
    """begin(height, first, offset): as many rows as the tuple height is long, of the 16 int32 at first[offset:]."""
    rows = len(height)

    def body(site: Site) -> Any:
        return site.tile([site.load(1, site.arguments[2])] * rows)

    return operation(Vectors(rows), (height, first, offset), body)


@operation_of_any_type
def look(typingctx: Any, acc: Any, lines: Any, offset: Any, stride: Any) -> tuple[Any, Any]:
    """look(acc, lines, offset, stride): for each row of acc, the 64 codes at lines[offset + r * stride:]."""

    def body(site: Site) -> Any:
        _, _, offset, stride = site.arguments
        return site.tile([site.load(1, site.offset(offset, stride, r)) for r in range(acc.count)])

    return operation(acc, (acc, lines, offset, stride), body)


@operation_of_any_type
def mac_sum(typingctx: Any, acc: Any, seen: Any, data: Any, at: Any, mode: Any) -> tuple[Any, Any]:
    """mac_sum(acc, seen, data, at, mode): acc[r] += dot4(seen[r] picked, weights).

    seen : what `look` gave.  data, at : what `weave_steps` left there.
    """

    def body(site: Site) -> Any:
        index, weights = _step(site)
        rows = zip(site.vectors(0), site.vectors(1), strict=True)
        return site.tile([site.dot4(sums, site.pick(index, codes), weights) for sums, codes in rows])

    return operation(acc, (acc, seen, data, at, mode), body)


@operation_of_any_type
def mac_largest(typingctx: Any, acc: Any, seen: Any, data: Any, at: Any, zero: Any, mode: Any) -> tuple[Any, Any]:
    """mac_largest(acc, seen, data, at, zero, mode): acc[r] = largest of itself and (seen[r] picked - zero) * weights.

    acc : 32 int16 a row, two for each output, of four MACs the even and the odd ones. zero : 0..255. Products are
    within 255 * 128; a weight of 0 counts as -2**15.
    """

    def body(site: Site) -> Any:
        b = site.builder
        least, none = splat(WORDS, -(2**15)), splat(WORDS, 0)
        index, weights = _step(site)
        even_and_odd = _halves(site, weights, b.ashr)
        zeros = site.broadcast(site.arguments[4], WORDS)
        tile = []
        for best, codes in zip(site.vectors(0), site.vectors(1), strict=True):
            best = b.bitcast(best, WORDS)
            for code, weight in zip(_halves(site, site.pick(index, codes), b.lshr), even_and_odd, strict=True):
                product = b.mul(b.sub(code, zeros), weight)
                best = site.same("smax", best, b.select(b.icmp_signed("==", weight, none), least, product))
            tile.append(b.bitcast(best, VECTOR))
        return site.tile(tile)

    return operation(acc, (acc, seen, data, at, zero, mode), body)


def _step(site: Site) -> tuple[Any, Any]:
    """The indices and the weights at data[at:], arguments 2 and 3."""
    return site.load(2, site.arguments[3]), site.load(2, site.offset(site.arguments[3], 64, 1))


def _halves(site: Site, vector: Any, shift: Any) -> list[Any]:
    """Even and odd bytes as 16-bit numbers, by a shift to the right that knows their sign."""
    words, eight = site.builder.bitcast(vector, WORDS), splat(WORDS, 8)
    return [shift(site.builder.shl(words, eight), eight), shift(words, eight)]


@operation_of_any_type
def keep(typingctx: Any, acc: Any, out: Any, offset: Any, stride: Any) -> tuple[Any, Any]:
    """keep(acc, out, offset, stride): row r to the 16 int32 at out[offset + r * stride:]."""

    def body(site: Site) -> Any:
        _, _, offset, stride = site.arguments
        for r, vector in enumerate(site.vectors(0)):
            site.builder.store(vector, site.address(1, site.offset(offset, stride, r), VECTOR), align=1)
        return site.nothing()

    return operation(types.none, (acc, out, offset, stride), body)


@operation_of_any_type
def weave_steps(
    typingctx: Any,
    data: Any,
    at: Any,
    totals: Any,
    total: Any,
    values: Any,
    selects: Any,
    quarters: Any,
    quarter: Any,
    offset: Any,
    group: Any,
    order: Any,
    mode: Any,
) -> tuple[Any, Any]:
    """weave_steps(...): 64 MACs as `mac_sum` wants them, their indices to data[at:] and weights to data[at + 64:].

    quarters : int64 [.., 4], four rows from `quarter` on, each for 16 MACs that lie side by side: which is their first,
        the element their window begins at, its place in the vector they pick from, and a limit. A MAC picks
            (select - window) mod group + place, modulo 256
        and where that is not below the limit, 64 or 0, its weight becomes 0.
    offset : added to the first MACs.  order : 64 bytes: which MAC comes to each byte.
    totals : int32; the weights of each lane are added to totals[total:] (bytes).
    """

    def body(site: Site) -> Any:
        b = site.builder
        _, at, _, total, _, _, _, quarter, offset, group, _, _ = site.arguments
        rows = [site.offset(b.mul(quarter, I64(8 * _FIELDS)), 8 * _FIELDS, q) for q in range(4)]
        first, window, place, limit = (
            [site.load(6, site.offset(row, 8, field), I64) for row in rows] for field in range(_FIELDS)
        )
        weights, selects_ = (
            _join(site, [site.load(array, b.add(begin, offset), _QUARTER) for begin in first]) for array in (4, 5)
        )
        windows, places, limits = (
            _join(site, [site.broadcast(value, _QUARTER) for value in field]) for field in (window, place, limit)
        )
        mask = site.broadcast(b.sub(group, I64(1)), BYTES)
        index = b.add(b.and_(b.sub(selects_, windows), mask), places)
        weights = b.select(b.icmp_unsigned("<", index, limits), weights, splat(BYTES, 0))
        order = site.load(10, I64(0))
        index = site.pick(order, b.bitcast(b.and_(index, splat(BYTES, 63)), VECTOR))
        weights = site.pick(order, b.bitcast(weights, VECTOR))
        b.store(index, site.address(0, at, VECTOR), align=1)
        b.store(weights, site.address(0, site.offset(at, 64, 1), VECTOR), align=1)
        sums = site.address(2, total, VECTOR)
        b.store(site.dot4(b.load(sums, align=1), b.bitcast(splat(BYTES, 1), VECTOR), weights), sums, align=1)
        return site.nothing()

    given = (data, at, totals, total, values, selects, quarters, quarter, offset, group, order, mode)
    return operation(types.none, given, body)


def _join(site: Site, quarters: list[Any]) -> Any:
    """64 bytes of four times 16."""
    halves = [site.shuffle(quarters[i], quarters[i + 1], range(32)) for i in (0, 2)]
    return site.shuffle(halves[0], halves[1], range(64))


@operation_of_any_type
def move_codes(typingctx: Any, out: Any, to: Any, bank: Any, at: Any, flip: Any) -> tuple[Any, Any]:
    """move_codes(out, to, bank, at, flip): out[to:][:8] = bank[at:][:8] (bytes), xor the int64 flip."""

    def body(site: Site) -> Any:
        _, to, _, at, flip = site.arguments
        codes = site.builder.xor(site.load(2, at, I64), flip)
        site.builder.store(codes, site.address(0, to, I64), align=1)
        return site.nothing()

    return operation(types.none, (out, to, bank, at, flip), body)


@operation_of_any_type
def _copy(typingctx: Any, out: Any, to: Any, source: Any, at: Any, count: Any) -> tuple[Any, Any]:
    def body(site: Site) -> Any:
        _, to, _, at, count = site.arguments
        pointer = I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, I64, ir.IntType(1)])
        ends = site.address(0, to, I8), site.address(2, at, I8)
        site.call("llvm.memcpy.p0.p0.i64", kind, *ends, count, ir.Constant(ir.IntType(1), 0))
        return site.nothing()

    return operation(types.none, (out, to, source, at, count), body)


def _copy_plainly(out: NDArray[Any], to: int, source: NDArray[Any], at: int, count: int) -> None:
    """copy_bytes(out, to, source, at, count): out[to:][:count] = source[at:][:count], both C-contiguous, in bytes.

    One instruction's worth of code; the assignment of a slice compiles to a hundred times as much.
    """
    out.reshape(-1).view(np.uint8)[to : to + count] = source.reshape(-1).view(np.uint8)[at : at + count]


copy_bytes: Any = _copy if has_vectors() else _copy_plainly
