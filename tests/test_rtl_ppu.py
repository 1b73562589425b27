"""The PPU's rounding against the contract's, on sums near every decision."""

from importlib.util import find_spec

import numpy as np
import pytest

from gossamer.arch.numerics import SHIFT_MAX, SHIFT_MIN, round_shift

pytestmark = pytest.mark.skipif(find_spec("amaranth") is None, reason="gossamer[rtl] is not installed")


def test_rounded_is_round_shift_as_far_as_codes_go() -> None:
    """Halves, their neighbours, anything; small quotients exact, large ones beyond every code on the right side."""
    from amaranth.hdl import Module, Signal, signed
    from amaranth.sim import Simulator

    from gossamer.rtl.ppu import QUOTIENT_BITS, SHIFT_BITS, rounded

    m = Module()
    total, shift, found = Signal(signed(64)), Signal(SHIFT_BITS), Signal(signed(32))
    m.d.comb += found.eq(rounded(m, total, shift))
    rng = np.random.default_rng(0)
    shifts = rng.integers(SHIFT_MIN, SHIFT_MAX + 1, 3000)
    quotients = rng.integers(-1100, 1101, 3000)
    rests = [0, 1 << shifts - 1, (1 << shifts - 1) + rng.choice([-1, 1], 3000), rng.integers(0, 1 << shifts)]
    totals = np.concatenate([(quotients << shifts) + np.choose(rng.integers(0, 4, 3000), rests), -(1 << shifts) * 4096])
    totals = np.concatenate([totals, rng.integers(-(2**63), 2**63 - 1, 3000)])
    shifts = np.concatenate([shifts, shifts, shifts])
    limit = (1 << QUOTIENT_BITS - 1) - 1

    async def bench(ctx: object) -> None:
        for value, by, expected in zip(totals, shifts, round_shift(totals, shifts), strict=True):
            ctx.set(total, int(value))  # type: ignore[attr-defined]
            ctx.set(shift, int(by))  # type: ignore[attr-defined]
            got = ctx.get(found)  # type: ignore[attr-defined]
            if -limit < expected < limit:
                assert got == expected, (value, by)
            else:
                assert min(got * np.sign(expected), limit) == limit, (value, by)

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
