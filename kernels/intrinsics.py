"""The operations that the fast kernels are written in; a `Vectors` value is a tile of 512-bit vectors in registers.

How many vectors an operation works on is said by the lengths of tuples among its arguments: a length is part of a
tuple's type, so every shape of tile is compiled for itself, without a template. `height` counts rows of activations,
`width` vectors of outputs side by side; the tile's vector r * len(width) + c belongs to row r and output vector c.

    start           accumulators, every row of the tile from the same int32
    rows            a vector of 64 codes from each row
    mac_broadcast   some codes of each row, repeated over a vector, dot4 weights
    mac_select      codes of each row picked by index, dot4 weights
    fold, weave     accumulators whose lanes are not outputs in order become so
    store           accumulators to int32, at most N columns
    store_codes     the same, requantised to 8-bit codes: see kernels/codes.py

What dot4 and picking are, and what `mode` is, see kernels/vectors.py. Whatever lies in [offset, offset + 64) is read.
"""

from typing import Any

from numba.core import types

from gossamer.kernels.codes import store_codes
from gossamer.kernels.vectors import I32, I64, LANES, VECTOR, Site, Vectors, operation, operation_of_any_type

__all__ = [
    "fold",
    "load_int64",
    "mac_broadcast",
    "mac_select",
    "rows",
    "start",
    "store",
    "store_codes",
    "weave",
]


@operation_of_any_type
def start(typingctx: Any, height: Any, width: Any, first: Any, offset: Any) -> tuple[Any, Any]:
    """start(height, width, first, offset): vector c of every row is the 16 int32 at first[offset + 64 * c] (bytes)."""

    def body(site: Site) -> Any:
        vectors = [site.load(2, site.offset(site.arguments[3], 64, c)) for c in range(len(width))]
        return site.tile(vectors * len(height))

    return operation(Vectors(len(height) * len(width)), (height, width, first, offset), body)


@operation_of_any_type
def rows(typingctx: Any, height: Any, x: Any, offset: Any, stride: Any) -> tuple[Any, Any]:
    """rows(height, x, offset, stride): the 64 codes at x[offset + r * stride], one vector a row."""

    def body(site: Site) -> Any:
        _, _, offset, stride = site.arguments
        return site.tile([site.unsigned(1, site.load(1, site.offset(offset, stride, r))) for r in range(len(height))])

    return operation(Vectors(len(height)), (height, x, offset, stride), body)


@operation_of_any_type
def mac_broadcast(
    typingctx: Any,
    acc: Any,
    height: Any,
    width: Any,
    dwords: Any,
    x: Any,
    offset: Any,
    stride: Any,
    w: Any,
    first: Any,
    mode: Any,
) -> tuple[Any, Any]:
    """mac_broadcast(acc, height, width, dwords, x, offset, stride, w, first, mode): acc[r, c] += dot4(x[r], w[c]).

    dwords : 1 or 2.  x[r] : the 4 or 8 codes at x[offset + r * stride], 16 or 8 times over.
    w[c] : the 64 bytes at w[first + 64 * c].
    """
    narrow = {1: I32, 2: I64}[len(dwords)]

    def body(site: Site) -> Any:
        _, _, _, _, _, offset, stride, _, first, _ = site.arguments
        accumulators, sums = site.vectors(0), []
        weights = [site.load(7, site.offset(first, 64, c)) for c in range(len(width))]
        for r in range(len(height)):
            codes = site.unsigned(4, site.load(4, site.offset(offset, stride, r), narrow))
            codes = site.builder.bitcast(site.broadcast(codes, _repeated(narrow)), VECTOR)
            sums += [site.dot4(accumulators[r * len(width) + c], codes, w) for c, w in enumerate(weights)]
        return site.tile(sums)

    return operation(acc, (acc, height, width, dwords, x, offset, stride, w, first, mode), body)


def _repeated(element: Any) -> Any:
    """512 bits of it."""
    return VECTOR if element == I32 else type(VECTOR)(element, 512 // element.width)


@operation_of_any_type
def mac_select(
    typingctx: Any, acc: Any, width: Any, share: Any, seen: Any, w: Any, first: Any, mode: Any
) -> tuple[Any, Any]:
    """mac_select(acc, width, share, seen, w, first, mode): acc[r, c, s] += dot4(seen[r] picked by index[c], w[c, s]).

    share : how many accumulators a picked vector serves.  seen : a vector a row.
    index[c] : the 64 bytes at w[first + 64 * c * (1 + len(share))], and w[c, s] those that follow them.
    """

    def body(site: Site) -> Any:
        first, sums, seen_ = site.arguments[5], site.vectors(0), site.vectors(3)
        for c in range(len(width)):
            slots = range(c * (1 + len(share)), (c + 1) * (1 + len(share)))
            index, *weights = (site.load(4, site.offset(first, 64, slot)) for slot in slots)
            for r, codes in enumerate(seen_):
                picked = site.pick(index, codes)
                for s, weight in enumerate(weights):
                    i = (r * len(width) + c) * len(share) + s
                    sums[i] = site.dot4(sums[i], picked, weight)
        return site.tile(sums)

    return operation(acc, (acc, width, share, seen, w, first, mode), body)


@operation_of_any_type
def fold(typingctx: Any, acc: Any, dwords: Any) -> tuple[Any, Any]:
    """fold(acc, dwords): with two dwords, each pair of vectors as one, neighbouring lanes added.

    Lanes 4 * q and 4 * q + 2 of the first vector of a pair become lanes 4 * q and 4 * q + 1 of the result, those of the
    second 4 * q + 2 and 4 * q + 3: that is how `vshufps` goes. With one dword nothing changes.
    """
    if len(dwords) == 1:
        return operation(acc, (acc, dwords), lambda site: site.arguments[0])

    def body(site: Site) -> Any:
        vectors, folded = site.vectors(0), []
        even = [16 * v + 4 * q + i for q in range(4) for v in range(2) for i in (0, 2)]
        for a, b in zip(vectors[::2], vectors[1::2], strict=True):
            folded.append(site.builder.add(site.shuffle(a, b, even), site.shuffle(a, b, [i + 1 for i in even])))
        return site.tile(folded)

    return operation(Vectors(acc.count // 2), (acc, dwords), body)


@operation_of_any_type
def weave(typingctx: Any, acc: Any, share: Any) -> tuple[Any, Any]:
    """weave(acc, share): with four that share, every four vectors transposed, quarter by quarter.

    Lane 4 * q + i of vector s becomes lane 4 * q + s of vector i. With one nothing changes.
    """
    if len(share) == 1:
        return operation(acc, (acc, share), lambda site: site.arguments[0])

    def body(site: Site) -> Any:
        vectors, woven = site.vectors(0), []
        ones = [[16 * v + 4 * q + i for q in range(4) for i in (2 * h, 2 * h + 1) for v in range(2)] for h in range(2)]
        twos = [[16 * v + 4 * q + i for q in range(4) for v in range(2) for i in (2 * h, 2 * h + 1)] for h in range(2)]
        for i in range(0, acc.count, 4):
            a, b, c, d = vectors[i : i + 4]
            for one in ones:
                left, right = site.shuffle(a, b, one), site.shuffle(c, d, one)
                woven += [site.shuffle(left, right, two) for two in twos]
        return site.tile(woven)

    return operation(acc, (acc, share), body)


@operation_of_any_type
def store(typingctx: Any, acc: Any, width: Any, out: Any, offset: Any, stride: Any, columns: Any) -> tuple[Any, Any]:
    """store(acc, width, out, offset, stride, columns): row r of the tile to int32 out, `stride` bytes a row.

    columns : how many of the tile's 16 * width columns are written.
    """

    def body(site: Site) -> Any:
        _, _, _, offset, stride, columns = site.arguments
        masks = [site.mask(site.offset(columns, -LANES, c), LANES) for c in range(len(width))]
        for i, vector in enumerate(site.vectors(0)):
            r, c = divmod(i, len(width))
            place = site.offset(site.offset(offset, stride, r), 64, c)
            site.masked_store(vector, site.address(2, place, VECTOR), masks[c])
        return site.nothing()

    return operation(types.none, (acc, width, out, offset, stride, columns), body)


@operation_of_any_type
def load_int64(typingctx: Any, array: Any, index: Any) -> tuple[Any, Any]:
    """load_int64(array, index): the element of an int64 array, without a look at the index's sign."""

    def body(site: Site) -> Any:
        return site.load(0, site.offset(ir_zero, site.arguments[1], 8), I64)

    ir_zero = I64(0)
    return operation(types.int64, (array, index), body)
