"""The product of a step stream with activation banks, compiled: one form of it for kernels/stream.py and the simulator.

What it computes is written at kernels/stream.py. How, by vectors: MACs of one dot product are the four that stand side
by side in a step, or in as many steps as make four; 16 columns of them are a vector of weights and one of indices
(`weave_steps`), which pick their operands out of the 64 codes of a line (`mac_sum`).

    line    64 codes of a row: windows of the bank, those of consecutive steps one after the other. Windows that
            neighbouring steps share stand there once.
    row     one position of one lane.
    chunk   the steps whose weights and lines are kept near at once.

An operand is a code minus the zero point, nine bits, but the multiplier takes eight: it gets the code, unsigned, and
accumulators start from minus the zero point times the sum of the weights. All of it wraps like 32-bit registers, so
the result is what the operands' own products would have added up to, modulo 2**32.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import jit
from gossamer.kernels.choose import usable_features
from gossamer.kernels.step_vectors import begin, keep, look, mac_largest, mac_sum, move_codes, weave_steps
from gossamer.kernels.vectors import aligned_empty, has_vectors

__all__ = ["SLACK", "Bench", "make_bench", "run_steps"]

SLACK = 64
"""Bytes that must be readable after the last of a bank, and of values and selects."""

_DOTS, _LINES, _ROWS = 128, 16, 64
"""Most vectors of weights (of 16 columns), lines and rows of a chunk."""
_PITCH = 64 * (_LINES + 1)
"""Bytes from row to row: no power of two, which would put all rows into the same places of a cache."""


class Bench(NamedTuple):
    """Memory to work in, and what is the same for all products of an array; not to be shared by threads.

    lines : uint8 [rows, pitch].  words : int64, the bank's element that every eight codes of a row begin at.
    dots : int64 [lines], vectors of weights that pick from each.
    quarters : int64 [4 * vectors, 4] and order : int8 [64], for `weave_steps`.
    data : int8 [columns / 16, vectors, 2, 64], indices and weights.  totals, first : int32 [columns].
    sums : int32 [rows, columns].
    fold : sums that make up one column's.  mode : see kernels/vectors.py.
    """

    lines: NDArray[np.uint8]
    words: NDArray[np.int64]
    dots: NDArray[np.int64]
    quarters: NDArray[np.int64]
    order: NDArray[np.int8]
    data: NDArray[np.int8]
    totals: NDArray[np.int32]
    first: NDArray[np.int32]
    sums: NDArray[np.int32]
    fold: int
    mode: Any


def make_bench(columns: int, macs: int) -> Bench:
    """A bench for steps of [columns, macs], a power of two of macs."""
    side = min(macs, 4)
    lanes = -(-columns * macs // side // 16) * 16
    column, step, mac = np.unravel_index(np.arange(64), (16, 4 // side, side))
    lines: NDArray[np.uint8] = aligned_empty((_ROWS, _PITCH), np.uint8)
    lines[...] = 0
    order = aligned_empty((64,), np.int8)
    order[...] = (step * 16 + column) * side + mac
    return Bench(
        lines=lines,
        words=np.zeros(8 * _LINES, np.int64),
        dots=np.zeros(_LINES, np.int64),
        quarters=np.zeros((4 * _DOTS, 4), np.int64),
        order=order,
        data=aligned_empty((lanes // 16, _DOTS, 2, 64), np.int8),
        totals=aligned_empty((lanes,), np.int32),
        first=aligned_empty((lanes,), np.int32),
        sums=aligned_empty((_ROWS, lanes), np.int32),
        fold=macs // side,
        mode=None if usable_features() else (),
    )


@jit
def _by_vectors(
    bank: NDArray[np.uint8],
    positions: NDArray[np.int64],
    windows: NDArray[np.int64],
    values: NDArray[np.int8],
    selects: NDArray[np.uint8],
    group: int,
    flip: int,
    zero: int,
    maximum: bool,
    acc: NDArray[np.int32],
    first: int,
    bench: Bench,
) -> None:
    """Steps into acc[:, first : first + T], on from what it holds; acc : int32 [lanes, at least T, C].

    bank : uint8 [lanes, bytes].  positions : [T].  windows : [S], elements.  values, selects : [S, C, V].
    flip : 128 if codes are signed, their bytes being two's complement, else 0.  zero : the zero point plus flip.
    """
    step, part = np.int64(0), np.int64(0)  # and not 0, a type of its own to numba
    while step < windows.size:
        step, part, lines, dots = _plan(
            windows, step, part, values.shape[1], values.shape[2], group, bench.words, bench.dots, bench.quarters
        )
        _weave(values, selects, dots, group, bench)
        for c in range(bench.first.size):
            bench.first[c] = np.int32(-0x7FFF8000 if maximum else -zero * np.int64(bench.totals[c]))
        count, most = bank.shape[0] * positions.size, bench.sums.shape[0]
        for top in range(0, count, most):
            height = min(most, count - top)
            _gather(bank, positions, flip, top, height, lines, bench)
            if maximum:
                _largest(height, lines, zero, bench)
                _keep_largest(acc, first, positions.size, top, height, bench)
            else:
                _sum(height, lines, bench)
                _add(acc, first, positions.size, top, height, bench)


@jit
def _plan(
    windows: NDArray[np.int64],
    step: Any,
    part: Any,
    columns: int,
    macs: int,
    group: int,
    words: NDArray[np.int64],
    dots_of: NDArray[np.int64],
    quarters: NDArray[np.int64],
) -> tuple[Any, Any, int, int]:
    """Lines and vectors from a step on, into words, dots and quarters. Returns what follows, lines and vectors.

    A window of more than 64 elements is as many parts, each with a line of its own.
    """
    side = min(macs, 4)
    each, width = 4 // side, max(8, min(group, 64))
    parts = max(1, group // 64)
    most = quarters.shape[0] // 4
    line, used, dots = 0, 0, 0
    low = np.int64(0)
    dots_of[0] = 0
    while step < windows.size and dots < most:
        taken = 0
        while taken < each and step < windows.size:
            window = windows[step] + 64 * part
            inside = used > 0 and parts == 1 and low <= window and window + group <= low + width
            if not inside:
                if used + width > 64:
                    break
                low = window
                for word in range(width // 8):
                    words[8 * line + used // 8 + word] = low + 8 * word
                used += width
            place = used - width + window - low - 64 * part
            for q in range(side):
                row = 4 * dots + taken * side + q
                quarters[row, 0] = step * columns * macs + 16 * q
                quarters[row, 1] = windows[step]
                quarters[row, 2] = place
                quarters[row, 3] = 64
            taken += 1
            part += 1
            if part == parts:
                step, part = step + 1, 0
        if taken == 0:
            if line + 1 == dots_of.size:
                break
            for word in range(used // 8, 8):
                words[8 * line + word] = low
            line, used = line + 1, 0
            dots_of[line] = 0
            continue
        for row in range(4 * dots + taken * side, 4 * dots + 4):  # steps that are missing
            quarters[row, 0], quarters[row, 3] = quarters[4 * dots, 0], 0
        dots += 1
        dots_of[line] += 1
    for word in range(used // 8, 8):
        words[8 * line + word] = low
    return step, part, line + 1, dots


@jit
def _weave(values: NDArray[np.int8], selects: NDArray[np.uint8], dots: int, group: int, bench: Bench) -> None:
    """Weights and indices of the planned steps, and the sum of each column's weights."""
    side, most = min(values.shape[2], 4), bench.data.shape[1]
    bench.totals[:] = 0
    for dot in range(dots):
        for c in range(bench.totals.size // 16):
            weave_steps(
                bench.data,
                (c * most + dot) * 128,
                bench.totals,
                c * 64,
                values,
                selects,
                bench.quarters,
                4 * dot,
                c * 16 * side,
                group,
                bench.order,
                bench.mode,
            )


@jit
def _gather(
    bank: NDArray[np.uint8],
    positions: NDArray[np.int64],
    flip: int,
    top: int,
    height: int,
    lines: int,
    bench: Bench,
) -> None:
    """Lines of rows top, top + 1, ..."""
    flips = np.int64(flip) * 0x0101010101010101
    depth, pitch = positions.size, bench.lines.shape[1]
    for row in range(height):
        lane, t = divmod(top + row, depth)
        at = lane * bank.shape[1] + positions[t]
        for word in range(8 * lines):
            move_codes(bench.lines, row * pitch + 8 * word, bank, at + bench.words[word], flips)


@jit
def _sum(height: int, lines: int, bench: Bench) -> None:
    """sums [rows, columns] of a chunk, eight rows at a time."""
    columns, pitch, most = bench.first.size, bench.lines.shape[1], bench.data.shape[1]
    for c in range(columns // 16):
        for row in range(0, height, 8):
            acc = begin((0,) * 8, bench.first, c * 64)
            at = c * most * 128
            for line in range(lines):
                seen = look(acc, bench.lines, row * pitch + line * 64, pitch)
                for _ in range(bench.dots[line]):
                    acc = mac_sum(acc, seen, bench.data, at, bench.mode)
                    at += 128
            keep(acc, bench.sums, (row * columns + c * 16) * 4, columns * 4)


@jit
def _largest(height: int, lines: int, zero: int, bench: Bench) -> None:
    """The same of the largest products, in pairs: see `mac_largest`."""
    columns, pitch, most = bench.first.size, bench.lines.shape[1], bench.data.shape[1]
    for c in range(columns // 16):
        for row in range(0, height, 4):
            acc = begin((0,) * 4, bench.first, c * 64)
            at = c * most * 128
            for line in range(lines):
                seen = look(acc, bench.lines, row * pitch + line * 64, pitch)
                for _ in range(bench.dots[line]):
                    acc = mac_largest(acc, seen, bench.data, at, zero, bench.mode)
                    at += 128
            keep(acc, bench.sums, (row * columns + c * 16) * 4, columns * 4)


@jit
def _add(acc: NDArray[np.int32], first: int, depth: int, top: int, height: int, bench: Bench) -> None:
    """acc += sums, those of a column with more than four MACs added up."""
    columns = acc.shape[2]
    fold = bench.fold
    for row in range(height):
        lane, t = divmod(top + row, depth)
        line, sums = acc[lane, first + t], bench.sums[row]
        for part in range(fold):
            for c in range(columns):
                line[c] = np.int32(np.int64(line[c]) + sums[c * fold + part])


@jit
def _keep_largest(acc: NDArray[np.int32], first: int, depth: int, top: int, height: int, bench: Bench) -> None:
    """acc becomes the larger of itself and what `_largest` found."""
    columns = acc.shape[2]
    fold = bench.fold
    for row in range(height):
        lane, t = divmod(top + row, depth)
        line, pairs = acc[lane, first + t], bench.sums[row]
        for part in range(fold):
            for c in range(columns):
                pair = pairs[c * fold + part]
                best = max(pair >> 16, np.int64(np.int16(pair)))
                if best > -0x8000:  # what `mac_largest` begins from, less than any product
                    line[c] = max(np.int64(line[c]), best)


def _by_loops(
    bank: NDArray[np.uint8],
    positions: NDArray[np.int64],
    windows: NDArray[np.int64],
    values: NDArray[np.int8],
    selects: NDArray[np.uint8],
    group: int,
    flip: int,
    zero: int,
    maximum: bool,
    acc: NDArray[np.int32],
    first: int,
    bench: Bench,
) -> None:
    """The same in plain Python, where there are no vectors."""
    out = acc[:, first : first + positions.size]
    for s, c, v in np.argwhere(values):
        element = windows[s] + (int(selects[s, c, v]) - windows[s]) % group
        codes = (bank[:, positions + element] ^ np.uint8(flip)).astype(np.int64)
        products = (codes - zero) * int(values[s, c, v])
        if maximum:
            out[:, :, c] = np.maximum(out[:, :, c], products)
        else:
            out[:, :, c] = (out[:, :, c] + products).astype(np.int32)


run_steps = _by_vectors if has_vectors() else _by_loops
