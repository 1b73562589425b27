"""Trees of buffers: what a net with many or large pins costs, once somebody has buffered it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.rtl.liberty import Cell, Library

__all__ = ["Tree", "Trees"]

_FANOUT = 4.0
"""The load, in its own input capacitances, at which a buffer's transition is the usual one."""

_RATIOS = np.geomspace(1.0, 16.0, 9)
"""Loads of a buffer in its own input capacitances."""

_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The fastest tree for each of several loads: its delay and last transition in ps, and what its driver sees."""

    delay: NDArray[np.float64]
    transition: NDArray[np.float64]
    capacitance: NDArray[np.float64]


class Trees:
    """Trees of equal buffers with equal fan-out at every level, of all buffers of a library.

    transition : of a buffer that drives four of its kind (of the fastest such buffer), in ps.
    """

    def __init__(self, library: Library) -> None:
        self._buffers = [_Buffer(cell) for cell in library.buffers] if library.timed else []
        at = [(float(np.interp(_FANOUT, _RATIOS, b.delay)), k) for k, b in enumerate(self._buffers)]
        fastest = self._buffers[min(at)[1]] if at else None
        self.transition = float(np.interp(_FANOUT, _RATIOS, fastest.transition)) if fastest else 0.0

    def behind(self, loads: NDArray[np.float64]) -> Tree:
        """The tree for each load; its delay is infinite where none would do."""
        delay = np.full(len(loads), np.inf)
        transition, capacitance = np.zeros(len(loads)), np.zeros(len(loads))
        for buffer in self._buffers:
            for levels in range(1, _LEVELS + 1):
                ratio = np.maximum(loads / buffer.capacitance, 0.0) ** (1 / levels)
                time = levels * np.interp(ratio, _RATIOS, buffer.delay, right=np.inf)
                better = time < delay
                delay[better] = time[better]
                transition[better] = np.interp(ratio, _RATIOS, buffer.transition)[better]
                capacitance[better] = buffer.capacitance
        return Tree(delay=delay, transition=transition, capacitance=capacitance)


class _Buffer:
    """A buffer's delay and transition of the slower edge for each of _RATIOS, in a long chain of such buffers."""

    def __init__(self, cell: Cell) -> None:
        self.capacitance = sum(pin.capacitance for pin in cell.pins.values() if not pin.output)
        self.delay, self.transition = np.zeros(len(_RATIOS)), np.zeros(len(_RATIOS))
        for k, ratio in enumerate(_RATIOS):
            slope, load = 0.0, ratio * self.capacitance
            for _ in range(8):  # until the transition repeats itself
                slope = max(arc.transition(slope, load) for arc in cell.arcs)
            self.delay[k] = max(arc.delay(slope, load) for arc in cell.arcs)
            self.transition[k] = slope
