"""`Lines`: a float32 weight in panels with what follows its sums, ready for the float kernels on lines."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import entry
from gossamer.kernels.float_kernels import run_parallel, run_serial
from gossamer.kernels.float_panels import FloatPanels
from gossamer.kernels.vectors import scratch

__all__ = ["Lines"]

Floats = NDArray[np.float32]

_TALLEST = {16: 4}
"""Vectors of rows in a tile by lanes: with four outputs they fill 16 of 32 registers."""
_TALL = 3
"""The same with shorter vectors: 12 of 16 registers."""
_FEW = 4
"""So many rows and fewer are one vector together with the outputs of a panel (a height of 0)."""


class Lines:
    """A layer by the kernels on lines."""

    def __init__(
        self,
        panels: FloatPanels,
        bias: Floats,
        after: tuple[Any, ...],
        *,
        lanes: int,
        threads: int,
        pieces: tuple[NDArray[np.int64], int],
    ) -> None:
        """bias, after, pieces : as of the kernels.  lanes : float32 of a vector."""
        self._panels, self._lanes, self._threads, self._outputs = panels, lanes, threads, bias.size
        layout = (
            panels.run,
            panels.blocks,
            panels.panels,
            panels.pointers,
            panels.inputs,
            panels.weights,
            panels.lines,
        )
        self._constants = (pieces, () if panels.shared else None, layout, bias, after)
        self._codes: dict[tuple[int, int, bool, bool], Callable[..., Any]] = {}

    def __call__(
        self, x: Floats, out: NDArray[Any], residual: Floats | None, begins: NDArray[np.int64] | None = None
    ) -> None:
        """x : [rows, K], or one line with rows that begin where begins says.  out, residual : [rows, N]."""
        panels, rows, first = self._panels, out.shape[0], 0
        x, residual = np.ascontiguousarray(x), out if residual is None else np.ascontiguousarray(residual)
        lanes = self._lanes if rows > _FEW else _FEW
        tallest = _TALLEST.get(lanes, _TALL) if rows > _FEW else 0
        for height, tiles in _tiles(-(-rows // lanes), tallest, self._threads):
            workers, long = min(self._threads, tiles), lanes * max(1, height)
            lines, sums = (panels.blocks * (panels.run + 1) + lanes) * long, self._outputs * long
            kept = scratch("lines", 4 * workers * (lines + sums)).view(np.float32)
            middle = workers * lines
            work = kept[:middle].reshape(workers, lines), kept[middle:].reshape(workers, sums)
            constants = (*self._constants, (0,) * lanes, (0,) * height, first, tiles)
            key = lanes, height, begins is None, workers > 1
            if key not in self._codes:
                kernel: Callable[..., Any] = run_parallel if workers > 1 else run_serial
                self._codes[key] = entry(kernel, x, out, residual, begins, *constants, *work)
            self._codes[key](x, out, residual, begins, *constants, *work)
            first += tiles * long


def _tiles(vectors: int, tallest: int, threads: int) -> list[tuple[int, int]]:
    """(height, number) of the tiles that cover so many vectors of rows.

    One thread: as few as can be, of two neighbouring heights, so that no vector stays empty. More: all of one height,
    so that all take the same time, and one for each thread if there are enough vectors.

    >>> _tiles(13, 4, 1), _tiles(13, 4, 2), _tiles(2, 4, 2)
    ([(4, 1), (3, 3)], [(4, 4)], [(1, 2)])
    """
    if not tallest:
        return [(0, vectors)]
    count = max(-(-vectors // tallest), min(threads, vectors))
    if threads > 1:
        height = -(-vectors // count)
        return [(height, -(-vectors // height))]
    height, taller = divmod(vectors, count)
    return [(h, number) for h, number in ((height + 1, taller), (height, count - taller)) if number]
