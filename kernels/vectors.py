"""Vectors of 64 bytes inside compiled functions: their type, and the operations their code is generated from.

A `Vectors` value is a tile: a list of 512-bit vectors, `<16 x i32>` each, of a length known to the type. A kernel
holds one in a variable, and the compiler keeps its vectors in registers.

A `Site` is one call of an intrinsic while its code is generated. It decides by the code generator's own list of
features which instruction does a thing, since naming one that the processor lacks would abort the process:

    dot4     64 unsigned by 64 signed bytes, four neighbours added to each of 16 int32, wrapping: `vpdpbusd` of 512 bits
             (avx512vnni) or twice 256 (avxvnni), else 16-bit products in ordinary operations of any processor
    pick     bytes of a vector by index: `vpermb` (avx512vbmi), four `pshufb`, or a loop
    narrow   two vectors to 32 saturated int16: `vpackssdw` (avx512bw), or minima and maxima

An intrinsic's last argument is its `mode`: None, or () for the portable form of all of these; being a type, it is part
of the key of numba's cache. Addresses are an array and an offset in bytes, and nothing is checked.
"""

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # it has no types of its own
from numba.core import cgutils as _cgutils
from numba.core import config, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model
from numpy.typing import NDArray

__all__ = [
    "ALIGNMENT",
    "BYTES",
    "DOUBLES",
    "FLOATS",
    "I8",
    "I16",
    "I32",
    "I64",
    "LANES",
    "LONGS",
    "VECTOR",
    "WORDS",
    "Site",
    "Vectors",
    "aligned_empty",
    "cpu_features",
    "has_vectors",
    "operation",
    "operation_of_any_type",
    "scratch",
    "splat",
]

ALIGNMENT = 64
"""Bytes of a vector and of a cache line: a load that straddles two lines costs two."""

LANES = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
VECTOR = ir.VectorType(I32, LANES)
BYTES, WORDS, LONGS = ir.VectorType(I8, 64), ir.VectorType(I16, 32), ir.VectorType(I64, 8)
FLOATS, DOUBLES = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.DoubleType(), 8)

_kept = threading.local()

_SHUFFLES = {
    "avx512bw": ("llvm.x86.avx512.pshuf.b.512", 64),
    "avx2": ("llvm.x86.avx2.pshuf.b", 32),
    "ssse3": ("llvm.x86.ssse3.pshuf.b.128", 16),
}
"""`pshufb`, and bytes of its vectors, by feature."""

_cg: Any = _cgutils
"""Its functions carry no types."""


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An uninitialised C-contiguous array whose first byte lies on a multiple of 64."""
    kind = np.dtype(dtype)
    size = kind.itemsize
    for length in shape:
        size *= length
    raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    first = -raw.__array_interface__["data"][0] % ALIGNMENT
    return np.ndarray(shape, kind, raw, first)


def scratch(use: str, size: int) -> NDArray[np.uint8]:
    """So many bytes, aligned and uninitialised, that the calling thread keeps and is given again for the same use.

    New memory in every call would cost a page fault every 4 KiB, as much as some layers take.
    """
    kept: NDArray[np.uint8] | None = vars(_kept).get(use)
    if kept is None or kept.size < size:
        kept = vars(_kept)[use] = aligned_empty((size,), np.uint8)
    return kept[:size]


@cache
def cpu_features() -> frozenset[str]:
    """Features that numba generates code for, in LLVM's names: {"avx2", "avx512vnni", ...}."""
    from numba.core.registry import cpu_target  # the code generator starts here, not at import

    return _enabled(cpu_target.target_context)


def has_vectors() -> bool:
    """Whether functions are compiled at all: in plain Python (NUMBA_DISABLE_JIT=1) there are no vectors."""
    return not vars(config)["DISABLE_JIT"]


def _enabled(context: Any) -> frozenset[str]:
    listed = str(context.codegen().magic_tuple()[2])
    return frozenset(name[1:] for name in listed.split(",") if name.startswith("+"))


class Vectors(types.Type):
    """The numba type of a tile of `count` vectors of 16 int32."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Vectors({count})")


@register_model(Vectors)
class _VectorsModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vectors) -> None:
        super().__init__(dmm, fe_type, ir.ArrayType(VECTOR, fe_type.count))  # type: ignore[no-untyped-call]  # numba's


def operation_of_any_type(function: Callable[..., tuple[Any, Any]]) -> Any:
    """numba's intrinsic: called without the typing context, which a type checker cannot see."""
    return intrinsic(function)


def operation(result: Any, arguments: tuple[Any, ...], body: Callable[["Site"], Any]) -> tuple[Any, Any]:
    """What numba wants of an intrinsic: its signature, and the function that generates its code."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return body(Site(context, builder, signature.args, values))

    integers = [types.int64 if isinstance(a, types.Integer) else a for a in arguments]
    return result(*integers), generate


def splat(vector: Any, value: float) -> Any:
    """A constant vector."""
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


class Site:
    """One call of an intrinsic: its arguments, and the operations its code is made of."""

    def __init__(self, context: Any, builder: Any, kinds: Any, arguments: Any) -> None:
        self.context, self.builder, self.types, self.arguments = context, builder, kinds, arguments
        portable = isinstance(self.types[-1], types.Tuple) and not len(self.types[-1])
        self.features = frozenset() if portable else _enabled(context)

    # Memory

    def address(self, array: int, offset: Any, element: Any) -> Any:
        """A pointer to what lies `offset` bytes into the array that is argument number `array`."""
        data = self.context.make_array(self.types[array])(self.context, self.builder, self.arguments[array]).data
        place = self.builder.gep(self.builder.bitcast(data, I8.as_pointer()), [offset])
        return self.builder.bitcast(place, element.as_pointer())

    def offset(self, base: Any, stride: Any, count: int) -> Any:
        """base + count * stride, a number of bytes or a value."""
        step = ir.Constant(I64, stride) if isinstance(stride, int) else stride
        return self.builder.add(base, self.builder.mul(step, ir.Constant(I64, count)))

    def load(self, array: int, offset: Any, element: Any = VECTOR) -> Any:
        """`element` at this many bytes of an array."""
        return self.builder.load(self.address(array, offset, element), align=1)

    def unsigned(self, array: int, loaded: Any) -> Any:
        """Codes of an array, in a vector or an integer, as dot4 wants them: unsigned, int8 ones moved by 128."""
        if self.types[array].dtype != types.int8:
            return loaded
        kind = loaded.type
        integer = kind.element if isinstance(kind, ir.VectorType) else kind
        flip = int.from_bytes(b"\x80" * (integer.width // 8))
        return self.builder.xor(loaded, splat(kind, flip) if kind != integer else ir.Constant(kind, flip))

    def mask(self, count: Any, lanes: int) -> Any:
        """The lanes, of up to 64, below `count`, an int64 of any sign."""
        b = self.builder
        most, none = ir.Constant(I64, lanes), ir.Constant(I64, 0)
        count = b.select(b.icmp_signed("<", count, none), none, count)
        count = b.select(b.icmp_signed(">", count, most), most, count)
        vector = ir.VectorType(I8, lanes)
        iota = ir.Constant(vector, [ir.Constant(I8, i) for i in range(lanes)])
        return b.icmp_unsigned("<", iota, self.broadcast(count, vector))

    def whether_all(self, columns: Any, lanes: int) -> Any:
        """Two branches, for tiles that are within the last column and for others: masked stores take longer."""
        return self.builder.if_else(self.builder.icmp_signed(">=", columns, I64(lanes)), likely=True)

    def masked_store(self, value: Any, pointer: Any, mask: Any) -> None:
        """The lanes of value that the mask has."""
        kind = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, I32, mask.type])
        name = f"llvm.masked.store.v{value.type.count}i{value.type.element.width}.p0"
        self.call(name, kind, value, pointer, ir.Constant(I32, 1), mask)

    def masked_load(self, pointer: Any, vector: Any, mask: Any) -> Any:
        """The lanes that the mask has, and zeros."""
        kind = ir.FunctionType(vector, [pointer.type, I32, mask.type, vector])
        name = f"llvm.masked.load.v{vector.count}i{vector.element.width}.p0"
        return self.call(name, kind, pointer, ir.Constant(I32, 1), mask, splat(vector, 0))

    # Vectors

    def call(self, name: str, kind: Any, *arguments: Any) -> Any:
        """An intrinsic of LLVM."""
        return self.builder.call(_cg.get_or_insert_function(self.builder.module, kind, name), arguments)

    def same(self, name: str, *arguments: Any) -> Any:
        """An intrinsic of LLVM whose result is of the type of its arguments: smax, smin, fma, ..."""
        vector = arguments[0].type
        letter = {ir.FloatType(): "f32", ir.DoubleType(): "f64"}.get(vector.element) or f"i{vector.element.width}"
        kind = ir.FunctionType(vector, [vector] * len(arguments))
        return self.call(f"llvm.{name}.v{vector.count}{letter}", kind, *arguments)

    def shuffle(self, x: Any, y: Any, lanes: Sequence[int]) -> Any:
        """Lanes of x, counted from 0, and of y, counted on from there."""
        index = ir.Constant(ir.VectorType(I32, len(lanes)), [ir.Constant(I32, lane) for lane in lanes])
        return self.builder.shuffle_vector(x, y, index)

    def broadcast(self, value: Any, vector: Any) -> Any:
        """A vector of one value; an integer wider than its lanes is cut to its low bits."""
        if isinstance(vector.element, ir.IntType) and value.type.width > vector.element.width:
            value = self.builder.trunc(value, vector.element)
        undefined = ir.Constant(vector, ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.shuffle(one, undefined, [0] * vector.count)

    def tile(self, vectors: Sequence[Any]) -> Any:
        """A value of type Vectors."""
        tile = ir.Constant(ir.ArrayType(VECTOR, len(vectors)), ir.Undefined)
        for i, vector in enumerate(vectors):
            tile = self.builder.insert_value(tile, vector, i)
        return tile

    def vectors(self, argument: int) -> list[Any]:
        """The vectors of an argument of type Vectors."""
        return [self.builder.extract_value(self.arguments[argument], i) for i in range(self.types[argument].count)]

    def elements(self, argument: int) -> list[Any]:
        """The elements of an argument that is a tuple."""
        return [self.builder.extract_value(self.arguments[argument], i) for i in range(len(self.types[argument]))]

    def expanded(self, argument: int) -> "Site":
        """The same with the elements of a tuple in the place of this argument."""
        before, after = slice(argument), slice(argument + 1, None)
        given = [*self.arguments[before], *self.elements(argument), *self.arguments[after]]
        kinds = (*self.types[before], *self.types[argument].types, *self.types[after])
        return Site(self.context, self.builder, kinds, given)

    def nothing(self) -> Any:
        """The value of an intrinsic without a result."""
        return self.context.get_dummy_value()

    # What processors do differently

    def dot4(self, acc: Any, x: Any, w: Any) -> Any:
        """acc + the sums of four products each of unsigned bytes x and signed bytes w."""
        b = self.builder
        if "avx512vnni" in self.features:
            kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
            return self.call("llvm.x86.avx512.vpdpbusd.512", kind, acc, x, w)
        if "avxvnni" in self.features:
            half = ir.VectorType(I32, 8)
            kind = ir.FunctionType(half, [half] * 3)
            low, high = (
                self.call("llvm.x86.avx512.vpdpbusd.256", kind, *(self.shuffle(v, v, lanes) for v in (acc, x, w)))
                for lanes in (range(8), range(8, 16))
            )
            return self.shuffle(low, high, range(16))
        # Even and odd bytes as 16-bit numbers: a product is within [-255 * 128, 255 * 127] and fits 16 bits.
        eight, sixteen = splat(WORDS, 8), splat(VECTOR, 16)
        xs, ws = b.bitcast(x, WORDS), b.bitcast(w, WORDS)
        even = b.mul(b.and_(xs, splat(WORDS, 255)), b.ashr(b.shl(ws, eight), eight))
        odd = b.mul(b.lshr(xs, eight), b.ashr(ws, eight))
        for product in (b.bitcast(even, VECTOR), b.bitcast(odd, VECTOR)):
            acc = b.add(acc, b.add(b.ashr(b.shl(product, sixteen), sixteen), b.ashr(product, sixteen)))
        return acc

    def fused(self, acc: Any, x: Any, w: Any) -> Any:
        """acc + x * w of float32, fused where the processor can: `contract` is all that is allowed."""
        b, (acc_, x_, w_) = self.builder, (self.builder.bitcast(v, FLOATS) for v in (acc, x, w))
        return b.bitcast(b.fadd(acc_, b.fmul(x_, w_, flags=("contract",)), flags=("contract",)), VECTOR)

    def pick(self, index: Any, x: Any) -> Any:
        """Byte i of the result is byte index[i], 0..63, of x."""
        b = self.builder
        if "avx512vbmi" in self.features:
            kind = ir.FunctionType(BYTES, [BYTES] * 2)
            picked = self.call("llvm.x86.avx512.permvar.qi.512", kind, b.bitcast(x, BYTES), b.bitcast(index, BYTES))
            return b.bitcast(picked, VECTOR)
        shuffle = next((name for name in _SHUFFLES if name in self.features), None)
        if shuffle is not None:
            return self._pick_by_quarters(*_SHUFFLES[shuffle], b.bitcast(index, BYTES), b.bitcast(x, BYTES))
        source = _cg.alloca_once(b, VECTOR)
        b.store(x, source)
        return b.bitcast(self.gather(b.bitcast(source, I8.as_pointer()), b.bitcast(index, BYTES)), VECTOR)

    def _pick_by_quarters(self, name: str, width: int, index: Any, x: Any) -> Any:
        """An instruction that picks from 16 bytes, and gives 0 where bit 7 of an index is set: four times."""
        b, part = self.builder, ir.VectorType(I8, width)
        kind = ir.FunctionType(part, [part] * 2)
        quarters = [self.shuffle(x, x, list(range(16 * q, 16 * q + 16)) * (width // 16)) for q in range(4)]
        picked = [splat(part, 0)] * (64 // width)
        for i in range(len(picked)):
            places = self.shuffle(index, index, range(width * i, width * (i + 1)))
            for q, quarter in enumerate(quarters):
                beyond = self.same("uadd.sat", b.xor(places, splat(part, 16 * q)), splat(part, 0x70))
                picked[i] = b.or_(picked[i], self.call(name, kind, quarter, beyond))
        while len(picked) > 1:
            lanes = range(2 * picked[0].type.count)
            picked = [self.shuffle(low, high, lanes) for low, high in zip(picked[::2], picked[1::2], strict=True)]
        return b.bitcast(picked[0], VECTOR)

    def gather(self, source: Any, index: Any) -> Any:
        """Byte i of the result is the byte index[i], 0..255, after the pointer `source`."""
        b = self.builder
        which, into = _cg.alloca_once(b, BYTES), _cg.alloca_once(b, BYTES)
        b.store(index, which)
        first, result = b.bitcast(which, I8.as_pointer()), b.bitcast(into, I8.as_pointer())
        with _cg.for_range(b, ir.Constant(I64, 64)) as loop:
            place = b.zext(b.load(b.gep(first, [loop.index])), I64)
            b.store(b.load(b.gep(source, [place])), b.gep(result, [loop.index]))
        return b.load(into)

    def narrow(self, x: Any, y: Any) -> Any:
        """x and y saturated to int16: lanes 0..3 of x, of y, then lanes 4..7 of x, of y, and so on."""
        b = self.builder
        if "avx512bw" in self.features:
            return self.call("llvm.x86.avx512.packssdw.512", ir.FunctionType(WORDS, [VECTOR] * 2), x, y)
        most, least = splat(VECTOR, 2**15 - 1), splat(VECTOR, -(2**15))
        halves = [
            b.trunc(self.same("smax", self.same("smin", v, most), least), ir.VectorType(I16, LANES)) for v in (x, y)
        ]
        return self.shuffle(
            halves[0], halves[1], [16 * v + 4 * q + i for q in range(4) for v in range(2) for i in range(4)]
        )
