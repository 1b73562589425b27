"""LOAD: a strided region of DRAM to the on-chip memories."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import FORMATS, Encoding, LoadKind, Op
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.axi import INCR, axi_read, size_of
from gossamer.rtl.bursts import REGION, Bursts
from gossamer.rtl.cells import Fifo, bits_for, delayed
from gossamer.rtl.expander import Expander, row_bits
from gossamer.rtl.gearbox import Gearbox
from gossamer.rtl.layouts import INDEX_BITS, entry_layout
from gossamer.rtl.layouts import semaphores as SEMAPHORE_COUNT
from gossamer.rtl.operand import Operand, place_layout
from gossamer.rtl.windows import DEST_BITS, Windows

__all__ = ["Load"]

_WIDTH = {f.name: f.bits for f in FORMATS[Op.LOAD]}
_KEPT = (
    "kind", "encoding", "dest", "beats", "rows", "blocks", "grid", "tile_beats", "tile_rows", "step_beats", "step_rows",
)  # fmt: skip
_DESCRIPTOR = data.StructLayout(
    {
        "index": INDEX_BITS,
        "post": SEMAPHORE_COUNT,
        **{name: _WIDTH[name] for name in _KEPT},
        "tile": DEST_BITS,  # tile_rows * tile_beats
        "skip": DEST_BITS,  # step_rows * tile_beats
    }
)


class Load(wiring.Component):
    """Latency: the first burst address follows the start by one cycle; a beat on the bus in cycle t is in its memory,
    seen by others, in t + LOAD_LATENCY: bus register, lane windows or gearbox and expander, memory register.
    Throughput: one burst address and one beat a cycle.

    start, head : the queue's.  beat, first, last : a beat, the first and the last of an instruction, on the bus.
    keep_activation, keep_output, at : per lane, with `data`.  write : one bit for each kind, with `at_shared`.
    write_weight, at_weight, row : a row of the weight buffer;  operand : with dynamic operands, a beat for it.
    post : semaphores, in the cycle before the instruction has ended;  done : that an instruction ends then.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        operand = {"operand": Out(place_layout(spec))} if spec.dynamic_operands else {}
        super().__init__(
            {
                "axi": Out(axi_read(spec.axi_bytes)),
                "start": In(1),
                "head": In(entry_layout(Op.LOAD)),
                "ready": Out(1),
                "active": Out(1),
                "freeing": Out(1),
                "burst": Out(1),
                "beat": Out(1),
                "beat_kind": Out(3),
                "first": Out(1),
                "last": Out(1),
                "done": Out(1),
                "post": Out(SEMAPHORE_COUNT),
                "error": Out(1),
                "error_index": Out(INDEX_BITS),
                "keep_activation": Out(spec.lanes),
                "keep_output": Out(spec.lanes),
                "at": Out(data.ArrayLayout(DEST_BITS, spec.lanes)),
                "write_offset": Out(1),
                "write_parameter": Out(1),
                "write_table": Out(1),
                "at_shared": Out(DEST_BITS),
                "data": Out(8 * spec.axi_bytes),
                "write_weight": Out(1),
                "at_weight": Out(bits_for(spec.weight_steps)),
                "row": Out(spec.columns * spec.macs * row_bits(spec)),
                **operand,
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec, axi, head = self._spec, self.axi, self.head
        m = Module()

        # Addresses
        m.submodules.bursts = bursts = Bursts(spec, spec.outstanding_reads)
        shift = size_of(spec.axi_bytes)
        m.d.comb += [
            bursts.start.eq(self.start),
            bursts.region.eq(Cat(*(head[name] for name in REGION.members))),
            bursts.accept.eq(axi.arready),
            bursts.retire.eq(axi.rvalid & axi.rlast),
            axi.araddr.eq(bursts.address << shift),
            axi.arlen.eq(bursts.length),
            axi.arsize.eq(shift),
            axi.arburst.eq(INCR),
            axi.arvalid.eq(bursts.valid),
            axi.rready.eq(1),
            self.ready.eq(bursts.ready),
            self.active.eq(bursts.active),
            self.freeing.eq(bursts.freeing),
            self.burst.eq(axi.arvalid & axi.arready),
        ]

        # What the beats to come belong to: every instruction here has a burst in flight or yet to be decided.
        m.submodules.descriptors = queue = Fifo(_DESCRIPTOR.size, spec.outstanding_reads + 2)
        entry = Signal(_DESCRIPTOR)
        what = Signal(_DESCRIPTOR)
        m.d.comb += [
            *(entry[name].eq(head[name]) for name in ("index", "post", *_KEPT)),
            entry.tile.eq(head.tile_rows * head.tile_beats),
            entry.skip.eq(head.step_rows * head.tile_beats),
            queue.push.eq(self.start),
            queue.w_data.eq(Value.cast(entry)),
            Value.cast(what).eq(queue.r_data),
        ]

        # Where the beat on the bus stands in its region.
        x = Signal(_WIDTH["beats"])
        y = Signal(_WIDTH["rows"])
        z = Signal(_WIDTH["blocks"])
        line = Signal(DEST_BITS)  # beats of this load so far
        at = Signal(DEST_BITS)
        at_row = Signal(DEST_BITS)
        at_block = Signal(DEST_BITS)
        row_ends = Signal()
        rows_end = Signal()
        m.d.comb += [
            row_ends.eq(x == what.beats - 1),
            rows_end.eq(row_ends & (y == what.rows - 1)),
            self.beat.eq(axi.rvalid),
            self.beat_kind.eq(what.kind),
            self.first.eq(axi.rvalid & (x == 0) & (y == 0) & (z == 0)),
            self.last.eq(axi.rvalid & rows_end & (z == what.blocks - 1)),
            queue.pop.eq(self.last),
            self.error.eq(axi.rvalid & axi.rresp[1]),
            self.error_index.eq(what.index),
        ]
        with m.If(axi.rvalid):
            m.d.sync += [x.eq(x + 1), at.eq(at + 1), line.eq(line + 1)]
            with m.If(row_ends):
                next_row = (at_row + what.tile_beats)[:DEST_BITS]
                m.d.sync += [x.eq(0), y.eq(y + 1), at.eq(next_row), at_row.eq(next_row)]
            with m.If(rows_end):
                next_block = (at_block + what.tile)[:DEST_BITS]
                m.d.sync += [y.eq(0), z.eq(z + 1), at.eq(next_block), at_row.eq(next_block), at_block.eq(next_block)]
            with m.If(self.last):
                m.d.sync += [z.eq(0), at.eq(0), at_row.eq(0), at_block.eq(0), line.eq(0)]

        # Stage 1: bus register.
        valid = Signal()
        last = Signal()
        held = Signal(_DESCRIPTOR, reset_less=True)
        beat = Signal(8 * spec.axi_bytes, reset_less=True)
        m.d.sync += [valid.eq(axi.rvalid), last.eq(self.last), held.eq(what), beat.eq(axi.rdata)]
        x1, y1 = delayed(m, x, 1, "x"), delayed(m, y, 1, "y")
        at1, line1 = delayed(m, at, 1, "at"), delayed(m, line, 1, "line")
        begins = delayed(m, self.first, 1, "begins")

        # Stages 2 and 3: windows of the lanes, and the address in a memory that is not per lane.
        m.submodules.windows = windows = Windows(spec)
        m.d.comb += [
            windows.x.eq(x1),
            windows.y.eq(y1),
            windows.beat.eq(held.dest + at1),
            *(
                getattr(windows, name).eq(held[name])
                for name in ("grid", "tile_beats", "tile_rows", "step_beats", "step_rows", "skip")
            ),
        ]
        per_table = 256 // spec.axi_bytes
        shared = Signal(DEST_BITS)
        m.d.comb += shared.eq(Mux(held.kind == LoadKind.TABLE, held.dest * per_table, held.dest) + line1)
        valid3 = delayed(m, valid, 2, "valid", reset=True)
        kind3 = delayed(m, held.kind, 2, "kind")
        beat3 = delayed(m, beat, 2, "beat")
        shared3 = delayed(m, shared, 2, "shared")

        # Stage 4: the registers in front of the memories.
        m.d.sync += [
            self.data.eq(beat3),
            self.at.eq(windows.at),
            self.at_shared.eq(shared3),
            self.keep_activation.eq(Mux(valid3 & (kind3 == LoadKind.ACTIVATION), windows.keep, 0)),
            self.keep_output.eq(Mux(valid3 & (kind3 == LoadKind.OUTPUT), windows.keep, 0)),
            self.write_offset.eq(valid3 & (kind3 == LoadKind.OFFSET)),
            self.write_parameter.eq(valid3 & (kind3 == LoadKind.PARAMETER)),
            self.write_table.eq(valid3 & (kind3 == LoadKind.TABLE)),
        ]

        # Weights: gearbox (stage 2) and expander (stages 3 and 4).
        m.submodules.gearbox = gearbox = Gearbox(spec)
        m.submodules.expander = expander = Expander(spec, gearbox.record)
        step = Signal(bits_for(spec.weight_steps))
        phases = spec.group // spec.macs
        phase = Signal(5)
        step_now = Signal.like(step)
        phase_now = Signal.like(phase)
        weight = valid & (held.kind == LoadKind.WEIGHT)
        record = weight & (held.encoding < Encoding.NATURAL) if spec.dynamic_operands else weight
        starts, dest = delayed(m, begins & record, 1, "starts"), delayed(m, held.dest, 1, "dest")
        m.d.comb += [
            gearbox.valid.eq(record),
            gearbox.last.eq(last),
            gearbox.encoding.eq(held.encoding),
            gearbox.beat.eq(beat),
            step_now.eq(Mux(starts, dest, step)),
            phase_now.eq(Mux(starts, 0, phase)),
            expander.valid.eq(gearbox.o_valid),
            expander.encoding.eq(gearbox.o_encoding),
            expander.phase.eq(phase_now),
            expander.record.eq(gearbox.o_record),
            self.write_weight.eq(expander.o_valid),
            self.row.eq(expander.o_row),
            self.at_weight.eq(delayed(m, step_now, 2, "step")),
        ]
        m.d.sync += [step.eq(step_now + gearbox.o_valid)]
        m.d.sync += phase.eq(Mux(gearbox.o_valid, Mux(phase_now == phases - 1, 0, phase_now + 1), phase_now))

        if spec.dynamic_operands:
            m.submodules.operands = operand = Operand(spec)
            m.d.comb += [
                operand.valid.eq(weight & ~record),
                operand.begins.eq(begins),
                operand.transposed.eq(held.encoding == Encoding.TRANSPOSED),
                operand.tile_beats.eq(held.tile_beats),
                operand.part.eq(held.step_beats),
                operand.dest.eq(held.dest),
                operand.beat.eq(beat),
                self.operand.eq(operand.o),
            ]

        # The end: seen by others in the cycle after stage 4.
        done3 = delayed(m, last, 2, "done", reset=True)
        post3 = delayed(m, held.post, 2, "post")
        m.d.sync += [self.done.eq(done3), self.post.eq(Mux(done3, post3, 0))]
        return m
