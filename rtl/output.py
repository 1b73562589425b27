"""The output buffer of a lane."""

from typing import Any

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.spec import ArchSpec
from gossamer.rtl.banks import place_of
from gossamer.rtl.cells import Ram
from gossamer.rtl.windows import DEST_BITS
from gossamer.rtl.writes import write_ports

__all__ = ["Output"]


class Output(wiring.Component):
    """Latency: one cycle from an address to its data. What is written in cycle t is read by an address given in t + 1.
    Throughput: one read and one write of each partition in every cycle; DRAIN (a residual) and STORE (a beat) may
    read different partitions, LOAD and DRAIN write different ones. `conflict` tells that they did not.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "load": In(1),
                "load_at": In(DEST_BITS),
                "load_data": In(8 * spec.axi_bytes),
                "drain": In(1),
                "drain_raw": In(1),
                "drain_at": In(24),
                "drain_data": In(32 * spec.ppu),
                "residual": In(1),
                "residual_at": In(24),
                "residual_data": Out(8 * spec.ppu),
                "store": In(1),
                "store_at": In(DEST_BITS),
                "store_data": Out(8 * spec.axi_bytes),
                "conflict": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()
        row, partitions = spec.axi_bytes, spec.output_partitions
        rows = spec.output_bytes // partitions // row
        write_conflict = Signal()
        ports = write_ports(
            m,
            rows=rows,
            partitions=partitions,
            row_bytes=row,
            beat_bytes=row,
            ppu=spec.ppu,
            grain=spec.ppu,
            load=(self.load, self.load_at, self.load_data),
            drain=(self.drain, self.drain_raw, self.drain_at, self.drain_data),
            conflict=write_conflict,
        )
        groups = row // spec.ppu
        low = groups.bit_length() - 1
        d_hit, d_inside = place_of(m, self.residual_at[low:], rows, partitions, "residual")
        s_hit, s_inside = place_of(m, self.store_at, rows, partitions, "store")
        both: Any = Const(0, 1)
        drained: Any = Const(0, 8 * row)
        stored: Any = Const(0, 8 * row)
        for p, port in enumerate(ports):
            memory = Ram(8 * row, rows, 8 * spec.ppu)
            m.submodules[f"memory_{p}"] = memory
            drains, stores = Signal(name=f"residual_{p}"), Signal(name=f"store_{p}")
            d_seen, s_seen = Signal(name=f"residual_seen_{p}"), Signal(name=f"store_seen_{p}")
            m.d.comb += [
                drains.eq(self.residual & d_hit[p]),
                stores.eq(self.store & s_hit[p]),
                memory.w_en.eq(port.enable),
                memory.w_addr.eq(port.row),
                memory.w_data.eq(port.data),
                memory.r_en.eq(drains | stores),
                memory.r_addr.eq(Mux(drains, d_inside, s_inside)),
            ]
            m.d.sync += [d_seen.eq(drains), s_seen.eq(stores)]
            both = both | (drains & stores)
            drained = drained | Mux(d_seen, memory.r_data, 0)
            stored = stored | Mux(s_seen, memory.r_data, 0)
        m.d.comb += [self.store_data.eq(stored), self.conflict.eq(write_conflict | both)]
        which = Signal(max(1, low), reset_less=True)
        m.d.sync += which.eq(self.residual_at[:low])
        m.d.comb += self.residual_data.eq(drained[: 8 * row].word_select(which, 8 * spec.ppu))
        return m
