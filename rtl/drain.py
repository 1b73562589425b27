"""DRAIN: the sequencer that takes accumulators through the PPUs, and the control of every stage."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import Op
from gossamer.arch.numerics import MULTIPLIER_BITS
from gossamer.arch.spec import ArchSpec
from gossamer.arch.timing import drain_latency
from gossamer.rtl.cells import bits_for, delayed
from gossamer.rtl.layouts import entry_layout
from gossamer.rtl.layouts import semaphores as SEMAPHORE_COUNT
from gossamer.rtl.pe import accumulator_bits
from gossamer.rtl.ppu import ADD, CLAMP, LOOKUP, MULTIPLY, ROUND, SHIFT_BITS

__all__ = ["Drain"]


class Drain(wiring.Component):
    """Latency: the first slot follows the start by one cycle; drain_latency(spec) from `freeing` to the end.
    Throughput: one position and one group of columns a cycle, with no bubble between instructions.

    A slot in cycle t reads accumulators, parameters and residual in t + 1 (`acc_at`, `group`, `param_at`,
    `residual_at`); the lanes add the bias in t + 2, multiply from t + 3 on, and write in
    t + 4 + ppu_stages, one more with tables (`write`).
    post : semaphores, in the cycle before the instruction has ended;  done : that an instruction ends then.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "start": In(1),
                "head": In(entry_layout(Op.DRAIN)),
                "ready": Out(1),
                "active": Out(1),
                "freeing": Out(1),
                "done": Out(1),
                "post": Out(SEMAPHORE_COUNT),
                "acc_at": Out(accumulator_bits(spec)),
                "group": Out(bits_for(spec.column_groups)),
                "param_read": Out(1),
                "param_at": Out(bits_for(spec.parameter_channels // spec.ppu)),
                "param": In(64 * spec.ppu),
                "residual_read": Out(1),
                "residual_at": Out(24),
                "bias": Out(data.ArrayLayout(32, spec.ppu)),
                "multiplier": Out(data.ArrayLayout(MULTIPLIER_BITS, spec.ppu)),
                "shift": Out(data.ArrayLayout(SHIFT_BITS, spec.ppu)),
                "lift": Out(data.ArrayLayout(SHIFT_BITS, spec.ppu)),
                "add": Out(ADD),
                "multiply": Out(MULTIPLY),
                "round": Out(ROUND),
                "clamp": Out(CLAMP),
                "lookup": Out(LOOKUP),
                "write_output": Out(1),
                "write_activation": Out(1),
                "write_raw": Out(1),
                "write_at": Out(24),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec, head = self._spec, self.head
        m = Module()
        work = Signal(entry_layout(Op.DRAIN))
        group = Signal(8)
        x = Signal(9)
        y = Signal(9)
        at = Signal(accumulator_bits(spec))
        place = Signal(24)
        row = Signal(24)
        group_ends = Signal()
        x_ends = Signal()
        ends = Signal()
        m.d.comb += [
            group_ends.eq(group == work.column_groups - 1),
            x_ends.eq(x == work.nx - 1),
            ends.eq(y == work.ny - 1),
            self.freeing.eq(self.active & group_ends & x_ends & ends),
            self.ready.eq(~self.active | self.freeing),
        ]
        with m.If(self.start):
            m.d.sync += [
                work.eq(head),
                self.active.eq(1),
                group.eq(0),
                x.eq(0),
                y.eq(0),
                at.eq(head.acc_base + Mux(head.bank, spec.depth, 0)),
                place.eq(0),
                row.eq(0),
            ]
        with m.Elif(self.active):
            m.d.sync += group.eq(group + 1)
            with m.If(group_ends):
                m.d.sync += [group.eq(0), x.eq(x + 1), at.eq(at + 1), place.eq(place + work.sx)]
                with m.If(x_ends):
                    next_row = (row + work.sy)[:24]
                    m.d.sync += [x.eq(0), y.eq(y + 1), place.eq(next_row), row.eq(next_row)]
            with m.If(self.freeing):
                m.d.sync += self.active.eq(0)

        # t + 1: the reads.
        raw = work.raw
        target = Signal(24)
        m.d.comb += target.eq(work.dest + place + group)
        m.d.sync += [
            self.acc_at.eq(at),
            self.group.eq(group),
            self.param_read.eq(self.active & ~raw),
            self.param_at.eq(work.param_base + group),
            self.residual_read.eq(self.active & work.residual),
            self.residual_at.eq(work.residual_base + place + group),
        ]

        def late(name: str, cycles: int) -> Any:
            return delayed(m, work[name], cycles, f"{name}_at_{cycles}")

        # t + 2: parameters are here; a raw accumulator gets no bias and is multiplied by one.
        raw2 = delayed(m, raw, 2, "raw")
        rounding = 3 + spec.ppu_stages - 1
        for k in range(spec.ppu):
            word = self.param[64 * k : 64 * k + 64]
            m.d.comb += self.bias[k].eq(Mux(raw2, 0, word[:32]))
            factor = Mux(raw2, 1, word[32 : 32 + MULTIPLIER_BITS])
            shift = word[32 + MULTIPLIER_BITS : 32 + MULTIPLIER_BITS + SHIFT_BITS]
            m.d.comb += self.multiplier[k].eq(delayed(m, factor, 1, f"multiplier_{k}"))
            m.d.comb += self.shift[k].eq(delayed(m, shift, rounding - 2, f"shift_{k}"))
            lift = (shift - late("residual_shift", 2))[:SHIFT_BITS]
            m.d.comb += self.lift[k].eq(delayed(m, lift, 1, f"lift_{k}"))

        clamping = rounding + 1
        m.d.comb += [
            self.add.residual.eq(delayed(m, work.residual & ~raw, 2, "residual")),
            *(self.add[name].eq(late(name, 2)) for name in ("residual_signed", "residual_zero")),
            self.multiply.residual_multiplier.eq(late("residual_multiplier", 3)),
            self.round.raw.eq(late("raw", rounding)),
            *(self.clamp[name].eq(late(name, clamping)) for name in ("raw", "zero_point", "lo", "hi")),
            self.lookup.enable.eq(delayed(m, work.table_enable & ~raw, clamping + 1, "lookup")),
            self.lookup.table.eq(late("table", clamping + 1)),
        ]
        writing = clamping + (2 if spec.tables else 1)
        m.d.comb += [
            self.write_output.eq(delayed(m, self.active & ~work.to_activation, writing, "to_output", reset=True)),
            self.write_activation.eq(delayed(m, self.active & work.to_activation, writing, "to_bank", reset=True)),
            self.write_raw.eq(late("raw", writing)),
            self.write_at.eq(delayed(m, target, writing, "target")),
        ]
        latency = drain_latency(spec)
        assert writing + 1 == latency, "the contract counts the stages that are built here"
        m.d.comb += [
            self.done.eq(delayed(m, self.freeing, latency - 1, "done", reset=True)),
            self.post.eq(delayed(m, Mux(self.freeing, work.post, 0), latency - 1, "post", reset=True)),
        ]
        return m
