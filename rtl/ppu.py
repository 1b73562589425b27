"""The post-processing unit of one column of a lane: bias, requantise, residual, clamp, table."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.numerics import MULTIPLIER_BITS, RESIDUAL_MULTIPLIER_BITS
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.banks import Narrow
from gossamer.rtl.cells import bits_for, delayed

__all__ = ["ADD", "CLAMP", "LOOKUP", "MULTIPLY", "ROUND", "SHIFT_BITS", "Ppu", "rounded", "table_rows"]

SHIFT_BITS = 6

QUOTIENT_BITS = 11
"""A quotient that is larger is as good as the largest: no zero point brings it back below a bound of the clamp."""

ADD = data.StructLayout({"residual": 1, "residual_signed": 1, "residual_zero": 8})
"""Control of the first stage, for all columns; each later stage's control arrives with its data."""
MULTIPLY = data.StructLayout({"residual_multiplier": RESIDUAL_MULTIPLIER_BITS})
ROUND = data.StructLayout({"raw": 1})
CLAMP = data.StructLayout({"raw": 1, "zero_point": signed(9), "lo": signed(9), "hi": signed(9)})
LOOKUP = data.StructLayout({"enable": 1, "table": 2})


def table_rows(spec: ArchSpec) -> int:
    """Rows of a column's copy of the tables, one beat each."""
    return spec.tables * 256 // spec.axi_bytes


class Ppu(wiring.Component):
    """Latency: 2 + ppu_stages cycles from the accumulator to the code, one more with tables. Throughput: one a cycle.

    Stages: bias; multiply and round (ppu_stages registers); zero point and clamp; table. The first of ppu_stages
    multiplies, the last adds the residual and rounds; those between are there to be retimed.
    bias with the accumulator, multiplier and lift a cycle later, shift with the control of rounding. lift : how far the
    residual's product is shifted left to meet the other one, which is the longer product by far. A raw accumulator
    passes unchanged (its bias is 0 and its multiplier 1).
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        ports: dict[str, Any] = {
            "accumulator": In(signed(32)),
            "bias": In(signed(32)),
            "residual": In(8),
            "multiplier": In(MULTIPLIER_BITS),
            "shift": In(SHIFT_BITS),
            "lift": In(SHIFT_BITS),
            "add": In(ADD),
            "multiply": In(MULTIPLY),
            "round": In(ROUND),
            "clamp": In(CLAMP),
            "code": Out(32),
        }
        if spec.tables:
            ports |= {
                "lookup": In(LOOKUP),
                "table_write": In(1),
                "table_at": In(bits_for(table_rows(spec))),
                "table_data": In(8 * spec.axi_bytes),
            }
        super().__init__(ports)

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()

        # Bias, and the residual's distance from its zero point.
        biased = Signal(signed(33), reset_less=True)
        distance = Signal(signed(9), reset_less=True)
        code = Cat(self.residual, self.residual[7] & self.add.residual_signed).as_signed()
        zero = Cat(self.add.residual_zero, self.add.residual_zero[7] & self.add.residual_signed).as_signed()
        m.d.sync += [biased.eq(self.accumulator + self.bias), distance.eq(Mux(self.add.residual, code - zero, 0))]

        # Multiply.
        product = Signal(signed(33 + MULTIPLIER_BITS))
        residual = Signal(signed(9 + RESIDUAL_MULTIPLIER_BITS))
        lifted = Signal(signed(64))
        m.d.comb += [
            product.eq(biased * Cat(self.multiplier, 0).as_signed()),
            residual.eq(distance * Cat(self.multiply.residual_multiplier, 0).as_signed()),
            lifted.eq(residual << self.lift),
        ]
        late_product = delayed(m, product, spec.ppu_stages - 1, "product")
        late_residual = delayed(m, lifted, spec.ppu_stages - 1, "residual")

        total = Signal(signed(64))
        quotient = Signal(signed(32), reset_less=True)
        m.d.comb += total.eq(late_product + late_residual)
        m.d.sync += quotient.eq(Mux(self.round.raw, total[:32], rounded(m, total, self.shift)))

        # Zero point and clamp; a raw accumulator passes by.
        near = quotient[: QUOTIENT_BITS + 1].as_signed()
        moved, above, below = (Signal(signed(QUOTIENT_BITS + 2), name=n) for n in ("moved", "above", "below"))
        clamped = Signal(signed(32), reset_less=True)
        m.d.comb += [
            moved.eq(near + self.clamp.zero_point),
            above.eq(Mux(moved < self.clamp.lo, self.clamp.lo, moved)),
            below.eq(Mux(above > self.clamp.hi, self.clamp.hi, above)),
        ]
        m.d.sync += clamped.eq(Mux(self.clamp.raw, quotient, below))
        if not spec.tables:
            m.d.comb += self.code.eq(clamped)
            return m
        m.submodules.table = table = Narrow(
            rows=table_rows(spec), row=8 * spec.axi_bytes, unit=8 * spec.axi_bytes, word=8
        )
        plain = delayed(m, clamped, 1, "plain")
        looked_up = delayed(m, self.lookup.enable, 1, "looked_up")
        m.d.comb += [
            table.w_en.eq(self.table_write),
            table.w_at.eq(self.table_at),
            table.w_data.eq(self.table_data),
            table.r_en.eq(self.lookup.enable),
            table.r_at.eq(Cat(clamped[:8], self.lookup.table)),
            self.code.eq(Mux(looked_up, table.r_data, plain)),
        ]
        return m


def rounded(m: Any, total: Any, shift: Any) -> Any:
    """total / 2**shift (1..47), rounded half to even, as far as QUOTIENT_BITS go; signed, one bit more.

    The quotient is needed in its low bits only, so the shift begins with its largest step and keeps, after each, what
    the steps to come can still reach. What falls out below makes a rest more than a half or less; what falls out above
    must repeat the sign.
    """
    kept = QUOTIENT_BITS + 1  # and the bit below the point
    value = Cat(0, total, total[-1].replicate(kept + 63 - 65)).as_signed()
    sign = total[-1]
    rest, large = [], []
    for k in reversed(range(SHIFT_BITS)):
        step, width = 1 << k, kept + (1 << k) - 1
        taken = Signal(signed(width), name=f"shifted_{step}")
        m.d.comb += taken.eq(Mux(shift[k], value[step:], value[:width]))
        rest.append(shift[k] & value[:step].any())
        large.append(~shift[k] & (value[width:] ^ sign.replicate(step)).any())
        value = taken
    half, low = value[0], value[1:].as_signed()
    up = half & (Cat(*rest).any() | low[0])
    beyond = Cat(*large, low[-1] ^ sign).any()
    limit = 1 << (QUOTIENT_BITS - 1)
    return Mux(beyond, Mux(sign, -limit, limit - 1), low) + up
