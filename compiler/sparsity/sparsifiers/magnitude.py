"""Magnitude pruning: the largest weights stay as they are."""

from dataclasses import dataclass

import numpy as np

from gossamer.compiler.sparsity.patterns import Array, Pattern
from gossamer.compiler.sparsity.sparsifiers.moments import Moments

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude:
    """|w|. Needs no data."""

    name: str = "magnitude"
    needs_inputs: bool = False

    def __call__(self, weight: Array, pattern: Pattern, moments: Moments | None = None) -> Array:
        """See interface.Sparsifier."""
        return np.where(pattern.mask(weight), weight, np.zeros((), weight.dtype))
