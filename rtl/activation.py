"""The activation bank of a lane: written in beats and codes, read as a window that may begin at any hop."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.spec import ArchSpec
from gossamer.rtl.banks import place_of
from gossamer.rtl.cells import Ram
from gossamer.rtl.matmul import hop_bits
from gossamer.rtl.pe import OPERAND, operand_layout
from gossamer.rtl.windows import DEST_BITS
from gossamer.rtl.writes import write_ports

__all__ = ["Activation"]


class Activation(wiring.Component):
    """Latency: two cycles from `hop` to the operands: memory, then window and zero point. What is written in cycle t
    is read by a hop given in t + 1. Throughput: a window and a write to each partition in every cycle.

    The bank is group / hop sub-banks of hop bytes. A window that begins between two words reads, in the sub-banks
    below its remainder, the word that follows; every element stays in the place its address modulo group gives it.
    A row may hold several words: it is then as wide as a beat, and the word is picked behind the memory.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "hop": In(hop_bits(spec)),
                "hop_valid": In(1),
                "zero_point": In(8),
                "is_signed": In(1),
                "operands": Out(operand_layout(spec)),
                "load": In(1),
                "load_at": In(DEST_BITS),
                "load_data": In(8 * spec.axi_bytes),
                "drain": In(1),
                "drain_raw": In(1),
                "drain_at": In(24),
                "drain_data": In(32 * spec.ppu),
                "conflict": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()
        row, word, hop = spec.activation_row_bytes, spec.group, spec.hop
        partitions = spec.activation_partitions
        rows = spec.activation_bytes // partitions // row
        grain = min(spec.ppu, hop)
        ports = write_ports(
            m,
            rows=rows,
            partitions=partitions,
            row_bytes=row,
            beat_bytes=spec.axi_bytes,
            ppu=spec.ppu,
            grain=grain,
            load=(self.load, self.load_at, self.load_data),
            drain=(self.drain, self.drain_raw, self.drain_at, self.drain_data),
            conflict=self.conflict,
        )
        written = []
        for p, port in enumerate(ports):
            enable, data = Signal(row // grain, name=f"enable_{p}"), Signal(8 * row, name=f"data_{p}")
            m.d.comb += [enable.eq(port.enable), data.eq(port.data)]
            written.append((enable, data, port.row))

        subs, words = word // hop, row // word
        sub_bits, word_bits = subs.bit_length() - 1, words.bit_length() - 1
        base = self.hop[sub_bits:]
        window: list[Any] = []
        for s in range(subs):
            at = Signal(len(base) + 1, name=f"word_{s}")
            m.d.comb += at.eq(base + (self.hop[:sub_bits] > s) if s < subs - 1 else base)
            hit, inside = place_of(m, at[word_bits:], rows, partitions, f"read_{s}")
            outputs = []
            for p, (enable, data, w_row) in enumerate(written):
                memory = Ram(8 * hop * words, rows, 8 * grain)
                m.submodules[f"memory_{s}_{p}"] = memory
                starts = [w * word + s * hop for w in range(words)]
                m.d.comb += [
                    memory.w_en.eq(Cat(enable[k // grain : (k + hop) // grain] for k in starts)),
                    memory.w_data.eq(Cat(data[8 * k : 8 * (k + hop)] for k in starts)),
                    memory.w_addr.eq(w_row),
                    memory.r_en.eq(self.hop_valid & hit[p]),
                    memory.r_addr.eq(inside),
                ]
                seen = Signal(name=f"seen_{s}_{p}", reset_less=True)
                m.d.sync += seen.eq(hit[p])
                outputs.append(memory.r_data if partitions == 1 else Mux(seen, memory.r_data, 0))
            read = Signal(8 * hop * words, name=f"read_data_{s}")
            joined = outputs[0]
            for more in outputs[1:]:
                joined = joined | more
            m.d.comb += read.eq(joined)
            if word_bits:
                which = Signal(word_bits, name=f"which_{s}", reset_less=True)
                m.d.sync += which.eq(at[:word_bits])
                window.append(read.word_select(which, 8 * hop))
            else:
                window.append(read)

        codes = Signal(8 * word)
        zero = Signal(8, reset_less=True)
        is_signed = Signal(reset_less=True)
        m.d.comb += codes.eq(Cat(*window))
        m.d.sync += [zero.eq(self.zero_point), is_signed.eq(self.is_signed)]
        wide_zero = Signal(OPERAND)
        m.d.comb += wide_zero.eq(Cat(zero, zero[7] & is_signed))
        for k in range(word):
            code = codes[8 * k : 8 * k + 8]
            difference = Signal(OPERAND, name=f"operand_{k}", reset_less=True)
            m.d.sync += difference.eq(Cat(code, code[7] & is_signed).as_signed() - wide_zero)
            m.d.comb += self.operands[k].eq(difference)
        return m
