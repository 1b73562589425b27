"""The int8 kernel on lines: rows by tiles of 64, with weights whose outputs share their inputs by fours.

A tile is turned once, so that each input is a line (kernels/line_vectors.py). Then each group of four outputs goes
through its own nonzeros, four at a time: eight unpack instructions make four lines the operands of 16 dot products.
Nothing is picked out of a window, so no group waits for another, and slots stay empty only at a group's end.

Sums are turned back with those of other groups. As int32 they are as much memory as everything else together: those of
four groups are written while the next four are computed, half of a group's steps apart. As codes they are written when
those of 16 groups are there, which fill a cache line of a row.

    packed = (pointers, inputs, weights, first)     kernels/line_groups.py; first: int32 [outputs], what they start from
    after, residual                                 as of kernels/fast.py
    begins                                          None: rows follow one another

A group is four outputs; their number is a multiple of 64, and K is 64 at least.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import jit, parallel_jit, prange
from gossamer.kernels.intrinsics import finish
from gossamer.kernels.line_vectors import cut, eight, fours, keep, keep_plain, multiply_lines, start_four, weave

__all__ = ["run_tiles", "run_tiles_parallel"]


@jit
def run_tiles(
    x: NDArray[Any], out: NDArray[Any], residual: NDArray[Any], begins: Any, packed: Any, after: Any, mode: Any
) -> None:
    """x : [rows, K], C-contiguous, 64 rows or more.  out : [rows, N]."""
    _every(x, out, residual, packed, after, mode, 0, 1)


@parallel_jit
def run_tiles_parallel(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    begins: Any,
    packed: Any,
    after: Any,
    mode: Any,
    workers: int,
) -> None:
    """The same by so many threads."""
    for worker in prange(workers):
        _every(x, out, residual, packed, after, mode, worker, workers)


@jit
def _every(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    packed: Any,
    after: Any,
    mode: Any,
    begin: int,
    step: int,
) -> None:
    """Tiles begin, begin + step, ...; the last one overlaps the one before it."""
    scratch = np.empty(64 + 4096 + 16384 + 64 * x.shape[1], np.uint8)
    scratch = scratch[-scratch.ctypes.data & 63 :]
    parts, stage, lines = scratch[:4096], scratch[4096:20480], scratch[20480:]
    for tile in range(begin, (out.shape[0] + 63) // 64, step):
        row = min(64 * tile, out.shape[0] - 64)
        _turn(x, row, parts, lines)
        if after is None:
            _sums(row, out, packed, lines, stage, mode)
        else:
            _codes(row, out, residual, packed, after, lines, stage, mode)


@jit
def _turn(x: NDArray[Any], row: int, parts: NDArray[Any], lines: NDArray[Any]) -> None:
    inputs = x.shape[1]
    for begin in range(0, inputs, 64):
        k = min(begin, inputs - 64)
        cut(x, row, x.strides[0], k, parts)
        for part in range(4):
            weave(parts, part, lines, k + 16 * part)


@jit
def _sums(row: int, out: NDArray[Any], packed: Any, lines: NDArray[Any], stage: NDArray[Any], mode: Any) -> None:
    """int32: eight rows of the four groups before, twice in each group, between its steps."""
    pointers, inputs, weights, first = packed
    groups, columns = pointers.size - 1, out.shape[1]
    for group in range(groups):
        acc = start_four(first, group)
        step, end = pointers[group], pointers[group + 1]
        if group >= 4:
            for number in range(2 * (group & 3), 2 * (group & 3) + 2):
                stop = min(step + 7, end)
                for s in range(step, stop):
                    acc = multiply_lines(acc, lines, inputs, weights, s, mode)
                step = stop
                rows = eight(stage, 4 - (group & 4), number)
                place = (row + 8 * number) * columns + 4 * ((group & -4) - 4)
                finish(rows, (0, 0, 0, 0, 0, 0, 0, 0), out, place, columns, 1 << 30, 0, out, None, mode)
        for s in range(step, end):
            acc = multiply_lines(acc, lines, inputs, weights, s, mode)
        keep_plain(acc, stage, group & 7)
    for number in range(8):
        rows = eight(stage, (groups & 4) ^ 4, number)
        place = (row + 8 * number) * columns + 4 * (groups - 4)
        finish(rows, (0, 0, 0, 0, 0, 0, 0, 0), out, place, columns, 1 << 30, 0, out, None, mode)


@jit
def _codes(
    row: int,
    out: NDArray[Any],
    residual: NDArray[Any],
    packed: Any,
    after: Any,
    lines: NDArray[Any],
    stage: NDArray[Any],
    mode: Any,
) -> None:
    pointers, inputs, weights, first = packed
    columns = out.shape[1]
    for panel in range((pointers.size - 1) // 16):
        for group in range(16 * panel, 16 * panel + 16):
            acc = start_four(first, group)
            for step in range(pointers[group], pointers[group + 1]):
                acc = multiply_lines(acc, lines, inputs, weights, step, mode)
            keep(acc, stage, group & 15)
        channel = 64 * panel
        for four in range(16):
            rows = fours(stage, four)
            place = (row + 4 * four) * columns + channel
            finish(rows, (0, 0, 0, 0), out, place, columns, columns - channel, channel, residual, after, mode)
