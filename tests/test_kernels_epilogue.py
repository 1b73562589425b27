"""The compiled epilogue equals gossamer.arch.numerics, and exact rational arithmetic, bit for bit."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arch import numerics
from gossamer.arch.errors import GossamerError
from gossamer.arch.numerics import Requant
from gossamer.kernels import requantise


def oracle(case: dict[str, Any]) -> list[int]:
    """One number at a time in rational arithmetic; Python's round is half to even. Channels last, flattened."""
    q, channels = case["q"], len(case["bias"])
    out = []
    for i, acc in enumerate(case["acc"].ravel().tolist()):
        c = i % channels
        value = Fraction((acc + int(case["bias"][c])) * int(q.multiplier[c]), 2 ** int(q.shift[c]))
        if case["residual"] is not None:
            real = (int(case["residual"].ravel()[i]) - q.residual_zero_point) * q.residual_multiplier
            value += Fraction(real, 2**q.residual_shift)
        code = min(max(round(value) + q.zero_point, q.lo), q.hi)
        out.append(code if case["table"] is None else int(case["table"][code & 0xFF]))
    return out


def make(seed: int, outer: int, channels: int, *, residual: bool, table: bool, extreme: bool, signed: bool) -> Any:
    rng = np.random.default_rng(seed)
    low, high = (-128, 127) if signed else (0, 255)
    dtype = np.int8 if signed else np.uint8
    shape = (outer, channels)
    residual_shift = int(rng.integers(9, 32))
    acc = rng.integers(-(2**31), 2**31, shape)
    bias = rng.integers(-(2**31), 2**31, channels)
    if extreme:
        acc = rng.choice([-(2**31), -1, 0, 1, 2**31 - 1], shape)
        bias = rng.choice([-(2**31), 0, 2**31 - 1], channels)
    # numerics promises 64 bits for accumulators that, with their bias, stay within 32.
    bias = np.clip(bias, -(2**31) - acc.min(0, initial=0), 2**31 - 1 - acc.max(0, initial=0))
    lo, hi = sorted(rng.integers(low, high + 1, 2).tolist())
    q = Requant(
        multiplier=rng.choice([0, 1, 3, 1 << 23, (1 << 24) - 1, int(rng.integers(1 << 24))], channels),
        shift=rng.integers(residual_shift if residual else 1, 48, channels),
        zero_point=int(rng.integers(low, high + 1)),
        lo=lo,
        hi=hi,
        residual_multiplier=int(rng.choice([0, 1, 2**16 - 1])),
        residual_shift=residual_shift,
        residual_zero_point=int(rng.integers(low, high + 1)),
    )
    return {
        "acc": acc.astype(np.int32),
        "bias": bias.astype(np.int32),
        "q": q,
        "residual": rng.integers(low, high + 1, shape).astype(dtype) if residual else None,
        "table": rng.integers(low, high + 1, 256).astype(dtype) if table else None,
    }


def check(case: dict[str, Any]) -> None:
    out = requantise(**case)
    reference = numerics.requantise(**case)
    assert out.dtype == reference.dtype == np.int16
    assert np.array_equal(out, reference)
    assert out.ravel().tolist() == oracle(case)


@given(
    seed=st.integers(0, 2**32 - 1),
    outer=st.integers(0, 9),
    channels=st.integers(1, 9),
    residual=st.booleans(),
    table=st.booleans(),
    extreme=st.booleans(),
    signed=st.booleans(),
)
def test_epilogues(seed: int, outer: int, channels: int, **choice: bool) -> None:
    check(make(seed, outer, channels, **choice))


def test_small_epilogues() -> None:
    for seed in range(8):
        check(make(seed, 3, 4, residual=seed % 2 > 0, table=seed // 2 % 2 > 0, extreme=seed < 4, signed=seed > 2))


def test_halves_round_to_even() -> None:
    acc = np.arange(-8, 9, dtype=np.int32)[:, None]
    one = np.array([1], dtype=np.int64)
    q = Requant(multiplier=one, shift=one)
    out = requantise(acc, np.zeros(1, np.int32), q)
    assert out.ravel().tolist() == [-4, -4, -3, -2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2, 3, 4, 4]


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_channels_on_any_axis(seed: int, axis: int) -> None:
    """Moving the channels moves the result."""
    case = make(seed, 12, 5, residual=True, table=True, extreme=False, signed=True)
    last = requantise(**case)

    def moved(values: Any) -> Any:
        return np.moveaxis(values.reshape(2, 3, 2, 5), -1, axis)

    case |= {"acc": moved(case["acc"]), "residual": moved(case["residual"])}
    assert np.array_equal(requantise(**case, axis=axis), moved(last))
    assert np.array_equal(requantise(**case, axis=axis - 4), moved(last))


PLAIN = make(0, 2, 3, residual=True, table=True, extreme=False, signed=True)
ONES = np.ones(3, dtype=np.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acc": np.zeros((2, 3), np.int64)}, r"^acc must be an ndarray of int32, not int64 of shape \(2, 3\)$"),
        ({"bias": np.zeros(2, np.int32)}, r"^bias must have shape \(3,\), one a channel, not \(2,\)$"),
        ({"q": replace(PLAIN["q"], multiplier=-ONES)}, r"^multiplier\[0\] must be from 0 to 16777215, not -1$"),
        ({"q": replace(PLAIN["q"], shift=48 * ONES)}, r"^shift\[0\] must be from 1 to 47, not 48$"),
        ({"q": replace(PLAIN["q"], shift=ONES[:1])}, r"^shift must have shape \(3,\), one a channel, not \(1,\)$"),
        (
            {"q": replace(PLAIN["q"], shift=10 * ONES, residual_shift=11)},
            r"^residual_shift must be an integer from 0 to 10, not 11$",
        ),
        ({"q": replace(PLAIN["q"], lo=2, hi=1)}, r"^lo must be at most hi \(1\), not 2$"),
        ({"residual": np.zeros((3, 2), np.int8)}, r"^residual must have the shape of acc \(2, 3\), not \(3, 2\)$"),
        ({"table": np.zeros(255, np.int8)}, r"^table must have 256 entries, not 255$"),
        ({"axis": 2}, r"^axis must be an integer from -2 to 1, not 2$"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        requantise(**(PLAIN | change))
