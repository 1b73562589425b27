"""A lane: activation bank, output buffer and PPU slices of one slice of output positions."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.numerics import MULTIPLIER_BITS
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.activation import Activation
from gossamer.rtl.cells import Library, bits_for
from gossamer.rtl.matmul import hop_bits
from gossamer.rtl.output import Output
from gossamer.rtl.pe import operand_layout
from gossamer.rtl.ppu import ADD, CLAMP, LOOKUP, MULTIPLY, ROUND, SHIFT_BITS, Ppu
from gossamer.rtl.windows import DEST_BITS

__all__ = ["Lane", "shared_ports"]


def shared_ports(spec: ArchSpec) -> dict[str, Any]:
    """Ports that are the same for all lanes at the same time: (name, shape)."""
    ports: dict[str, Any] = {
        "load_data": 8 * spec.axi_bytes,
        "group": bits_for(spec.column_groups),
        "bias": data.ArrayLayout(32, spec.ppu),
        "multiplier": data.ArrayLayout(MULTIPLIER_BITS, spec.ppu),
        "shift": data.ArrayLayout(SHIFT_BITS, spec.ppu),
        "lift": data.ArrayLayout(SHIFT_BITS, spec.ppu),
        "add": ADD,
        "multiply": MULTIPLY,
        "round": ROUND,
        "clamp": CLAMP,
        "lookup": LOOKUP,
        "residual_read": 1,
        "residual_at": 24,
        "write_output": 1,
        "write_activation": 1,
        "write_raw": 1,
        "write_at": 24,
        "write_table": 1,
        "at_shared": DEST_BITS,
        "store_read": 1,
        "store_at": DEST_BITS,
    }
    return ports


class Lane(wiring.Component):
    """Latency: hop to operands two cycles; the accumulators of a slot are picked by `group` and registered, then the
    PPUs follow (see Ppu). Throughput: a window, a group of columns, a beat in and a beat out in every cycle.
    """

    def __init__(self, spec: ArchSpec, library: Library) -> None:
        self._spec, self._library = spec, library
        super().__init__(
            {
                "hop": In(hop_bits(spec)),
                "hop_valid": In(1),
                "zero_point": In(8),
                "is_signed": In(1),
                "operands": Out(operand_layout(spec)),
                "accumulators": In(data.ArrayLayout(signed(32), spec.columns)),
                "keep_activation": In(1),
                "keep_output": In(1),
                "load_at": In(DEST_BITS),
                "store_data": Out(8 * spec.axi_bytes),
                "conflict": Out(1),
                **{name: In(shape) for name, shape in shared_ports(spec).items()},
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()
        m.submodules.activation = bank = Activation(spec)
        m.submodules.output = output = Output(spec)
        codes = Signal(32 * spec.ppu)
        m.d.comb += [
            bank.hop.eq(self.hop),
            bank.hop_valid.eq(self.hop_valid),
            bank.zero_point.eq(self.zero_point),
            bank.is_signed.eq(self.is_signed),
            self.operands.eq(bank.operands),
            bank.load.eq(self.keep_activation),
            bank.drain.eq(self.write_activation),
            output.load.eq(self.keep_output),
            output.drain.eq(self.write_output),
            output.residual.eq(self.residual_read),
            output.residual_at.eq(self.residual_at),
            output.store.eq(self.store_read),
            output.store_at.eq(self.store_at),
            self.store_data.eq(output.store_data),
            self.conflict.eq(bank.conflict | output.conflict),
        ]
        for memory in (bank, output):
            m.d.comb += [
                memory.load_at.eq(self.load_at),
                memory.load_data.eq(self.load_data),
                memory.drain_raw.eq(self.write_raw),
                memory.drain_at.eq(self.write_at),
                memory.drain_data.eq(codes),
            ]
        results = []
        for k in range(spec.ppu):
            ppu = Ppu(spec)
            m.submodules[f"ppu_{k}"] = self._library.place("ppu", ppu)
            accumulator = Signal(signed(32), name=f"accumulator_{k}", reset_less=True)
            choices = [self.accumulators[g * spec.ppu + k] for g in range(spec.column_groups)]
            m.d.sync += accumulator.eq(Array(choices)[self.group])
            m.d.comb += [
                ppu.accumulator.eq(accumulator),
                ppu.bias.eq(self.bias[k]),
                ppu.multiplier.eq(self.multiplier[k]),
                ppu.shift.eq(self.shift[k]),
                ppu.lift.eq(self.lift[k]),
                ppu.residual.eq(output.residual_data[8 * k : 8 * k + 8]),
                ppu.add.eq(self.add),
                ppu.multiply.eq(self.multiply),
                ppu.round.eq(self.round),
                ppu.clamp.eq(self.clamp),
            ]
            if spec.tables:
                m.d.comb += [
                    ppu.lookup.eq(self.lookup),
                    ppu.table_write.eq(self.write_table),
                    ppu.table_at.eq(self.at_shared),
                    ppu.table_data.eq(self.load_data),
                ]
            results.append(ppu.code)
        m.d.comb += codes.eq(Cat(*results))
        return m
