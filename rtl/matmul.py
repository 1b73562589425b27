"""MATMUL: the sequencer that turns an instruction into steps and positions, and the addresses of each."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import MatmulMode, Op
from gossamer.arch.spec import ArchSpec
from gossamer.arch.timing import matmul_latency, reduce_stages
from gossamer.rtl.cells import bits_for, delayed
from gossamer.rtl.layouts import entry_layout
from gossamer.rtl.layouts import semaphores as SEMAPHORE_COUNT
from gossamer.rtl.pe import accumulate_layout

__all__ = ["Matmul", "hop_bits"]


def hop_bits(spec: ArchSpec) -> int:
    """Bits of a window's address in hops. What exceeds the bank is never read in a legal Program."""
    return bits_for(2 * spec.activation_bytes // spec.hop)


class Matmul(wiring.Component):
    """Latency: the first slot follows the start by one cycle; matmul_latency(spec) from `freeing` to the end.
    Throughput: one step and one position a cycle, with no bubble between instructions.

    A slot in cycle t reads the offset buffer in t (`offset`), gives the window's address in t + 2 (`hop`), reads the
    weight buffer in t + 3 (`weight`), and meets operands and weights at the array in t + 4.
    post : semaphores, in the cycle before the instruction has ended;  done : that an instruction ends then.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "start": In(1),
                "head": In(entry_layout(Op.MATMUL)),
                "ready": Out(1),
                "active": Out(1),
                "freeing": Out(1),
                "step": Out(1),
                "done": Out(1),
                "post": Out(SEMAPHORE_COUNT),
                "offset_read": Out(1),
                "offset_at": Out(bits_for(spec.offset_steps)),
                "offset": In(16),
                "hop": Out(hop_bits(spec)),
                "hop_valid": Out(1),
                "zero_point": Out(8),
                "is_signed": Out(1),
                "weight_read": Out(1),
                "weight_at": Out(bits_for(spec.weight_steps)),
                "maximum": Out(1),
                "accumulate": Out(accumulate_layout(spec)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec, head = self._spec, self.head
        m = Module()
        work = Signal(entry_layout(Op.MATMUL))
        x = Signal(9)
        y = Signal(9)
        first = Signal()  # the first position of a step; the first step
        opening = Signal()
        left = Signal(16)  # steps after this one
        offset_at = Signal(16)
        weight_at = Signal(16)
        at = Signal(bits_for(2 * spec.depth))
        at_start = Signal.like(at)
        window_bits = bits_for(2 * spec.activation_bytes // spec.group)
        window = Signal(window_bits)
        row = Signal(window_bits)
        x_ends = Signal()
        ends = Signal()
        m.d.comb += [
            x_ends.eq(x == work.nx - 1),
            ends.eq(x_ends & (y == work.ny - 1)),
            self.freeing.eq(self.active & ends & (left == 0)),
            self.ready.eq(~self.active | self.freeing),
            self.step.eq(self.active & first),
        ]
        bank = Mux(head.bank, spec.depth, 0)
        with m.If(self.start):
            m.d.sync += [
                work.eq(head),
                self.active.eq(1),
                x.eq(0),
                y.eq(0),
                first.eq(1),
                opening.eq(~head.accumulate),
                left.eq(head.steps - 1),
                offset_at.eq(head.offset_base),
                weight_at.eq(head.weight_base),
                at.eq(head.acc_base + bank),
                at_start.eq(head.acc_base + bank),
                window.eq(head.act_base),
                row.eq(head.act_base),
            ]
        with m.Elif(self.active):
            next_row = (row + work.sy)[:window_bits]
            m.d.sync += [x.eq(x + 1), first.eq(0), window.eq(window + work.sx), at.eq(at + 1)]
            with m.If(x_ends):
                m.d.sync += [x.eq(0), y.eq(y + 1), window.eq(next_row), row.eq(next_row)]
            with m.If(ends):
                m.d.sync += [
                    y.eq(0),
                    first.eq(1),
                    opening.eq(0),
                    left.eq(left - 1),
                    offset_at.eq(offset_at + 1),
                    weight_at.eq(weight_at + 1),
                    window.eq(work.act_base),
                    row.eq(work.act_base),
                    at.eq(at_start),
                ]
            with m.If(self.freeing):
                m.d.sync += self.active.eq(0)

        # t: offset read; t + 1: address; t + 2: bank address. A step's offset stays at the memory's output.
        m.d.comb += [self.offset_read.eq(self.step), self.offset_at.eq(offset_at)]
        hops = (spec.group // spec.hop).bit_length() - 1
        window1 = delayed(m, window, 1, "window")
        m.d.sync += self.hop.eq(Cat(Const(0, hops), window1) + self.offset if hops else window1 + self.offset)
        m.d.comb += [
            self.hop_valid.eq(delayed(m, self.active, 2, "active", reset=True)),
            self.zero_point.eq(delayed(m, work.zero_point, 2, "zero_point")),
            self.is_signed.eq(delayed(m, work.signed, 2, "signed")),
            self.weight_read.eq(delayed(m, self.step, 3, "weight_read", reset=True)),
            self.weight_at.eq(delayed(m, weight_at, 3, "weight_at")),
        ]

        # Control of the array.
        control = Signal(accumulate_layout(spec))
        maximum = work.mode == MatmulMode.MAXIMUM
        m.d.comb += [
            control.valid.eq(self.active),
            control.fresh.eq(opening),
            control.maximum.eq(maximum),
            control.at.eq(at),
            self.maximum.eq(delayed(m, maximum, 4, "maximum")),
            self.accumulate.eq(
                delayed(m, control, 4 + spec.multiply_stages + reduce_stages(spec), "control", reset=True)
            ),
        ]
        latency = matmul_latency(spec)
        m.d.comb += [
            self.done.eq(delayed(m, self.freeing, latency - 1, "done", reset=True)),
            self.post.eq(delayed(m, Mux(self.freeing, work.post, 0), latency - 1, "post", reset=True)),
        ]
        return m
