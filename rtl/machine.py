"""The accelerator: the register file and the core."""

from typing import Any

from amaranth.hdl import Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.spec import ArchSpec
from gossamer.rtl.axi import axi_lite, axi_read, axi_write
from gossamer.rtl.cells import Library
from gossamer.rtl.core import Core, events
from gossamer.rtl.registers import Registers
from gossamer.rtl.registers_map import LITE_BITS

__all__ = ["Machine", "interfaces"]


def interfaces(spec: ArchSpec) -> dict[str, Any]:
    """The ports of a Machine but for clock and reset."""
    return {
        "host": In(axi_lite(LITE_BITS)),
        "fetch": Out(axi_read(spec.fetch_bytes)),
        "read": Out(axi_read(spec.axi_bytes)),
        "write": Out(axi_write(spec.axi_bytes)),
        "irq": Out(1),
        "running": Out(1),
        "events": Out(events()),
    }


class Machine(wiring.Component):
    """Latency and throughput: arch/timing.py. Ports: a register port (host), three AXI4 masters (fetch, read, write),
    an interrupt, and the event bits for a testbench.
    """

    def __init__(self, spec: ArchSpec, library: Library) -> None:
        self._spec, self._library = spec, library
        super().__init__(interfaces(spec))

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        clear = Signal()
        m.submodules.registers = self._library.place("registers", registers := Registers())
        m.submodules.core = self._library.place("core", core := Core(self._spec, self._library), clear)
        for port in ("fetch", "read", "write", "events"):
            wiring.connect(m, wiring.flipped(getattr(self, port)), getattr(core, port))
        wiring.connect(m, wiring.flipped(self.host), registers.axi)
        m.d.comb += [
            clear.eq(ResetSignal() | registers.start),
            core.run.eq(registers.run),
            core.base.eq(registers.base),
            core.length.eq(registers.length),
            registers.finished.eq(core.finished),
            registers.error.eq(core.error),
            registers.index.eq(core.index),
            registers.counters.eq(core.counters),
            self.irq.eq(registers.irq),
            self.running.eq(registers.run),
        ]
        return m
