"""The register file that a host sees, and its map.

One table describes every register: the hardware, the Markdown and the JSON of `gossamer rtl` are made from it.
"""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.run import COUNTERS
from gossamer.rtl.axi import ADDRESS_BITS, axi_lite
from gossamer.rtl.layouts import INDEX_BITS
from gossamer.rtl.registers_map import LITE_BITS, REGISTERS

__all__ = ["Registers"]


class Registers(wiring.Component):
    """Latency: two cycles from an accepted write to its effect, one from an accepted read to its data. Throughput: a
    read or a write in every second cycle.

    start : one cycle; clears the core.  run : from the next cycle to the end of the stage (cycle 0 is its first).
    finished : from the core, in its last cycle, with error and index.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "axi": In(axi_lite(LITE_BITS)),
                "irq": Out(1),
                "start": Out(1),
                "run": Out(1),
                "base": Out(ADDRESS_BITS),
                "length": Out(INDEX_BITS),
                "finished": In(1),
                "error": In(4),
                "index": In(INDEX_BITS),
                "counters": In(data.ArrayLayout(32, len(COUNTERS))),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        axi = self.axi
        at = {r.name: r.address for r in REGISTERS}
        done = Signal()
        failed = Signal()
        error = Signal(4)
        index = Signal(INDEX_BITS)
        enable = Signal()
        pending = Signal()
        cycles = Signal(64)

        # A write needs its address and its data at once; the response is registered.
        write = Signal()
        wanted = Signal(LITE_BITS - 2)
        m.d.comb += [
            write.eq(axi.awvalid & axi.wvalid & ~axi.bvalid),
            axi.awready.eq(write),
            axi.wready.eq(write),
            wanted.eq(axi.awaddr[2:]),
        ]
        with m.If(write):
            m.d.sync += axi.bvalid.eq(1)
        with m.Elif(axi.bready):
            m.d.sync += axi.bvalid.eq(0)

        def written(name: str) -> Any:
            return write & (wanted == at[name] >> 2) & (axi.wstrb == 0b1111)

        go = Signal()
        m.d.sync += go.eq(written("control") & axi.wdata[0])
        m.d.comb += self.start.eq(go & ~self.run)
        with m.If(~self.run):
            with m.If(written("program_low")):
                m.d.sync += self.base[:32].eq(axi.wdata)
            with m.If(written("program_high")):
                m.d.sync += self.base[32:].eq(axi.wdata)
            with m.If(written("program_length")):
                m.d.sync += self.length.eq(axi.wdata)
        with m.If(written("interrupt_enable")):
            m.d.sync += enable.eq(axi.wdata[0])
        with m.If(written("interrupt_status") & axi.wdata[0]):
            m.d.sync += pending.eq(0)

        with m.If(self.run):
            m.d.sync += cycles.eq(cycles + 1)
        with m.If(self.start):
            m.d.sync += [self.run.eq(1), done.eq(0), failed.eq(0), error.eq(0), index.eq(0), cycles.eq(0)]
        with m.Elif(self.run & self.finished):
            m.d.sync += [self.run.eq(0), done.eq(1), pending.eq(1)]
            m.d.sync += [failed.eq(self.error != 0), error.eq(self.error), index.eq(self.index)]
        m.d.comb += self.irq.eq(enable & pending)

        values: dict[str, Any] = {
            "identity": Const(next(r.reset for r in REGISTERS if r.name == "identity"), 32),
            "control": Const(0, 32),
            "status": Cat(self.run, done, failed),
            "error": error,
            "error_index": index,
            "program_low": self.base[:32],
            "program_high": self.base[32:],
            "program_length": self.length,
            "interrupt_enable": enable,
            "interrupt_status": pending,
            "cycles_low": cycles[:32],
            "cycles_high": cycles[32:],
            **{f"counter_{name}": self.counters[k] for k, name in enumerate(COUNTERS)},
        }
        read = Signal()
        m.d.comb += [read.eq(axi.arvalid & ~axi.rvalid), axi.arready.eq(read)]
        with m.If(read):
            m.d.sync += [axi.rvalid.eq(1), axi.rdata.eq(0)]
            with m.Switch(axi.araddr[2:]):
                for r in REGISTERS:
                    with m.Case(r.address >> 2):
                        m.d.sync += axi.rdata.eq(Value.cast(values[r.name]))
        with m.Elif(axi.rready):
            m.d.sync += axi.rvalid.eq(0)
        return m
