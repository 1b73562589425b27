"""The performance counters of arch.run.COUNTERS."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import SEMAPHORES, LoadKind, Unit
from gossamer.arch.run import COUNTERS

__all__ = ["WORKERS", "Counters"]

_AT = {name: k for k, name in enumerate(COUNTERS)}

WORKERS = (Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE)


class Counters(wiring.Component):
    """Latency: an event of cycle t is counted in t + 1. Throughput: one of each kind a cycle.

    busy, starved, waiting : a bit for each worker: it works on an instruction; it is free and nothing is fetched;
    something is fetched. missing : a bit for each semaphore that holds its waiter back. All others are event bits.
    Cycles without a fetched instruction count only once the next instruction is there: those after a unit's last
    one are nobody's stall.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "run": In(1),
                "busy": In(len(WORKERS)),
                "starved": In(len(WORKERS)),
                "waiting": In(len(WORKERS)),
                "missing": In(len(SEMAPHORES)),
                "beat_read": In(len(LoadKind)),
                "beat_written": In(1),
                "beat_fetched": In(1),
                "burst_read": In(1),
                "burst_written": In(1),
                "burst_fetched": In(1),
                "step": In(1),
                "slot": In(1),
                "values": Out(data.ArrayLayout(32, len(COUNTERS))),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        events: dict[str, Any] = {}
        for k, u in enumerate(WORKERS):
            events[f"busy_{u.name.lower()}"] = self.busy[k]
        for s in SEMAPHORES:
            events[f"stall_{s.waiter.name.lower()}_{s.name}"] = self.missing[s.index]
        for kind in LoadKind:
            events[f"beats_read_{kind.name.lower()}"] = self.beat_read[kind]
        events |= {
            "beats_written": self.beat_written,
            "beats_fetched": self.beat_fetched,
            "bursts_read": self.burst_read,
            "bursts_written": self.burst_written,
            "bursts_fetched": self.burst_fetched,
            "steps": self.step,
            "slots": self.slot,
        }
        for name, event in events.items():
            value = Signal(32, name=name)
            with m.If(self.run & event):
                m.d.sync += value.eq(value + 1)
            m.d.comb += self.values[_AT[name]].eq(value)
        for k, u in enumerate(WORKERS):
            name = f"stall_{u.name.lower()}_fetch"
            pending, value = Signal(32, name=f"pending_{u.name.lower()}"), Signal(32, name=name)
            with m.If(self.run & self.starved[k]):
                m.d.sync += pending.eq(pending + 1)
            with m.If(self.waiting[k]):
                m.d.sync += value.eq(pending)
            m.d.comb += self.values[_AT[name]].eq(value)
        return m
