"""Gearbox: beats to records of the step stream, whatever their sizes."""

import math
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import legal_encodings, record_bytes
from gossamer.rtl.cells import bits_for

__all__ = ["Gearbox"]


class Gearbox(wiring.Component):
    """Latency: one cycle from the beat that ends a record to the record. Throughput: a beat a cycle, of which at most
    one ends a record, since no record is shorter than a beat.

    last : the last beat of a load; bytes that are left over are dropped.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        self.sizes = {e: record_bytes(spec, e) for e in legal_encodings(spec)}
        self.record = max(self.sizes.values())
        super().__init__(
            {
                "valid": In(1),
                "last": In(1),
                "encoding": In(3),
                "beat": In(8 * spec.axi_bytes),
                "o_valid": Out(1),
                "o_encoding": Out(3),
                "o_record": Out(8 * self.record),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        beat = self._spec.axi_bytes
        # Every fill level is a multiple of the grain, so the shifters have no finer steps.
        grain = math.gcd(beat, *self.sizes.values())
        most = self.record // grain
        size = Signal(bits_for(most + 1))
        for encoding, n in self.sizes.items():
            with m.If(self.encoding == int(encoding)):
                m.d.comb += size.eq(n // grain)
        held = Signal(8 * self.record, reset_less=True)
        level = Signal(bits_for(most + 1))  # grains held, less than a record
        total = Signal(bits_for(most + beat // grain + 1))
        ends = Signal()
        joined = Signal(8 * self.record)
        # The beat lies behind what is held; what is held above `level` is zero.
        shifted = Cat(self.beat, Const(0, 8 * self.record)) << (level * (8 * grain))
        wide = Signal(8 * (self.record + beat))
        m.d.comb += [
            total.eq(level + beat // grain),
            ends.eq(total >= size),
            wide.eq(shifted[: 8 * (self.record + beat)] | Mux(level == 0, 0, held)),
            joined.eq(wide),
        ]
        m.d.sync += [self.o_valid.eq(self.valid & ends), self.o_encoding.eq(self.encoding), self.o_record.eq(joined)]
        with m.If(self.valid):
            with m.If(ends):
                m.d.sync += level.eq(total - size)
                for n in self.sizes.values():
                    with m.If(size == n // grain):
                        m.d.sync += held.eq(wide[8 * n :])
            with m.Else():
                m.d.sync += [level.eq(total), held.eq(joined)]
            with m.If(self.last):
                m.d.sync += level.eq(0)
        return m
