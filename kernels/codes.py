"""`write_codes`: accumulators, requantised as gossamer.arch.numerics does it, bit for bit, to 8-bit codes in memory.

    v = acc * multiplier + ((residual - residual_zero_point) * residual_multiplier << (shift - residual_shift))
    code = clamp(v / 2**shift rounded half to even + zero_point, lo, hi),   and then table[code & 0xFF]

in one of three forms. Which of them is exact for a layer is proved when it is prepared (kernels/scaling.py); here the
dtype of `scale` tells them apart:

    float32   acc * scale in one fused operation that rounds once, to an integer: scale = multiplier / 2**shift has 24
              bits. Exact if acc has no more, there is no residual and the result is below 2**22.
    float64   the same in double precision, for any acc. With a residual exact if v has at most 53 bits.
    int64     as written, and the bias too: scale[panel] = 16 multipliers, 16 shifts, 16 times
              bias * multiplier + 2**(shift - 1), the half that rounds

Rounding in floating point: adding 1.5 * 2**23 (2**52), whose last place is 1, leaves the rounded integer in the low
bits of the sum.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # it has no types of its own
from numba.core import types

from gossamer.kernels.vectors import (
    BYTES,
    DOUBLES,
    FLOATS,
    I8,
    I64,
    LANES,
    LONGS,
    VECTOR,
    WORDS,
    Site,
    splat,
)

__all__ = ["write_codes"]

_OUT, _OFFSET, _STRIDE, _COLUMNS, _CHANNEL, _RESIDUAL, _SCALE, _LIMITS, _MIXING, _TABLE = range(2, 12)
"""The arguments of `finish` by their places, with the elements of `after` one by one."""
_UNIT32, _UNIT64 = 1.5 * 2**23, 1.5 * 2**52
_BITS32 = 0x4B400000
"""_UNIT32 as an integer."""
_HALVES = (range(8), range(8, 16))


def write_codes(site: Site) -> Any:
    """Code of `finish`: row r of the tile, requantised, to the bytes out[offset + r * stride :][:columns].

    A row has 1, 2 or 4 vectors.  channel : the tile's first output, a multiple of 16.
    residual : int8 or uint8.
    after = (scale, limits, mixing, table):
        scale : float32 [N], float64 [N] or int64 [N / 16, 3, 16], see the module.
        limits : int64 (zero_point, lo, hi).
        mixing : None where there is no residual. Else with float64 its multiplier / 2**shift and -zero_point times
            that; with int64 its multiplier, shift and zero point.
        table : 256 bytes; or None.
    """
    rescale = {types.float32: _by_float32, types.float64: _by_float64, types.int64: _by_int64}
    vectors = site.vectors(0)
    wide = len(vectors) // len(site.types[1])
    terms: list[Any] = [None] * len(vectors)
    if not isinstance(site.types[_MIXING], types.NoneType):
        terms = [_residual(site, i, wide) for i in range(len(vectors))]
    integers = rescale[site.types[_SCALE].dtype](site, vectors, terms, wide)
    zero, low, high = (site.broadcast(site.load(_LIMITS, I64(8 * i), I64), WORDS) for i in range(3))
    run = wide * LANES
    for four in range(0, len(integers), 4):
        chosen = integers[four : four + 4]
        codes = _clamp(site, chosen + chosen[:1] * (4 - len(chosen)), zero, low, high)
        if not isinstance(site.types[_TABLE], types.NoneType):
            codes = _look_up(site, codes)
        for begin in range(0, LANES * len(chosen), run):
            r, c = divmod(four + begin // LANES, wide)
            piece = codes if run == 64 else site.shuffle(codes, codes, range(begin, begin + run))
            mask = site.mask(site.offset(site.arguments[_COLUMNS], -LANES, c), run)
            site.masked_store(piece, site.address(_OUT, _place(site, r, c), piece.type), mask)
    return site.nothing()


def _place(site: Site, r: int, c: int) -> Any:
    """Where out and residual hold the first element of row r, vector c."""
    return site.offset(site.offset(site.arguments[_OFFSET], site.arguments[_STRIDE], r), LANES, c)


def _residual(site: Site, i: int, wide: int) -> Any:
    """The residual's codes at a vector of the tile, <16 x i32>."""
    r, c = divmod(i, wide)
    mask = site.mask(site.offset(site.arguments[_COLUMNS], -LANES, c), LANES)
    vector = ir.VectorType(I8, LANES)
    codes = site.masked_load(site.address(_RESIDUAL, _place(site, r, c), vector), vector, mask)
    extend = site.builder.sext if site.types[_RESIDUAL].dtype == types.int8 else site.builder.zext
    return extend(codes, VECTOR)


def _channel(site: Site, c: int, size: int) -> Any:
    """Bytes from the start of scale to output vector c, `size` for each output."""
    return site.offset(site.builder.mul(site.arguments[_CHANNEL], I64(size)), LANES * size, c)


def _by_float32(site: Site, vectors: list[Any], terms: list[Any], wide: int) -> list[Any]:
    b = site.builder
    scales = [site.load(_SCALE, _channel(site, c, 4), FLOATS) for c in range(wide)]
    results = []
    for i, vector in enumerate(vectors):
        rounded = site.same("fma", b.sitofp(vector, FLOATS), scales[i % wide], splat(FLOATS, _UNIT32))
        results.append(b.sub(b.bitcast(rounded, VECTOR), splat(VECTOR, _BITS32)))
    return results


def _by_float64(site: Site, vectors: list[Any], terms: list[Any], wide: int) -> list[Any]:
    b = site.builder
    scales = [
        [site.load(_SCALE, site.offset(_channel(site, c, 8), 64, h), DOUBLES) for h in range(2)] for c in range(wide)
    ]
    results = []
    for i, (vector, term) in enumerate(zip(vectors, terms, strict=True)):
        halves = []
        for h, lanes in enumerate(_HALVES):
            value = b.sitofp(site.shuffle(vector, vector, lanes), DOUBLES)
            if term is None:
                rounded = site.same("fma", value, scales[i % wide][h], splat(DOUBLES, _UNIT64))
            else:
                ratio, constant = (
                    site.broadcast(site.load(_MIXING, I64(8 * k), ir.DoubleType()), DOUBLES) for k in range(2)
                )
                added = site.same("fma", b.sitofp(site.shuffle(term, term, lanes), DOUBLES), ratio, constant)
                rounded = b.fadd(site.same("fma", value, scales[i % wide][h], added), splat(DOUBLES, _UNIT64))
            halves.append(b.bitcast(rounded, VECTOR))
        results.append(site.shuffle(halves[0], halves[1], range(0, 32, 2)))
    return results


def _by_int64(site: Site, vectors: list[Any], terms: list[Any], wide: int) -> list[Any]:
    b = site.builder
    one = splat(LONGS, 1)
    results = []
    for i, (vector, term) in enumerate(zip(vectors, terms, strict=True)):
        halves = []
        for h, lanes in enumerate(_HALVES):
            at = site.offset(_channel(site, i % wide, 24), 64, h)
            multiplier, shift, base = (site.load(_SCALE, site.offset(at, 128, k), LONGS) for k in range(3))
            value = b.add(b.mul(b.sext(site.shuffle(vector, vector, lanes), LONGS), multiplier), base)
            if term is not None:
                by, right, zero = (site.broadcast(site.load(_MIXING, I64(8 * k), I64), LONGS) for k in range(3))
                moved = b.mul(b.sub(b.sext(site.shuffle(term, term, lanes), LONGS), zero), by)
                value = b.add(value, b.shl(moved, b.sub(shift, right)))
            # The half is in: where nothing remains there was a half, and the even neighbour is the one below.
            tie = b.icmp_signed("==", b.and_(value, b.sub(b.shl(one, shift), one)), splat(LONGS, 0))
            code = b.ashr(value, shift)
            code = b.select(tie, b.and_(code, splat(LONGS, -2)), code)
            code = site.same("smax", site.same("smin", code, splat(LONGS, 2**15)), splat(LONGS, -(2**15)))
            halves.append(b.bitcast(code, VECTOR))
        results.append(site.shuffle(halves[0], halves[1], range(0, 32, 2)))
    return results


def _clamp(site: Site, four: list[Any], zero: Any, low: Any, high: Any) -> Any:
    """64 codes of four vectors of 16 integers."""
    b = site.builder
    pairs = []
    for i in (0, 2):
        words = site.same("sadd.sat", site.narrow(*four[i : i + 2]), zero)
        words = site.same("smin", site.same("smax", words, low), high)
        pairs.append(b.bitcast(words, BYTES))
    # The low bytes of the words, in order: see `narrow` for where it puts them.
    lanes = [64 * p + 2 * (8 * q + 4 * v + i) for p in range(2) for v in range(2) for q in range(4) for i in range(4)]
    return site.shuffle(pairs[0], pairs[1], lanes)


def _look_up(site: Site, codes: Any) -> Any:
    """table[code] of 64 codes: each half of the table by its own permutation of two vectors."""
    b = site.builder
    if "avx512vbmi" not in site.features:
        return site.gather(site.address(_TABLE, I64(0), I8), codes)
    quarters = [site.load(_TABLE, I64(64 * i), BYTES) for i in range(4)]
    kind = ir.FunctionType(BYTES, [BYTES] * 3)
    low, high = (
        site.call("llvm.x86.avx512.vpermi2var.qi.512", kind, quarters[i], codes, quarters[i + 1]) for i in (0, 2)
    )
    return b.select(b.icmp_signed("<", codes, splat(BYTES, 0)), high, low)
