"""`Lines`: a float32 weight in panels with what follows its sums, ready for the float kernels on lines."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import entry
from gossamer.kernels.float_kernels import run_parallel, run_serial
from gossamer.kernels.float_panels import FloatPanels
from gossamer.kernels.vectorised import Begins
from gossamer.kernels.vectors import scratch

__all__ = ["Lines"]

Floats = NDArray[np.float32]

_TALLEST = {16: 4}
"""Vectors of rows in a tile by lanes: with four outputs they fill 16 of 32 registers."""
_TALL = 3
"""The same with shorter vectors: 12 of 16 registers."""
_FEW = 4
"""So many rows and fewer are one vector together with the outputs of a panel (a height of 0)."""
_KNOWN = 64
"""Numbers of rows whose plans are remembered."""


class Lines:
    """A layer by the kernels on lines."""

    def __init__(
        self,
        panels: FloatPanels,
        after: tuple[Any, ...],
        *,
        lanes: int,
        threads: int,
        pieces: tuple[NDArray[np.int64], int],
    ) -> None:
        """after, pieces : as of the kernels.  lanes : float32 of a vector."""
        self._panels, self._lanes, self._threads, self._outputs = panels, lanes, threads, after[0].size
        layout = (
            panels.run,
            panels.blocks,
            panels.panels,
            panels.pointers,
            panels.inputs,
            panels.weights,
            panels.lines,
        )
        self._constants = (pieces, () if panels.shared else None, layout, after)
        self._known: dict[tuple[int, bool], list[Plan]] = {}

    def __call__(self, x: Floats, out: NDArray[Any], residual: Floats | None, begins: Begins = None) -> None:
        """See `Run`."""
        x, residual = np.ascontiguousarray(x), out if residual is None else np.ascontiguousarray(residual)
        key = out.shape[0], begins is None
        plan = self._known.get(key)
        if plan is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            plan = self._known[key] = self._plan(x, out, residual, begins)
        for code, constants, workers, lines, sums in plan:
            code(x, out, residual, begins, *constants, *_scratch(workers, lines, sums))

    def _plan(self, x: Floats, out: NDArray[Any], residual: Floats, begins: Begins) -> list["Plan"]:
        panels, rows, first, plan = self._panels, out.shape[0], 0, []
        lanes = self._lanes if rows > _FEW else _FEW
        tallest = _TALLEST.get(lanes, _TALL) if rows > _FEW else 0
        for height, tiles in _tiles(-(-rows // lanes), tallest, self._threads):
            workers, long = min(self._threads, tiles), lanes * max(1, height)
            lines, sums = (panels.blocks * (panels.run + 1) + lanes) * long, self._outputs * long
            constants = (*self._constants, (0,) * lanes, (0,) * height, first, tiles)
            kernel: Callable[..., Any] = run_parallel if workers > 1 else run_serial
            code = entry(kernel, x, out, residual, begins, *constants, *_scratch(workers, lines, sums))
            plan.append((code, constants, workers, lines, sums))
            first += tiles * long
        return plan


Plan = tuple[Callable[..., Any], tuple[Any, ...], int, int, int]
"""Compiled code, its arguments after begins, and what `_scratch` is asked for them."""


def _scratch(workers: int, lines: int, sums: int) -> tuple[Floats, Floats]:
    """Arrays [workers, lines] and [workers, sums]."""
    middle = workers * lines
    kept = scratch("lines", 4 * (middle + workers * sums)).view(np.float32)
    return kept[:middle].reshape(workers, lines), kept[middle:].reshape(workers, sums)


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
