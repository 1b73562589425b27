"""The operations that the fast kernels are written in; a `Vectors` value is a tile of 512-bit vectors in registers.

How many vectors an operation works on is said by the lengths of tuples among its arguments: a length is part of a
tuple's type, so every shape of tile is compiled for itself, without a template. Of a tile, `height` counts rows of
activations and `width` vectors of weights side by side. There are two ways to bring inputs and weights together:

    broadcast    picked = None: 4 codes of a row, repeated over a vector, meet the weights of 16 outputs; with two
                 `by`, 8 codes those of 8
    select       picked = (): each lane picks 4 codes of a row out of 64 in a vector, for one output or for four, `by`

The tile's vector r * n + c belongs to row r, whose accumulators are n = width * len(by if picked else ()) vectors.

    row_starts    where the rows of a tile begin: a tuple, whose length then is the height of the tile
    start         accumulators, every row of the tile from the same int32
    look          what of each row the following steps need
    multiply      a step: products added to all accumulators
    settle        accumulators whose lanes are not outputs in order become so
    store         accumulators to int32, at most N columns
    finish        the same, or what follows the sums: see kernels/codes.py

What dot4 and picking are, and what `mode` is, see kernels/vectors.py. Whatever lies in [offset, offset + 64) is read.
"""

from typing import Any

from numba.core import types

from gossamer.kernels.codes import write_codes
from gossamer.kernels.float_after import write_floats
from gossamer.kernels.vectors import I32, I64, LANES, VECTOR, Site, Vectors, operation, operation_of_any_type

__all__ = ["finish", "load_int64", "look", "multiply", "row_starts", "settle", "start", "store"]


def _repeats(by: Any, picked: Any) -> int:
    """Accumulators for each vector of `width`."""
    return 1 if isinstance(picked, types.NoneType) else len(by)


@operation_of_any_type
def row_starts(typingctx: Any, height: Any, begins: Any, row: Any, stride: Any) -> tuple[Any, Any]:
    """row_starts(height, begins, row, stride): begins[row + r] of int64, or where that is None (row + r) * stride."""

    def body(site: Site) -> Any:
        b, (_, _, row, stride) = site.builder, site.arguments
        lines = [b.add(row, I64(r)) for r in range(len(height))]
        if isinstance(begins, types.NoneType):
            starts = [b.mul(line, stride) for line in lines]
        else:
            starts = [site.load(1, b.mul(line, I64(8)), I64) for line in lines]
        return site.context.make_tuple(b, places, starts)

    places = types.UniTuple(types.int64, len(height))  # type: ignore[no-untyped-call]  # numba's
    return operation(places, (height, begins, row, stride), body)


@operation_of_any_type
def start(typingctx: Any, starts: Any, width: Any, by: Any, picked: Any, first: Any, group: Any) -> tuple[Any, Any]:
    """start(starts, width, by, picked, first, group): each row's n accumulators from int32 first[group, n, 16]."""
    n = len(width) * _repeats(by, picked)

    def body(site: Site) -> Any:
        offset = site.builder.mul(site.arguments[5], I64(64 * n))
        return site.tile([site.load(4, site.offset(offset, 64, c)) for c in range(n)] * len(starts))

    return operation(Vectors(len(starts) * n), (starts, width, by, picked, first, group), body)


@operation_of_any_type
def look(typingctx: Any, x: Any, starts: Any, offset: Any, picked: Any) -> tuple[Any, Any]:
    """look(x, starts, offset, picked): the 64 codes at x[starts[r] + offset], or where they are if none is picked."""
    if isinstance(picked, types.NoneType):

        def places(site: Site) -> Any:
            moved = [site.builder.add(begin, site.arguments[2]) for begin in site.elements(1)]
            return site.context.make_tuple(site.builder, starts, moved)

        return operation(starts, (x, starts, offset, picked), places)

    def codes(site: Site) -> Any:
        moved = [site.builder.add(begin, site.arguments[2]) for begin in site.elements(1)]
        return site.tile([site.unsigned(0, site.load(0, place)) for place in moved])

    return operation(Vectors(len(starts)), (x, starts, offset, picked), codes)


@operation_of_any_type
def multiply(
    typingctx: Any,
    acc: Any,
    width: Any,
    by: Any,
    picked: Any,
    x: Any,
    seen: Any,
    piece: Any,
    data: Any,
    step: Any,
    mode: Any,
) -> tuple[Any, Any]:
    """multiply(acc, width, by, picked, x, seen, piece, data, step, mode): step `step` of a packed weight.

    seen : what `look` gave.  piece : steps since then.  data, and which input meets which weight: kernels/pack.py.
    """
    body = _broadcast if isinstance(picked, types.NoneType) else _select
    return operation(acc, (acc, width, by, picked, x, seen, piece, data, step, mode), body)


def _broadcast(site: Site) -> Any:
    """acc[r, c] += dot4(x[r], w[c]): x[r] are the 4 or 8 codes of a piece, 16 or 8 times over; or one float32."""
    b, wide, narrow = site.builder, len(site.types[1]), {1: I32, 2: I64}[len(site.types[2])]
    sums, first = site.vectors(0), b.mul(site.arguments[8], I64(64 * wide))
    weights = [site.load(7, site.offset(first, 64, c)) for c in range(wide)]
    left, step = b.mul(site.arguments[6], I64(narrow.width // 8)), site.dot4
    if site.types[4].dtype == types.float32:
        step = site.fused
    for r, place in enumerate(site.elements(5)):
        codes = site.unsigned(4, site.load(4, b.add(place, left), narrow))
        repeated = VECTOR if narrow == I32 else type(VECTOR)(narrow, 512 // narrow.width)
        codes = b.bitcast(site.broadcast(codes, repeated), VECTOR)
        for c, w in enumerate(weights):
            sums[r * wide + c] = step(sums[r * wide + c], codes, w)
    return site.tile(sums)


def _select(site: Site) -> Any:
    """acc[r, c, s] += dot4(seen[r] picked by index[c], w[c, s])."""
    wide, share = len(site.types[1]), len(site.types[2])
    sums, seen = site.vectors(0), site.vectors(5)
    first = site.builder.mul(site.arguments[8], I64(64 * wide * (1 + share)))
    for c in range(wide):
        slots = range(c * (1 + share), (c + 1) * (1 + share))
        index, *weights = (site.load(7, site.offset(first, 64, slot)) for slot in slots)
        for r, codes in enumerate(seen):
            picked = site.pick(index, codes)
            for s, weight in enumerate(weights):
                i = (r * wide + c) * share + s
                sums[i] = site.dot4(sums[i], picked, weight)
    return site.tile(sums)


@operation_of_any_type
def settle(typingctx: Any, acc: Any, by: Any, picked: Any) -> tuple[Any, Any]:
    """settle(acc, by, picked): accumulators as sums of outputs in order.

    Two dwords: each pair of vectors as one, neighbouring lanes added. Lanes 4 * q and 4 * q + 2 of the first vector of
    a pair become lanes 4 * q and 4 * q + 1 of the result, those of the second 4 * q + 2 and 4 * q + 3, as `vshufps`
    does it. Four that share: every four vectors transposed, quarter by quarter; lane 4 * q + i of vector s becomes lane
    4 * q + s of vector i. Else nothing changes.
    """
    if len(by) == 1:
        return operation(acc, (acc, by, picked), lambda site: site.arguments[0])
    if isinstance(picked, types.NoneType):
        return operation(Vectors(acc.count // 2), (acc, by, picked), _fold)
    return operation(acc, (acc, by, picked), _weave)


def _fold(site: Site) -> Any:
    vectors, folded = site.vectors(0), []
    even = [16 * v + 4 * q + i for q in range(4) for v in range(2) for i in (0, 2)]
    for a, b in zip(vectors[::2], vectors[1::2], strict=True):
        folded.append(site.builder.add(site.shuffle(a, b, even), site.shuffle(a, b, [i + 1 for i in even])))
    return site.tile(folded)


def _weave(site: Site) -> Any:
    vectors, woven = site.vectors(0), []
    ones = [[16 * v + 4 * q + i for q in range(4) for i in (2 * h, 2 * h + 1) for v in range(2)] for h in range(2)]
    twos = [[16 * v + 4 * q + i for q in range(4) for v in range(2) for i in (2 * h, 2 * h + 1)] for h in range(2)]
    for i in range(0, len(vectors), 4):
        a, b, c, d = vectors[i : i + 4]
        for one in ones:
            left, right = site.shuffle(a, b, one), site.shuffle(c, d, one)
            woven += [site.shuffle(left, right, two) for two in twos]
    return site.tile(woven)


@operation_of_any_type
def store(typingctx: Any, sums: Any, starts: Any, out: Any, offset: Any, stride: Any, columns: Any) -> tuple[Any, Any]:
    """store(sums, starts, out, offset, stride, columns): row r of the tile to int32 out, `stride` elements a row.

    columns : how many of the tile's columns are written, at most.
    """
    return operation(types.none, (sums, starts, out, offset, stride, columns), _write_sums)


def _write_sums(site: Site) -> Any:
    """The first six arguments are those of `store`."""
    vectors, (offset, stride, columns) = site.vectors(0), site.arguments[3:6]
    wide = len(vectors) // len(site.types[1])
    places = [site.offset(site.offset(offset, stride, i // wide), LANES, i % wide) for i in range(len(vectors))]
    pointers = [site.address(2, site.builder.mul(place, I64(4)), VECTOR) for place in places]
    with site.whether_all(columns, LANES * wide) as (all_, some):
        with all_:
            for vector, pointer in zip(vectors, pointers, strict=True):
                site.builder.store(vector, pointer, align=4)
        with some:
            masks = [site.mask(site.offset(columns, -LANES, c), LANES) for c in range(wide)]
            for i, (vector, pointer) in enumerate(zip(vectors, pointers, strict=True)):
                site.masked_store(vector, pointer, masks[i % wide])
    return site.nothing()


@operation_of_any_type
def finish(
    typingctx: Any,
    sums: Any,
    starts: Any,
    out: Any,
    offset: Any,
    stride: Any,
    columns: Any,
    channel: Any,
    residual: Any,
    after: Any,
    mode: Any,
) -> tuple[Any, Any]:
    """The tile's sums to int32 out as `store` does it, where `after` is None; else what follows them.

    What `after` is: float_after for float32, else kernels/codes.py.

    channel : the tile's first output.  residual : at the same elements as out; any array where there is none.
    """
    given = (sums, starts, out, offset, stride, columns, channel, residual, after, mode)
    if isinstance(after, types.NoneType):
        return operation(types.none, given, _write_sums)
    if isinstance(after[1], types.Float):
        return operation(types.none, given, write_floats)
    return operation(types.none, given, lambda site: write_codes(site.expanded(8)))


@operation_of_any_type
def load_int64(typingctx: Any, array: Any, index: Any) -> tuple[Any, Any]:
    """load_int64(array, index): the element of an int64 array, without a look at the index's sign."""

    def body(site: Site) -> Any:
        return site.load(0, site.offset(ir_zero, site.arguments[1], 8), I64)

    ir_zero = I64(0)
    return operation(types.int64, (array, index), body)
