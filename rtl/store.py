"""STORE: beats of the lanes' output buffers to a strided region of DRAM."""

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import FORMATS, Op
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.axi import INCR, axi_write, size_of
from gossamer.rtl.bursts import REGION, Bursts
from gossamer.rtl.cells import Fifo, bits_for, delayed
from gossamer.rtl.layouts import INDEX_BITS, entry_layout
from gossamer.rtl.layouts import semaphores as SEMAPHORE_COUNT
from gossamer.rtl.windows import DEST_BITS

__all__ = ["Store"]

_WIDTH = {f.name: f.bits for f in FORMATS[Op.STORE]}
_KEPT = ("source", "beats", "rows", "blocks", "grid", "tile_beats", "tile_rows")
_DESCRIPTOR = data.StructLayout({**{name: _WIDTH[name] for name in _KEPT}, "tile": DEST_BITS})
_RESPONSE = data.StructLayout({"last": 1, "post": SEMAPHORE_COUNT, "index": INDEX_BITS})


class Store(wiring.Component):
    """Latency: the first burst address follows the start by one cycle; a burst accepted in cycle t offers its first
    beat in t + STORE_LATENCY: memory read, lane multiplexer, data register. Throughput: one burst address and one
    beat a cycle, whatever the memory's stalls: four beats are read ahead.

    read, at : all lanes' output buffers, whose beats are in `beats` in the next cycle.
    beat, first, last : a beat taken by the bus, the first and the last of an instruction.
    post : semaphores, in the cycle before the instruction has ended;  done : that an instruction ends then.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "axi": Out(axi_write(spec.axi_bytes)),
                "start": In(1),
                "head": In(entry_layout(Op.STORE)),
                "ready": Out(1),
                "active": Out(1),
                "freeing": Out(1),
                "burst": Out(1),
                "beat": Out(1),
                "first": Out(1),
                "last": Out(1),
                "done": Out(1),
                "post": Out(SEMAPHORE_COUNT),
                "error": Out(1),
                "error_index": Out(INDEX_BITS),
                "read": Out(1),
                "at": Out(DEST_BITS),
                "beats": In(data.ArrayLayout(8 * spec.axi_bytes, spec.lanes)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec, axi, head = self._spec, self.axi, self.head
        m = Module()
        depth = spec.outstanding_writes + 2

        # Addresses
        m.submodules.bursts = bursts = Bursts(spec, spec.outstanding_writes)
        shift = size_of(spec.axi_bytes)
        m.d.comb += [
            bursts.start.eq(self.start),
            bursts.region.eq(Cat(*(head[name] for name in REGION.members))),
            bursts.accept.eq(axi.awready),
            bursts.retire.eq(axi.bvalid),
            axi.awaddr.eq(bursts.address << shift),
            axi.awlen.eq(bursts.length),
            axi.awsize.eq(shift),
            axi.awburst.eq(INCR),
            axi.awvalid.eq(bursts.valid),
            axi.bready.eq(1),
            self.ready.eq(bursts.ready),
            self.active.eq(bursts.active),
            self.freeing.eq(bursts.freeing),
            self.burst.eq(axi.awvalid & axi.awready),
        ]

        # Responses come in the order of the bursts; the last one of an instruction ends it.
        m.submodules.responses = responses = Fifo(_RESPONSE.size, depth)
        kept = Signal(_RESPONSE)
        asked = Signal(_RESPONSE)
        answer = Signal(_RESPONSE)
        with m.If(self.start):
            m.d.sync += [kept.post.eq(head.post), kept.index.eq(head.index)]
        m.d.comb += [
            asked.last.eq(bursts.last),
            asked.post.eq(Mux(self.start, head.post, kept.post)),
            asked.index.eq(Mux(self.start, head.index, kept.index)),
            responses.push.eq(bursts.decide),
            responses.w_data.eq(Value.cast(asked)),
            responses.pop.eq(axi.bvalid),
            Value.cast(answer).eq(responses.r_data),
            self.done.eq(axi.bvalid & answer.last),
            self.post.eq(Mux(self.done, answer.post, 0)),
            self.error.eq(axi.bvalid & axi.bresp[1]),
            self.error_index.eq(answer.index),
        ]

        # The data of accepted bursts, and the regions they come from.
        m.submodules.lengths = lengths = Fifo(8, depth)
        m.submodules.descriptors = queue = Fifo(_DESCRIPTOR.size, depth)
        entry = Signal(_DESCRIPTOR)
        work = Signal(_DESCRIPTOR)
        m.d.comb += [
            lengths.push.eq(self.burst),
            lengths.w_data.eq(axi.awlen),
            *(entry[name].eq(head[name]) for name in _KEPT),
            entry.tile.eq(head.tile_rows * head.tile_beats),
            queue.push.eq(self.start),
            queue.w_data.eq(Value.cast(entry)),
        ]
        have = Signal()
        issue = Signal()
        last = Signal()
        x = Signal(_WIDTH["beats"])
        y = Signal(_WIDTH["rows"])
        z = Signal(_WIDTH["blocks"])
        inner_x = Signal(_WIDTH["tile_beats"])
        inner_y = Signal(_WIDTH["tile_rows"])
        lane_x = Signal(8)
        lane_row = Signal(8)
        at = Signal(DEST_BITS)
        at_row = Signal(DEST_BITS)
        at_block = Signal(DEST_BITS)
        row_ends = Signal()
        rows_end = Signal()
        m.d.comb += [
            row_ends.eq(x == work.beats - 1),
            rows_end.eq(row_ends & (y == work.rows - 1)),
            last.eq(rows_end & (z == work.blocks - 1)),
        ]
        with m.If(issue):
            m.d.sync += [x.eq(x + 1), inner_x.eq(inner_x + 1), at.eq(at + 1)]
            with m.If(inner_x == work.tile_beats - 1):
                m.d.sync += [inner_x.eq(0), lane_x.eq(lane_x + 1), at.eq(at_row)]
            with m.If(row_ends):
                next_row = (at_row + work.tile_beats)[:DEST_BITS]
                m.d.sync += [x.eq(0), inner_x.eq(0), lane_x.eq(0), y.eq(y + 1), inner_y.eq(inner_y + 1)]
                m.d.sync += [at.eq(next_row), at_row.eq(next_row)]
                with m.If(inner_y == work.tile_rows - 1):
                    m.d.sync += [inner_y.eq(0), at.eq(at_block), at_row.eq(at_block)]
                    m.d.sync += lane_row.eq(lane_row + (Const(1, 1) << work.grid))
            with m.If(rows_end):
                next_block = (at_block + work.tile)[:DEST_BITS]
                m.d.sync += [y.eq(0), inner_y.eq(0), lane_row.eq(0), z.eq(z + 1)]
                m.d.sync += [at.eq(next_block), at_row.eq(next_block), at_block.eq(next_block)]
        with m.If(~have | (issue & last)):
            source = Signal(_DESCRIPTOR)
            m.d.comb += [Value.cast(source).eq(queue.r_data), queue.pop.eq(1)]
            m.d.sync += [have.eq(queue.valid), work.eq(source)]
            m.d.sync += [x.eq(0), y.eq(0), z.eq(0), inner_x.eq(0), inner_y.eq(0), lane_x.eq(0), lane_row.eq(0)]
            m.d.sync += [at.eq(source.source), at_row.eq(source.source), at_block.eq(source.source)]

        # Read ahead: address; memory output and lane multiplexer; data register.
        ahead = 4
        out = data.StructLayout({"beat": 8 * spec.axi_bytes, "burst_last": 1, "first": 1, "last": 1})
        m.submodules.ahead = fifo = Fifo(out.size, ahead)
        word = Signal(out)
        sent = Signal(out)
        credit = Signal(range(ahead + 1))  # beats read or being read, not yet taken
        counted = Signal(8)
        burst_last = Signal()
        lane = Signal(bits_for(spec.lanes))
        taken = Signal()
        m.d.comb += [
            issue.eq(have & lengths.valid & (credit < ahead)),
            burst_last.eq(counted == lengths.r_data),
            lengths.pop.eq(issue & burst_last),
            self.read.eq(issue),
            self.at.eq(at),
            taken.eq(axi.wvalid & axi.wready),
        ]
        m.d.sync += credit.eq(credit + issue - taken)
        with m.If(issue):
            m.d.sync += [counted.eq(Mux(burst_last, 0, counted + 1)), lane.eq(lane_row + lane_x)]
        first = (x == 0) & (y == 0) & (z == 0)
        m.d.comb += [
            word.beat.eq(Array(self.beats[r] for r in range(spec.lanes))[lane]),
            word.burst_last.eq(delayed(m, burst_last, 1, "burst_last")),
            word.first.eq(delayed(m, first, 1, "first")),
            word.last.eq(delayed(m, last, 1, "last")),
            fifo.push.eq(delayed(m, issue, 1, "issue", reset=True)),
            fifo.w_data.eq(Value.cast(word)),
            fifo.pop.eq(taken),
            Value.cast(sent).eq(fifo.r_data),
            axi.wvalid.eq(fifo.valid),
            axi.wdata.eq(sent.beat),
            axi.wstrb.eq(-1),
            axi.wlast.eq(sent.burst_last),
            self.beat.eq(taken),
            self.first.eq(taken & sent.first),
            self.last.eq(taken & sent.last),
        ]
        return m
