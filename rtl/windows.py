"""Lane windows: which lanes keep a beat of an activation or output load, and where."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.isa import FORMATS, Op
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.cells import delayed

__all__ = ["DEST_BITS", "GRID_BITS", "Windows"]

_WIDTH = {f.name: f.bits for f in FORMATS[Op.LOAD]}
DEST_BITS, GRID_BITS = _WIDTH["dest"], _WIDTH["grid"]


class Windows(wiring.Component):
    """Latency: two cycles. Throughput: a beat a cycle.

    x, y : the beat's place in its block.  skip : step_rows * tile_beats.  beat : its address in a lane that begins at
    (0, 0). A lane at column j, row i of the grid keeps it if x - j * step_beats and y - i * step_rows are within the
    tile, at beat - i * skip - j * step_beats.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "x": In(_WIDTH["beats"]),
                "y": In(_WIDTH["rows"]),
                "beat": In(DEST_BITS),
                "grid": In(GRID_BITS),
                "tile_beats": In(_WIDTH["tile_beats"]),
                "tile_rows": In(_WIDTH["tile_rows"]),
                "step_beats": In(_WIDTH["step_beats"]),
                "step_rows": In(_WIDTH["step_rows"]),
                "skip": In(DEST_BITS),
                "keep": Out(spec.lanes),
                "at": Out(data.ArrayLayout(DEST_BITS, spec.lanes)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        lanes = self._spec.lanes
        x = delayed(m, self.x, 1, "x")
        y = delayed(m, self.y, 1, "y")
        beat = delayed(m, self.beat, 1, "beat")
        tile_beats = delayed(m, self.tile_beats, 1, "tile_beats")
        tile_rows = delayed(m, self.tile_rows, 1, "tile_rows")
        for r in range(lanes):
            left = Signal(20, name=f"left_{r}", reset_less=True)
            top = Signal(18, name=f"top_{r}", reset_less=True)
            back = Signal(DEST_BITS, name=f"back_{r}", reset_less=True)
            with m.Switch(self.grid):
                for g in range(1 << GRID_BITS):
                    j, i = r % (1 << g), r >> g
                    with m.Case(g):
                        m.d.sync += [
                            left.eq(self.step_beats * j),
                            top.eq(self.step_rows * i),
                            back.eq(self.step_beats * j + self.skip * i),
                        ]
            at = Signal(DEST_BITS, name=f"at_{r}", reset_less=True)
            m.d.sync += [
                self.keep[r].eq((x >= left) & (x < left + tile_beats) & (y >= top) & (y < top + tile_rows)),
                at.eq(beat - back),
            ]
            m.d.comb += self.at[r].eq(at)
        return m
