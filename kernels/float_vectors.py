"""Vectors of float32 inside compiled functions: what the float kernels are written in.

A `Tile` value is a list of vectors, `<lanes x float>` each, of a length known to the type, which the compiler keeps in
registers. As in kernels/intrinsics.py a number that must be known to the compiler is the length of a tuple: `lanes` of
a vector, `height` vectors of rows side by side, `width` outputs. A height of () says that a line is one vector of
`lanes` rows, and that the lines of all outputs stand in one vector of width * lanes: for few rows.

    zeros, load_lines, store_lines    accumulators: width lines of height * lanes floats
    mac                               acc[c] += a line of x * weight c of an entry
    turn                              lanes x lanes elements, transposed
    store_tile                        a tile's vectors one below the other
    add_vector, add_tile              what follows the sums
    clamp, gate
    store_rows, store_codes           the result, as float32 or rounded to 8 bits

Everything here is LLVM's own arithmetic on vectors, which it lowers to whatever the processor has; there is no
instruction to be gated. A product and its sum carry `contract` alone of the fast-math flags: they become one fused
operation where there is one, and nothing is reordered.

Addresses are an array and an offset in elements; nothing is checked.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # it has no types of its own
from numba.core import cgutils as _cgutils
from numba.core import types
from numba.core.datamodel import models
from numba.extending import register_model

from gossamer.kernels.vectors import operation_of_any_type

__all__ = [
    "Tile",
    "add_tile",
    "add_vector",
    "clamp",
    "gate",
    "load_lines",
    "mac",
    "store_codes",
    "store_lines",
    "store_rows",
    "store_tile",
    "turn",
    "zeros",
]

cgutils: Any = _cgutils
"""Its functions carry no types."""

_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_F32 = ir.FloatType()
_CONTRACT = ("contract",)
_ROUNDER = 12582912.0
"""1.5 * 2**23: added to a float32 of at most 2**22 and taken away again, it rounds to an integer, half to even."""


_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""exp(r) = 1 + r + r**2 * polynomial(r) for |r| <= ln(2) / 2, highest power first: expf of the Cephes library."""
_GELU = (2 * (2 / 3.141592653589793) ** 0.5, 0.044715)
"""Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016: v * sigmoid(2 sqrt(2 / pi) (v + 0.044715 v**3))."""


class Tile(types.Type):
    """The numba type of `count` vectors of `lanes` float32."""

    def __init__(self, count: int, lanes: int) -> None:
        self.count, self.lanes = count, lanes
        super().__init__(name=f"Tile({count} x {lanes})")


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Tile) -> None:
        kind = ir.ArrayType(ir.VectorType(_F32, fe_type.lanes), fe_type.count)
        super().__init__(dmm, fe_type, kind)  # type: ignore[no-untyped-call]  # numba's


def _const(value: int) -> Any:
    return ir.Constant(_I64, value)


class _Site:
    """One call of an intrinsic while its code is generated. Arguments are named by their place."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, lanes: int) -> None:
        self.context, self.builder, self.signature, self.arguments = context, builder, signature, arguments
        self.lanes, self.vector = lanes, ir.VectorType(_F32, lanes)

    def address(self, array: int, index: Any, kind: Any) -> Any:
        """A pointer to `kind` at element `index` of an array."""
        b = self.builder
        data = self.context.make_array(self.signature.args[array])(self.context, b, self.arguments[array]).data
        return b.bitcast(b.gep(data, [index]), kind.as_pointer())

    def load(self, array: int, index: Any, kind: Any | None = None, align: int = 1) -> Any:
        kind = self.vector if kind is None else kind
        return self.builder.load(self.address(array, index, kind), align=align)

    def integer(self, array: int, index: Any) -> Any:
        """An element of an array of unsigned integers, as int64."""
        b = self.builder
        return b.zext(self.load(array, index, ir.IntType(self.signature.args[array].dtype.bitwidth)), _I64)

    def row(self, base: int, stride: int, number: int, rows: int | None = None) -> Any:
        """Argument `base` plus `number` times argument `stride`; of the last row, if there are fewer.

        A masked access to memory that is not there does no harm, but some processors take microseconds for it.
        """
        b, row = self.builder, _const(number)
        if rows is not None:
            last = b.sub(self.arguments[rows], _const(1))
            row = b.select(b.icmp_signed("<", row, last), row, last)
        return b.add(self.arguments[base], b.mul(self.arguments[stride], row))

    def splat(self, value: Any) -> Any:
        b, kind = self.builder, ir.VectorType(value.type, self.lanes)
        one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
        first = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), first)

    def spread(self, vector: Any, lanes: list[int]) -> Any:
        """These lanes of a vector."""
        pick = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
        return self.builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), pick)

    def joined(self, vectors: list[Any]) -> Any:
        """A power of two of vectors, one behind the other."""
        while len(vectors) > 1:
            pick = ir.Constant(ir.VectorType(_I32, 2 * vectors[0].type.count), list(range(2 * vectors[0].type.count)))
            vectors = [
                self.builder.shuffle_vector(a, c, pick) for a, c in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]

    def constant(self, value: float) -> Any:
        return ir.Constant(self.vector, [ir.Constant(_F32, value)] * self.lanes)

    def fused(self, x: Any, w: Any, acc: Any) -> Any:
        b = self.builder
        return b.fadd(acc, b.fmul(x, w, flags=_CONTRACT), flags=_CONTRACT)

    def vectors(self, tile: int = 0) -> list[Any]:
        value = self.arguments[tile]
        return [self.builder.extract_value(value, i) for i in range(self.signature.args[tile].count)]

    def tile(self, vectors: list[Any]) -> Any:
        value = ir.Constant(ir.ArrayType(self.vector, len(vectors)), ir.Undefined)
        for i, vector in enumerate(vectors):
            value = self.builder.insert_value(value, vector, i)
        return value

    def mask(self, rows: int, columns: int, row: int) -> Any:
        """Lanes below argument `columns`, none where `row` is not below argument `rows`."""
        b = self.builder
        lanes = ir.Constant(ir.VectorType(_I64, self.lanes), [_const(i) for i in range(self.lanes)])
        inside = b.icmp_signed("<", _const(row), self.arguments[rows])
        return b.icmp_signed("<", lanes, self.splat(b.select(inside, self.arguments[columns], _const(0))))

    def masked_load(self, pointer: Any, mask: Any) -> Any:
        kind = ir.FunctionType(self.vector, [pointer.type, _I32, mask.type, self.vector])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.load.v{self.lanes}f32.p0")
        return self.builder.call(function, [pointer, ir.Constant(_I32, 4), mask, self.constant(0.0)])

    def masked_store(self, value: Any, pointer: Any, mask: Any) -> None:
        name, size = ("f32", 4) if value.type == self.vector else ("i8", 1)
        kind = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, _I32, mask.type])
        function = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.masked.store.v{self.lanes}{name}.p0"
        )
        self.builder.call(function, [value, pointer, ir.Constant(_I32, size), mask])


def _operation(result: Any, lanes: int, arguments: tuple[Any, ...], body: Callable[[_Site], Any]) -> tuple[Any, Any]:
    """What numba wants of an intrinsic: its signature, and the function that generates its code."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value = body(_Site(context, builder, signature, values, lanes))
        return context.get_dummy_value() if result == types.none else value

    scalars = {types.Integer: types.int64, types.Float: types.float32}
    given = [next((to for kind, to in scalars.items() if isinstance(a, kind)), a) for a in arguments]
    return result(*given), generate


@operation_of_any_type
def zeros(typingctx: Any, lanes: Any, height: Any, width: Any) -> tuple[Any, Any]:
    """zeros(lanes, height, width): a tile of width * height vectors of 0."""
    result = _accumulators(lanes, height, width)
    return _operation(
        result, result.lanes, (lanes, height, width), lambda site: site.tile([site.constant(0.0)] * result.count)
    )


def _accumulators(lanes: Any, height: Any, width: Any) -> Tile:
    if not len(height):
        return Tile(1, len(width) * len(lanes))
    return Tile(len(width) * len(height), len(lanes))


@operation_of_any_type
def load_lines(
    typingctx: Any, lanes: Any, height: Any, width: Any, sums: Any, lines: Any, first: Any
) -> tuple[Any, Any]:
    """load_lines(lanes, height, width, sums, lines, first): vectors c * height + t = sums[lines[first + c]][t].

    sums : float32, lines of height * lanes, aligned.  lines : uint32.
    """
    result = _accumulators(lanes, height, width)

    def body(site: _Site) -> Any:
        side = len(lanes)
        line = ir.VectorType(_F32, side)
        vectors = [site.load(3, where, line, align=4 * side) for where in _places(site, side, len(height), len(width))]
        return site.tile(vectors if len(height) else [site.joined(vectors)])

    return _operation(result, result.lanes, (lanes, height, width, sums, lines, first), body)


@operation_of_any_type
def store_lines(
    typingctx: Any, acc: Any, height: Any, width: Any, sums: Any, lines: Any, first: Any
) -> tuple[Any, Any]:
    """store_lines(acc, height, width, sums, lines, first): the other way round."""

    def body(site: _Site) -> None:
        vectors, wide = site.vectors(), len(width)
        side = acc.lanes if len(height) else acc.lanes // wide
        if not len(height):
            vectors = [site.spread(vectors[0], list(range(c * side, (c + 1) * side))) for c in range(wide)]
        for vector, where in zip(vectors, _places(site, side, len(height), wide), strict=True):
            site.builder.store(vector, site.address(3, where, vector.type), align=4 * side)

    return _operation(types.none, acc.lanes, (acc, height, width, sums, lines, first), body)


def _places(site: _Site, lanes: int, tall: int, wide: int) -> list[Any]:
    """Where the vectors of accumulators lie; arguments 4 and 5 are lines and first."""
    b, found = site.builder, []
    for c in range(wide):
        line = site.integer(4, b.add(site.arguments[5], _const(c)))
        start = b.mul(line, _const(max(1, tall) * lanes))
        found += [b.add(start, _const(t * lanes)) for t in range(max(1, tall))]
    return found


@operation_of_any_type
def mac(
    typingctx: Any,
    acc: Any,
    shared: Any,
    height: Any,
    width: Any,
    x: Any,
    base: Any,
    inputs: Any,
    weights: Any,
    entry: Any,
) -> tuple[Any, Any]:
    """mac(acc, shared, height, width, x, base, inputs, weights, entry): a line of x times a weight, for every output.

    acc[c, t] += x[base + inputs[e] * height * lanes + t * lanes : ][:lanes] * weights[entry * width + c]

    shared : () for one line for all outputs, e = entry; None for one each, e = entry * width + c. Then inputs are uint8
        and those of an entry are loaded as one word: loads are what this operation waits for.
    """
    tall, wide = len(height), len(width)
    own = isinstance(shared, types.NoneType)

    def body(site: _Site) -> Any:
        b, vectors, entry_ = site.builder, site.vectors(), site.arguments[8]
        side = site.lanes if tall else site.lanes // wide
        line, first = ir.VectorType(_F32, side), b.mul(entry_, _const(wide))
        if own:
            word = b.zext(site.load(6, first, ir.IntType(8 * wide)), _I64)
            numbers = [b.and_(b.lshr(word, _const(8 * c)), _const(255)) for c in range(wide)]
        else:
            numbers = [site.integer(6, entry_)]
        starts = [b.add(site.arguments[5], b.mul(number, _const(max(1, tall) * side))) for number in numbers]
        lines = [
            [site.load(4, b.add(start, _const(t * side)), line, align=4 * side) for t in range(max(1, tall))]
            for start in starts
        ] * (1 if own else wide)
        if not tall:
            four = site.load(7, first, ir.VectorType(_F32, wide), align=4)
            each = site.spread(four, [c for c in range(wide) for _ in range(side)])
            return site.tile([site.fused(site.joined([seen for (seen,) in lines]), each, vectors[0])])
        for c in range(wide):
            w = site.splat(site.load(7, b.add(first, _const(c)), _F32))
            for t in range(tall):
                vectors[c * tall + t] = site.fused(lines[c][t], w, vectors[c * tall + t])
        return site.tile(vectors)

    return _operation(acc, acc.lanes, (acc, shared, height, width, x, base, inputs, weights, entry), body)


@operation_of_any_type
def turn(typingctx: Any, lanes: Any, source: Any, first: Any, stride: Any, rows: Any, columns: Any) -> tuple[Any, Any]:
    """turn(lanes, source, first, stride, rows, columns): element [r, c] of the tile = source[first + c * stride + r].

    rows, columns : how many of the source's rows and of their elements there are, the rest being 0; or None: all.
    """
    whole = isinstance(rows, types.NoneType)

    def body(site: _Site) -> Any:
        vectors = []
        for r in range(site.lanes):
            if whole:
                vectors.append(site.load(1, site.row(2, 3, r), align=4))
            else:
                where = site.address(1, site.row(2, 3, r, rows=4), site.vector)
                vectors.append(site.masked_load(where, site.mask(4, 5, r)))
        return site.tile(_transposed(site, vectors))

    return _operation(Tile(len(lanes), len(lanes)), len(lanes), (lanes, source, first, stride, rows, columns), body)


def _transposed(site: _Site, vectors: list[Any]) -> list[Any]:
    """By pairs and quadruples within parts of four lanes, as unpack instructions do it, and then by parts."""
    lanes, parts = site.lanes, site.lanes // 4

    def shuffle(a: Any, c: Any, pick: list[int]) -> Any:
        return site.builder.shuffle_vector(a, c, ir.Constant(ir.VectorType(_I32, lanes), pick))

    def within(pick: tuple[int, ...]) -> list[int]:
        """Lanes 0..3 of each part of the first vector, 4..7 of each part of the second."""
        return [4 * p + (i if i < 4 else lanes + i - 4) for p in range(parts) for i in pick]

    low, high = within((0, 4, 1, 5)), within((2, 6, 3, 7))
    front, back = within((0, 1, 4, 5)), within((2, 3, 6, 7))
    result: list[Any] = [None] * lanes
    quads = []
    for q in range(0, lanes, 4):
        r0, r1, r2, r3 = vectors[q : q + 4]
        ab, cd = (shuffle(r0, r1, low), shuffle(r0, r1, high)), (shuffle(r2, r3, low), shuffle(r2, r3, high))
        quads.append([shuffle(ab[i], cd[i], half) for i in range(2) for half in (front, back)])
    for j in range(4):
        layer = {0: [quad[j] for quad in quads]}
        bit = 1
        while bit < parts:  # even parts of two neighbours, odd parts of them: the number of the part, bit by bit
            layer = {
                number | odd * bit: [
                    shuffle(held[i], held[i + 1], [4 * p + k for p in range(odd, 2 * parts, 2) for k in range(4)])
                    for i in range(0, len(held), 2)
                ]
                for number, held in layer.items()
                for odd in (0, 1)
            }
            bit *= 2
        for number, (vector,) in layer.items():
            result[4 * number + j] = vector
    return result


@operation_of_any_type
def store_tile(typingctx: Any, tile: Any, out: Any, first: Any, stride: Any) -> tuple[Any, Any]:
    """store_tile(tile, out, first, stride): vector r to out[first + r * stride : ]."""

    def body(site: _Site) -> None:
        for r, vector in enumerate(site.vectors()):
            site.builder.store(vector, site.address(1, site.row(2, 3, r), site.vector), align=4)

    return _operation(types.none, tile.lanes, (tile, out, first, stride), body)


@operation_of_any_type
def add_vector(typingctx: Any, tile: Any, source: Any, first: Any) -> tuple[Any, Any]:
    """add_vector(tile, source, first): source[first : first + lanes] added to every vector."""

    def body(site: _Site) -> Any:
        term = site.load(1, site.arguments[2])
        return site.tile([site.builder.fadd(vector, term) for vector in site.vectors()])

    return _operation(tile, tile.lanes, (tile, source, first), body)


@operation_of_any_type
def add_tile(
    typingctx: Any, tile: Any, source: Any, first: Any, stride: Any, rows: Any, columns: Any
) -> tuple[Any, Any]:
    """add_tile(tile, source, first, stride, rows, columns): row r += source[first + r * stride : ][:columns]."""

    def body(site: _Site) -> Any:
        b, vectors = site.builder, site.vectors()
        for r in range(len(vectors)):
            where = site.address(1, site.row(2, 3, r, rows=4), site.vector)
            vectors[r] = b.fadd(vectors[r], site.masked_load(where, site.mask(4, 5, r)))
        return site.tile(vectors)

    return _operation(tile, tile.lanes, (tile, source, first, stride, rows, columns), body)


@operation_of_any_type
def clamp(typingctx: Any, tile: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """clamp(tile, low, high): every element within [low, high]; not a number stays what it is."""

    def body(site: _Site) -> Any:
        b, low_, high_ = site.builder, site.splat(site.arguments[1]), site.splat(site.arguments[2])
        vectors = []
        for vector in site.vectors():
            raised = b.select(b.fcmp_ordered("<", vector, low_), low_, vector)
            vectors.append(b.select(b.fcmp_ordered(">", raised, high_), high_, raised))
        return site.tile(vectors)

    return _operation(tile, tile.lanes, (tile, low, high), body)


@operation_of_any_type
def gate(typingctx: Any, tile: Any, kind: Any) -> tuple[Any, Any]:
    """gate(tile, kind): v * sigmoid(t) of every element; t = v for kind () (SiLU), as of _GELU for kind (0,)."""

    def body(site: _Site) -> Any:
        b, one, result = site.builder, site.constant(1.0), []
        for v in site.vectors():
            t = v
            if len(kind):
                cube = b.fmul(b.fmul(v, v), v)
                t = b.fmul(site.constant(_GELU[0]), site.fused(cube, site.constant(_GELU[1]), v))
            result.append(b.fdiv(v, b.fadd(one, _exp(site, b.fneg(t)))))
        return site.tile(result)

    return _operation(tile, tile.lanes, (tile, kind), body)


def _exp(site: _Site, v: Any) -> Any:
    """e**v within some units in the last place; v is taken within [-87, 88], what is not a number as -87."""
    b, low, high, rounder = site.builder, site.constant(-87.0), site.constant(88.0), site.constant(_ROUNDER)
    v = b.select(b.fcmp_ordered(">", v, low), v, low)
    v = b.select(b.fcmp_ordered("<", v, high), v, high)
    n = b.fsub(b.fadd(b.fmul(v, site.constant(_LOG2_E)), rounder), rounder)
    r = site.fused(n, site.constant(-_LN2_LOW), site.fused(n, site.constant(-_LN2_HIGH), v))
    sum_ = site.constant(_EXP[0])
    for coefficient in _EXP[1:]:
        sum_ = site.fused(sum_, r, site.constant(coefficient))
    sum_ = site.fused(b.fmul(r, r), sum_, b.fadd(r, site.constant(1.0)))
    words = ir.VectorType(_I32, site.lanes)
    bias, shift = (ir.Constant(words, [ir.Constant(_I32, value)] * site.lanes) for value in (127, 23))
    return b.fmul(sum_, b.bitcast(b.shl(b.add(b.fptosi(n, words), bias), shift), site.vector))


@operation_of_any_type
def store_rows(
    typingctx: Any, tile: Any, out: Any, first: Any, stride: Any, rows: Any, columns: Any
) -> tuple[Any, Any]:
    """store_rows(tile, out, first, stride, rows, columns): row r to out[first + r * stride : ][:columns], float32."""

    def body(site: _Site) -> None:
        for r, vector in enumerate(site.vectors()):
            where = site.address(1, site.row(2, 3, r, rows=4), site.vector)
            site.masked_store(vector, where, site.mask(4, 5, r))

    return _operation(types.none, tile.lanes, (tile, out, first, stride, rows, columns), body)


@operation_of_any_type
def store_codes(
    typingctx: Any,
    tile: Any,
    out: Any,
    first: Any,
    stride: Any,
    rows: Any,
    columns: Any,
    inverse: Any,
    channel: Any,
    zero_point: Any,
    low: Any,
    high: Any,
) -> tuple[Any, Any]:
    """store_codes(tile, out, first, stride, rows, columns, inverse, channel, zero_point, low, high): 8-bit codes.

    code = rint(clamp(value * inverse[channel + lane], low, high)) + zero_point; rint rounds half to even, low and high
    are integers of at most 2**22 in magnitude, what is not a number becomes low.
    """

    def body(site: _Site) -> None:
        b = site.builder
        scale = site.load(6, site.arguments[7])
        low_, high_ = site.splat(site.arguments[9]), site.splat(site.arguments[10])
        bytes_, words = (ir.VectorType(kind, site.lanes) for kind in (_I8, _I32))
        zero = site.splat(b.trunc(site.arguments[8], _I8))
        for r, vector in enumerate(site.vectors()):
            real = b.fmul(vector, scale)
            real = b.select(b.fcmp_ordered(">", real, low_), real, low_)
            real = b.select(b.fcmp_ordered("<", real, high_), real, high_)
            real = b.fsub(b.fadd(real, site.constant(_ROUNDER)), site.constant(_ROUNDER))
            code = b.add(b.trunc(b.fptosi(real, words), bytes_), zero)
            site.masked_store(code, site.address(1, site.row(2, 3, r, rows=4), bytes_), site.mask(4, 5, r))

    given = (tile, out, first, stride, rows, columns, inverse, channel, zero_point, low, high)
    return _operation(types.none, tile.lanes, given, body)
