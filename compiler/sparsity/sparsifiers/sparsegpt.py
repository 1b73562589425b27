"""SparseGPT: weights are removed one input after the other, and those to come make up for what was lost.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (ICML 2023), after
"Optimal Brain Surgeon". Removing weight w_k of a row costs w_k² / [H⁻¹]_kk in squared error, and the best change of
the weights that come later is -w_k / [H⁻¹]_kk times row k of H⁻¹, where H is the inputs' second moment with the
inputs already passed taken out. All of these are in one factor U, upper triangular, UᵀU = H⁻¹: row k of U, divided
by U_kk.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from gossamer.compiler.sparsity.patterns import NM, Array, FanIn, Mask, Pattern, Unstructured
from gossamer.compiler.sparsity.patterns.pattern import best_share, largest
from gossamer.compiler.sparsity.sparsifiers.moments import Moments, grouped_rows, ungrouped_rows

__all__ = ["SparseGPT"]

Real = NDArray[np.float64]


@dataclass(frozen=True)
class _Piece:
    """Inputs start to end, and which of their weights stay, given the error that removing each would leave."""

    start: int
    end: int
    choose: Callable[[Real], Mask]


@dataclass(frozen=True)
class SparseGPT:
    """Weights removed by the error they leave, and the others updated to make up for it.

    block : inputs whose updates to the rest of the row are gathered into one product; unstructured weights compete
    within it.  damping : share of the mean of H's diagonal that is added to all of it.
    """

    block: int = 128
    damping: float = 0.01
    name: str = "sparsegpt"
    needs_inputs: bool = True

    def __call__(self, weight: Array, pattern: Pattern, moments: Moments | None) -> Array:
        """See interface.Sparsifier."""
        assert moments is not None
        groups = len(moments.gram)
        rows = grouped_rows(weight.astype(np.float64), groups)
        factors = np.stack([inverse_factor(gram, self.damping) for gram in moments.gram])
        pieces = _pieces(pattern, weight.shape, self.block)
        if pieces is None:  # the pattern has to see the whole weight: choose first, update afterwards
            saliency = np.abs(rows) / np.diagonal(factors, axis1=1, axis2=2)[:, np.newaxis, :]
            chosen = grouped_rows(pattern.mask(ungrouped_rows(saliency, weight.shape)), groups)
        for group in range(groups):
            _sweep(rows[group], factors[group], pieces or _given(chosen[group], self.block), self.block)
        return ungrouped_rows(rows, weight.shape).astype(weight.dtype)


def inverse_factor(gram: Real, damping: float) -> Real:
    """Upper triangular U with UᵀU = (gram + damping * mean(diagonal) * I)⁻¹, float64 [K, K].

    An input that was always zero gets a diagonal of one, so that its weights are worth nothing to the others.
    """
    h = gram.copy()
    diagonal = np.einsum("kk->k", h)
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    # H = R Rᵀ with R upper triangular, which is the lower factor of H read backwards; then U = R⁻¹.
    lower, failed = lapack.dpotrf(h[::-1, ::-1], lower=1, clean=1)
    assert not failed, "a damped matrix of second moments is positive definite"
    inverse, failed = lapack.dtrtri(lower, lower=1)
    assert not failed
    return np.ascontiguousarray(inverse[::-1, ::-1])


def _pieces(pattern: Pattern, shape: tuple[int, ...], block: int) -> list[_Piece] | None:
    """Runs of inputs that choose their zeros when the sweep comes to them; None when the pattern cannot."""
    inputs, width = shape[1], math.prod(shape[1:])
    if isinstance(pattern, NM) and not pattern.flat:
        starts = [tap + first for tap in range(0, width, inputs) for first in range(0, inputs, pattern.m)]
        return [
            _Piece(s, min(s + pattern.m, s // inputs * inputs + inputs), partial(largest, n=pattern.n)) for s in starts
        ]
    runs = [(s, min(s + block, width)) for s in range(0, width, block)]
    if isinstance(pattern, Unstructured):
        return [_Piece(s, e, partial(best_share, zeros=pattern.sparsity)) for s, e in runs]
    if isinstance(pattern, FanIn):
        kept = max(1, round(width * (1 - pattern.sparsity)))
        until = [round(e * kept / width) for _, e in runs]
        counts = np.diff([0, *until]).tolist()
        return [_Piece(s, e, partial(largest, n=n)) for (s, e), n in zip(runs, counts, strict=True)]
    return None


def _given(keep: Mask, block: int) -> list[_Piece]:
    """Runs whose zeros are known."""

    def piece(start: int) -> _Piece:
        here = keep[:, start : start + block]
        return _Piece(start, start + here.shape[1], lambda _: here)

    return [piece(start) for start in range(0, keep.shape[1], block)]


def _sweep(rows: Real, factor: Real, pieces: list[_Piece], block: int) -> None:
    """Prune and update [out_channels, K] in place."""
    todo = list(pieces)
    while todo:
        first = todo[0].start
        here = [p for p in todo if p.end <= first + block]
        todo = todo[len(here) :]
        last = here[-1].end
        inner = factor[first:last, first:last]
        run = np.asfortranarray(rows[:, first:last])  # columns that come are one piece of memory, updated in place
        errors = np.zeros_like(run)
        for piece in here:
            start, end = piece.start - first, piece.end - first
            keep = piece.choose((run[:, start:end] / np.diagonal(inner)[start:end]) ** 2)
            for k in range(start, end):
                lost = np.where(keep[:, k - start], 0.0, run[:, k])
                run[:, k] -= lost
                errors[:, k] = lost / inner[k, k]
                if k + 1 < last - first:
                    blas.dger(-1.0, errors[:, k], inner[k, k + 1 :], a=run[:, k + 1 :], overwrite_a=1)
        rows[:, first:last] = run
        rows[:, last:] -= errors @ factor[first:last, last:]
