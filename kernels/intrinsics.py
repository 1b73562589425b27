"""Vectors of 64 bytes inside compiled functions: the few operations that the fast kernels are written in.

A `Vectors` value is a tile: a list of 512-bit vectors, `<16 x i32>` each, of a length known to the type. A kernel
holds one in a variable, and the compiler keeps its vectors in registers. How many vectors an operation works on is
said by the lengths of tuples among its arguments (`height`, `width`): a length is part of a tuple's type, so every
shape of tile is compiled for itself, without a template.

    start       accumulators, every row of the tile from the same int32 [width, 16]
    rows        a vector of 64 bytes from each of `height` rows
    mac_dense   acc[r, c] += x dword of row r, broadcast, dot4 w vector c
    mac_select  acc[r, c] += (bytes of row r picked by index c) dot4 w vector c
    store       accumulators to int32, at most N columns
    store_codes accumulators requantised (gossamer.arch.numerics, bit for bit) to 8-bit codes, at most N columns

dot4 multiplies 64 unsigned bytes by 64 signed ones and adds four neighbours to each of 16 int32, wrapping: `vpdpbusd`
where the processor that code is generated for has it, and otherwise the same in ordinary integer operations of any
processor. Likewise the picking of bytes: `vpermb`, or a loop. The decision is taken from the code generator's own
list of features, since naming an instruction that it lacks would abort the process. An argument `mode` of () instead
of None asks for the portable form everywhere; being a type, it is part of the key of numba's cache.

Addresses are an array and an offset in bytes; nothing is checked. Whatever lies in [offset, offset + 64) is read.
"""

from collections.abc import Callable
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
    "Vectors",
    "aligned_empty",
    "cpu_features",
    "has_vectors",
    "mac_dense",
    "mac_select",
    "rows",
    "start",
    "store",
    "store_codes",
]

ALIGNMENT = 64
"""Bytes of a vector and of a cache line: a load that straddles two lines costs two."""

cgutils: Any = _cgutils
"""Its functions carry no types."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_LANES = 16
_VECTOR = ir.VectorType(_I32, _LANES)
_BYTES = ir.VectorType(_I8, 64)
_WORDS = ir.VectorType(_I16, 32)
_LONGS = ir.VectorType(_I64, _LANES)
_MASK = ir.VectorType(ir.IntType(1), _LANES)


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An uninitialised C-contiguous array whose first byte lies on a multiple of 64."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    array: NDArray[Any] = raw[first : first + size].view(kind).reshape(shape)
    return array


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
        super().__init__(dmm, fe_type, ir.ArrayType(_VECTOR, fe_type.count))  # type: ignore[no-untyped-call]  # numba's


def _splat(vector: Any, value: int) -> Any:
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def _broadcast(builder: Any, value: Any, vector: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    lanes = ir.Constant(ir.VectorType(_I32, vector.count), [ir.Constant(_I32, 0)] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)


def _pack(builder: Any, vectors: list[Any]) -> Any:
    tile = ir.Constant(ir.ArrayType(_VECTOR, len(vectors)), ir.Undefined)
    for i, vector in enumerate(vectors):
        tile = builder.insert_value(tile, vector, i)
    return tile


class _Site:
    """One call of an intrinsic while its code is generated: arguments, and the operations of the module's text."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.context, self.builder, self.signature, self.arguments = context, builder, signature, arguments
        self.features = _enabled(context)

    def address(self, array: int, offset: Any, element: Any) -> Any:
        """A pointer to what lies `offset` bytes into the array that is argument number `array`."""
        kind = self.signature.args[array]
        data = self.context.make_array(kind)(self.context, self.builder, self.arguments[array]).data
        place = self.builder.gep(self.builder.bitcast(data, _I8.as_pointer()), [offset])
        return self.builder.bitcast(place, element.as_pointer())

    def offset(self, base: int, stride: int | Any, count: int) -> Any:
        """Argument `base` plus `count` times `stride`, a number of bytes or a value."""
        step = ir.Constant(_I64, stride) if isinstance(stride, int) else stride
        return self.builder.add(self.arguments[base], self.builder.mul(step, ir.Constant(_I64, count)))

    def load(self, array: int, offset: Any, element: Any = _VECTOR) -> Any:
        return self.builder.load(self.address(array, offset, element), align=1)

    def dot4(self, acc: Any, x: Any, w: Any, portable: bool) -> Any:
        b = self.builder
        if not portable and "avx512vnni" in self.features:
            kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
            function = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.vpdpbusd.512")
            return b.call(function, [acc, x, w])
        # Even and odd bytes as 16-bit numbers: a product is within [-255 * 128, 255 * 127] and fits 16 bits.
        eight, sixteen = _splat(_WORDS, 8), _splat(_VECTOR, 16)
        xs, ws = b.bitcast(x, _WORDS), b.bitcast(w, _WORDS)
        even = b.mul(b.and_(xs, _splat(_WORDS, 255)), b.ashr(b.shl(ws, eight), eight))
        odd = b.mul(b.lshr(xs, eight), b.ashr(ws, eight))
        for product in (b.bitcast(even, _VECTOR), b.bitcast(odd, _VECTOR)):
            acc = b.add(acc, b.add(b.ashr(b.shl(product, sixteen), sixteen), b.ashr(product, sixteen)))
        return acc

    def pick(self, index: Any, x: Any, portable: bool) -> Any:
        """Byte i of the result is byte index[i], 0..63, of x."""
        b = self.builder
        if not portable and "avx512vbmi" in self.features:
            kind = ir.FunctionType(_BYTES, [_BYTES] * 2)
            function = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.permvar.qi.512")
            return b.bitcast(b.call(function, [b.bitcast(x, _BYTES), b.bitcast(index, _BYTES)]), _VECTOR)
        whence, which, picked = (cgutils.alloca_once(b, _VECTOR) for _ in range(3))
        b.store(x, whence)
        b.store(index, which)
        whence, which, into = (b.bitcast(p, _I8.as_pointer()) for p in (whence, which, picked))
        with cgutils.for_range(b, ir.Constant(_I64, 64)) as loop:
            place = b.zext(b.load(b.gep(which, [loop.index])), _I64)
            b.store(b.load(b.gep(whence, [place])), b.gep(into, [loop.index]))
        return b.load(picked)

    def mask(self, count: Any) -> Any:
        """Lanes below `count`, an int64 of any sign."""
        lanes = ir.Constant(_LONGS, [ir.Constant(_I64, i) for i in range(_LANES)])
        return self.builder.icmp_signed("<", lanes, _broadcast(self.builder, count, _LONGS))

    def masked_store(self, value: Any, pointer: Any, mask: Any) -> None:
        name = f"llvm.masked.store.v16i{value.type.element.width}.p0"
        kind = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, _I32, _MASK])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        self.builder.call(function, [value, pointer, ir.Constant(_I32, 1), mask])

    def masked_load(self, pointer: Any, vector: Any, mask: Any) -> Any:
        name = f"llvm.masked.load.v16i{vector.element.width}.p0"
        kind = ir.FunctionType(vector, [pointer.type, _I32, _MASK, vector])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [pointer, ir.Constant(_I32, 1), mask, _splat(vector, 0)])


def _operation_of_any_type(function: Callable[..., tuple[Any, Any]]) -> Any:
    """numba's intrinsic: called without the typing context, which a type checker cannot see."""
    return intrinsic(function)


def _is_portable(mode: Any) -> bool:
    return not isinstance(mode, types.NoneType)


def _operation(result: Any, arguments: tuple[Any, ...], body: Callable[[_Site], Any]) -> tuple[Any, Any]:
    """What numba wants of an intrinsic: its signature, and the function that generates its code."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return body(_Site(context, builder, signature, values))

    integers = [types.int64 if isinstance(a, types.Integer) else a for a in arguments]
    return result(*integers), generate


@_operation_of_any_type
def start(typingctx: Any, height: Any, width: Any, first: Any, offset: Any) -> tuple[Any, Any]:
    """start(height, width, first, offset): a tile of height x width; row r, vector c = first[offset + 64 * c : ][:16].

    first : int32 array.
    """

    def body(site: _Site) -> Any:
        vectors = [site.load(2, site.offset(3, 64, c)) for c in range(len(width))]
        return _pack(site.builder, vectors * len(height))

    return _operation(Vectors(len(height) * len(width)), (height, width, first, offset), body)


@_operation_of_any_type
def rows(typingctx: Any, height: Any, x: Any, offset: Any, stride: Any) -> tuple[Any, Any]:
    """rows(height, x, offset, stride): a tile of the 64 bytes at x[offset + r * stride], one vector a row."""

    def body(site: _Site) -> Any:
        step = site.arguments[3]
        return _pack(site.builder, [site.load(1, site.offset(2, step, r)) for r in range(len(height))])

    return _operation(Vectors(len(height)), (height, x, offset, stride), body)


@_operation_of_any_type
def mac_dense(
    typingctx: Any, acc: Any, height: Any, width: Any, x: Any, offset: Any, stride: Any, w: Any, first: Any, mode: Any
) -> tuple[Any, Any]:
    """mac_dense(acc, height, width, x, offset, stride, w, first, mode): acc[r, c] += dot4(x4[r], w64[c]).

    x4[r] : the 4 bytes at x[offset + r * stride];  w64[c] : the 64 bytes at w[first + 64 * c].
    """

    def body(site: _Site) -> Any:
        b, acc_, step = site.builder, site.arguments[0], site.arguments[5]
        columns = [site.load(6, site.offset(7, 64, c)) for c in range(len(width))]
        vectors = []
        for r in range(len(height)):
            x4 = _broadcast(b, site.load(3, site.offset(4, step, r), _I32), _VECTOR)
            for c, column in enumerate(columns):
                before = b.extract_value(acc_, r * len(width) + c)
                vectors.append(site.dot4(before, x4, column, _is_portable(mode)))
        return _pack(b, vectors)

    return _operation(acc, (acc, height, width, x, offset, stride, w, first, mode), body)


@_operation_of_any_type
def mac_select(typingctx: Any, acc: Any, width: Any, seen: Any, w: Any, first: Any, mode: Any) -> tuple[Any, Any]:
    """mac_select(acc, width, seen, w, first, mode): acc[r, c] += dot4(seen[r] picked by index[c], weights[c]).

    index[c] and weights[c] : the 64 bytes at w[first + 128 * c] and the 64 that follow.  seen : a vector a row.
    """

    def body(site: _Site) -> Any:
        b = site.builder
        vectors = [b.extract_value(site.arguments[0], i) for i in range(acc.count)]
        seen_ = [b.extract_value(site.arguments[2], r) for r in range(seen.count)]
        for c in range(len(width)):
            index, weights = (site.load(3, site.offset(4, 64, 2 * c + i)) for i in range(2))
            for r, bytes_ in enumerate(seen_):
                picked = site.pick(index, bytes_, _is_portable(mode))
                i = r * len(width) + c
                vectors[i] = site.dot4(vectors[i], picked, weights, _is_portable(mode))
        return _pack(b, vectors)

    return _operation(acc, (acc, width, seen, w, first, mode), body)


@_operation_of_any_type
def store(typingctx: Any, acc: Any, width: Any, out: Any, offset: Any, stride: Any, columns: Any) -> tuple[Any, Any]:
    """store(acc, width, out, offset, stride, columns): row r of the tile to int32 out, `stride` bytes a row.

    columns : how many of the tile's 16 * width columns are written.
    """

    def body(site: _Site) -> Any:
        b = site.builder
        for i in range(acc.count):
            r, c = divmod(i, len(width))
            mask = site.mask(b.sub(site.arguments[5], ir.Constant(_I64, _LANES * c)))
            place = b.add(site.offset(3, site.arguments[4], r), ir.Constant(_I64, 64 * c))
            site.masked_store(b.extract_value(site.arguments[0], i), site.address(2, place, _VECTOR), mask)
        return site.context.get_dummy_value()

    return _operation(types.none, (acc, width, out, offset, stride, columns), body)


@_operation_of_any_type
def store_codes(
    typingctx: Any,
    acc: Any,
    width: Any,
    out: Any,
    offset: Any,
    stride: Any,
    columns: Any,
    channel: Any,
    multiplier: Any,
    shift: Any,
    base: Any,
    zero_point: Any,
    lo: Any,
    hi: Any,
    residual: Any,
    residual_shift: Any,
) -> tuple[Any, Any]:
    """Row r of the tile, requantised, to the bytes out[offset + r * stride : ][:columns].

        v = acc * multiplier + base + (residual << (shift - residual_shift)),  base = bias * multiplier + 2**(shift - 1)
        q = v >> shift, less its lowest bit where v is a multiple of 2**shift (a half: to even)
        out = clamp(q + zero_point, lo, hi)

    channel : the tile's first output.  multiplier, shift : int32 by output;  base : int64 by output.
    residual : int32, its scaled terms, at the same elements as out; or None.
    """
    with_residual = not isinstance(residual, types.NoneType)

    def body(site: _Site) -> Any:
        b, a = site.builder, site.arguments
        zero, low, high = (_broadcast(b, a[i], _LONGS) for i in (10, 11, 12))
        ones = _splat(_LONGS, 1)
        for c in range(len(width)):
            first = b.add(a[6], ir.Constant(_I64, _LANES * c))
            narrow, wide = b.mul(first, ir.Constant(_I64, 4)), b.mul(first, ir.Constant(_I64, 8))
            scale = b.sext(site.load(7, narrow), _LONGS)
            right = b.zext(site.load(8, narrow), _LONGS)
            add = site.load(9, wide, _LONGS)
            below = b.sub(b.shl(ones, right), ones)
            mask = site.mask(b.sub(a[5], ir.Constant(_I64, _LANES * c)))
            for r in range(acc.count // len(width)):
                place = b.add(site.offset(3, a[4], r), ir.Constant(_I64, _LANES * c))
                value = b.sext(b.extract_value(a[0], r * len(width) + c), _LONGS)
                value = b.add(b.mul(value, scale), add)
                if with_residual:
                    where = site.address(13, b.mul(place, ir.Constant(_I64, 4)), _VECTOR)
                    term = b.sext(site.masked_load(where, _VECTOR, mask), _LONGS)
                    value = b.add(value, b.shl(term, b.sub(right, _broadcast(b, a[14], _LONGS))))
                tie = b.icmp_signed("==", b.and_(value, below), _splat(_LONGS, 0))
                code = b.ashr(value, right)
                code = b.add(b.select(tie, b.and_(code, _splat(_LONGS, -2)), code), zero)
                code = b.select(b.icmp_signed("<", code, low), low, code)
                code = b.select(b.icmp_signed(">", code, high), high, code)
                bytes_ = b.trunc(code, ir.VectorType(_I8, _LANES))
                site.masked_store(bytes_, site.address(2, place, bytes_.type), mask)
        return site.context.get_dummy_value()

    given = (acc, width, out, offset, stride, columns, channel, multiplier, shift, base)
    return _operation(types.none, (*given, zero_point, lo, hi, residual, residual_shift), body)
