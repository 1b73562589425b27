"""The counting semaphores between units."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import SEMAPHORE_MAX, SEMAPHORES

__all__ = ["Semaphores"]


class Semaphores(wiring.Component):
    """Latency: a post in cycle t is available in t + 1. Throughput: a post and a take of each in every cycle.

    available : the count is above zero.  fresh : the count is one, and that one was posted in the cycle before.
    overflow : a post met a full counter. A take of what is not available cannot happen: nobody starts without it.
    """

    def __init__(self) -> None:
        count = len(SEMAPHORES)
        super().__init__(
            {
                "post": In(count),
                "take": In(count),
                "available": Out(count),
                "fresh": Out(count),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        posted = Signal(len(SEMAPHORES))
        full = Signal(len(SEMAPHORES))
        m.d.sync += posted.eq(self.post)
        for s in SEMAPHORES:
            k = s.index
            count = Signal(SEMAPHORE_MAX.bit_length(), name=s.name)
            m.d.comb += [
                self.available[k].eq(count != 0),
                self.fresh[k].eq(posted[k] & (count == 1)),
                full[k].eq(self.post[k] & ~self.take[k] & (count == SEMAPHORE_MAX)),
            ]
            with m.If(~full[k]):
                m.d.sync += count.eq(count + self.post[k] - self.take[k])
        m.d.comb += self.overflow.eq(full.any())
        return m
