"""Weights laid out for the fast kernels, once per weight: `pack(weight)`.

A panel is 16 outputs, the lanes of a vector; a group is `width` panels worked on together. Outputs are padded with
zeros to whole groups. All offsets are bytes.

blocks (and dense, one block a group that spans all inputs), for entry e = pointers[group] .. pointers[group + 1]:

    data[e, j, c, lane, i] = weight[(group * width + c) * 16 + lane, places[e] + 4 * j + i]

select, for step s = pointers[group, b] .. pointers[group, b + 1] of the 64 inputs from 64 * b:

    data[s, c, 0, lane, i] = which of those inputs    data[s, c, 1, lane, i] = its weight; both 0 in an empty slot
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.kernels.choose import Decision, choose
from gossamer.kernels.formats import BSR, Weight
from gossamer.kernels.intrinsics import aligned_empty

__all__ = ["Packed", "pack"]

_DENSE_WIDTH = 4
_SELECT_WIDTHS = (3, 4, 2, 1)
_LANES, _DEPTH, _WINDOW = 16, 4, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A weight ready for the kernel that was chosen for it (layout: see the module).

    weight : what it was made from.  decision : the kernel, and why.  width : panels of a group.
    run : dwords of inputs an entry spans (dense, blocks), else 0.  step : inputs are padded to a multiple of it.
    pointers : int64 [groups + 1], or [groups, windows + 1] for select.  places : int64 [entries], empty for select.
    data : int8 [bytes], 64-byte aligned.  sums : int64 [groups * width * 16], of the weights of each output.
    """

    weight: Weight
    decision: Decision
    width: int
    run: int
    step: int
    pointers: NDArray[np.int64]
    places: NDArray[np.int64]
    data: NDArray[np.int8]
    sums: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight.shape


def pack(weight: Weight, *, features: frozenset[str] | None = None) -> Packed:
    """Lay a weight out for the kernel that `choose` names. Later changes to the weight's arrays are not seen.

    features : as of `choose`. Raises ModelError as it does.
    """
    decision = choose(weight, features=features)
    if decision.kernel == "dense":
        return _pack_dense(weight, decision)
    if decision.kernel == "blocks" and isinstance(weight, BSR):
        return _pack_blocks(weight, decision)
    if decision.kernel == "select":
        return _pack_select(weight, decision)
    none = np.empty(0, dtype=np.int64)
    return Packed(
        weight=weight,
        decision=decision,
        width=1,
        run=0,
        step=1,
        pointers=none,
        places=none,
        data=np.empty(0, dtype=np.int8),
        sums=none,
    )


def _aligned(array: NDArray[np.int8]) -> NDArray[np.int8]:
    """Its elements in C order as one aligned line."""
    copy = aligned_empty(array.shape, np.int8)
    copy[...] = array
    return copy.reshape(-1)


def _padded(dense: NDArray[np.int8], outputs: int, inputs: int) -> NDArray[np.int8]:
    """The matrix with zeros up to multiples of these."""
    n, k = dense.shape
    return np.pad(dense, ((0, -n % outputs), (0, -k % inputs)))


def _pack_dense(weight: Weight, decision: Decision) -> Packed:
    matrix = _padded(weight.to_dense(), _DENSE_WIDTH * _LANES, _DEPTH)
    groups, run = matrix.shape[0] // (_DENSE_WIDTH * _LANES), matrix.shape[1] // _DEPTH
    return Packed(
        weight=weight,
        decision=decision,
        width=_DENSE_WIDTH,
        run=run,
        step=_DEPTH,
        pointers=np.arange(groups + 1),
        places=np.zeros(groups, dtype=np.int64),
        data=_aligned(matrix.reshape(groups, _DENSE_WIDTH, _LANES, run, _DEPTH).transpose(0, 3, 1, 2, 4)),
        sums=matrix.sum(axis=1, dtype=np.int64),
    )


def _pack_blocks(weight: BSR, decision: Decision) -> Packed:
    br, bc = weight.block
    width, run = br // _LANES, bc // _DEPTH
    sums = np.zeros((weight.indptr.size - 1, br), dtype=np.int64)
    block_row = np.repeat(np.arange(weight.indptr.size - 1), np.diff(weight.indptr))
    np.add.at(sums, block_row, weight.data.sum(axis=2, dtype=np.int64))
    return Packed(
        weight=weight,
        decision=decision,
        width=width,
        run=run,
        step=bc,
        pointers=weight.indptr.astype(np.int64),
        places=weight.indices.astype(np.int64) * bc,
        data=_aligned(weight.data.reshape(-1, width, _LANES, run, _DEPTH).transpose(0, 3, 1, 2, 4)),
        sums=sums.ravel(),
    )


def _pack_select(weight: Weight, decision: Decision) -> Packed:
    matrix = _padded(weight.to_dense(), 1, _WINDOW)
    n, windows = matrix.shape[0], matrix.shape[1] // _WINDOW
    counts = np.count_nonzero(matrix.reshape(n, windows, _WINDOW), axis=2)
    # Wider groups read activations less often, but all their outputs are padded to the fullest one.
    cost = {width: _steps(counts, width).sum() * width for width in _SELECT_WIDTHS}
    width = next(w for w in _SELECT_WIDTHS if cost[w] <= 1.05 * min(cost.values()))
    steps = _steps(counts, width)
    pointers = np.zeros((steps.shape[0], windows + 1), dtype=np.int64)
    pointers[:, 1:] = np.cumsum(steps).reshape(steps.shape)
    pointers[1:, 0] = pointers[:-1, -1]
    data = aligned_empty((int(steps.sum()), width, 2, _LANES, _DEPTH), np.int8)
    data[...] = 0
    i, k = np.nonzero(matrix)
    firsts = np.cumsum(counts.ravel()) - counts.ravel()  # where the nonzeros of an output and window begin
    rank = np.arange(i.size) - firsts[i * windows + k // _WINDOW]
    step = pointers[i // (_LANES * width), k // _WINDOW] + rank // _DEPTH
    panel = i // _LANES % width
    data[step, panel, 0, i % _LANES, rank % _DEPTH] = k % _WINDOW
    data[step, panel, 1, i % _LANES, rank % _DEPTH] = matrix[i, k]
    return Packed(
        weight=weight,
        decision=decision,
        width=width,
        run=0,
        step=_WINDOW,
        pointers=pointers,
        places=np.empty(0, dtype=np.int64),
        data=data.reshape(-1),
        sums=_padded(matrix, _LANES * width, 1).sum(axis=1, dtype=np.int64),
    )


def _steps(counts: NDArray[np.intp], width: int) -> NDArray[np.int64]:
    """Steps of each group in each window, [groups, windows]: slots of the fullest output by fours."""
    outputs = _LANES * width
    filled = np.pad(counts, ((0, -counts.shape[0] % outputs), (0, 0)))
    fullest = filled.reshape(-1, outputs, counts.shape[1]).max(axis=1)
    return np.asarray(-(-fullest // _DEPTH), dtype=np.int64)
