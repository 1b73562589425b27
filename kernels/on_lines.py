"""`OnLines`: a packed weight with a second layout, for calls whose rows fill tiles of 64 lines.

Lines leave no slot empty, but a tile is always 64 rows, and turning it and its sums takes time that only large weights
pay back: when they do was measured on a Zen 4.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import entry
from gossamer.kernels.line_groups import LineGroups
from gossamer.kernels.line_kernels import run_tiles, run_tiles_parallel
from gossamer.kernels.vectorised import Begins, Calls, Vectorised

__all__ = ["TILE", "OnLines", "suits_lines"]

TILE = 64
"""Rows."""
_OUTPUTS, _INPUTS, _MOST = 768, 64, 0.15
"""Outputs and nonzeros of an output from which on lines were the faster layout, and up to which density."""
_FILLED = 0.9
"""Share of its tiles' rows that a call must have."""


def suits_lines(shape: tuple[int, int], density: float) -> bool:
    """Whether lines can be the faster layout for a weight [N, K] whose outputs share their inputs by fours."""
    n, k = shape
    return n % TILE == 0 and n >= _OUTPUTS and k >= TILE and density <= _MOST and k * density >= _INPUTS


class OnLines:
    """A layer by either kernel."""

    def __init__(
        self, few: Vectorised, groups: LineGroups, first: NDArray[np.int32], after: Any, *, threads: int
    ) -> None:
        """few : the same layer, for all other calls.  first : int32 [N].  first, after : as of the kernel."""
        self._few = few
        kept = (groups.pointers, groups.inputs, groups.weights, first)
        self._constants = (kept, after, None, threads) if threads > 1 else (kept, after, None)
        self._threads = threads
        self._calls: Calls = []

    def __call__(
        self, x: NDArray[Any], out: NDArray[Any], residual: NDArray[Any] | None, begins: Begins = None
    ) -> Calls | None:
        """See `Run`."""
        rows = out.shape[0]
        tiles = -(-rows // TILE)
        filled = rows >= TILE and rows >= _FILLED * TILE * tiles and tiles >= self._threads
        if begins is not None or not filled:
            return self._few(x, out, residual, begins)
        fits = x.flags.c_contiguous
        x, residual = np.ascontiguousarray(x), out if residual is None else np.ascontiguousarray(residual)
        if not self._calls:
            kernel: Callable[..., Any] = run_tiles_parallel if self._threads > 1 else run_tiles
            self._calls = [(entry(kernel, x, out, residual, begins, *self._constants), self._constants)]
        for code, constants in self._calls:
            code(x, out, residual, begins, *constants)
        return self._calls if fits else None
