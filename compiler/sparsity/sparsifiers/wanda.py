"""Wanda: weights are judged by what they carry, not by what they are.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024).
"""

from dataclasses import dataclass

import numpy as np

from gossamer.compiler.sparsity.patterns import Array, FanIn, Pattern, Unstructured
from gossamer.compiler.sparsity.sparsifiers.moments import Moments, grouped_rows, ungrouped_rows

__all__ = ["Wanda"]


@dataclass(frozen=True)
class Wanda:
    """|w| times the norm of its input. The weights that stay are not changed."""

    name: str = "wanda"
    needs_inputs: bool = True

    def __call__(self, weight: Array, pattern: Pattern, moments: Moments | None) -> Array:
        """See interface.Sparsifier. Unstructured weights compete within their output channel (section 3 there)."""
        assert moments is not None
        if isinstance(pattern, Unstructured):
            pattern = FanIn(pattern.sparsity)
        rows = np.abs(grouped_rows(weight, len(moments.gram))) * moments.norms[:, np.newaxis, :]
        keep = pattern.mask(ungrouped_rows(rows, weight.shape))
        return np.where(keep, weight, np.zeros((), weight.dtype))
