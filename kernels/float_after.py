"""What follows float32 sums, fused: residual, activation, and rounding to 8-bit codes where they are wanted.

    v = clamp(sum + bias + residual, low, high), times sigmoid(t) where there is a curve
    code = rint(clamp(v * inverse, lo, hi)) + zero_point

rint rounds half to even, lo and hi are integers of at most 2**22 in magnitude, what is not a number becomes lo. Either
kind of tile comes here: lines that were turned back (float_kernels), and rows (fast). `after` is, for both,

    (bias, low, high, curve, added, codes)
    bias         float32 [N padded]
    low, high    float32: the clamp
    curve        kind of gate: None, () for SiLU, where t = v, (0,) for GELU
    added        () if there is a residual, else None
    codes        None, or (inverse, zero_point, lo, hi): float32 [N padded], int64, float32, float32
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # it has no types of its own
from numba.core import types

from gossamer.kernels.float_vectors import FloatSite, float_operation
from gossamer.kernels.vectors import Site, operation_of_any_type

__all__ = ["finish_tile", "write_floats"]

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_ROUNDER = 12582912.0
"""1.5 * 2**23: added to a float32 of at most 2**22 and taken away again, it rounds to an integer, half to even."""
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""exp(r) = 1 + r + r**2 * polynomial(r) for |r| <= ln(2) / 2, highest power first: expf of the Cephes library."""
_GELU = (2 * (2 / 3.141592653589793) ** 0.5, 0.044715)
"""Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016: v * sigmoid(2 sqrt(2 / pi) (v + 0.044715 v**3))."""


@operation_of_any_type
def finish_tile(
    typingctx: Any,
    tile: Any,
    out: Any,
    offset: Any,
    stride: Any,
    rows: Any,
    columns: Any,
    channel: Any,
    residual: Any,
    after: Any,
) -> tuple[Any, Any]:
    """Row r of the tile, outputs from `channel` on, and what follows, to out[offset + r * stride :][:columns].

    rows, columns : how many there are, the others not being written; or None: all, which is faster.
    residual : at the same elements as out.
    """

    def body(site: FloatSite) -> None:
        places = _Places(site, 1, 2, 3, *((5, 4) if isinstance(columns, types.Integer) else (None, None)))
        follows = _After(site, site.expand(8), places, residual=7, channel=site.arguments[6])
        for r, vector in enumerate(site.vectors()):
            follows.write(vector, r, 0)

    given = (tile, out, offset, stride, rows, columns, channel, residual, after)
    return float_operation(types.none, tile.lanes, given, body)


def write_floats(site: Site) -> Any:
    """Code of `finish` for rows of float32: see `gossamer.kernels.intrinsics.finish`."""
    vectors = site.vectors(0)
    wide = len(vectors) // len(site.types[1])
    floats = FloatSite(site.context, site.builder, site.types, site.arguments, 16)
    follows = _After(
        floats, floats.expand(8), _Places(floats, 2, 3, 4, 5, None), residual=7, channel=site.arguments[6]
    )  # fmt: skip
    for i, vector in enumerate(vectors):
        follows.write(site.builder.bitcast(vector, floats.vector), *divmod(i, wide))
    return site.nothing()


class _Places:
    """Where the elements of a tile lie, by numbers of arguments; vectors of a row follow each other."""

    def __init__(
        self, site: FloatSite, out: int, offset: int, stride: int, columns: int | None, rows: int | None
    ) -> None:
        self.site, self.out, self.offset, self.stride, self.columns, self.rows = (
            site, out, offset, stride, columns, rows,
        )  # fmt: skip

    def place(self, r: int, c: int) -> Any:
        """Of the first element of row r, vector c, that of the last row if there are fewer."""
        return self.site.builder.add(
            self.site.row(self.offset, self.stride, r, rows=self.rows), _I64(c * self.site.lanes)
        )

    def mask(self, r: int, c: int) -> Any:
        """The lanes there that exist; None: all."""
        if self.columns is None:
            return None
        b, left = self.site.builder, self.site.arguments[self.columns]
        return self.site.mask(self.rows, b.sub(left, _I64(c * self.site.lanes)), r)


class _After:
    """What follows a vector of sums while its code is generated."""

    def __init__(self, site: FloatSite, after: list[tuple[Any, Any]], places: _Places, *, residual: int, channel: Any):
        """after : types and values of its elements."""
        self.site, self.places, self.residual, self.channel = site, places, residual, channel
        self.bias, (_, low), (_, high), (self.curve, _), (self.added, _), (self.codes, codes) = after
        self.bounds = site.splat(low), site.splat(high)
        if not isinstance(self.codes, types.NoneType):
            inverse, zero, lo, hi = (site.builder.extract_value(codes, i) for i in range(4))
            self.inverse, self.zero = inverse, site.splat(site.builder.trunc(zero, _I8))
            self.limits = site.splat(lo), site.splat(hi)

    def write(self, v: Any, r: int, c: int) -> None:
        """Row r's vector c."""
        site, b, place, mask = self.site, self.site.builder, self.places.place(r, c), self.places.mask(r, c)
        v = b.fadd(v, self._of_outputs(self.bias, c))
        if not isinstance(self.added, types.NoneType):
            v = b.fadd(v, site.load_some(site.address(self.residual, place, site.vector), mask))
        low, high = self.bounds
        v = b.select(b.fcmp_ordered("<", v, low), low, v)
        v = b.select(b.fcmp_ordered(">", v, high), high, v)
        if not isinstance(self.curve, types.NoneType):
            v = _gate(site, v, len(self.curve) > 0)
        if not isinstance(self.codes, types.NoneType):
            v = self._code(v, c)
        site.store_some(v, site.address(self.places.out, place, v.type), mask)

    def _of_outputs(self, array: tuple[Any, Any], c: int) -> Any:
        """What an array, its type and its value, has for the outputs of vector c."""
        site, b = self.site, self.site.builder
        channel = b.add(self.channel, _I64(c * site.lanes))
        return b.load(site.element(*array, channel, site.vector), align=4)

    def _code(self, v: Any, c: int) -> Any:
        site, b = self.site, self.site.builder
        lo, hi = self.limits
        real = b.fmul(v, self._of_outputs((self.codes.types[0], self.inverse), c))
        real = b.select(b.fcmp_ordered(">", real, lo), real, lo)
        real = b.select(b.fcmp_ordered("<", real, hi), real, hi)
        real = b.fsub(b.fadd(real, site.constant(_ROUNDER)), site.constant(_ROUNDER))
        bytes_, words = (ir.VectorType(kind, site.lanes) for kind in (_I8, _I32))
        return b.add(b.trunc(b.fptosi(real, words), bytes_), self.zero)


def _gate(site: FloatSite, v: Any, gelu: bool) -> Any:
    b, t = site.builder, v
    if gelu:
        cube = b.fmul(b.fmul(v, v), v)
        t = b.fmul(site.constant(_GELU[0]), site.fused(cube, site.constant(_GELU[1]), v))
    return b.fdiv(v, b.fadd(site.constant(1.0), _exp(site, b.fneg(t))))


def _exp(site: FloatSite, v: Any) -> Any:
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
