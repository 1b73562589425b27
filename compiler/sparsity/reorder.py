"""Orders of channels: which share a group at a layer's input, and which share a step at its output.

With aligned windows (hop = group = M) a column tile costs, at every tap and for every group of M inputs, as many steps
as its fullest column has nonzeros, divided by V. So inputs want to be grouped such that no column finds too many of
its nonzeros in one group, and outputs such that those of a tile are full in the same groups.

Both searches go in rounds. A round takes one channel out of every group and puts all of them back at once in the best
way, which is an assignment problem that scipy solves exactly. The idea is that of gyro-permutation (Oh et al., 2024)
and of the channel permutations of Pool and Yu (NeurIPS 2021), who exchange channels between two groups at a time.

What a place costs is not only the steps it adds: while two columns ask for a step, moving either saves none, and an
exchange by the steps that it saves finds nothing. So the price of a step that k others of the tile ask for is smooth,
exp(-k / temperature), and the temperature falls until only the first counts.
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

HOT, WARM, COLD = 6.0, 2.0, 0.3
"""Temperatures, falling geometrically: from hot to cold, or by way of warm where tiles are made first."""

SPARE = 0.02
"""Price of a nonzero that finds a free MAC in a step that its column asks for anyway."""

FORBIDDEN = 1e6
"""Price of a place outside a channel's run."""

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

    def steps(self, counts: Float) -> int:
        """Steps of the layer. counts : nonzeros of every window, float32 [windows, sets * columns]."""
        fullest = counts.reshape(len(counts), self.sets, -1).max(axis=2)
        return int(np.ceil(fullest / self.grid.macs).sum())

    def prices(self, picked: Index, rest: Float, temperature: float) -> Float:
        """About how many steps each picked channel would add to each window. float32 [picked, windows].

        rest : nonzeros that the windows have without the picked channels, float32 [windows, sets * columns].
        """
        asked = np.ceil(rest / self.grid.macs).reshape(len(rest), self.sets, -1)
        price = np.empty_like(asked)
        for steps in range(int(asked.max(initial=0)) + 1):  # a column with these steps asks for one more
            others = (asked > steps).sum(axis=2, keepdims=True, dtype=np.float32)
            np.copyto(price, np.exp(-others / np.float32(temperature)), where=asked == steps)
        price = np.where(rest % self.grid.macs == 0, price.reshape(rest.shape), np.float32(SPARE))
        prices: Float = self.rows[picked] @ price.T
        return prices


# --- outputs that share a tile ----------------------------------------------------------------------------------------


class _Writer:
    """A layer that makes the channels to be ordered. used : bool [channels, taps, in]."""

    def __init__(self, used: NDArray[np.bool_], grid: Grid) -> None:
        self.counts = _window_counts(used, grid.group)
        steps = -(-self.counts // grid.macs)
        levels = range(int(steps.max(initial=0)))
        self.rows: Float = np.concatenate([steps > level for level in levels], axis=1, dtype=np.float32)
        """Steps that every channel asks for, of all that some channel asks for, float32 [channels, steps]."""

    def steps(self, counts: Float) -> int:
        """Steps of the layer. counts : how many channels of every tile ask for each, float32 [tiles, steps]."""
        return int(np.count_nonzero(counts))

    def prices(self, picked: Index, rest: Float, temperature: float) -> Float:
        """About how many steps each picked channel would add to each tile. float32 [picked, tiles].

        rest : how many channels ask for each step without the picked ones, float32 [tiles, steps].
        """
        prices: Float = self.rows[picked] @ np.exp(-rest / np.float32(temperature)).T
        return prices


def step_order(
    size: int,
    readers: Sequence[NDArray[np.bool_]],
    writers: Sequence[NDArray[np.bool_]],
    grid: Grid,
    rounds: int = 120,
    run: int = 0,
) -> tuple[Index, int, int]:
    """An order of channels in which the layers that read and make them take fewer steps.

    size : channels.  readers : bool [out, taps, size] each.  writers : bool [size, taps, in] each.
    run : channels keep to their runs of so many; 0 for one run of all.
    Returns the order (old channel of each new place, int64 [size]) and the steps before and after; the order is the
    old one unless it saves steps.
    """
    rng = np.random.default_rng(0)
    reading = [Reader(r, grid) for r in readers]
    making = [_Writer(w, grid) for w in writers if w.any()]
    state = _Search(size, reading, making, grid, run or size)
    before = state.best
    for start in _starts(reading, making):
        within = start[np.argsort(start // state.run, kind="stable")]
        state.consider(within, state.counts_of(within))
    for temperatures in _schedule(rounds, bool(reading), bool(making)):
        state.exchange(rng, *temperatures)
    return state.order, before, state.best


def _schedule(rounds: int, readers: bool, writers: bool) -> list[tuple[float, float]]:
    """Temperatures of windows and tiles in every round; 0 leaves windows out.

    With both, tiles are made without regard to windows at first: a channel finds a window in any tile, but few tiles.
    """
    if not (readers and writers):
        falling = np.geomspace(HOT, COLD, rounds).tolist()
        return list(zip(falling, falling, strict=True))
    first = rounds // 2
    alone = [(0.0, t) for t in np.geomspace(HOT, WARM / 2, first).tolist()]
    windows, tiles = (np.geomspace(t, COLD, rounds - first).tolist() for t in (WARM, WARM / 2))
    return alone + list(zip(windows, tiles, strict=True))


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
        self.layers: list[tuple[Reader | _Writer, int]] = [
            *((r, grid.group) for r in readers),
            *((w, grid.columns) for w in writers),
        ]
        """Layers, each with the number of channels that stand together in it: of a window, of a tile."""
        self.run = run
        self.cells = np.arange(0, size, min(grid.group, grid.columns))
        """Where runs of places begin that share both window and tile."""
        self.order: Index = np.arange(size)
        self.walk: Index = self.order
        """Where the rounds are: they lead uphill before they lead down."""
        self.counts = self.counts_of(self.order)
        """What stands in every window or tile of each layer, where the rounds are."""
        self.best = self.steps(self.counts)

    def counts_of(self, order: Index) -> list[Float]:
        """Sums of the rows of every window or tile, for each layer."""
        return [np.add.reduceat(x.rows[order], np.arange(0, len(order), span), axis=0) for x, span in self.layers]

    def steps(self, counts: list[Float]) -> int:
        """Steps of all layers."""
        return sum(layer.steps(count) for (layer, _), count in zip(self.layers, counts, strict=True))

    def consider(self, order: Index, counts: list[Float]) -> None:
        """Go on from an order, and keep it when it is no worse than the best."""
        self.walk, self.counts, steps = order, counts, self.steps(counts)
        if steps <= self.best:
            self.order, self.best = order, steps

    def exchange(self, rng: np.random.Generator, reading: float, making: float) -> None:
        """One channel of every cell finds a new place, at temperatures of windows (0: any will do) and of tiles."""
        slots = self.cells + rng.integers(0, np.diff([*self.cells, len(self.walk)]))
        picked, run = self.walk[slots], slots // self.run
        prices = np.zeros((len(slots), len(slots)), dtype=np.float32)
        for (layer, span), count in zip(self.layers, self.counts, strict=True):
            temperature = reading if isinstance(layer, Reader) else making
            _add(count, slots // span, -layer.rows[picked])
            if temperature:
                prices += layer.prices(picked, count, temperature)[:, slots // span]
        prices[run[:, np.newaxis] != run] += FORBIDDEN
        which, where = linear_sum_assignment(prices)
        order = self.walk.copy()
        order[slots[where]] = picked[which]
        for (layer, span), count in zip(self.layers, self.counts, strict=True):
            _add(count, slots // span, layer.rows[order[slots]])
        self.consider(order, self.counts)


def _add(counts: Float, places: Index, rows: Float) -> None:
    """Add rows at places that ascend, several of them perhaps at one."""
    first = np.flatnonzero(np.diff(places, prepend=-1))
    counts[places[first]] += np.add.reduceat(rows, first, axis=0)


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
