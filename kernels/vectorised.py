"""`Vectorised`: a packed weight with what follows its sums, ready for its compiled kernel, for one type of activations.

A kernel is compiled for each height of its tiles. As few tiles as can be cover the rows of a call, all of one height,
where the last may overlap the one before it by little, or else of two neighbouring heights that leave none over.
"""

from collections.abc import Callable
from dataclasses import replace
from math import gcd
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import entry
from gossamer.kernels import fast
from gossamer.kernels.pack import Packed
from gossamer.kernels.vectors import LANES

__all__ = ["Begins", "Calls", "Run", "Vectorised"]

_OVERLAP = 64
"""Rows of which one may be computed twice."""
_PERIOD, _ROWS = 4096, 6
"""Lines so many bytes apart share a set of the nearest cache, which has room for these and two lines of weights."""
_STRIP, _NEAR = 24, 10_000
"""Rows, about, that meet a group's weights while they are in the nearest cache, if the weights are so few bytes."""
_ALL = 1 << 30
_KNOWN = 64
"""Numbers of rows whose calls are remembered."""


Begins = NDArray[np.int64] | None
"""Where each row begins in x, which then is one line: kernels/fast.py."""
Calls = list[tuple[Callable[..., Any], tuple[Any, ...]]]
"""Compiled code and its arguments after x, out, residual and begins."""


class Run(Protocol):
    """Computes a layer on arguments that have been checked; x must fit a call that says where its rows begin."""

    def __call__(
        self, x: NDArray[Any], out: NDArray[Any], residual: NDArray[Any] | None, begins: Begins = None
    ) -> Calls | None:
        """x : [rows, K], or one line.  out, residual : [rows, N], residual if the layer has one.

        Returns what was called, for the next call on so many rows; None where it has to come here again.
        """


class Vectorised:
    """A layer by its compiled kernel."""

    def __init__(
        self,
        packed: Packed,
        first: NDArray[Any],
        after: Any,
        *,
        tallest: int,
        mode: Any,
        threads: int,
        pitch: int | None = None,
    ) -> None:
        """first, after, mode : as of the kernel.  tallest : rows of a tile at most.  pitch : bytes from row to row."""
        self._packed, self._mode, self._threads = packed, mode, threads
        self._highest = tallest
        self._tallest = min(tallest, _ROWS * (_PERIOD // gcd(_PERIOD, pitch or packed.inputs)))
        self._constants = ((packed.data, packed.pointers, packed.places, first), after)
        self._codes: dict[tuple[int, bool], Callable[..., Any]] = {}
        self._known: dict[tuple[int, bool], Calls] = {}

    def __call__(
        self, x: NDArray[Any], out: NDArray[Any], residual: NDArray[Any] | None, begins: Begins = None
    ) -> Calls | None:
        """See `Run`. None is returned where x had to be copied."""
        fits = begins is not None or (x.shape[1] * x.itemsize == self._packed.inputs and x.flags.c_contiguous)
        if not fits:
            wider: NDArray[Any] = np.zeros((x.shape[0], self._packed.inputs // x.itemsize), x.dtype)
            wider[:, : x.shape[1]] = x
            x = wider
        if residual is None:
            residual = out
        elif not residual.flags.c_contiguous:
            residual = residual.copy()
        key = out.shape[0], begins is None
        calls = self._known.get(key)
        if calls is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            calls = self._known[key] = self._calls(x, out, residual, begins)
        for code, constants in calls:
            code(x, out, residual, begins, *constants)
        return calls if fits else None

    @property
    def places(self) -> NDArray[np.int64]:
        """Where in a row each entry of the weight begins, in bytes."""
        return self._packed.places

    def placed(self, places: NDArray[np.int64], pitch: int) -> "Vectorised":
        """The same with entries elsewhere, for rows that a call says the begins of, mostly `pitch` bytes apart."""
        (*_, first), after = self._constants
        packed, given = replace(self._packed, places=places), {"mode": self._mode, "threads": self._threads}
        return Vectorised(packed, first, after, tallest=self._highest, pitch=pitch, **given)

    def _calls(self, x: NDArray[Any], out: NDArray[Any], residual: NDArray[Any], begins: Any) -> Calls:
        packed = self._packed
        groups = packed.pointers.size - 1
        selects = packed.decision.kernel in ("select", "shared")
        lengths = (packed.width, packed.share if selects else packed.dwords, packed.run)
        shape = (*((0,) * length for length in lengths), () if selects else None, packed.panel * LANES)
        strip = _STRIP if packed.data.size < _NEAR * groups else _ALL
        calls = []
        for height, top, bottom in _tiles(out.shape[0], self._tallest, self._mode is None and self._threads == 1):
            constants = (*self._constants, (0,) * height, *shape, strip, self._mode)
            kernel: Callable[..., Any] = fast.product
            if self._threads > 1:
                kernel, constants = fast.product_parts, (*constants, self._threads)
            else:
                constants = (*constants, top, bottom, 0, groups)
            code = height, begins is None
            if code not in self._codes:
                self._codes[code] = entry(kernel, x, out, residual, begins, *constants)
            calls.append((self._codes[code], constants))
        return calls


def _tiles(rows: int, tallest: int, two: bool) -> list[tuple[int, int, int]]:
    """Heights of tiles, with the rows, from and to, that they cover.

    two : whether there may be a second one.

    >>> _tiles(49, 6, True), _tiles(196, 6, True), _tiles(49, 8, True), _tiles(5, 8, False)
    ([(6, 0, 24), (5, 24, 49)], [(6, 0, 196)], [(7, 0, 49)], [(5, 0, 5)])
    """
    tiles = -(-rows // tallest)
    height = -(-rows // tiles)
    over = tiles * height - rows
    if not two or over * _OVERLAP <= rows:
        return [(height, 0, rows)]
    tall = (tiles - over) * height
    return [(height, 0, tall), (height - 1, tall, rows)]
