"""Weights laid out for the fast kernels, once per weight: `pack(weight)`.

A group is the outputs of one tile, 16 for each of its vectors. Outputs are padded with zeros to whole groups. Where an
entry would reach beyond the last input it begins earlier, with zeros for what it has no part in, so that activations
need no padding. All offsets are bytes.

dense, blocks: an entry e = pointers[group] .. pointers[group + 1] is `run` pieces of 4 * dwords inputs from places[e]
on. With one dword, and with two (which is what `fold` adds up):

    data[e, j, c, lane, i] = weight[16 * width * group + 16 * c + lane, places[e] + 4 * j + i]
    data[e, j, c, 4 * q + 2 * o + d, i] = weight[16 * group + 4 * q + 2 * c + o, places[e] + 8 * j + 4 * d + i]

select, shared: an entry e is a window of 64 inputs from places[e] on, and `run` steps on it:

    data[e, j, c, 0, lane, i] = which of those inputs
    data[e, j, c, 1 + o, lane, i] = output o's weight there; both are 0 in an empty slot

where lane of c stands for output 16 * c + lane, or 16 * (lane % 4) + 4 * (lane // 4) + o if four share (`weave`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import jit
from gossamer.kernels.choose import Decision, choose
from gossamer.kernels.formats import BSR, NM, Weight
from gossamer.kernels.vectors import LANES, aligned_empty

__all__ = ["Packed", "pack"]

_DENSE_WIDTH = 4
_DEPTH, _WINDOW, _SHARE = 4, 64, 4
_PIECES = (32, 16, 8, 4)
_NEAR = 40_000
"""Bytes, about, that stay in the nearest cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A weight ready for the kernel that was chosen for it (layout: see the module).

    shape : (N, K).  decision : the kernel, and why.  inputs : bytes a row of activations must have, K or more.
    width : vectors of weights side by side.  dwords : codes of a row that are repeated, by fours.  run : pieces of an
        entry, or steps on a window.  share : outputs that pick together.
    pointers : int64 [groups + 1].  places : int64 [entries or windows].  data : int8 [bytes], 64-byte aligned.
    outputs : int64 [groups, accumulators of a row, 16], the output each lane starts the sum of, or -1.
    """

    shape: tuple[int, int]
    decision: Decision
    inputs: int
    width: int
    dwords: int
    run: int
    share: int
    pointers: NDArray[np.int64]
    places: NDArray[np.int64]
    data: NDArray[np.int8]
    outputs: NDArray[np.int64]

    @property
    def panel(self) -> int:
        """Vectors of a group's outputs."""
        return self.width * self.share // self.dwords

    @property
    def slots(self) -> int:
        """Outputs with those that fill up groups and blocks."""
        return (self.pointers.size - 1) * self.panel * LANES


def pack(weight: Weight, *, features: frozenset[str] | None = None, segment: int | None = None) -> Packed | None:
    """Lay a weight out for the kernel that `choose` names, None for the reference; later changes to it are not seen.

    features : as of `choose`.  segment : inputs that lie side by side in memory, all of them if None, else a divisor
    of K and a multiple of what an entry reads, 4, a block's inputs or 64: none reaches over the end of one. Raises
    ModelError as `choose` does.
    """
    decision = choose(weight, features=features)
    if decision.kernel == "dense":
        return _pack_dense(weight.to_dense(), decision, segment)
    if decision.kernel == "blocks" and isinstance(weight, BSR):
        return _pack_blocks(weight, decision)
    if decision.kernel in ("select", "shared"):
        return _pack_select(weight, decision, segment)
    return None


def _aligned(array: NDArray[np.int8]) -> NDArray[np.int8]:
    """Its elements in C order as one aligned line."""
    copy = aligned_empty(array.shape, np.int8)
    copy[...] = array
    return copy.reshape(-1)


def _padded(dense: NDArray[np.int8], outputs: int, inputs: int) -> NDArray[np.int8]:
    """The matrix with zeros up to a multiple of these outputs and at least these inputs."""
    n, k = dense.shape
    return np.pad(dense, ((0, -n % outputs), (0, max(0, inputs - k))))


def _pack_dense(matrix: NDArray[np.int8], decision: Decision, segment: int | None = None) -> Packed:
    shape = matrix.shape
    piece = 16 if shape[1] >= 16 else 4
    if segment is not None:
        piece = next(p for p in _PIECES if segment % p == 0)
    matrix = _padded(matrix, _DENSE_WIDTH * LANES, piece)
    groups, inputs = matrix.shape[0] // (_DENSE_WIDTH * LANES), matrix.shape[1]
    firsts = np.arange(0, inputs, piece)
    pieces = _cut(matrix, firsts, piece).reshape(groups, _DENSE_WIDTH, LANES, firsts.size, piece // _DEPTH, _DEPTH)
    return Packed(
        shape=shape,
        decision=decision,
        inputs=inputs,
        width=_DENSE_WIDTH,
        dwords=1,
        run=piece // _DEPTH,
        share=1,
        pointers=np.arange(groups + 1) * firsts.size,
        places=np.tile(np.minimum(firsts, inputs - piece), groups),
        data=_aligned(pieces.transpose(0, 3, 4, 1, 2, 5)),
        outputs=_in_order(groups, _DENSE_WIDTH),
    )


def _cut(matrix: NDArray[np.int8], firsts: NDArray[np.int64], piece: int) -> NDArray[np.int8]:
    """[N, pieces, piece]: the inputs from each of firsts on; the last piece where it fits, zeros before its own."""
    begins = np.minimum(firsts, matrix.shape[1] - piece)
    index = begins[:, None] + np.arange(piece)
    return np.where(index >= firsts[:, None], matrix[:, index], np.int8(0))


def _in_order(groups: int, width: int) -> NDArray[np.int64]:
    return np.arange(groups * width * LANES).reshape(groups, width, LANES)


def _pack_blocks(weight: BSR, decision: Decision) -> Packed:
    br, bc = weight.block
    width = next(w for w in (4, 2, 1) if br % (w * LANES) == 0)
    dwords = 2 if width == 1 and bc % 8 == 0 else 1
    piece = next(p for p in _PIECES if bc % p == 0)
    run, high = piece // (dwords * _DEPTH), br // (width * LANES)
    inputs = max(weight.shape[1], piece)
    # A block is `high` groups of outputs by pieces of inputs, and its group lists its pieces one after the other.
    firsts = (weight.indices[:, None].astype(np.int64) * bc + np.arange(0, bc, piece)).ravel()
    begins = np.minimum(firsts, inputs - piece)
    data = weight.data.reshape(-1, br, bc // piece, piece).transpose(0, 2, 1, 3).reshape(-1, br, piece)
    source = np.arange(piece) + (begins - firsts)[:, None]
    data = np.where(source[:, None] >= 0, np.take_along_axis(data, np.maximum(source, 0)[:, None], axis=2), np.int8(0))
    if dwords == 2:
        data = data.reshape(-1, high, 4, 2, 2, run, 2, _DEPTH).transpose(0, 1, 5, 3, 2, 4, 6, 7)
    else:
        data = data.reshape(-1, high, width, LANES, run, _DEPTH).transpose(0, 1, 4, 2, 3, 5)
    data = data.reshape(len(firsts), high, br // high * piece)
    counts = np.diff(weight.indptr).astype(np.int64) * (bc // piece)
    starts = np.concatenate([[0], np.cumsum(counts)])
    order = np.concatenate([np.tile(np.arange(starts[i], starts[i + 1]), high) for i in range(counts.size)])
    level = np.concatenate([np.repeat(np.arange(high), count) for count in counts])
    groups = counts.size * high
    outputs = _in_order(groups, width)
    if dwords == 2:
        lane = np.arange(LANES)
        output = 4 * (lane // 4) + lane // 2 % 2 + 2 * np.arange(2)[:, None]
        outputs = np.where(lane % 2 == 0, np.arange(groups)[:, None, None] * LANES + output, -1)
    return Packed(
        shape=weight.shape,
        decision=decision,
        inputs=inputs,
        width=width * dwords,
        dwords=dwords,
        run=run,
        share=1,
        pointers=np.concatenate([[0], np.cumsum(np.repeat(counts, high))]),
        places=begins[order],
        data=_aligned(data[order, level]),
        outputs=outputs,
    )


def _pack_select(weight: Weight, decision: Decision, segment: int | None) -> Packed:
    # Groups of N:M fill every aligned window alike, so that vectors can see the same ones, for several steps each: four
    # vectors, or two with more rows where a group's weights leave the nearest cache. Otherwise a window slides to the
    # slowest output: to anywhere where loads are few, else in halves of a line.
    share = _SHARE if decision.kernel == "shared" else 1
    width, hop, run = 1, 1 if share > 1 else 32, 1
    if isinstance(weight, NM) and _WINDOW % weight.m == 0:
        few = weight.values.shape[1] * weight.n * 2 * 4 * LANES <= _NEAR  # bytes of a group of four vectors
        width, hop, run = 4 if few else 2, _WINDOW, max(1, _WINDOW // weight.m * weight.n // _DEPTH)
    panel = width * share * LANES
    matrix = _padded(weight.to_dense(), panel, _WINDOW)
    groups, inputs = matrix.shape[0] // panel, matrix.shape[1]
    outputs = _in_order(groups, width)[:, :, None]
    if share > 1:
        lane = np.arange(LANES)
        slot = 16 * (lane % 4) + 4 * (lane // 4) + np.arange(share)[:, None]
        outputs = np.arange(groups)[:, None, None, None] * panel + slot
    slots = outputs.transpose(0, 1, 3, 2).reshape(-1, share)  # by group, vector, lane: who picks together
    row, column = np.nonzero(matrix[slots].any(axis=1))
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=slots.shape[0]))])
    pointers, places = _place_windows(starts, column, width * LANES, hop, run, segment or inputs)
    data = aligned_empty((places.size * run, width, 1 + share, LANES, _DEPTH), np.int8)
    data[...] = 0
    _fill_steps(starts, column, slots, matrix, pointers, places, run, data)
    return Packed(
        shape=weight.shape,
        decision=decision,
        inputs=inputs,
        width=width,
        dwords=1,
        run=run,
        share=share,
        pointers=pointers,
        places=places,
        data=data.reshape(-1),
        outputs=outputs.reshape(groups, width * share, LANES),
    )


@jit
def _place_windows(
    starts: NDArray[np.int64], columns: NDArray[np.int64], slots: int, hop: int, run: int, segment: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pointers of the groups, and where each window begins: at the first nonzero that is still left."""
    groups = (starts.size - 1) // slots
    pointers = np.zeros(groups + 1, dtype=np.int64)
    places = np.empty(columns.size, dtype=np.int64)
    windows = 0
    for group in range(groups):
        first = group * slots
        head = starts[first : first + slots].copy()
        while True:
            place = np.int64(-1)
            for slot in range(slots):
                if head[slot] < starts[first + slot + 1] and (place < 0 or columns[head[slot]] < place):
                    place = columns[head[slot]]
            if place < 0:
                break
            place = np.minimum(place // hop * hop, place // segment * segment + segment - 64)
            for slot in range(slots):
                end = np.minimum(head[slot] + 4 * run, starts[first + slot + 1])
                while head[slot] < end and columns[head[slot]] < place + 64:
                    head[slot] += 1
            places[windows] = place
            windows += 1
        pointers[group + 1] = windows
    return pointers, places[:windows].copy()


@jit
def _fill_steps(
    starts: NDArray[np.int64],
    columns: NDArray[np.int64],
    outputs: NDArray[np.int64],
    matrix: NDArray[np.int8],
    pointers: NDArray[np.int64],
    places: NDArray[np.int64],
    run: int,
    data: NDArray[np.int8],
) -> None:
    """data, cleared : [windows * run, width, 1 + share, 16, 4].  outputs : [slots of all groups, share]."""
    slots = data.shape[1] * 16
    for group in range(pointers.size - 1):
        for slot in range(slots):
            whole = group * slots + slot
            head = starts[whole]
            for window in range(pointers[group], pointers[group + 1]):
                end, i = np.minimum(head + 4 * run, starts[whole + 1]), 0
                while head < end and columns[head] < places[window] + 64:
                    step = window * run + i // 4
                    data[step, slot // 16, 0, slot % 16, i % 4] = columns[head] - places[window]
                    for o in range(outputs.shape[1]):
                        data[step, slot // 16, 1 + o, slot % 16, i % 4] = matrix[outputs[whole, o], columns[head]]
                    head += 1
                    i += 1
