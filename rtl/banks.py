"""Memories that are written and read at different widths, and cut into partitions."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.rtl.cells import Ram, bits_for

__all__ = ["Narrow", "place_of"]


def place_of(m: Any, row: Any, rows: int, partitions: int, name: str) -> tuple[list[Any], Any]:
    """Which partition a row is in (one bit each), and its row there. `rows` is of one partition."""
    inside = Signal(bits_for(rows), name=f"{name}_inside")
    hit = [Signal(name=f"{name}_in_{p}") for p in range(partitions)]
    if partitions == 1:
        m.d.comb += [hit[0].eq(1), inside.eq(row)]
        return hit, inside
    if rows & (rows - 1) == 0:
        low = rows.bit_length() - 1
        m.d.comb += inside.eq(row[:low])
        for p in range(partitions):
            m.d.comb += hit[p].eq(row[low:] == p)
        return hit, inside
    for p in range(partitions):
        above = row >= p * rows if p else 1
        m.d.comb += hit[p].eq(above & (row < (p + 1) * rows))
        with m.If(hit[p]):
            m.d.comb += inside.eq(row - p * rows)
    return hit, inside


class Narrow(wiring.Component):
    """A memory of rows of `row` bits that is written in units of `unit` bits and read in units of `word` bits.

    Latency and throughput: as Ram; the choice of the word within its row follows the memory's output.
    w_at : in units of `unit`;  r_at : in units of `word`. row is a power-of-two multiple of both.
    """

    def __init__(self, *, rows: int, row: int, unit: int, word: int) -> None:
        self._rows, self._row, self._unit, self._word = rows, row, unit, word
        super().__init__(
            {
                "w_en": In(1),
                "w_at": In(bits_for(rows * (row // unit))),
                "w_data": In(unit),
                "r_en": In(1),
                "r_at": In(bits_for(rows * (row // word))),
                "r_data": Out(word),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        m.submodules.memory = memory = Ram(self._row, self._rows, self._unit)
        units, words = self._row // self._unit, self._row // self._word
        low_w, low_r = units.bit_length() - 1, words.bit_length() - 1
        m.d.comb += [
            memory.w_en.eq(Mux(self.w_en, Const(1, units) << self.w_at[:low_w] if low_w else 1, 0)),
            memory.w_addr.eq(self.w_at[low_w:]),
            memory.w_data.eq(Cat(self.w_data for _ in range(units))),
            memory.r_en.eq(self.r_en),
            memory.r_addr.eq(self.r_at[low_r:]),
        ]
        if low_r:
            which = Signal(low_r, reset_less=True)
            with m.If(self.r_en):
                m.d.sync += which.eq(self.r_at[:low_r])
            m.d.comb += self.r_data.eq(memory.r_data.word_select(which, self._word))
        else:
            m.d.comb += self.r_data.eq(memory.r_data)
        return m
