"""The core: five units, their queues and semaphores, memories, array and lanes."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import SEMAPHORES, ErrorCode, LoadKind, Op, Unit
from gossamer.arch.run import COUNTERS
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.array import Array, spans
from gossamer.rtl.axi import ADDRESS_BITS, axi_read, axi_write
from gossamer.rtl.banks import Narrow
from gossamer.rtl.cells import Library, delayed
from gossamer.rtl.counters import WORKERS, Counters
from gossamer.rtl.drain import Drain
from gossamer.rtl.expander import row_bits
from gossamer.rtl.fetch import Fetch
from gossamer.rtl.issue import Issue
from gossamer.rtl.lane import Lane, shared_ports
from gossamer.rtl.layouts import INDEX_BITS, WAITED_BITS, entry_value
from gossamer.rtl.load import Load
from gossamer.rtl.matmul import Matmul
from gossamer.rtl.semaphores import Semaphores
from gossamer.rtl.store import Store
from gossamer.rtl.weights import Weights

__all__ = ["Core", "events"]

_OPS = (Op.LOAD, Op.MATMUL, Op.DRAIN, Op.STORE)

QUIET = 16
"""Cycles in which nothing happens, nothing is in flight and the program is not done: a deadlock."""


def events() -> Any:
    """What a testbench needs for an event log, each in its very cycle of arch/timing.py; a bit for each Unit.

    waited : of LOAD, MATMUL, DRAIN and STORE, with their start.
    """
    return wiring.Signature(
        {
            "dispatch": Out(len(Unit)),
            "start": Out(len(Unit)),
            "first": Out(len(Unit)),
            "last": Out(len(Unit)),
            "free": Out(len(Unit)),
            "end": Out(len(Unit)),
            "waited": Out(data.ArrayLayout(WAITED_BITS, len(WORKERS))),
        }
    )


class Core(wiring.Component):
    """Latency and throughput: arch/timing.py. Its reset clears everything before a program; `run` then is high from
    cycle 0 on. `finished` is high in the last cycle: END is dispatched and everything has ended, or there was an
    error and what was in flight has ended. After an error nothing more starts.
    """

    def __init__(self, spec: ArchSpec, library: Library) -> None:
        self._spec, self._library = spec, library
        super().__init__(
            {
                "fetch": Out(axi_read(spec.fetch_bytes)),
                "read": Out(axi_read(spec.axi_bytes)),
                "write": Out(axi_write(spec.axi_bytes)),
                "run": In(1),
                "base": In(ADDRESS_BITS),
                "length": In(INDEX_BITS),
                "finished": Out(1),
                "error": Out(4),
                "index": Out(INDEX_BITS),
                "counters": Out(data.ArrayLayout(32, len(COUNTERS))),
                "events": Out(events()),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec, library = self._spec, self._library
        m = Module()
        m.submodules.fetch_unit = library.place("fetch", fetch := Fetch(spec))
        m.submodules.load_unit = library.place("load", load := Load(spec))
        m.submodules.matmul_unit = library.place("matmul", matmul := Matmul(spec))
        m.submodules.drain_unit = library.place("drain", drain := Drain(spec))
        m.submodules.store_unit = library.place("store", store := Store(spec))
        m.submodules.semaphores = library.place("semaphores", semaphores := Semaphores())
        m.submodules.counters = library.place("counters", counters := Counters())
        wiring.connect(m, wiring.flipped(self.fetch), fetch.axi)
        wiring.connect(m, wiring.flipped(self.read), load.axi)
        wiring.connect(m, wiring.flipped(self.write), store.axi)
        self._dataflow(m, load, matmul, drain, store)

        # Queues, starts and ends.
        halt = Signal()
        quiet = Signal()
        m.d.comb += [
            fetch.run.eq(self.run),
            fetch.halt.eq(halt),
            fetch.base.eq(self.base),
            fetch.length.eq(self.length),
            counters.run.eq(self.run),
            self.counters.eq(counters.values),
        ]
        units: dict[Op, Any] = dict(zip(_OPS, (load, matmul, drain, store), strict=True))
        queues = {}
        idle: Any = Const(1, 1)
        take: Any = Const(0, len(SEMAPHORES))
        post: Any = Const(0, len(SEMAPHORES))
        missing: Any = Const(0, len(SEMAPHORES))
        for k, (op, unit) in enumerate(units.items()):
            queue = queues[op] = Issue(op, spec.queue_depth)
            m.submodules[f"{op.name.lower()}_queue"] = library.place(f"{op.name.lower()}_queue", queue)
            here = Unit(WORKERS[k])
            flying = Signal(16, name=f"{op.name.lower()}_flying")  # started and not ended
            m.d.sync += flying.eq(flying + queue.start - unit.done)
            m.d.comb += [
                queue.push.eq(fetch.dispatch[here]),
                queue.entry.eq(entry_value(op, fetch.word, fetch.index)),
                fetch.queue_full[here].eq(queue.full),
                queue.halt.eq(halt),
                queue.ready.eq(unit.ready),
                queue.freeing.eq(unit.freeing),
                queue.available.eq(semaphores.available),
                queue.fresh.eq(semaphores.fresh),
                unit.start.eq(queue.start),
                unit.head.eq(queue.head),
                counters.busy[k].eq(queue.start | (unit.active & ~unit.freeing)),
                counters.starved[k].eq(queue.starved),
                counters.waiting[k].eq(queue.waiting),
                self.events.start[here].eq(queue.start),
                self.events.free[here].eq(unit.freeing),
                self.events.end[here].eq(delayed(m, unit.done, 1, f"{op.name.lower()}_ended", reset=True)),
                self.events.waited[k].eq(queue.waited),
            ]
            idle = idle & (flying == 0)
            take, post, missing = take | queue.take, post | unit.post, missing | queue.missing
        m.d.comb += [
            semaphores.take.eq(take),
            semaphores.post.eq(post),
            counters.missing.eq(missing),
            self.events.dispatch.eq(fetch.dispatch),
            self.events.first.eq(load.first << Unit.LOAD | store.first << Unit.STORE),
            self.events.last.eq(load.last << Unit.LOAD | store.last << Unit.STORE),
            *(counters.beat_read[kind].eq(load.beat & (load.beat_kind == kind)) for kind in LoadKind),
            counters.beat_written.eq(store.beat),
            counters.beat_fetched.eq(fetch.beat),
            counters.burst_read.eq(load.burst),
            counters.burst_written.eq(store.burst),
            counters.burst_fetched.eq(fetch.burst),
            counters.step.eq(matmul.step),
            counters.slot.eq(matmul.active),
        ]

        # The end, and errors: the first one stays.
        nothing_waits = ~Cat(*(queues[op].waiting for op in _OPS)).any()
        no_start = ~Cat(*(queues[op].start for op in _OPS)).any()
        ended = Signal()
        still = Signal(range(QUIET + 1))
        m.d.comb += [
            ended.eq((fetch.end_seen | fetch.dispatch[Unit.FETCH]) & nothing_waits),
            self.finished.eq(self.run & idle & fetch.idle & (ended | halt)),
            quiet.eq(self.run & idle & no_start & fetch.blocked & ~ended & ~halt),
            halt.eq(self.error != 0),
        ]
        m.d.sync += still.eq(Mux(quiet, still + 1, 0))
        with m.If(self.run & ~halt):
            with m.If(load.error):
                m.d.sync += [self.error.eq(ErrorCode.READ_RESPONSE), self.index.eq(load.error_index)]
            with m.Elif(store.error):
                m.d.sync += [self.error.eq(ErrorCode.WRITE_RESPONSE), self.index.eq(store.error_index)]
            with m.Elif(self._conflict):
                m.d.sync += [self.error.eq(ErrorCode.PORT_CONFLICT), self.index.eq(fetch.index)]
            with m.Elif(semaphores.overflow):
                m.d.sync += [self.error.eq(ErrorCode.SEMAPHORE_OVERFLOW), self.index.eq(fetch.index)]
            with m.Elif(fetch.error != 0):
                m.d.sync += [self.error.eq(fetch.error), self.index.eq(fetch.index)]
            with m.Elif(still == QUIET):
                m.d.sync += [self.error.eq(ErrorCode.DEADLOCK), self.index.eq(fetch.index)]
        return m

    def _dataflow(self, m: Any, load: Any, matmul: Any, drain: Any, store: Any) -> None:
        """Memories, array and lanes, and who reads and writes them."""
        spec, library = self._spec, self._library
        beat = 8 * spec.axi_bytes
        m.submodules.array = array = Array(spec, library)

        m.submodules.offsets = offsets = Narrow(
            rows=spec.offset_steps * 2 // spec.axi_bytes, row=beat, unit=beat, word=16
        )
        row = 8 * spec.parameter_row_bytes
        m.submodules.parameters = parameters = Narrow(
            rows=spec.parameter_channels * 64 // row, row=row, unit=beat, word=64 * spec.ppu
        )
        m.d.comb += [
            offsets.w_en.eq(load.write_offset),
            offsets.w_at.eq(load.at_shared),
            offsets.w_data.eq(load.data),
            offsets.r_en.eq(matmul.offset_read),
            offsets.r_at.eq(matmul.offset_at),
            matmul.offset.eq(offsets.r_data),
            parameters.w_en.eq(load.write_parameter),
            parameters.w_at.eq(load.at_shared),
            parameters.w_data.eq(load.data),
            parameters.r_en.eq(drain.param_read),
            parameters.r_at.eq(drain.param_at),
            drain.param.eq(parameters.r_data),
            array.maximum.eq(matmul.maximum),
            array.accumulate.eq(matmul.accumulate),
            array.drain_at.eq(drain.acc_at),
        ]

        # Weights: a buffer for the columns that share a broadcast register, each read a cycle after the one before.
        mac = spec.macs * row_bits(spec)
        read, at = matmul.weight_read, matmul.weight_at
        for g, columns in enumerate(spans(spec.columns, spec.broadcast_columns)):
            weights = Weights(spec, columns)
            m.submodules[f"weights_{g}"] = weights
            if g:
                read = delayed(m, read, 1, f"weight_read_{g}", reset=True)
                at = delayed(m, at, 1, f"weight_at_{g}")
            m.d.comb += [
                weights.write.eq(load.write_weight),
                weights.at.eq(load.at_weight),
                weights.row.eq(load.row[columns.start * mac : columns.stop * mac]),
                weights.r_en.eq(read),
                weights.r_at.eq(at),
                *(Value.cast(array.weights[c]).eq(weights.r_data.word_select(c - columns.start, mac)) for c in columns),
            ]
            if spec.dynamic_operands:
                m.d.comb += weights.operand.eq(load.operand)

        # Lanes: those that share a broadcast register get their addresses a cycle after the ones before.
        shared = {
            "load_data": load.data,
            "at_shared": load.at_shared,
            "write_table": load.write_table,
            "store_read": store.read,
            "store_at": store.at,
        }
        window = [matmul.hop_valid, matmul.hop, matmul.zero_point, matmul.is_signed]
        conflict: Any = Const(0, 1)
        for q, lanes in enumerate(spans(spec.lanes, spec.broadcast_lanes)):
            if q:
                window = [delayed(m, s, 1, f"window_{q}_{k}", reset=k == 0) for k, s in enumerate(window)]
            for r in lanes:
                lane = Lane(spec, library)
                m.submodules[f"lane_{r}"] = library.place("lane", lane)
                m.d.comb += [
                    lane.hop_valid.eq(window[0]),
                    lane.hop.eq(window[1]),
                    lane.zero_point.eq(window[2]),
                    lane.is_signed.eq(window[3]),
                    lane.keep_activation.eq(load.keep_activation[r]),
                    lane.keep_output.eq(load.keep_output[r]),
                    lane.load_at.eq(load.at[r]),
                    lane.accumulators.eq(array.drain[r]),
                    array.operands[r].eq(lane.operands),
                    store.beats[r].eq(lane.store_data),
                ]
                for name in shared_ports(spec):
                    source = shared[name] if name in shared else getattr(drain, name)
                    m.d.comb += getattr(lane, name).eq(source)
                conflict = conflict | lane.conflict
        self._conflict = conflict
