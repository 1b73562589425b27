"""FETCH: reads the program in bursts into a buffer of two bursts, decodes, and dispatches to the queues."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import COMMON, FORMATS, UNIT_OF, WORD_BYTES, ErrorCode, Op, Unit
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.axi import ADDRESS_BITS, INCR, axi_read, size_of
from gossamer.rtl.cells import Ram, bits_for
from gossamer.rtl.decode import Decoder
from gossamer.rtl.layouts import INDEX_BITS

__all__ = ["Fetch"]


class Fetch(wiring.Component):
    """Latency: two cycles from the last beat of an instruction to its dispatch (FETCH_LATENCY). Throughput: one
    burst address and one instruction a cycle.

    run : high from cycle 0 to the end of the stage.  base : byte address, aligned to a burst.  length : instructions.
    queue_full : by Unit.  dispatch : one bit by Unit (FETCH stands for END), in the cycle of the dispatch.
    error : an ErrorCode, as long as it lasts, for the instruction `index`.  idle : no burst is in flight.
    blocked : nothing to wait for from memory, and nothing can be dispatched.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "axi": Out(axi_read(spec.fetch_bytes)),
                "run": In(1),
                "halt": In(1),
                "base": In(ADDRESS_BITS),
                "length": In(INDEX_BITS),
                "queue_full": In(len(Unit)),
                "dispatch": Out(len(Unit)),
                "word": Out(8 * WORD_BYTES),
                "index": Out(INDEX_BITS),
                "end_seen": Out(1),
                "error": Out(4),
                "idle": Out(1),
                "blocked": Out(1),
                "beat": Out(1),
                "burst": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec, axi = self._spec, self.axi
        m = Module()
        burst, beats = spec.fetch_burst, spec.fetch_beats
        stride = burst * WORD_BYTES

        # Addresses: a burst is asked for when one of the two halves of the buffer is free.
        remaining = Signal(INDEX_BITS)  # instructions not asked for
        asked = Signal(INDEX_BITS)  # bursts
        begun = Signal()
        held = Signal(2)  # bursts asked for whose last instruction is not dispatched
        flying = Signal(2)  # bursts asked for whose last beat is not here
        left = Mux(begun, remaining, self.length)
        size = Signal(bits_for(burst + 1))
        decide = Signal()
        burst_done = Signal()
        release = Signal()
        slot_free = ~axi.arvalid | axi.arready
        m.d.comb += [
            size.eq(Mux(left < burst, left, burst)),
            decide.eq(self.run & ~self.halt & ~self.end_seen & (left != 0) & (held < 2) & slot_free),
            axi.arsize.eq(size_of(spec.fetch_bytes)),
            axi.arburst.eq(INCR),
            axi.rready.eq(1),
            burst_done.eq(axi.rvalid & axi.rlast),
            self.beat.eq(axi.rvalid),
            self.burst.eq(axi.arvalid & axi.arready),
            self.idle.eq(flying == 0),
        ]
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(decide):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(self.base + asked * stride),
                axi.arlen.eq(size * beats - 1),
                asked.eq(asked + 1),
                begun.eq(1),
                remaining.eq(left - size),
            ]
        m.d.sync += [held.eq(held + decide - release), flying.eq(flying + decide - burst_done)]

        # The buffer: written beat by beat, read one instruction ahead.
        depth = 2 * burst
        m.submodules.buffer = buffer = Ram(8 * WORD_BYTES, depth, 8 * spec.fetch_bytes)
        part = Signal(bits_for(beats))
        tail = Signal(bits_for(depth))
        head = Signal(bits_for(depth))
        level = Signal(bits_for(depth + 1))
        ready = Signal()
        read = Signal()
        done = Signal()
        whole = Signal()
        m.d.comb += [
            whole.eq(axi.rvalid & (part == beats - 1)),
            buffer.w_en.eq(Mux(axi.rvalid, Const(1, beats) << part, 0)),
            buffer.w_addr.eq(tail),
            buffer.w_data.eq(Cat(axi.rdata for _ in range(beats))),
            buffer.r_en.eq(read),
            buffer.r_addr.eq(head),
            read.eq((level != 0) & (~ready | done)),
            self.word.eq(buffer.r_data),
        ]
        with m.If(axi.rvalid):
            m.d.sync += part.eq(Mux(whole, 0, part + 1))
        with m.If(whole):
            m.d.sync += tail.eq(tail + 1)
        with m.If(read):
            m.d.sync += [head.eq(head + 1), ready.eq(1)]
        with m.Elif(done):
            m.d.sync += ready.eq(0)
        m.d.sync += level.eq(level + whole - read)

        # Decode and dispatch.
        m.submodules.decoder = decoder = Decoder(spec)
        go = Signal()
        full = Signal()
        m.d.comb += [decoder.word.eq(self.word), go.eq(ready & ~self.halt & ~self.end_seen & (self.error == 0))]
        with m.Switch(decoder.op):
            for op in Op:
                unit = UNIT_OF[op]
                with m.Case(int(op)):
                    m.d.comb += full.eq(0 if op is Op.END else self.queue_full[unit])
                    m.d.comb += self.dispatch[unit].eq(done)
        m.d.comb += [
            done.eq(go & ~full),
            release.eq(done & (((self.index + 1) % burst == 0) | (self.index + 1 == self.length))),
        ]
        with m.If(done):
            m.d.sync += self.index.eq(self.index + 1)
            with m.If(self.dispatch[Unit.FETCH]):
                m.d.sync += self.end_seen.eq(1)

        # Errors are sticky here until the next start clears everything.
        bad_response = Signal()
        with m.If(axi.rvalid & axi.rresp[1]):
            m.d.sync += bad_response.eq(1)
        with m.If(bad_response):
            m.d.comb += self.error.eq(ErrorCode.FETCH_RESPONSE)
        with m.Elif(ready & ~self.end_seen):
            m.d.comb += self.error.eq(decoder.error)
        with m.Elif(self.run & ~self.end_seen & (self.index == self.length)):
            m.d.comb += self.error.eq(ErrorCode.NO_END)
        m.d.comb += self.blocked.eq(self.idle & ~decide & ~done & ~read & ~whole & (self.end_seen | (ready & full)))
        assert len(FORMATS[Op.END]) == 0
        assert COMMON[0].name == "opcode"
        return m
