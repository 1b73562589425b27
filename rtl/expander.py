"""Expander: a record of the step stream becomes a row of the weight buffer, a value and a select for every MAC."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import Encoding
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import legal_encodings, record_bytes

__all__ = ["Expander", "row_bits"]


def row_bits(spec: ArchSpec) -> int:
    """Bits of a MAC's part of a weight row: value, then select."""
    return 8 + spec.select_bits


class Expander(wiring.Component):
    """Latency: two cycles. Throughput: a record a cycle.

    phase : steps of this load so far, modulo group / macs; a DENSE record's selects follow from it.
    o_row : for column 0, MAC 0, then MAC 1, ..., then column 1: value (8 bits), select.
    Under MASK, the first cycle counts the set bits in front of every bit, the second picks.
    """

    def __init__(self, spec: ArchSpec, record: int) -> None:
        self._spec, self._record = spec, record
        self.encodings = legal_encodings(spec)
        super().__init__(
            {
                "valid": In(1),
                "encoding": In(3),
                "phase": In(5),
                "record": In(8 * record),
                "o_valid": Out(1),
                "o_row": Out(spec.columns * spec.macs * row_bits(spec)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()
        width, bits = spec.columns * spec.macs, spec.select_bits
        valid = Signal()
        values = Signal(8 * width, reset_less=True)
        m.d.sync += [valid.eq(self.valid), values.eq(self.record), self.o_valid.eq(valid)]
        if bits == 0:
            m.d.sync += self.o_row.eq(values)
            return m
        encoding = Signal(3, reset_less=True)
        plain = [Signal(bits, name=f"select_{k}", reset_less=True) for k in range(width)]
        m.d.sync += encoding.eq(self.encoding)
        shift = spec.macs.bit_length() - 1
        for k in range(width):
            dense = Cat(Const(k % spec.macs, shift), self.phase)[:bits] if shift else self.phase[:bits]
            at = 8 * width + bits * k
            index = self.record[at : at + bits]
            m.d.sync += plain[k].eq(Mux(self.encoding == Encoding.DENSE, dense, index))
        selects: list[Any] = list(plain)
        if Encoding.MASK in self.encodings:
            for c in range(spec.columns):
                at = 8 * width + spec.group * c
                mask = Signal(spec.group, name=f"mask_{c}", reset_less=True)
                m.d.sync += mask.eq(self.record[at : at + spec.group])
                ranks = []
                count: Any = Const(0, 1)
                for i in range(spec.group):
                    rank = Signal(range(spec.group + 1), name=f"rank_{c}_{i}", reset_less=True)
                    m.d.sync += rank.eq(count)
                    ranks.append(rank)
                    count = (count + self.record[at + i])[: spec.group.bit_length()]
                for v in range(spec.macs):
                    picked: Any = Const(0, bits)
                    for i in range(spec.group):
                        picked = picked | Mux(mask[i] & (ranks[i] == v), i, 0)
                    k = c * spec.macs + v
                    selects[k] = Mux(encoding == Encoding.MASK, picked[:bits], plain[k])
        row = [Cat(values[8 * k : 8 * k + 8], selects[k]) for k in range(width)]
        m.d.sync += self.o_row.eq(Cat(*row))
        assert record_bytes(spec, Encoding.DENSE) <= self._record
        return m
