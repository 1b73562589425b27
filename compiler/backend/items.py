"""An item of the schedule: one MATMUL with what follows it, and the chunks it needs on chip."""

from collections.abc import Iterator
from dataclasses import dataclass

from gossamer.compiler.backend.rings import Chunk, Region

__all__ = ["Item"]


@dataclass(eq=False)
class Item:
    """One MATMUL, with the DRAIN and STORE that follow it, if any; base addresses come from the chunks.

    layer : index of the layer, or chain of layers, in its stage.
    out : where the DRAIN writes: a chunk of the output ring, or of the activation ring for a tensor that stays on chip.
    writes : what the STORE writes.
    """

    layer: int
    act: Chunk
    weight: Chunk
    offset: Chunk
    matmul: dict[str, int]
    parameter: Chunk | None = None
    table: Chunk | None = None
    out: Chunk | None = None
    drain: dict[str, int] | None = None
    store: dict[str, int] | None = None
    writes: tuple[Region, ...] = ()

    @property
    def slots(self) -> int:
        """Cycles of its MATMUL."""
        return self.matmul["steps"] * self.matmul["nx"] * self.matmul["ny"]

    def chunks(self) -> Iterator[Chunk]:
        """Everything it needs, constants first."""
        for chunk in (self.parameter, self.table, self.offset, self.weight, self.act, self.out):
            if chunk is not None:
                yield chunk
