"""The packer: nonzeros of a column tile to steps.

It walks the nonzeros of all columns in ascending order of address and moves the window to the slowest column. With
aligned windows (H = M) a window whose fullest column has n nonzeros costs ceil(n / V) steps, and a window without
nonzeros costs nothing; with H < M a window may begin at any multiple of H, and columns wait less for each other.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import jit
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import StepStream

__all__ = ["pack", "unpack"]


def pack(
    addresses: NDArray[np.int64], weights: NDArray[np.int8], spec: ArchSpec, *, keep_zeros: bool = False
) -> StepStream:
    """Steps for one column tile.

    addresses : int64 [K], strictly ascending: the bank element that each reduction index reads at position 0.
    weights : int8 [K, columns], or fewer columns (the rest stay idle). Zeros cost nothing.
    keep_zeros : give zeros their slots too, so that whole windows keep the order that DENSE records imply.
    Raises ValueError when the shapes do not fit or the addresses do not ascend.
    """
    addresses = np.asarray(addresses, dtype=np.int64)
    if weights.ndim != 2 or weights.shape[0] != addresses.shape[0] or weights.shape[1] > spec.columns:
        raise ValueError(f"weights must have shape [{addresses.shape[0]}, up to {spec.columns}], not {weights.shape}")
    if addresses.size and (np.any(np.diff(addresses) <= 0) or addresses[0] < 0):
        raise ValueError("addresses must be non-negative and strictly ascending")
    starts = np.zeros(spec.columns + 1, dtype=np.int64)
    starts[1 : weights.shape[1] + 1] = weights.shape[0] if keep_zeros else np.count_nonzero(weights, axis=0)
    starts = np.cumsum(starts)
    where = np.empty(starts[-1], dtype=np.int64)
    value = np.empty(starts[-1], dtype=np.int8)
    _list(addresses, np.ascontiguousarray(weights, dtype=np.int8), keep_zeros, starts[:-1].copy(), where, value)
    steps = _walk(where, starts, spec.group, spec.macs, spec.hop, np.empty(0, np.int64), value, _NO_I8, _NO_U8)
    offsets = np.empty(steps, dtype=np.int64)
    values = np.zeros((steps, spec.columns, spec.macs), dtype=np.int8)
    selects = np.zeros((steps, spec.columns, spec.macs), dtype=np.uint8)
    _walk(where, starts, spec.group, spec.macs, spec.hop, offsets, value, values, selects)
    return StepStream(offsets=offsets, values=values, selects=selects)


_NO_I8 = np.empty((0, 0, 0), dtype=np.int8)
_NO_U8 = np.empty((0, 0, 0), dtype=np.uint8)


@jit
def _list(  # pragma: no cover - compiled
    addresses: NDArray[np.int64],
    weights: NDArray[np.int8],
    keep_zeros: bool,
    following: NDArray[np.int64],
    where: NDArray[np.int64],
    value: NDArray[np.int8],
) -> None:
    """Address and value of every nonzero, column after column; following : where each column begins."""
    for k in range(weights.shape[0]):
        for c in range(weights.shape[1]):
            if keep_zeros or weights[k, c] != 0:
                where[following[c]] = addresses[k]
                value[following[c]] = weights[k, c]
                following[c] += 1


@jit
def _walk(  # pragma: no cover - compiled
    where: NDArray[np.int64],
    starts: NDArray[np.int64],
    group: int,
    macs: int,
    hop: int,
    offsets: NDArray[np.int64],
    value: NDArray[np.int8],
    values: NDArray[np.int8],
    selects: NDArray[np.uint8],
) -> int:
    """Count the steps, and write them when `offsets` has room for them."""
    columns = starts.size - 1
    head = starts[:-1].copy()
    write = offsets.size > 0
    step = 0
    while True:
        first = np.int64(-1)
        for c in range(columns):
            if head[c] < starts[c + 1] and (first < 0 or where[head[c]] < first):
                first = where[head[c]]
        if first < 0:
            return step
        base = first // hop * hop
        if write:
            offsets[step] = base // hop
        for c in range(columns):
            v = 0
            while v < macs and head[c] < starts[c + 1] and where[head[c]] < base + group:
                if write:
                    values[step, c, v] = value[head[c]]
                    selects[step, c, v] = where[head[c]] % group
                head[c] += 1
                v += 1
        step += 1


def unpack(stream: StepStream, spec: ArchSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The inverse of `pack`: (addresses int64 [K], weights int64 [K, columns]) of all elements that are used."""
    s, c, v = np.nonzero(stream.values)
    base = stream.offsets[s] * spec.hop
    address = base + (stream.selects[s, c, v].astype(np.int64) - base) % spec.group
    used, row = np.unique(address, return_inverse=True)
    weights = np.zeros((used.size, stream.values.shape[1]), dtype=np.int64)
    np.add.at(weights, (row, c), stream.values[s, c, v].astype(np.int64))
    return used, weights
