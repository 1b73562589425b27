"""The queue in front of a unit, and the decision to start its next instruction."""

from typing import Any

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import SEMAPHORES, UNIT_OF, Op, Unit
from gossamer.rtl.cells import Fifo
from gossamer.rtl.layouts import WAITED_BITS, entry_layout

__all__ = ["Issue"]


class Issue(wiring.Component):
    """Latency: an instruction dispatched in cycle t may start in t + 1. Throughput: one start a cycle.

    ready : the unit is free in this cycle;  freeing : it became free in this very cycle.
    available, fresh : a semaphore's count is above zero; it is one, and that one arrived in this very cycle.
    start : the head starts in this cycle;  take : semaphores it takes one from.
    waited : as in arch/timing.py.  missing : the lowest semaphore that keeps a fetched head from starting, one bit.
    starved : the unit is free and nothing is fetched.  waiting : a head is there.
    """

    def __init__(self, op: Op, depth: int) -> None:
        self._op, self._depth = op, depth
        self.layout = entry_layout(op)
        count = len(SEMAPHORES)
        super().__init__(
            {
                "push": In(1),
                "entry": In(self.layout.size),
                "full": Out(1),
                "halt": In(1),
                "ready": In(1),
                "freeing": In(1),
                "available": In(count),
                "fresh": In(count),
                "start": Out(1),
                "head": Out(self.layout),
                "take": Out(count),
                "waited": Out(WAITED_BITS),
                "missing": Out(count),
                "starved": Out(1),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        m.submodules.queue = queue = Fifo(self.layout.size, self._depth)
        unit: Unit = UNIT_OF[self._op]
        pushed = Signal()
        mine = [s.index for s in SEMAPHORES if s.waiter is unit]
        m.d.sync += pushed.eq(self.push)
        m.d.comb += [
            queue.push.eq(self.push),
            queue.w_data.eq(self.entry),
            queue.pop.eq(self.start),
            self.full.eq(queue.full),
            Value.cast(self.head).eq(queue.r_data),
            self.waiting.eq(queue.valid),
            self.starved.eq(self.ready & ~queue.valid),
        ]
        # Only the unit's own semaphores are looked at: the decoder has refused all others.
        blocked = Signal(len(mine))
        for k, s in enumerate(mine):
            m.d.comb += blocked[k].eq(self.head.wait[s] & ~self.available[s])
            m.d.comb += self.missing[s].eq(self.ready & queue.valid & blocked[k] & ~blocked[:k].any())
            m.d.comb += self.take[s].eq(self.start & self.head.wait[s])
            m.d.comb += self.waited[s].eq(self.head.wait[s] & self.fresh[s])
        m.d.comb += [
            self.start.eq(queue.valid & self.ready & ~blocked.any() & ~self.halt),
            self.waited[-2].eq(pushed & (queue.level == 1)),
            self.waited[-1].eq(self.freeing),
        ]
        return m
