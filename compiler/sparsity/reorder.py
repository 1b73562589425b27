"""Orders of channels: which share a group at a layer's input, and which share a step at its output.

With aligned windows (hop = group = M) a column tile costs, at every tap and for every group of M inputs, as many steps
as its fullest column has nonzeros, divided by V. So inputs want to be grouped such that no column finds too many of
its nonzeros in one group, and outputs such that those of a tile are full in the same groups.

Both searches go in rounds. A round takes one channel out of every group and puts all of them back at once in the best
way, which is an assignment problem that scipy solves exactly. Putting each back where it was is among the ways, so
with exact costs no round makes it worse. The idea is that of gyro-permutation (Oh et al., 2024) and of the channel
permutations of Pool and Yu (NeurIPS 2021), who exchange channels between two groups at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["Grid", "Reader", "keep_order", "step_order", "steps_of"]

Index = NDArray[np.int64]
Float = NDArray[np.float32]
Counts = NDArray[np.int16]

SHARPNESS = 8.0
"""Base of the soft maximum: how much more a column with one nonzero more counts."""

SPARE = 0.25
"""Price of a nonzero that finds a free MAC in a step that is there anyway, against one that needs a new step."""

FORBIDDEN = 1e6
"""Price of a place that a channel may not take."""

SIGNATURE = 256
"""Sets of columns by which channels are compared to find those that are alike."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What of an accelerator decides over steps: M inputs a window, V MACs a PE, C columns a tile."""

    group: int
    macs: int
    columns: int


def steps_of(used: NDArray[np.bool_], grid: Grid) -> int:
    """Steps of a layer with aligned windows. used : bool [out, taps, in], which weights are not zero."""
    return _steps(_window_counts(used, grid.group), grid)


def _window_counts(used: NDArray[np.bool_], group: int) -> Counts:
    """Nonzeros of every output in every window, int16 [out, taps * windows]."""
    padded = np.pad(used, ((0, 0), (0, 0), (0, -used.shape[2] % group)))
    counts: Counts = padded.reshape(*used.shape[:2], -1, group).sum(axis=3, dtype=np.int16)
    return counts.reshape(len(used), -1)


def _steps(counts: Counts, grid: Grid) -> int:
    """Steps of [out, windows] counts whose tiles are runs of outputs."""
    padded = np.pad(counts, ((0, -len(counts) % grid.columns), (0, 0)))
    fullest = padded.reshape(-1, grid.columns, padded.shape[1]).max(axis=1)
    return int((-(-fullest // grid.macs)).sum(dtype=np.int64))


# --- inputs that share a window ---------------------------------------------------------------------------------------


class Reader:
    """A layer that reads the channels to be ordered. used : bool [out, taps, channels]."""

    def __init__(self, used: NDArray[np.bool_], grid: Grid) -> None:
        out, taps, channels = used.shape
        self.grid = grid
        padded = np.pad(used, ((0, -out % grid.columns), (0, 0), (0, 0)))
        tiled = padded.reshape(-1, grid.columns, taps, channels)
        self.sets = tiled.shape[0] * taps
        """Columns that wait for each other, at one tap."""
        self.rows: Float = np.ascontiguousarray(tiled.transpose(3, 0, 2, 1).reshape(channels, -1), dtype=np.float32)
        """Nonzeros of every channel, float32 [channels, sets * columns]."""

    def counts(self, order: Index, windows: Index) -> Float:
        """Nonzeros in every window, float32 [windows, sets * columns]."""
        return np.add.reduceat(self.rows[order], windows, axis=0)

    def steps(self, counts: Float) -> int:
        """Steps of the layer."""
        fullest = counts.reshape(len(counts), self.sets, -1).max(axis=2)
        return int(np.ceil(fullest / self.grid.macs).sum())

    def prices(self, picked: Index, rest: Float) -> Float:
        """About how many steps each picked channel would add to each window. float32 [picked, windows].

        By a soft maximum, so that columns which are nearly the fullest count too; less where the fullest column has
        MACs to spare in its last step.
        """
        weight = np.power(np.float32(SHARPNESS), rest).reshape(len(rest), self.sets, -1)
        spare = rest.reshape(weight.shape).max(axis=2, keepdims=True) % self.grid.macs != 0
        weight *= np.where(spare, np.float32(SPARE), np.float32(1.0)) / weight.sum(axis=2, keepdims=True)
        prices: Float = self.rows[picked] @ weight.reshape(len(rest), -1).T
        return prices


# --- outputs that share a tile ----------------------------------------------------------------------------------------


class _Writer:
    """A layer that makes the channels to be ordered. used : bool [channels, taps, in]."""

    def __init__(self, used: NDArray[np.bool_], grid: Grid) -> None:
        self.grid = grid
        self.counts = _window_counts(used, grid.group)

    def steps(self, order: Index) -> int:
        """Steps of the layer."""
        return _steps(self.counts[order], self.grid)

    def prices(self, order: Index, slots: Index) -> Float:
        """Steps of every tile with each of the channels at `slots` (one of each tile). float32 [slots, tiles]."""
        columns, macs = self.grid.columns, self.grid.macs
        picked = self.counts[order[slots]]
        prices = np.empty((len(slots), len(slots)), dtype=np.float32)
        for tile, slot in enumerate(slots):
            members = np.arange(tile * columns, min((tile + 1) * columns, len(order)))
            others = order[members[members != slot]]
            rest = self.counts[others].max(axis=0, initial=0)
            prices[:, tile] = (-(-np.maximum(picked, rest) // macs)).sum(axis=1)
        return prices


def step_order(
    size: int,
    readers: Sequence[NDArray[np.bool_]],
    writers: Sequence[NDArray[np.bool_]],
    grid: Grid,
    rounds: int = 60,
    run: int = 0,
) -> tuple[Index, int, int]:
    """An order of channels in which the layers that read and make them take fewer steps.

    size : channels.  readers : bool [out, taps, size] each.  writers : bool [size, taps, in] each.
    run : channels keep to their runs of so many; 0 for one run of all.
    Returns the order (old channel of each new place, int64 [size]) and the steps before and after; the order is the
    old one unless it saves steps.
    """
    rng = np.random.default_rng(0)
    state = _Search(size, [Reader(r, grid) for r in readers], [_Writer(w, grid) for w in writers], grid, run or size)
    before = state.best
    for start in _starts(state.readers, state.writers):
        state.consider(start[np.argsort(start // state.run, kind="stable")])
    for _ in range(rounds if writers else 0):
        state.exchange_tiles(rng)
    for _ in range(rounds if readers else 0):
        state.exchange_windows(rng)
    return state.order, before, state.best


def _starts(readers: list[Reader], writers: list[_Writer]) -> list[Index]:
    """Orders to begin with: channels with nonzeros in the same places side by side, and by the number of nonzeros."""
    found = []
    if readers:
        touched = [r.rows.reshape(len(r.rows), r.sets, -1).any(axis=2) for r in readers]
        found.append(_alike(np.concatenate(touched, axis=1)))
    if writers:
        found.append(_alike(np.concatenate([w.counts > 0 for w in writers], axis=1)))
        full = np.sum([w.counts.sum(axis=1, dtype=np.int64) for w in writers], axis=0)
        found.append(np.argsort(-full, kind="stable"))
    return found


def _alike(signature: NDArray[np.bool_]) -> Index:
    """An order in which equal rows of bool [channels, places] lie together."""
    return np.lexsort(signature[:, :SIGNATURE].T[::-1])


class _Search:
    """The best order so far, and rounds that try to better it."""

    def __init__(self, size: int, readers: list[Reader], writers: list[_Writer], grid: Grid, run: int) -> None:
        self.readers, self.writers, self.grid, self.run = readers, writers, grid, run
        self.windows = np.arange(0, size, grid.group)
        self.tiles = np.arange(0, size, grid.columns)
        self.order: Index = np.arange(size)
        self.walk: Index = self.order
        """Where the rounds are: the soft maximum may lead uphill before it leads down."""
        self.best = self.steps(self.order)

    def steps(self, order: Index) -> int:
        """Steps of all layers."""
        made = sum(w.steps(order) for w in self.writers)
        return made + sum(r.steps(r.counts(order, self.windows)) for r in self.readers)

    def consider(self, order: Index) -> bool:
        """Keep an order when it is no worse."""
        steps = self.steps(order)
        if steps > self.best:
            return False
        self.order, self.walk, self.best = order, order, steps
        return True

    def exchange_windows(self, rng: np.random.Generator) -> None:
        """One channel of every window finds a new window; of the same tile, where the order of tiles matters."""
        sizes = np.diff([*self.windows, len(self.walk)])
        slots = self.windows + rng.integers(0, sizes)
        picked = self.walk[slots]
        prices = np.zeros((len(slots), len(slots)), dtype=np.float32)
        for reader in self.readers:
            rest = reader.counts(self.walk, self.windows) - reader.rows[picked]
            prices += reader.prices(picked, rest)
        if self.writers:
            tile = self.windows // self.grid.columns
            prices[tile[:, np.newaxis] != tile] += FORBIDDEN
        self._assign(slots, prices)

    def exchange_tiles(self, rng: np.random.Generator) -> None:
        """One channel of every tile finds a new tile, in the window that another left."""
        sizes = np.diff([*self.tiles, len(self.walk)])
        slots = self.tiles + rng.integers(0, sizes)
        picked = self.walk[slots]
        prices = np.zeros((len(slots), len(slots)), dtype=np.float32)
        for writer in self.writers:
            prices += writer.prices(self.walk, slots)
        home = slots // self.grid.group
        for reader in self.readers:
            rest = reader.counts(self.walk, self.windows)[home] - reader.rows[picked]
            prices += reader.prices(picked, rest) / self.grid.macs
        self._assign(slots, prices)

    def _assign(self, slots: Index, prices: Float) -> None:
        run = slots // self.run
        prices[run[:, np.newaxis] != run] += FORBIDDEN
        which, where = linear_sum_assignment(prices)
        order = self.walk.copy()
        order[slots[where]] = self.walk[slots[which]]
        if not self.consider(order) and not self.writers:
            self.walk = order


# --- keeping what N:M keeps ------------------------------------------------------------------------------------------


def keep_order(
    scores: Sequence[tuple[Float, int]],
    group: int,
    rounds: int = 60,
    sample: int = 256,
    together: int = 64,
    run: int = 0,
) -> tuple[Index, float, float]:
    """An order of input channels in which N:M keeps more.

    scores : for each layer that reads the channels, |score| [channels, rows] and its N; rows are output channels at
    taps.  group : M.  sample : rows of each layer that a round looks at.  together : groups that exchange at once.
    run : channels keep to their runs of so many; 0 for one run of all.
    Returns the order, and the sum of scores kept before and after.
    """
    rng = np.random.default_rng(0)
    size = len(scores[0][0])
    order: Index = np.arange(size)
    starts = np.arange(0, size - size % group, group)  # a last group that is not full keeps its channels

    def kept(order: Index) -> float:
        return sum(_kept(values[order], n, group) for values, n in scores)

    before = best = kept(order)
    for _ in range(rounds if len(starts) > 1 else 0):
        trial = order.copy()
        chosen = [(values, n, rng.permutation(values.shape[1])[:sample]) for values, n in scores]
        shuffled = rng.permutation(starts)
        for first in range(0, len(shuffled), together):
            _exchange(trial, shuffled[first : first + together], group, run or size, chosen, rng)
        now = kept(trial)
        if now > best:
            order, best = trial, now
    return order, before, best


def _exchange(
    order: Index, starts: Index, group: int, run: int, scores: list[tuple[Float, int, Index]], rng: np.random.Generator
) -> None:
    """One channel of each of these groups finds the group where it adds most. Changes `order`."""
    slots = starts + rng.integers(0, group, len(starts))
    picked = order[slots]
    members = order[starts[:, np.newaxis] + np.arange(group)]
    gain = np.zeros((len(slots), len(slots)), dtype=np.float32)
    for values, n, rows in scores:
        rest = values[members[:, :, np.newaxis], rows]
        rest[np.arange(len(starts)), slots - starts] = -1.0
        smallest = np.partition(rest, group - n, axis=1)[:, group - n]  # what a larger newcomer would push out
        newcomers = values[picked[:, np.newaxis], rows]
        for j in range(len(starts)):
            gain[:, j] += np.maximum(newcomers - smallest[j], 0.0).sum(axis=1)
    at = slots // run
    gain[at[:, np.newaxis] != at] -= FORBIDDEN * gain.max(initial=1.0)
    which, where = linear_sum_assignment(-gain)
    order[slots[where]] = picked[which]


def _kept(values: Float, n: int, group: int) -> float:
    """Sum of the n largest of every group of channels in every row."""
    whole = len(values) - len(values) % group
    groups = values[:whole].reshape(-1, group, values.shape[1])
    tail = values[whole:]
    total = float(np.partition(groups, group - n, axis=1)[:, group - n :].sum(dtype=np.float64))
    return total + float(np.sort(tail, axis=0)[-n:].sum(dtype=np.float64))
