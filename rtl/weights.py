"""Weights: the weight buffer of the columns that share a broadcast register."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.spec import ArchSpec
from gossamer.rtl.cells import Ram, bits_for
from gossamer.rtl.expander import row_bits
from gossamer.rtl.operand import natural_bytes, phase_bits, place_layout

__all__ = ["Weights"]


class Weights(wiring.Component):
    """Latency: as Ram: what is written in cycle t is read by an address given in t + 1 and seen in t + 2.
    Throughput: a read and a write a cycle.

    write, at, row : a whole row.  r_en, r_at, r_data : a row is read.
    operand : with dynamic operands, a beat instead of a row. The buffer is then cut into spec.weight_banks memories,
    step by step, so that a beat of TRANSPOSED goes to all of them at once; a beat of NATURAL and a row go to one.
    """

    def __init__(self, spec: ArchSpec, columns: range) -> None:
        self._spec, self._columns = spec, columns
        width = len(columns) * spec.macs * row_bits(spec)
        at = bits_for(spec.weight_steps)
        ports = {"write": In(1), "at": In(at), "row": In(width), "r_en": In(1), "r_at": In(at), "r_data": Out(width)}
        if spec.dynamic_operands:
            ports["operand"] = In(place_layout(spec))
        super().__init__(ports)

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()
        if not spec.dynamic_operands:
            m.submodules.memory = memory = Ram(len(self.row), spec.weight_steps)
            m.d.comb += [
                memory.w_en.eq(self.write),
                memory.w_addr.eq(self.at),
                memory.w_data.eq(self.row),
                memory.r_en.eq(self.r_en),
                memory.r_addr.eq(self.r_at),
                self.r_data.eq(memory.r_data),
            ]
            return m
        banks = spec.weight_banks
        low = banks.bit_length() - 1
        operand, width = self.operand, len(self.row)
        # A row of the memories: its step without the bank.
        to = Signal(range(spec.weight_steps))
        m.d.comb += to.eq(Mux(self.write, self.at, operand.step))
        one = self._whole_or_natural(m)
        read = Signal(range(banks))  # the bank that was read last
        with m.If(self.r_en):
            m.d.sync += read.eq(self.r_at[:low])
        rows: list[Any] = []
        for bank in range(banks):
            memory = Ram(width, spec.weight_steps // banks, row_bits(spec))
            m.submodules[f"bank_{bank}"] = memory
            here = to[:low] == bank if low else 1
            m.d.comb += [
                memory.w_en.eq(self._enables(here)),
                memory.w_addr.eq(to[low:]),
                memory.w_data.eq(Mux(operand.transposed, self._transposed(bank), one)),
                memory.r_en.eq(self.r_en & (self.r_at[:low] == bank) if low else self.r_en),
                memory.r_addr.eq(self.r_at[low:]),
            ]
            rows.append(memory.r_data)
        m.d.comb += self.r_data.eq(Cat(*rows).word_select(read, width) if low else rows[0])
        return m

    def _macs(self) -> list[tuple[int, int]]:
        """(column, MAC) in the order of a row."""
        return [(c, v) for c in self._columns for v in range(self._spec.macs)]

    def _weight(self, value: Any, phase: Any, mac: int) -> Any:
        """Value and implied select of a MAC in a step of this phase."""
        return Cat(value, Const(mac, self._spec.macs.bit_length() - 1), phase)

    def _whole_or_natural(self, m: Any) -> Any:
        """The row as the expander made it, or with the bytes of a NATURAL beat at every MAC."""
        bytes_, phase = self.operand.natural_bytes, self.operand.phase
        size = natural_bytes(self._spec)
        natural = Cat(*(self._weight(bytes_.word_select(c % size, 8), phase, v) for c, v in self._macs()))
        row = Signal(len(self.row))
        m.d.comb += row.eq(Mux(self.write, self.row, natural))
        return row

    def _transposed(self, bank: int) -> Any:
        """The bytes of a TRANSPOSED beat at every column."""
        spec, bits = self._spec, phase_bits(self._spec)
        steps = []
        for v in range(spec.macs):
            byte = self.operand.bytes.word_select((bank * spec.macs + v) % spec.axi_bytes, 8)
            # Such a beat begins in bank 0, so its phase and the bank's number have no bit in common.
            phase = (self.operand.phase | bank)[:bits]
            steps.append(self._weight(byte, phase, v))
        return Cat(*(Cat(*steps) for _ in self._columns))

    def _enables(self, here: Any) -> Any:
        """Enables of a bank, for every column and MAC."""
        spec, operand = self._spec, self.operand
        out = []
        for c, v in self._macs():
            natural = here & (operand.mac == v) & (operand.column == c // natural_bytes(spec))
            transposed = (operand.column == c) & (operand.mac == v // spec.axi_bytes)
            out.append((self.write & here) | (operand.natural & natural) | (operand.transposed & transposed))
        return Cat(*out)
