"""What a layer's inputs were like on calibration data, and what a change of its weights does to its outputs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.compiler.sparsity.patterns import Array, channel_rows, from_channel_rows

__all__ = ["Moments", "grouped_rows", "reconstruction_error", "ungrouped_rows"]

Real = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Second moments of the inputs of a layer.

    gram : float64 [groups, K, K], the mean of x xᵀ over `count` output positions; x are the K = taps * in_channels
           values that an output channel reads, tap by tap, input channels innermost.
    """

    gram: Real
    count: int

    @property
    def norms(self) -> Real:
        """Root mean square of every input, float64 [groups, K]."""
        return np.sqrt(np.diagonal(self.gram, axis1=1, axis2=2))


def grouped_rows(weight: Array, groups: int) -> Array:
    """A weight [out, in / groups, *kernel] as [groups, out / groups, K], in the order of Moments."""
    rows = channel_rows(weight)
    return rows.reshape(groups, len(rows) // groups, -1)


def ungrouped_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """Inverse of grouped_rows."""
    return from_channel_rows(rows.reshape(shape[0], -1, shape[1]), shape)


def reconstruction_error(weight: Array, pruned: Array, moments: Moments | None = None) -> float:
    """|W X - W' X|² / |W X|²: the share of a layer's output energy that the change is worth.

    weight, pruned : [out, in / groups, *kernel].  moments : of X; None takes inputs that are white.
    """
    groups = 1 if moments is None else len(moments.gram)
    before = grouped_rows(weight.astype(np.float64), groups)
    lost = before - grouped_rows(pruned.astype(np.float64), groups)
    whole, change = _energy(before, moments), _energy(lost, moments)
    return change / whole if whole > 0 else 0.0


def _energy(rows: Real, moments: Moments | None) -> float:
    seen = rows if moments is None else rows @ moments.gram
    return float(np.einsum("gok,gok->", seen, rows))
