"""The address side of LOAD and STORE: a strided region of beats becomes AXI bursts."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import FORMATS, Op
from gossamer.arch.memory import BOUNDARY
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.cells import bits_for

__all__ = ["REGION", "Bursts"]

_NAMES = ("address", "beats", "rows", "blocks", "row_stride", "block_stride")

REGION = data.StructLayout({name: next(f.bits for f in FORMATS[Op.LOAD] if f.name == name) for name in _NAMES})
"""The region fields that LOAD and STORE share."""


class Bursts(wiring.Component):
    """Latency: the first burst is decided in the cycle of the start (if there is a credit) and offered on the bus in
    the next. Throughput: one burst a cycle.

    start, region : begin (only when `ready`).  retire : a burst's last beat or response was seen.
    decide : a burst is decided in this cycle; `last` tells whether it is the instruction's last.
    address, length, valid, accept : the bus, address in beats, length in beats less one.
    accepted : with `accept`;  accepted_last : and it was the instruction's last burst.
    active : from the cycle after the start to `freeing`, the cycle in which the last burst is accepted.
    """

    def __init__(self, spec: ArchSpec, outstanding: int) -> None:
        self._spec, self._outstanding = spec, outstanding
        super().__init__(
            {
                "start": In(1),
                "region": In(REGION),
                "retire": In(1),
                "ready": Out(1),
                "active": Out(1),
                "freeing": Out(1),
                "decide": Out(1),
                "last": Out(1),
                "address": Out(32),
                "length": Out(8),
                "valid": Out(1),
                "accept": In(1),
                "flying": Out(bits_for(outstanding + 1)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()
        now = Signal(REGION)  # the burst's address, beats left in the row, rows and blocks left
        kept = Signal(REGION)
        row_start = Signal(32)  # of the current row and block
        block_start = Signal(32)
        row_now = Signal(32)
        block_now = Signal(32)
        row_beats = Signal(16)
        row_beats_now = Signal(16)
        block_rows = Signal(12)
        block_rows_now = Signal(12)
        pending = Signal()
        slot_last = Signal()
        accepted = Signal()
        m.d.comb += now.eq(kept)
        m.d.comb += [row_now.eq(row_start), block_now.eq(block_start)]
        m.d.comb += [row_beats_now.eq(row_beats), block_rows_now.eq(block_rows)]
        with m.If(self.start):
            m.d.comb += now.eq(self.region)
            m.d.comb += [row_now.eq(self.region.address), block_now.eq(self.region.address)]
            m.d.comb += [row_beats_now.eq(self.region.beats), block_rows_now.eq(self.region.rows)]

        per_page = BOUNDARY // spec.axi_bytes
        longest = min(spec.burst_beats, per_page)
        size = Signal(bits_for(longest + 1))
        to_boundary = Signal(bits_for(per_page + 1))
        m.d.comb += to_boundary.eq(per_page - now.address[: per_page.bit_length() - 1])
        limit = Mux(now.beats < longest, now.beats, longest)
        row_ends = Signal()
        rows_end = Signal()
        blocks_end = Signal()
        m.d.comb += [
            size.eq(Mux(to_boundary < limit, to_boundary, limit)),
            row_ends.eq(size == now.beats),
            rows_end.eq(now.rows == 1),
            blocks_end.eq(now.blocks == 1),
            self.last.eq(row_ends & rows_end & blocks_end),
            accepted.eq(self.valid & self.accept),
            self.freeing.eq(accepted & slot_last),
            self.ready.eq(~self.active | self.freeing),
            self.decide.eq((self.start | pending) & (self.flying < self._outstanding) & (~self.valid | self.accept)),
        ]

        m.d.sync += self.flying.eq(self.flying + self.decide - self.retire)
        with m.If(self.start):
            m.d.sync += self.active.eq(1)
        with m.Elif(self.freeing):
            m.d.sync += self.active.eq(0)
        with m.If(accepted):
            m.d.sync += self.valid.eq(0)

        m.d.sync += [kept.eq(now), row_start.eq(row_now), block_start.eq(block_now)]
        m.d.sync += [row_beats.eq(row_beats_now), block_rows.eq(block_rows_now)]
        with m.If(self.start):
            m.d.sync += pending.eq(1)
        with m.If(self.decide):
            m.d.sync += [
                self.valid.eq(1),
                self.address.eq(now.address),
                self.length.eq(size - 1),
                slot_last.eq(self.last),
                pending.eq(~self.last),
                kept.address.eq(now.address + size),
                kept.beats.eq(now.beats - size),
            ]
            with m.If(row_ends):
                next_row = (row_now + now.row_stride)[:32]
                next_block = (block_now + now.block_stride)[:32]
                m.d.sync += kept.beats.eq(row_beats_now)
                with m.If(~rows_end):
                    m.d.sync += [kept.rows.eq(now.rows - 1), kept.address.eq(next_row), row_start.eq(next_row)]
                with m.Else():
                    m.d.sync += [
                        kept.rows.eq(block_rows_now),
                        kept.blocks.eq(now.blocks - 1),
                        kept.address.eq(next_block),
                        row_start.eq(next_block),
                        block_start.eq(next_block),
                    ]
        return m
