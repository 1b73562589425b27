"""Rounding, multipliers and requantisation against exact rational arithmetic."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gossamer.arch.numerics import (
    ACC_MAX,
    ACC_MIN,
    MULTIPLIER_BITS,
    RESIDUAL_MULTIPLIER_BITS,
    RESIDUAL_SHIFT_MAX,
    RESIDUAL_SHIFT_MIN,
    SHIFT_MAX,
    SHIFT_MIN,
    Requant,
    code_range,
    make_requant,
    quantise_multiplier,
    quantise_residual,
    requantise,
    round_shift,
)

INT64 = st.integers(-(2**63), 2**63 - 1)


def half_even(numerator: int, shift: int) -> int:
    """numerator / 2**shift to the nearest integer; `round` of a Fraction takes the even one of two."""
    return round(Fraction(numerator, 1 << shift))


# ---- round_shift ----


@given(INT64, st.integers(0, 62))
@example(-(2**63), 62)
@example(2**63 - 1, 62)
@example(3 << 61, 62)
@example(-(3 << 61), 62)
@example(2**63 - 1, 0)
def test_round_shift_is_division_rounded_half_to_even(value: int, shift: int) -> None:
    assert int(round_shift(value, shift)) == half_even(value, shift)


@given(st.integers(-(2**40), 2**40), st.integers(1, 20))
def test_round_shift_at_halves(whole: int, shift: int) -> None:
    half = (whole << shift) + (1 << (shift - 1))
    assert int(round_shift(half, shift)) == (whole if whole % 2 == 0 else whole + 1)
    assert int(round_shift(half - 1, shift)) == (whole if shift > 1 else half_even(half - 1, shift))
    assert int(round_shift(half + 1, shift)) == whole + 1


@given(INT64, st.integers(0, 62))
def test_round_shift_against_decimal(value: int, shift: int) -> None:
    with localcontext() as context:
        context.prec = 200
        expected = (Decimal(value) / Decimal(1 << shift)).to_integral_value(ROUND_HALF_EVEN)
    assert int(round_shift(value, shift)) == int(expected)


def test_round_shift_small_values_by_hand() -> None:
    values = np.array([-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6])
    assert round_shift(values, 1).tolist() == [-3, -2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2, 3]
    assert round_shift(values, 2).tolist() == [-2, -1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 2]
    assert round_shift(values, 0).tolist() == values.tolist()


def test_round_shift_broadcasts_and_keeps_int64() -> None:
    out = round_shift(np.array([[10], [11]], dtype=np.int32), np.array([0, 1, 2]))
    assert out.dtype == np.int64
    assert out.tolist() == [[10, 5, 2], [11, 6, 3]]


# ---- quantise_multiplier ----


def relative_error(scale: float, multiplier: int, shift: int) -> Fraction:
    exact = Fraction(scale)
    return abs(Fraction(multiplier, 1 << shift) - exact) / exact


@given(st.floats(2.0**-24, 2.0**23, exclude_max=True))
@example(2.0**-24)
@example(float(np.nextafter(2.0**23, 0)))
@example(float(np.nextafter(1.0, 0)))
@example((2**23 + 0.5) * 2.0**-30)
@example((2**24 - 0.5) * 2.0**-30)
def test_a_normal_scale_is_kept_to_24_bits(scale: float) -> None:
    multiplier, shift = (int(v) for v in quantise_multiplier(scale))
    assert SHIFT_MIN <= shift <= SHIFT_MAX
    assert 2**23 <= multiplier < 2**MULTIPLIER_BITS
    assert relative_error(scale, multiplier, shift) < Fraction(1, 2**24)


@given(st.floats(2.0**-24, 2.0, exclude_max=True), st.integers(1, 23))
def test_a_least_shift_is_respected(scale: float, least: int) -> None:
    """A residual needs shift >= its own; the error is at most half of a unit of the shift."""
    multiplier, shift = (int(v) for v in quantise_multiplier(scale, least))
    assert least <= shift <= SHIFT_MAX
    assert 0 <= multiplier < 2**MULTIPLIER_BITS
    error = abs(Fraction(multiplier, 1 << shift) - Fraction(scale))
    assert error <= Fraction(1, 2 << shift) or multiplier == 2**24 - 1


@given(st.floats(0, 2.0**-24))
def test_a_small_scale_loses_low_bits_only(scale: float) -> None:
    multiplier, shift = (int(v) for v in quantise_multiplier(scale))
    assert multiplier == round(Fraction(scale) * 2**shift)
    assert shift == SHIFT_MAX or multiplier == 0 or multiplier >= 2**23


def test_multipliers_by_hand() -> None:
    multiplier, shift = quantise_multiplier([1.0, 0.5, 0.75, 0.0, 2.0**-60, 2.0**22, 3.0])
    assert multiplier.tolist() == [2**23, 2**23, 3 * 2**22, 0, 0, 2**23, 3 * 2**22]
    assert shift.tolist() == [23, 24, 24, 24, 47, 1, 22]
    assert multiplier.dtype == shift.dtype == np.int64


def test_a_scale_that_rounds_up_to_a_power_of_two() -> None:
    """0.99999999 * 2**24 rounds to 2**24, which has 25 bits: one is the same as 2**23 / 2**23."""
    assert tuple(int(v) for v in quantise_multiplier(0.99999999)) == (2**23, 23)
    top = float(np.nextafter(2.0**23, 0))
    assert tuple(int(v) for v in quantise_multiplier(top)) == (2**24 - 1, 1), "there is no smaller shift"


@pytest.mark.parametrize("scale", [-1e-9, float("nan"), float("inf"), -float("inf"), 2.0**23])
def test_a_scale_that_has_no_multiplier(scale: float) -> None:
    with pytest.raises(ValueError, match=r"^scale must be finite and in \[0, 8\.38861e\+06\), not "):
        quantise_multiplier([0.5, scale])


def test_a_least_shift_lowers_the_largest_scale() -> None:
    quantise_multiplier(float(np.nextafter(2.0**4, 0)), 20)
    with pytest.raises(ValueError, match=r"^scale must be finite and in \[0, 16\), not array\(16\.\)$"):
        quantise_multiplier(16.0, 20)


# ---- quantise_residual ----


@given(st.floats(2.0**-15, 127, exclude_max=True))
@example(2.0**-15)
@example(float(np.nextafter(64.0, 0)))
@example(float(np.nextafter(127.0, 0)))
def test_a_residual_ratio_is_kept_to_16_bits(ratio: float) -> None:
    multiplier, shift = quantise_residual(ratio)
    assert RESIDUAL_SHIFT_MIN <= shift <= RESIDUAL_SHIFT_MAX
    assert 2**15 <= multiplier < 2**RESIDUAL_MULTIPLIER_BITS
    assert relative_error(ratio, multiplier, shift) <= Fraction(1, 2**16)


@given(st.floats(0, 2.0**-15))
def test_a_small_residual_ratio_loses_low_bits_only(ratio: float) -> None:
    multiplier, shift = quantise_residual(ratio)
    assert RESIDUAL_SHIFT_MIN <= shift <= RESIDUAL_SHIFT_MAX
    assert multiplier == round(Fraction(ratio) * 2**shift)


def test_residuals_by_hand() -> None:
    assert quantise_residual(1.0) == (2**15, 15)
    assert quantise_residual(0.5) == (2**15, 16)
    assert quantise_residual(0.0)[0] == 0
    assert quantise_residual(126.5) == (64768, 9)
    assert quantise_residual(1 - 2.0**-20) == (2**15, 15), "rounds up to one"


@pytest.mark.parametrize("ratio", [-0.001, 127.0, 1e300, float("inf"), float("nan")])
def test_a_residual_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"^residual ratio must be in \[0, 127\), not "):
        quantise_residual(ratio)


@given(st.floats(0, 127, exclude_max=True), st.integers(RESIDUAL_SHIFT_MIN, SHIFT_MAX))
def test_a_largest_residual_shift_is_respected(ratio: float, most: int) -> None:
    multiplier, shift = quantise_residual(ratio, most)
    assert RESIDUAL_SHIFT_MIN <= shift <= min(most, RESIDUAL_SHIFT_MAX)
    assert 0 <= multiplier < 2**RESIDUAL_MULTIPLIER_BITS
    assert multiplier == round(Fraction(ratio) * 2**shift)


# ---- make_requant ----


@given(
    st.lists(st.floats(2.0**-20, 2.0**14), min_size=1, max_size=4),
    st.none() | st.floats(2.0**-6, 100),
    st.integers(-(10**5), 10**5),
    st.integers(0, 255),
)
def test_made_parameters_are_legal_and_close(scale: list[float], ratio: float | None, acc: int, residual: int) -> None:
    """The result is what real arithmetic rounds to, or beside it where the parameters' own error can reach."""
    q = make_requant(scale, zero_point=3, lo=-(2**61), hi=2**61, residual_ratio=ratio, residual_zero_point=7)
    assert (q.zero_point, q.lo, q.hi) == (3, -(2**61), 2**61)
    assert np.all((q.shift >= SHIFT_MIN) & (q.shift <= SHIFT_MAX))
    assert np.all((q.multiplier >= 0) & (q.multiplier < 2**MULTIPLIER_BITS))
    if ratio is None:
        assert (q.residual_multiplier, q.residual_shift, q.residual_zero_point) == (0, 0, 0)
    else:
        assert RESIDUAL_SHIFT_MIN <= q.residual_shift <= min(q.shift)
        assert q.residual_zero_point == 7
    for k, real_scale in enumerate(scale):
        multiplier, shift = int(q.multiplier[k]), int(q.shift[k])
        real = Fraction(acc) * Fraction(real_scale)
        allowed = Fraction(1, 2) + abs(real) / 2**23
        if ratio is not None:
            real += (residual - 7) * Fraction(ratio)
            allowed += abs(residual - 7) * Fraction(1, 2 << q.residual_shift)
        found = exact(acc, 0, multiplier, shift, q, None if ratio is None else residual)
        assert abs(found - q.zero_point - real) <= allowed


def test_a_residual_follows_the_channel_of_the_smallest_shift() -> None:
    q = make_requant([0.5, 2.0**12], zero_point=0, lo=-128, hi=127, residual_ratio=1.0)
    assert q.shift.tolist() == [24, 11]
    assert (q.residual_multiplier, q.residual_shift) == (2**11, 11)
    assert make_requant([0.5], zero_point=0, lo=0, hi=1, residual_ratio=1.0).residual_shift == 15
    assert make_requant([], zero_point=0, lo=0, hi=1, residual_ratio=1.0).residual_shift == 15


def test_scales_that_cannot_be_held() -> None:
    common = {"zero_point": 0, "lo": -128, "hi": 127}
    make_requant([2.0**15], **common)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^scale must be below 2\*\*15 where a residual is added, not 32768$"):
        make_requant([0.5, 2.0**15], residual_ratio=1.0, **common)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^residual ratio must be in \[0, 127\), not 127\.0$"):
        make_requant([0.5], residual_ratio=127.0, **common)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^scale must be finite and in "):
        make_requant([-1.0], **common)  # type: ignore[arg-type]


# ---- requantise ----


def exact(acc: int, bias: int, multiplier: int, shift: int, q: Requant, residual: int | None) -> int:
    """The module's formula with integers of any length and one rounding."""
    real = Fraction((acc + bias) * multiplier, 2**shift)
    if residual is not None:
        real += Fraction((residual - q.residual_zero_point) * q.residual_multiplier, 2**q.residual_shift)
    return min(max(round(real) + q.zero_point, q.lo), q.hi)


@st.composite
def requants(draw: st.DrawFn) -> tuple[Requant, int, int, int | None]:
    signed = draw(st.booleans())
    lo, hi = sorted(draw(st.tuples(st.integers(*code_range(signed)), st.integers(*code_range(signed)))))
    residual = draw(st.one_of(st.none(), st.integers(-128, 255)))
    residual_shift = draw(st.integers(RESIDUAL_SHIFT_MIN, RESIDUAL_SHIFT_MAX))
    shift = draw(st.integers(SHIFT_MIN if residual is None else residual_shift, SHIFT_MAX))
    acc = draw(st.integers(ACC_MIN, ACC_MAX) | st.integers(-300, 300))
    bias = draw(st.integers(ACC_MIN, ACC_MAX) | st.integers(-300, 300))
    q = Requant(
        multiplier=np.array([draw(st.integers(0, 2**24 - 1))]),
        shift=np.array([shift]),
        zero_point=draw(st.integers(*code_range(signed))),
        lo=lo,
        hi=hi,
        residual_multiplier=draw(st.integers(0, 2**16 - 1)),
        residual_shift=residual_shift,
        residual_zero_point=draw(st.integers(-128, 255)),
    )
    return q, acc, bias, residual


@given(requants())
def test_requantise_is_exact(case: tuple[Requant, int, int, int | None]) -> None:
    q, acc, bias, residual = case
    codes = requantise(
        np.array([acc], dtype=np.int32),
        np.array([bias], dtype=np.int32),
        q,
        None if residual is None else np.array([residual]),
    )
    assert codes.dtype == np.int16
    assert codes.tolist() == [exact(acc, bias, int(q.multiplier[0]), int(q.shift[0]), q, residual)]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("shift", [SHIFT_MIN, RESIDUAL_SHIFT_MIN, 24, 31, SHIFT_MAX])
def test_the_largest_sum_fits_64_bits(sign: int, shift: int) -> None:
    """At the extremes of every operand, the sum and what its rounding adds stay within int64; and the result is right.

    The zero point and the clamp are opened so that a wrapped sum could not hide behind them.
    """
    acc = bias = ACC_MIN if sign < 0 else ACC_MAX
    multiplier = 2**24 - 1
    with_residual = shift >= RESIDUAL_SHIFT_MIN
    residual, zero = (0, 255) if sign < 0 else (255, 0)
    q = Requant(
        multiplier=np.array([multiplier]),
        shift=np.array([shift]),
        lo=-(2**62),
        hi=2**62,
        residual_multiplier=2**16 - 1,
        residual_shift=RESIDUAL_SHIFT_MIN,
        residual_zero_point=zero,
    )
    term = (residual - zero) * (2**16 - 1) << (shift - RESIDUAL_SHIFT_MIN) if with_residual else 0
    total = (acc + bias) * multiplier + term
    assert -(2**63) <= total < 2**63
    assert abs(total) + (1 << shift) < 2**63
    assert int(round_shift(total, shift)) == half_even(total, shift)
    opened = Requant(**{**q.__dict__, "lo": -128, "hi": 127})
    code = requantise(
        np.array([acc], dtype=np.int32),
        np.array([bias], dtype=np.int32),
        opened,
        np.array([residual]) if with_residual else None,
    )
    assert code.tolist() == [min(max(half_even(total, shift), -128), 127)]


def test_requantise_takes_channels_last_and_a_table() -> None:
    q = Requant(multiplier=np.array([2**23, 2**23]), shift=np.array([23, 24]), zero_point=3, lo=-10, hi=12)
    acc = np.array([[[4, 4], [5, 5]], [[100, 100], [-100, -100]]], dtype=np.int32)
    bias = np.array([0, 1], dtype=np.int32)
    codes = requantise(acc, bias, q)
    assert codes.tolist() == [[[7, 5], [8, 6]], [[12, 12], [-10, -10]]]
    table = (np.arange(256) * 7) % 256
    looked_up = requantise(acc, bias, q, table=table)
    assert looked_up.tolist() == [[[49, 35], [56, 42]], [[84, 84], [186, 186]]], "-10 stands at 246: 246 * 7 mod 256"


def test_a_sum_is_rounded_once() -> None:
    """A quarter and a quarter are a half, which goes to the even 0; three quarters and a quarter are one."""
    one = {"multiplier": np.array([2**21]), "shift": np.array([23]), "residual_multiplier": 2**14, "residual_shift": 16}
    q = Requant(**one)  # type: ignore[arg-type]
    zero = np.zeros(1, dtype=np.int32)
    assert requantise(np.array([1], dtype=np.int32), zero, q, np.array([1])).tolist() == [0]
    assert requantise(np.array([3], dtype=np.int32), zero, q, np.array([1])).tolist() == [1]
    assert requantise(np.array([1], dtype=np.int32), zero, q, np.array([3])).tolist() == [1]


def test_code_ranges() -> None:
    assert code_range(True) == (-128, 127)
    assert code_range(False) == (0, 255)
