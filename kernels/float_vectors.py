"""Vectors of float32 inside compiled functions: what the float kernels are written in.

A `Tile` value is a list of vectors, `<lanes x float>` each, of a length known to the type, which the compiler keeps in
registers. As in kernels/intrinsics.py a number that must be known to the compiler is the length of a tuple: `lanes` of
a vector, `height` vectors of rows side by side, `width` outputs. A height of () says that a line is one vector of
`lanes` rows, and that the lines of all outputs stand in one vector of width * lanes: for few rows.

    zeros, load_lines, store_lines    accumulators: width lines of height * lanes floats
    mac                               acc[c] += a line of x * weight c of an entry
    turn                              lanes x lanes elements, transposed
    store_tile                        a tile's vectors one below the other

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
    "FloatSite",
    "Tile",
    "float_operation",
    "load_lines",
    "mac",
    "store_lines",
    "store_tile",
    "turn",
    "zeros",
]

cgutils: Any = _cgutils
"""Its functions carry no types."""

_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_F32 = ir.FloatType()
_CONTRACT = ("contract",)


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


class FloatSite:
    """One call of an intrinsic while its code is generated. Arguments are named by their place."""

    def __init__(self, context: Any, builder: Any, kinds: Any, arguments: Any, lanes: int) -> None:
        self.context, self.builder, self.types, self.arguments = context, builder, kinds, arguments
        self.lanes, self.vector = lanes, ir.VectorType(_F32, lanes)

    def address(self, array: int, index: Any, kind: Any) -> Any:
        """A pointer to `kind` at element `index` of an array."""
        return self.element(self.types[array], self.arguments[array], index, kind)

    def element(self, array_type: Any, array: Any, index: Any, kind: Any) -> Any:
        """A pointer to `kind` at element `index` of a value of an array type."""
        b = self.builder
        data = self.context.make_array(array_type)(self.context, b, array).data
        return b.bitcast(b.gep(data, [index]), kind.as_pointer())

    def expand(self, argument: int) -> list[tuple[Any, Any]]:
        """Types and values of the elements of a tuple."""
        value, kinds = self.arguments[argument], self.types[argument].types
        return [(kind, self.builder.extract_value(value, i)) for i, kind in enumerate(kinds)]

    def load(self, array: int, index: Any, kind: Any | None = None, align: int = 1) -> Any:
        kind = self.vector if kind is None else kind
        return self.builder.load(self.address(array, index, kind), align=align)

    def integer(self, array: int, index: Any) -> Any:
        """An element of an array of unsigned integers, as int64."""
        b = self.builder
        return b.zext(self.load(array, index, ir.IntType(self.types[array].dtype.bitwidth)), _I64)

    def row(self, base: int, stride: int, number: int, rows: int | None = None) -> Any:
        """Argument `base` plus `number` times argument `stride`; of the last row, if there are but argument `rows`."""
        number_ = _const(number) if rows is None else self.before(number, rows)
        return self.builder.add(self.arguments[base], self.builder.mul(self.arguments[stride], number_))

    def before(self, number: int, rows: int) -> Any:
        """The number, or the last one below argument `rows`.

        A masked access to memory that is not there does no harm, but some processors take microseconds for it.
        """
        b = self.builder
        last = b.sub(self.arguments[rows], _const(1))
        return b.select(b.icmp_signed("<", _const(number), last), _const(number), last)

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
        return [self.builder.extract_value(value, i) for i in range(self.types[tile].count)]

    def tile(self, vectors: list[Any]) -> Any:
        value = ir.Constant(ir.ArrayType(self.vector, len(vectors)), ir.Undefined)
        for i, vector in enumerate(vectors):
            value = self.builder.insert_value(value, vector, i)
        return value

    def mask(self, rows: int | None, columns: Any, row: int) -> Any:
        """Lanes below `columns`, none where `row` is not below argument `rows`, if there is one."""
        b = self.builder
        lanes = ir.Constant(ir.VectorType(_I64, self.lanes), [_const(i) for i in range(self.lanes)])
        if rows is not None:
            columns = b.select(b.icmp_signed("<", _const(row), self.arguments[rows]), columns, _const(0))
        return b.icmp_signed("<", lanes, self.splat(columns))

    def load_some(self, pointer: Any, mask: Any) -> Any:
        """The lanes of a vector that the mask has, and zeros; None: all."""
        if mask is None:
            return self.builder.load(pointer, align=4)
        kind = ir.FunctionType(self.vector, [pointer.type, _I32, mask.type, self.vector])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.load.v{self.lanes}f32.p0")
        return self.builder.call(function, [pointer, ir.Constant(_I32, 4), mask, self.constant(0.0)])

    def store_some(self, value: Any, pointer: Any, mask: Any) -> None:
        """The lanes of a vector of float32 or bytes that the mask has; None: all."""
        name, size = ("f32", 4) if value.type == self.vector else ("i8", 1)
        if mask is None:
            self.builder.store(value, pointer, align=size)
            return
        kind = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, _I32, mask.type])
        function = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.masked.store.v{self.lanes}{name}.p0"
        )
        self.builder.call(function, [value, pointer, ir.Constant(_I32, size), mask])


def float_operation(
    result: Any, lanes: int, arguments: tuple[Any, ...], body: Callable[[FloatSite], Any]
) -> tuple[Any, Any]:
    """What numba wants of an intrinsic: its signature, and the function that generates its code."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value = body(FloatSite(context, builder, signature.args, values, lanes))
        return context.get_dummy_value() if result == types.none else value

    scalars = {types.Integer: types.int64, types.Float: types.float32}
    given = [next((to for kind, to in scalars.items() if isinstance(a, kind)), a) for a in arguments]
    return result(*given), generate


@operation_of_any_type
def zeros(typingctx: Any, lanes: Any, height: Any, width: Any) -> tuple[Any, Any]:
    """zeros(lanes, height, width): a tile of width * height vectors of 0."""
    result = _accumulators(lanes, height, width)
    return float_operation(
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

    def body(site: FloatSite) -> Any:
        side = len(lanes)
        line = ir.VectorType(_F32, side)
        vectors = [site.load(3, where, line, align=4 * side) for where in _places(site, side, len(height), len(width))]
        return site.tile(vectors if len(height) else [site.joined(vectors)])

    return float_operation(result, result.lanes, (lanes, height, width, sums, lines, first), body)


@operation_of_any_type
def store_lines(
    typingctx: Any, acc: Any, height: Any, width: Any, sums: Any, lines: Any, first: Any
) -> tuple[Any, Any]:
    """store_lines(acc, height, width, sums, lines, first): the other way round."""

    def body(site: FloatSite) -> None:
        vectors, wide = site.vectors(), len(width)
        side = acc.lanes if len(height) else acc.lanes // wide
        if not len(height):
            vectors = [site.spread(vectors[0], list(range(c * side, (c + 1) * side))) for c in range(wide)]
        for vector, where in zip(vectors, _places(site, side, len(height), wide), strict=True):
            site.builder.store(vector, site.address(3, where, vector.type), align=4 * side)

    return float_operation(types.none, acc.lanes, (acc, height, width, sums, lines, first), body)


def _places(site: FloatSite, lanes: int, tall: int, wide: int) -> list[Any]:
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

    def body(site: FloatSite) -> Any:
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

    return float_operation(acc, acc.lanes, (acc, shared, height, width, x, base, inputs, weights, entry), body)


@operation_of_any_type
def turn(
    typingctx: Any,
    lanes: Any,
    source: Any,
    begins: Any,
    row: Any,
    stride: Any,
    offset: Any,
    rows: Any,
    columns: Any,
) -> tuple[Any, Any]:
    """turn(lanes, source, begins, row, stride, offset, rows, columns): [r, c] = source[begin(row + c) + offset + r].

    begin(i) = begins[i] / 4, int64 bytes, or where that is None i * stride.
    rows, columns : how many of the source's rows and of their elements there are, the rest being 0; or None: all.
    """
    whole = isinstance(rows, types.NoneType)

    def begin(site: FloatSite, r: int) -> Any:
        b = site.builder
        line = _const(r)
        if not whole:
            line = site.before(r, 6)
        line = b.add(site.arguments[3], line)
        if isinstance(begins, types.NoneType):
            return b.add(b.mul(line, site.arguments[4]), site.arguments[5])
        return b.add(b.ashr(site.load(2, line, _I64), _const(2)), site.arguments[5])

    def body(site: FloatSite) -> Any:
        vectors = []
        for r in range(site.lanes):
            if whole:
                vectors.append(site.load(1, begin(site, r), align=4))
            else:
                where = site.address(1, begin(site, r), site.vector)
                vectors.append(site.load_some(where, site.mask(6, site.arguments[7], r)))
        return site.tile(_transposed(site, vectors))

    given = (lanes, source, begins, row, stride, offset, rows, columns)
    return float_operation(Tile(len(lanes), len(lanes)), len(lanes), given, body)


def _transposed(site: FloatSite, vectors: list[Any]) -> list[Any]:
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

    def body(site: FloatSite) -> None:
        for r, vector in enumerate(site.vectors()):
            site.builder.store(vector, site.address(1, site.row(2, 3, r), site.vector), align=4)

    return float_operation(types.none, tile.lanes, (tile, out, first, stride), body)
