"""The float kernels on lines: rows by tiles of `height` vectors, through every block and panel of float_panels.

A tile of rows is turned so that a line holds one input for all its rows; sums stand as lines too, one an output, and
leave the registers only between blocks of inputs; at the end they are turned back with what follows them. A sum adds
its products in the order of the layout whatever the tile, so results depend neither on the number of rows nor on that
of threads.

    residual = float32 like out; any array where there is none
    begins = None, or int64 [rows]: at which of its bytes each row begins in x, which then has one dimension
    pieces = (starts, length): int64, where each so many inputs begin after the first of a row, in elements
    shared = () if a panel's outputs share their inputs, else None
    layout = (run, blocks, panels, pointers, inputs, weights, lines)
    after = what follows (float_after)

What is None is not compiled; numba sees that of an argument only, hence so many of them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import jit, parallel_jit, prange
from gossamer.kernels.float_after import finish_tile
from gossamer.kernels.float_vectors import load_lines, mac, store_lines, store_tile, turn, zeros

__all__ = ["run_parallel", "run_serial"]

Floats = NDArray[np.float32]


@jit
def run_serial(
    x: Floats,
    out: NDArray[Any],
    residual: NDArray[Any],
    begins: Any,
    pieces: Any,
    shared: Any,
    layout: Any,
    after: Any,
    lanes: Any,
    height: Any,
    first: int,
    tiles: int,
    lines: Floats,
    sums: Floats,
) -> None:
    """Tiles of len(height) * len(lanes) rows of x [rows, K] from row `first` on, into out [rows, N].

    lines : scratch, aligned, [1, (blocks * (run + 1) + lanes) * rows of a tile].  sums : [1, outputs * rows of a tile].
    """
    for tile in range(tiles):
        row = first + tile * len(lanes) * max(1, len(height))
        _tile(
            x, row, residual, begins, pieces, shared, layout, after, out, lines[0], sums[0], lanes, height
        )  # fmt: skip


@parallel_jit
def run_parallel(
    x: Floats,
    out: NDArray[Any],
    residual: NDArray[Any],
    begins: Any,
    pieces: Any,
    shared: Any,
    layout: Any,
    after: Any,
    lanes: Any,
    height: Any,
    first: int,
    tiles: int,
    lines: Floats,
    sums: Floats,
) -> None:
    """The same by as many threads as there are lines of scratch."""
    workers = lines.shape[0]
    for worker in prange(workers):
        for tile in range(worker, tiles, workers):
            row = first + tile * len(lanes) * max(1, len(height))
            _tile(
                x, row, residual, begins, pieces, shared, layout, after, out, lines[worker], sums[worker],
                lanes, height,
            )  # fmt: skip


@jit
def _tile(
    x: Floats,
    row: int,
    residual: NDArray[Any],
    begins: Any,
    pieces: Any,
    shared: Any,
    layout: Any,
    after: Any,
    out: NDArray[Any],
    lines: Floats,
    sums: Floats,
    lanes: Any,
    height: Any,
) -> None:
    rows = min(out.shape[0] - row, len(lanes) * max(1, len(height)))
    _fill_lines(x, begins, pieces, row, rows, layout[0], layout[1], lines, lanes, height)
    if len(height) < 2:
        _sum_few(lines, shared, layout, sums, lanes, height)
    else:
        _sum(lines, shared, layout, sums, lanes, height)
    _finish(sums, residual, after, row, rows, out, lanes, height)


@jit
def _fill_lines(
    x: Floats,
    begins: Any,
    pieces: Any,
    row: int,
    rows: int,
    run: int,
    blocks: int,
    lines: Floats,
    lanes: Any,
    height: Any,
) -> None:
    """Rows of x as lines, blocks of `run` inputs with a line of zeros after each.

    Where a piece ends within a vector of inputs, lines of zeros follow, which the next piece writes over.
    """
    starts, length = pieces
    inputs, stride = starts.size * length, x.strides[0] // 4
    side, long = len(lanes), len(lanes) * max(1, len(height))
    for block in range(blocks):
        begin, end = block * run, min(inputs, (block + 1) * run)
        for piece in range(begin // length, (end - 1) // length + 1):
            last = min(end, (piece + 1) * length)
            for t in range(max(1, len(height))):
                left = rows - t * side
                for k in range(max(begin, piece * length), last, side):
                    place, offset = (k + block) * long + t * side, starts[piece] + k - piece * length
                    if left >= side and k + side <= last:
                        tile = turn(lanes, x, begins, row + t * side, stride, offset, None, None)
                    else:
                        tile = turn(lanes, x, begins, row + t * side, stride, offset, left, last - k)
                    store_tile(tile, lines, place, long)
        zero = (block * (run + 1) + run) * long
        lines[zero : zero + long] = 0


@jit
def _sum(lines: Floats, shared: Any, layout: Any, sums: Floats, lanes: Any, height: Any) -> None:
    run, blocks, panels, pointers, inputs, weights, places = layout
    width = (0, 0, 0, 0)
    for block in range(blocks):
        base = block * (run + 1) * len(lanes) * len(height)
        for panel in range(block * panels, (block + 1) * panels):
            if block == 0:
                acc = zeros(lanes, height, width)
            else:
                acc = load_lines(lanes, height, width, sums, places, 4 * panel)
            for entry in range(pointers[panel], pointers[panel + 1]):
                acc = mac(acc, shared, height, width, lines, base, inputs, weights, entry)
            store_lines(acc, height, width, sums, places, 4 * panel)


@jit
def _sum_few(lines: Floats, shared: Any, layout: Any, sums: Floats, lanes: Any, height: Any) -> None:
    """The same where a panel has so few accumulators that they would wait for themselves: four panels in turn.

    Beyond the last panel of a block it is computed again and stored again, the same.
    """
    run, blocks, panels, pointers, inputs, weights, places = layout
    width = (0, 0, 0, 0)
    for block in range(blocks):
        base = block * (run + 1) * len(lanes) * max(1, len(height))
        last = (block + 1) * panels - 1
        for panel in range(block * panels, last + 1, 4):
            p1, p2, p3 = min(panel + 1, last), min(panel + 2, last), min(panel + 3, last)
            e0, e1, e2, e3 = pointers[panel], pointers[p1], pointers[p2], pointers[p3]
            n0, n1, n2, n3 = pointers[panel + 1], pointers[p1 + 1], pointers[p2 + 1], pointers[p3 + 1]
            if block == 0:
                a0 = zeros(lanes, height, width)
                a1, a2, a3 = a0, a0, a0
            else:
                a0 = load_lines(lanes, height, width, sums, places, 4 * panel)
                a1 = load_lines(lanes, height, width, sums, places, 4 * p1)
                a2 = load_lines(lanes, height, width, sums, places, 4 * p2)
                a3 = load_lines(lanes, height, width, sums, places, 4 * p3)
            for _ in range(min(n0 - e0, n1 - e1, n2 - e2, n3 - e3)):
                a0 = mac(a0, shared, height, width, lines, base, inputs, weights, e0)
                a1 = mac(a1, shared, height, width, lines, base, inputs, weights, e1)
                a2 = mac(a2, shared, height, width, lines, base, inputs, weights, e2)
                a3 = mac(a3, shared, height, width, lines, base, inputs, weights, e3)
                e0, e1, e2, e3 = e0 + 1, e1 + 1, e2 + 1, e3 + 1
            while e0 < n0:
                a0 = mac(a0, shared, height, width, lines, base, inputs, weights, e0)
                e0 += 1
            while e1 < n1:
                a1 = mac(a1, shared, height, width, lines, base, inputs, weights, e1)
                e1 += 1
            while e2 < n2:
                a2 = mac(a2, shared, height, width, lines, base, inputs, weights, e2)
                e2 += 1
            while e3 < n3:
                a3 = mac(a3, shared, height, width, lines, base, inputs, weights, e3)
                e3 += 1
            store_lines(a0, height, width, sums, places, 4 * panel)
            store_lines(a1, height, width, sums, places, 4 * p1)
            store_lines(a2, height, width, sums, places, 4 * p2)
            store_lines(a3, height, width, sums, places, 4 * p3)


@jit
def _finish(
    sums: Floats,
    residual: NDArray[Any],
    after: Any,
    row: int,
    rows: int,
    out: NDArray[Any],
    lanes: Any,
    height: Any,
) -> None:
    """Lines of sums back into rows, with what follows them."""
    n, side, long = out.shape[1], len(lanes), len(lanes) * max(1, len(height))
    for t in range(max(1, len(height))):
        left = rows - t * side
        for first in range(0, n, side):
            place = (row + t * side) * n + first
            tile = turn(lanes, sums, None, first, long, t * side, None, None)
            if left >= side and first + side <= n:
                finish_tile(tile, out, place, n, None, None, first, residual, after)
            else:
                finish_tile(tile, out, place, n, left, n - first, first, residual, after)
