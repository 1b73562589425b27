"""The operations of the int8 kernel on lines: vectors of 64 rows, one input in each.

A tile is 64 rows of activations. Its line for an input holds that input's code of every row, row r at byte
16 * (r % 4) + r // 4, so that what is unpacked within 16 bytes, again and again, comes out in order: four lines give
four vectors of rows 16 * v .. 16 * v + 15, lane 4 * q + i of them row 16 * v + 4 * i + q, with four codes in a lane.

    cut, weave           64 inputs of a tile as lines: rows side by side by parts of 16 bytes, then bytes
    start_four           accumulators of a group, four outputs by four vectors: number 4 * o + v is output o, vector v
    multiply_lines       a step: the products of four lines with the four outputs' weights for them
    keep_plain, eight    accumulators as they are to a stage, and rows of four groups out of it, by eights
    keep, fours          accumulators to a stage with a row's four outputs side by side, quarter q of vector 4 * v + i
                         being row 16 * v + 4 * i + q; and rows of 16 groups out of it, by fours

Arrays are aligned to 64 bytes but for x; nothing is checked. Modes: kernels/vectors.py.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # it has no types of its own
from numba.core import types

from gossamer.kernels.vectors import I32, I64, VECTOR, Site, Vectors, operation, operation_of_any_type

__all__ = ["cut", "eight", "fours", "keep", "keep_plain", "multiply_lines", "start_four", "weave"]

_LINE, _GROUP = 64, 1024
"""Bytes of a vector, and of a group's sums, or of the 16 vectors that hold the same part of all rows."""
_EVEN, _ODD = ([4 * q + i for q in (0, 2, 4, 6) for i in range(4)], [4 * q + i for q in (1, 3, 5, 7) for i in range(4)])
"""Quarters of two vectors."""


def _unpack(site: Site, a: Any, b: Any, size: int, high: int) -> Any:
    """Elements of so many bytes of a and of b in turn, from the low or the high half of every 16 bytes."""
    kind = ir.VectorType(ir.IntType(8 * size), 64 // size)
    count, half = 16 // size, 8 // size
    lanes = [64 // size * v + q * count + high * half + i for q in range(4) for i in range(half) for v in range(2)]
    mixed = site.shuffle(site.builder.bitcast(a, kind), site.builder.bitcast(b, kind), lanes)
    return site.builder.bitcast(mixed, VECTOR)


def _quarters(site: Site, four: list[Any]) -> list[Any]:
    """Vector i of the result: quarter i of each of the four."""
    a, b, c, d = four
    halves = [(site.shuffle(a, b, pick), site.shuffle(c, d, pick)) for pick in (_EVEN, _ODD)]
    (even, odd), (low, high) = halves, (_EVEN, _ODD)
    return [site.shuffle(*pair, pick) for pick in (low, high) for pair in (even, odd)]


def _aligned_store(site: Site, value: Any, array: int, offset: Any) -> None:
    site.builder.store(value, site.address(array, offset, VECTOR), align=64)


def _aligned_load(site: Site, array: int, offset: Any) -> Any:
    return site.builder.load(site.address(array, offset, VECTOR), align=64)


@operation_of_any_type
def cut(typingctx: Any, x: Any, row: Any, stride: Any, k: Any, parts: Any) -> tuple[Any, Any]:
    """cut(x, row, stride, k, parts): inputs k .. k + 63 of rows row .. row + 63 to parts[4, 16, 64] of bytes.

    Quarter q of parts[p, j] : inputs 16 * p .. 16 * p + 15 after k, of row 4 * j + q, unsigned.
    """

    def body(site: Site) -> Any:
        b, (_, row, stride, k, _) = site.builder, site.arguments
        first = b.add(b.mul(row, stride), k)
        for j in range(16):
            rows = [site.unsigned(0, site.load(0, site.offset(first, stride, 4 * j + q))) for q in range(4)]
            for p, part in enumerate(_quarters(site, rows)):
                _aligned_store(site, part, 4, I64(_GROUP * p + _LINE * j))
        return site.nothing()

    return operation(types.none, (x, row, stride, k, parts), body)


@operation_of_any_type
def weave(typingctx: Any, parts: Any, part: Any, lines: Any, k: Any) -> tuple[Any, Any]:
    """weave(parts, part, lines, k): 16 inputs, as `cut` left them, to the lines of inputs k .. k + 15."""

    def body(site: Site) -> Any:
        first, place = (site.builder.mul(site.arguments[i], I64(size)) for i, size in ((1, _GROUP), (3, _LINE)))
        vectors = [_aligned_load(site, 0, site.offset(first, _LINE, j)) for j in range(16)]
        for _ in range(4):  # j and j + 8 in turn, four times: byte j of vector m was byte m of vector j then
            vectors = [_unpack(site, vectors[j], vectors[j + 8], 1, high) for j in range(8) for high in range(2)]
        for m, vector in enumerate(vectors):
            _aligned_store(site, vector, 2, site.offset(place, _LINE, m))
        return site.nothing()

    return operation(types.none, (parts, part, lines, k), body)


@operation_of_any_type
def start_four(typingctx: Any, first: Any, group: Any) -> tuple[Any, Any]:
    """start_four(first, group): the accumulators of a group, each from its output's int32 first[group, 4]."""

    def body(site: Site) -> Any:
        place = site.builder.mul(site.arguments[1], I64(16))
        each = [site.broadcast(site.load(0, site.offset(place, 4, o), I32), VECTOR) for o in range(4)]
        return site.tile([value for value in each for _ in range(4)])

    return operation(Vectors(16), (first, group), body)


@operation_of_any_type
def multiply_lines(
    typingctx: Any, acc: Any, lines: Any, inputs: Any, weights: Any, step: Any, mode: Any
) -> tuple[Any, Any]:
    """multiply_lines(acc, lines, inputs, weights, step, mode): acc + dot4(four lines, weights[step, o]) for output o.

    inputs : int32 [steps, 4], where the lines begin, in bytes.  weights : int8 [steps, 4, 4].
    """

    def body(site: Site) -> Any:
        b, sums = site.builder, site.vectors(0)
        place = b.mul(site.arguments[4], I64(16))
        begins = [b.zext(site.load(2, site.offset(place, 4, i), I32), I64) for i in range(4)]
        a, c, d, e = (_aligned_load(site, 1, begin) for begin in begins)
        pairs = [(_unpack(site, a, c, 1, high), _unpack(site, d, e, 1, high)) for high in range(2)]
        codes = [_unpack(site, *pair, 2, high) for pair in pairs for high in range(2)]
        for o in range(4):
            weight = site.broadcast(site.load(3, site.offset(place, 4, o), I32), VECTOR)
            for v in range(4):
                sums[4 * o + v] = site.dot4(sums[4 * o + v], codes[v], weight)
        return site.tile(sums)

    return operation(acc, (acc, lines, inputs, weights, step, mode), body)


@operation_of_any_type
def keep(typingctx: Any, acc: Any, stage: Any, group: Any) -> tuple[Any, Any]:
    """keep(acc, stage, group): accumulators to stage[group], 16 vectors."""

    def body(site: Site) -> Any:
        sums, first = site.vectors(0), site.builder.mul(site.arguments[2], I64(_GROUP))
        for v in range(4):
            a, b, c, d = sums[v::4]
            for half in range(2):
                pair = _unpack(site, a, b, 4, half), _unpack(site, c, d, 4, half)
                for high in range(2):
                    number = 4 * v + 2 * half + high
                    _aligned_store(site, _unpack(site, *pair, 8, high), 1, site.offset(first, _LINE, number))
        return site.nothing()

    return operation(types.none, (acc, stage, group), body)


@operation_of_any_type
def keep_plain(typingctx: Any, acc: Any, stage: Any, group: Any) -> tuple[Any, Any]:
    """keep_plain(acc, stage, group): the same as they are."""

    def body(site: Site) -> Any:
        first = site.builder.mul(site.arguments[2], I64(_GROUP))
        for i, vector in enumerate(site.vectors(0)):
            _aligned_store(site, vector, 1, site.offset(first, _LINE, i))
        return site.nothing()

    return operation(types.none, (acc, stage, group), body)


@operation_of_any_type
def eight(typingctx: Any, stage: Any, group: Any, number: Any) -> tuple[Any, Any]:
    """eight(stage, group, number): rows 8 * number .. of four groups, from `group` on, that `keep_plain` kept."""

    def rows(site: Site, half: int) -> Any:
        b, quarters = site.builder, []
        vector = b.mul(b.lshr(site.arguments[2], I64(1)), I64(_LINE))
        first = b.add(b.mul(site.arguments[1], I64(_GROUP)), vector)
        for g in range(4):
            a, c, d, e = (_aligned_load(site, 0, site.offset(first, 1, _GROUP * g + 4 * _LINE * o)) for o in range(4))
            pair = _unpack(site, a, c, 4, half), _unpack(site, d, e, 4, half)
            quarters.append([_unpack(site, *pair, 8, high) for high in range(2)])
        return site.tile([row for four in zip(*quarters, strict=True) for row in _quarters(site, list(four))])

    def body(site: Site) -> Any:
        b, ends = site.builder, []
        odd = b.icmp_signed("!=", b.and_(site.arguments[2], I64(1)), I64(0))
        with b.if_else(odd) as (then, otherwise):
            for half, branch in ((1, then), (0, otherwise)):
                with branch:
                    ends.append((rows(site, half), b.block))
        chosen = b.phi(ends[0][0].type)
        for value, block in ends:
            chosen.add_incoming(value, block)
        return chosen

    return operation(Vectors(8), (stage, group, number), body)


@operation_of_any_type
def fours(typingctx: Any, stage: Any, four: Any) -> tuple[Any, Any]:
    """fours(stage, four): rows 4 * four .. of 16 groups that `keep` kept."""

    def body(site: Site) -> Any:
        first = site.builder.mul(site.arguments[1], I64(_LINE))
        columns = [
            _quarters(site, [_aligned_load(site, 0, site.offset(first, _GROUP, 4 * c + g)) for g in range(4)])
            for c in range(4)
        ]
        return site.tile([columns[c][r] for r in range(4) for c in range(4)])

    return operation(Vectors(16), (stage, four), body)
