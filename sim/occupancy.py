"""What the array's MACs did in a layer's cycles: useful products, and why the others idled.

A layer can take no more than its bound and still leave nearly all MACs idle: one output position keeps one lane busy,
and where each column reads a channel of its own (depthwise layers, poolings) a window holds nothing for most columns.
"""

from dataclasses import dataclass, fields

from gossamer.arch.program import LayerNote
from gossamer.arch.spec import ArchSpec

__all__ = ["Occupancy", "occupancy"]


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """Cycles of the whole array, which sum to a layer's cycles; times lanes x columns x macs they are MACs.

    useful : products of nonzero weights.  empty : slots without a nonzero, in columns that have a channel.
    columns : columns without a channel.  lanes : lanes without a position.
    still : the array stands still. Below 0 where a layer works in the time of the one before.
    """

    useful: float = 0.0
    empty: float = 0.0
    columns: float = 0.0
    lanes: float = 0.0
    still: float = 0.0

    def __add__(self, other: "Occupancy") -> "Occupancy":
        return Occupancy(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to_dict(self) -> dict[str, float]:
        """Cycles by name, in order."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def occupancy(note: LayerNote, spec: ArchSpec, cycles: int, slots: int, idle_columns: float) -> Occupancy:
    """A layer's occupancy. slots : its steps x positions;  idle_columns : share of columns without a channel.

    A maximum has no products: all slots of its columns are empty, though they compare.
    """
    useful = note.useful_macs / spec.peak_macs
    held = min(note.mac_cycles, slots)
    columns = max(0.0, min(held - useful, held * idle_columns))
    return Occupancy(
        useful=useful,
        empty=max(0.0, held - useful - columns),
        columns=columns,
        lanes=slots - max(held, useful),
        still=float(cycles - slots),
    )
