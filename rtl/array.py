"""The PE array: tiles of PEs that share their words, with a register between a tile and the next."""

from typing import Any

from amaranth.hdl import Cat, Module, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.spec import ArchSpec
from gossamer.rtl.cells import Library, delayed
from gossamer.rtl.pe import Pe, accumulate_layout, accumulator_bits, operand_layout, weight_layout

__all__ = ["Array", "Tile", "spans"]


def spans(count: int, size: int) -> list[range]:
    """`count` things in runs of `size`, the last may be shorter."""
    return [range(k, min(k + size, count)) for k in range(0, count, size)]


class Tile(wiring.Component):
    """Latency: what a tile gets it uses at once, and hands on, registered, in the next cycle: operands and control to
    the right, weights and control downwards. Throughput: one step and position a cycle.
    """

    def __init__(self, spec: ArchSpec, library: Library, lanes: int, columns: int) -> None:
        self._spec, self._library, self._lanes, self._columns = spec, library, lanes, columns
        operands = data.ArrayLayout(operand_layout(spec), lanes)
        weights = data.ArrayLayout(weight_layout(spec), columns)
        super().__init__(
            {
                "operands": In(operands),
                "weights": In(weights),
                "maximum": In(1),
                "accumulate": In(accumulate_layout(spec)),
                "o_operands": Out(operands),
                "o_weights": Out(weights),
                "o_maximum": Out(1),
                "o_accumulate": Out(accumulate_layout(spec)),
                "drain_at": In(accumulator_bits(spec)),
                "drain": Out(data.ArrayLayout(data.ArrayLayout(signed(32), columns), lanes)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        for name in ("operands", "weights", "maximum", "accumulate"):
            m.d.comb += Value.cast(getattr(self, f"o_{name}")).eq(delayed(m, getattr(self, name), 1, name))
        valid = delayed(m, self.accumulate.valid, 1, "valid", reset=True)  # it alone needs one
        m.d.comb += self.o_accumulate.valid.eq(valid)
        for r in range(self._lanes):
            for c in range(self._columns):
                pe = Pe(self._spec)
                m.submodules[f"pe_{r}_{c}"] = self._library.place("pe", pe)
                m.d.comb += [
                    pe.operands.eq(self.operands[r]),
                    pe.weights.eq(self.weights[c]),
                    pe.maximum.eq(self.maximum),
                    pe.accumulate.eq(self.accumulate),
                    pe.drain_at.eq(self.drain_at),
                    self.drain[r][c].eq(pe.drain),
                ]
        return m


class Array(wiring.Component):
    """Latency: lane r sees its words r div broadcast_lanes cycles late, and so must bring its operands late; column c
    likewise by broadcast_columns. Throughput: one step and position a cycle.

    operands[r], weights[c] : of the lane and column, already late.  maximum, accumulate : of lane 0, column 0.
    """

    def __init__(self, spec: ArchSpec, library: Library) -> None:
        self._spec, self._library = spec, library
        super().__init__(
            {
                "operands": In(data.ArrayLayout(operand_layout(spec), spec.lanes)),
                "weights": In(data.ArrayLayout(weight_layout(spec), spec.columns)),
                "maximum": In(1),
                "accumulate": In(accumulate_layout(spec)),
                "drain_at": In(accumulator_bits(spec)),
                "drain": Out(data.ArrayLayout(data.ArrayLayout(signed(32), spec.columns), spec.lanes)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()
        above: list[Any] = []
        for q, lanes in enumerate(spans(spec.lanes, spec.broadcast_lanes)):
            row: list[Any] = []
            for g, columns in enumerate(spans(spec.columns, spec.broadcast_columns)):
                tile = Tile(spec, self._library, len(lanes), len(columns))
                row.append(tile)
                m.submodules[f"tile_{q}_{g}"] = self._library.place(f"tile_{len(lanes)}x{len(columns)}", tile)
                before = row[g - 1] if g else above[0] if q else None
                m.d.comb += [
                    tile.maximum.eq(before.o_maximum if before else self.maximum),
                    tile.accumulate.eq(before.o_accumulate if before else self.accumulate),
                    tile.operands.eq(
                        row[g - 1].o_operands if g else Cat(*(self.operands[r].as_value() for r in lanes))
                    ),
                    tile.weights.eq(above[g].o_weights if q else Cat(*(self.weights[c].as_value() for c in columns))),
                    tile.drain_at.eq(self.drain_at),
                ]
                for r in lanes:
                    for c in columns:
                        m.d.comb += self.drain[r][c].eq(tile.drain[r - lanes.start][c - columns.start])
            above = row
        return m
