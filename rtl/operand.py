"""Operand: where the bytes of a beat go when weights are activations (NATURAL and TRANSPOSED of arch/stream.py)."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.spec import ArchSpec
from gossamer.rtl.cells import bits_for, delayed
from gossamer.rtl.windows import DEST_BITS

__all__ = ["Operand", "natural_bytes", "phase_bits", "place_layout"]


def natural_bytes(spec: ArchSpec) -> int:
    """Columns that a beat of NATURAL brings."""
    return min(spec.columns, spec.axi_bytes)


def phase_bits(spec: ArchSpec) -> int:
    """Bits of a step of the load modulo group / macs, from which selects follow."""
    return (spec.group // spec.macs).bit_length() - 1


def place_layout(spec: ArchSpec) -> Any:
    """Where a beat goes, and the beat.

    step : row of the weight buffer, of TRANSPOSED the first one.  phase : that step of the load, modulo group / macs.
    mac : of NATURAL the MAC, of TRANSPOSED which beat of a step.  column : of TRANSPOSED the column, of NATURAL which
    beat of a row.  natural : the bytes of columns 0, 1, ... (mod natural_bytes).
    """
    return data.StructLayout(
        {
            "natural": 1,
            "transposed": 1,
            "step": bits_for(spec.weight_steps),
            "phase": phase_bits(spec),
            "mac": bits_for(spec.macs),
            "column": bits_for(spec.columns),
            "bytes": 8 * spec.axi_bytes,
            "natural_bytes": 8 * natural_bytes(spec),
        }
    )


class Operand(wiring.Component):
    """Latency: three cycles, as from a beat to the row that the expander makes of it. Throughput: a beat a cycle.

    begins : the first beat of a load.  tile_beats, part, dest : fields of the load (part is step_beats).
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "valid": In(1),
                "begins": In(1),
                "transposed": In(1),
                "tile_beats": In(12),
                "part": In(12),
                "dest": In(DEST_BITS),
                "beat": In(8 * spec.axi_bytes),
                "o": Out(place_layout(spec)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()
        place = Signal(place_layout(spec))
        # `place` is where the beat of this cycle goes; the registers say where the next one does.
        base = Signal.like(place.step)  # first step of the block
        base_now = Signal.like(base)
        phase_base = Signal.like(place.phase)
        phase_base_now = Signal.like(place.phase)
        state = {name: Signal.like(place[name], name=f"next_{name}") for name in ("step", "phase", "mac", "column")}
        inner = Signal(12)  # TRANSPOSED: beats of this column so far
        inner_now = Signal(12)
        fresh = {"step": self.dest, "phase": 0, "mac": 0, "column": 0}
        m.d.comb += [
            *(place[name].eq(Mux(self.begins, fresh[name], state[name])) for name in state),
            base_now.eq(Mux(self.begins, self.dest, base)),
            phase_base_now.eq(Mux(self.begins, 0, phase_base)),
            inner_now.eq(Mux(self.begins, 0, inner)),
            place.natural.eq(self.valid & ~self.transposed),
            place.transposed.eq(self.valid & self.transposed),
            place.bytes.eq(self.beat),
        ]
        width = 8 * natural_bytes(spec)
        parts = spec.axi_bytes * 8 // width
        m.d.comb += place.natural_bytes.eq(self.beat.word_select(self.part[: bits_for(parts)], width))

        with m.If(self.valid & ~self.transposed):
            row_ends = place.column == max(1, spec.columns // spec.axi_bytes) - 1
            step_ends = row_ends & (place.mac == spec.macs - 1)
            m.d.sync += [
                state["column"].eq(Mux(row_ends, 0, place.column + 1)),
                state["mac"].eq(Mux(step_ends, 0, place.mac + row_ends)),
                state["step"].eq(place.step + step_ends),
                state["phase"].eq(place.phase + step_ends),
            ]
        with m.If(self.valid & self.transposed):
            step_ends = place.mac == max(1, spec.macs // spec.axi_bytes) - 1
            column_ends = inner_now == self.tile_beats - 1
            block_ends = column_ends & (place.column == spec.columns - 1)
            step = Signal.like(place.step)
            phase = Signal.like(place.phase)
            advance = Mux(step_ends, spec.weight_banks, 0)
            m.d.comb += [step.eq(place.step + advance), phase.eq(place.phase + advance)]
            m.d.sync += [
                inner.eq(Mux(column_ends, 0, inner_now + 1)),
                state["mac"].eq(Mux(step_ends, 0, place.mac + 1)),
                state["column"].eq(Mux(block_ends, 0, place.column + column_ends)),
                state["step"].eq(Mux(column_ends & ~block_ends, base_now, step)),
                state["phase"].eq(Mux(column_ends & ~block_ends, phase_base_now, phase)),
                base.eq(Mux(block_ends, step, base_now)),
                phase_base.eq(Mux(block_ends, phase, phase_base_now)),
            ]
        last = place_layout(spec)(delayed(m, place, 3, "place"))
        valid = delayed(m, self.valid, 3, "valid", reset=True)
        m.d.comb += [
            self.o.eq(last),
            self.o.natural.eq(valid & last.natural),
            self.o.transposed.eq(valid & last.transposed),
        ]
        return m
