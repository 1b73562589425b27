"""Several patterns at once: a weight stays when all of them let it, each choosing among what the former left."""

from dataclasses import dataclass

import numpy as np

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.patterns.fine import Dense
from gossamer.compiler.sparsity.patterns.pattern import Array, Mask, Pattern
from gossamer.compiler.sparsity.patterns.rebuilt import Channels, LowRank, Monarch, PlusLowRank

__all__ = ["Combined"]


@dataclass(frozen=True)
class Combined(Pattern):
    """Patterns one after the other, such as "block 16x16 50% + 2:4" or "channels 30% + 2:8".

    A share of zeros is of all weights, those that an earlier pattern took included.
    """

    parts: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ModelError("a combined pattern needs at least two patterns, written A + B")
        for i, part in enumerate(self.parts):
            if isinstance(part, Combined | Dense | Monarch | LowRank | PlusLowRank) or not part.imposable:
                raise ModelError(f"pattern {self}: {part} cannot be combined with another")
            if isinstance(part, Channels) and i:
                raise ModelError(f"pattern {self}: {part} must come first, because it changes the shape")

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))

    @property
    def only_zeros(self) -> bool:
        """Unless channels are removed first."""
        return all(part.only_zeros for part in self.parts)

    @property
    def zeros(self) -> float:
        """As if each pattern chose without regard to the others."""
        return 1.0 - float(np.prod([1.0 - part.zeros for part in self.parts]))

    @property
    def rest(self) -> Pattern:
        """All but the first."""
        return Combined(self.parts[1:]) if len(self.parts) > 2 else self.parts[1]

    def refusal(self, shape: tuple[int, ...]) -> str:
        """The first refusal of a part."""
        return next((refusal for part in self.parts if (refusal := part.refusal(shape))), "")

    def mask(self, scores: Array) -> Mask:
        """What all let stay."""
        keep = np.ones(scores.shape, dtype=bool)
        for part in self.parts:
            keep &= part.mask(np.where(keep, scores, 0))
        return keep
