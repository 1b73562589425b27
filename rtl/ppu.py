"""The post-processing unit of one column of a lane: bias, requantise, residual, clamp, table."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.numerics import MULTIPLIER_BITS, RESIDUAL_MULTIPLIER_BITS
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.banks import Narrow
from gossamer.rtl.cells import bits_for, delayed

__all__ = ["ADD", "CLAMP", "LOOKUP", "MULTIPLY", "ROUND", "Ppu", "table_rows"]

SHIFT_BITS = 6

ADD = data.StructLayout({"residual": 1, "residual_signed": 1, "residual_zero": 8})
"""Control of the first stage, for all columns; each later stage's control arrives with its data."""
MULTIPLY = data.StructLayout({"residual_multiplier": RESIDUAL_MULTIPLIER_BITS})
ROUND = data.StructLayout({"raw": 1, "residual_shift": 5})
CLAMP = data.StructLayout({"raw": 1, "zero_point": signed(9), "lo": signed(9), "hi": signed(9)})
LOOKUP = data.StructLayout({"enable": 1, "table": 2})


def table_rows(spec: ArchSpec) -> int:
    """Rows of a column's copy of the tables, one beat each."""
    return spec.tables * 256 // spec.axi_bytes


class Ppu(wiring.Component):
    """Latency: 2 + ppu_stages cycles from the accumulator to the code, one more with tables. Throughput: one a cycle.

    Stages: bias; multiply and round (ppu_stages registers); zero point and clamp; table. The first of ppu_stages
    multiplies, the last adds the residual and rounds; those between are there to be retimed.
    bias with the accumulator, multiplier a cycle later, shift with the control of rounding. A raw accumulator passes
    unchanged (its bias is 0 and its multiplier 1).
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        ports: dict[str, Any] = {
            "accumulator": In(signed(32)),
            "bias": In(signed(32)),
            "residual": In(8),
            "multiplier": In(MULTIPLIER_BITS),
            "shift": In(SHIFT_BITS),
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
        biased, distance = Signal(signed(33), reset_less=True), Signal(signed(9), reset_less=True)
        code = Cat(self.residual, self.residual[7] & self.add.residual_signed).as_signed()
        zero = Cat(self.add.residual_zero, self.add.residual_zero[7] & self.add.residual_signed).as_signed()
        m.d.sync += [biased.eq(self.accumulator + self.bias), distance.eq(Mux(self.add.residual, code - zero, 0))]

        # Multiply.
        product = Signal(signed(33 + MULTIPLIER_BITS))
        residual = Signal(signed(9 + RESIDUAL_MULTIPLIER_BITS))
        m.d.comb += [
            product.eq(biased * Cat(self.multiplier, 0).as_signed()),
            residual.eq(distance * Cat(self.multiply.residual_multiplier, 0).as_signed()),
        ]
        late_product = delayed(m, product, spec.ppu_stages - 1, "product")
        late_residual = delayed(m, residual, spec.ppu_stages - 1, "residual")

        # Round half to even: add just less than a half, and the last bit of it where the quotient is odd.
        total, rounded = Signal(signed(64)), Signal(signed(64))
        up = Signal(SHIFT_BITS)
        quotient = Signal(signed(32), reset_less=True)
        m.d.comb += [
            up.eq(self.shift - self.round.residual_shift),
            total.eq(late_product + (late_residual << up)),
            rounded.eq((total + (Const(1, 1) << self.shift)[1:48] - 1 + total.bit_select(self.shift, 1)) >> self.shift),
        ]
        limit = 2048  # beyond every code and zero point
        saturated = Mux(rounded > limit - 1, limit - 1, Mux(rounded < -limit, -limit, rounded))
        m.d.sync += quotient.eq(Mux(self.round.raw, total[:32], saturated))

        # Zero point and clamp; a raw accumulator passes by.
        moved, above, below = Signal(signed(33)), Signal(signed(33)), Signal(signed(33))
        clamped = Signal(32, reset_less=True)
        m.d.comb += [
            moved.eq(quotient + self.clamp.zero_point),
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
