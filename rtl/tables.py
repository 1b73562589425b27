"""Tables over two axes, as liberty files give delays, and many of them looked up at once."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stack", "Table"]


@dataclass(frozen=True, eq=False)
class Table:
    """A value over two axes, ascending, at least two points each; beyond them it goes on in a straight line."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    values: NDArray[np.float64]

    @classmethod
    def constant(cls, value: float) -> "Table":
        """The same value everywhere."""
        axis = np.array([0.0, 1.0])
        return cls(axis, axis, np.full((2, 2), value))

    def __call__(self, first: float, second: float) -> float:
        """The value at a point."""
        stack = Stack([self])
        return float(stack(stack.index([self]), np.array([first]), np.array([second]))[0])


class Stack:
    """Different tables side by side, for lookups of many points in many tables."""

    def __init__(self, tables: Iterable[Table]) -> None:
        unique = list({id(t): t for t in tables}.values())
        self._tables = unique  # kept, so that no other table gets their ids
        self._place = {id(t): k for k, t in enumerate(unique)}
        shape = np.array([t.values.shape for t in unique] or np.zeros((0, 2)), dtype=np.int64).reshape(-1, 2)
        rows, columns = shape.max(axis=0, initial=2)
        self._last = shape - 2
        self._first = np.full((len(unique), rows), np.inf)
        self._second = np.full((len(unique), columns), np.inf)
        self._values = np.zeros((len(unique), rows, columns))
        for k, table in enumerate(unique):
            self._first[k, : len(table.first)] = table.first
            self._second[k, : len(table.second)] = table.second
            self._values[k, : len(table.first), : len(table.second)] = table.values

    def index(self, tables: Iterable[Table]) -> NDArray[np.int64]:
        """Where tables stand in the stack."""
        return np.array([self._place[id(t)] for t in tables], dtype=np.int64)

    def __call__(
        self, index: NDArray[np.int64], first: NDArray[np.float64], second: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Values [n] of tables index [n] at points (first, second) [n], bilinear."""
        i, u = self._cell(self._first, self._last[index, 0], index, first)
        j, v = self._cell(self._second, self._last[index, 1], index, second)
        q = self._values
        low = q[index, i, j] * (1 - v) + q[index, i, j + 1] * v
        high = q[index, i + 1, j] * (1 - v) + q[index, i + 1, j + 1] * v
        return low * (1 - u) + high * u

    @staticmethod
    def _cell(
        axes: NDArray[np.float64], last: NDArray[np.int64], index: NDArray[np.int64], at: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The interval of an axis that is nearest to a point, and the point's place in it (0 to 1 inside)."""
        axis = axes[index]
        k = np.clip((axis <= at[:, None]).sum(axis=1) - 1, 0, last)
        rows = np.arange(len(k))
        low = axis[rows, k]
        return k, (at - low) / (axis[rows, k + 1] - low)
