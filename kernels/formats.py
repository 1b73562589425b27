"""Formats of a weight matrix int8 [N, K]: dense, N:M, block and unstructured.

N is the number of output features and K the number of input features, over which a product is summed. Every format
is stored output features first, is checked when made, and gives the dense matrix back exactly.

Layouts are plain arrays that a packer for one instruction set can start from: N:M keeps exactly n slots a group, so
that the slots of neighbouring outputs line up; BSR keeps a block contiguous, outputs first. Whatever a faster kernel
needs beyond that (interleaving, alignment, premultiplied indices) is derived from these once per weight.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.kernels.checks import check_array, check_int, to_int_tuple

__all__ = ["BSR", "CSR", "GROUP_MAX", "NM", "Dense", "Weight"]

GROUP_MAX = 64
"""Largest group of N:M, unless the group is the whole row; such a group fits one 64-byte vector register."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
    """A dense matrix.

    data : int8 [N, K]. Raises ModelError.
    """

    data: NDArray[np.int8]

    def __post_init__(self) -> None:
        _check_dense(self.data, "Dense.data")
        _make_contiguous(self, "data")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.data.shape[0], self.data.shape[1]

    @classmethod
    def from_dense(cls, dense: NDArray[np.int8]) -> Self:
        """From int8 [N, K]."""
        return cls(data=dense)

    def to_dense(self) -> NDArray[np.int8]:
        """The matrix, int8 [N, K]: a copy."""
        return self.data.copy()


@dataclass(frozen=True, kw_only=True, eq=False)
class NM:
    """N:M sparsity: each output feature has at most n nonzeros in every m consecutive input features.

        dense[i, g * m + indices[i, g, s]] = values[i, g, s]    for every slot s with a nonzero value

    values : int8 [N, G, n], G = ceil(K / m). A slot without a nonzero holds value 0, and then its index is free.
    indices : [N, G, n], each below the length of its group; uint8 if m <= 64, else int32. No two nonzeros of a
        group share an index.
    m : group length, 1..64, or K: one group per output, which is constant fan-in.
    in_features : K. When it is no multiple of m, the last group is shorter.

    Raises ModelError. Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (2:4); Zhou et al.,
    "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021 (any n of m).

    >>> weight = NM.from_dense(np.array([[0, 5, 0, -3, 7]], dtype=np.int8), n=2, m=4)
    >>> weight.values.tolist(), weight.indices.tolist()
    ([[[5, -3], [7, 0]]], [[[1, 3], [0, 0]]])
    """

    values: NDArray[np.int8]
    indices: NDArray[np.uint8] | NDArray[np.int32]
    m: int
    in_features: int

    def __post_init__(self) -> None:
        _check_group(self.m, self.in_features)
        check_array("NM.values", self.values, [np.int8], 3)
        check_array("NM.indices", self.indices, [_index_dtype(self.m)], 3)
        groups = -(-self.in_features // self.m)
        out_features, _, n = self.values.shape
        if out_features < 1 or self.values.shape[1] != groups or not 1 <= n <= self.m:
            raise ModelError(f"NM.values must have shape (N >= 1, {groups}, 1..{self.m}), not {self.values.shape}")
        if self.indices.shape != self.values.shape:
            raise ModelError(f"NM.indices must have the shape of values {self.values.shape}, not {self.indices.shape}")
        lengths = np.minimum(self.m, self.in_features - self.m * np.arange(groups))
        wrong = np.argwhere((self.indices < 0) | (self.indices >= lengths[:, None]))
        if wrong.size:
            i, g, s = wrong[0]
            raise ModelError(
                f"NM.indices[{i}, {g}, {s}] must be from 0 to {lengths[g] - 1}, not {self.indices[i, g, s]}"
            )
        # Empty slots get names of their own, all negative, so that only nonzeros can collide.
        names = np.sort(np.where(self.values != 0, self.indices.astype(np.int64), -1 - np.arange(n)), axis=2)
        twice = np.argwhere(names[..., 1:] == names[..., :-1])
        if twice.size:
            i, g, s = twice[0]
            raise ModelError(f"NM.indices[{i}, {g}] must name an input once, not {names[i, g, s]} twice")
        _make_contiguous(self, "values", "indices")

    @property
    def n(self) -> int:
        """Slots of a group."""
        return int(self.values.shape[2])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.values.shape[0], self.in_features

    @classmethod
    def from_dense(cls, dense: NDArray[np.int8], *, n: int, m: int) -> Self:
        """From int8 [N, K]; nonzeros of a group in ascending order, then empty slots of value 0 and index 0.

        Raises ModelError when a group has more than n nonzeros.
        """
        _check_dense(dense, "dense")
        out_features, in_features = dense.shape
        _check_group(m, in_features)
        check_int("n", n, 1, m)
        groups = -(-in_features // m)
        padded = np.zeros((out_features, groups * m), dtype=np.int8)
        padded[:, :in_features] = dense
        grouped = padded.reshape(out_features, groups, m)
        counts = np.count_nonzero(grouped, axis=2)
        full = np.argwhere(counts > n)
        if full.size:
            i, g = full[0]
            raise ModelError(f"dense[{i}, {g * m}:{g * m + m}] must have at most n = {n} nonzeros, not {counts[i, g]}")
        order = np.argsort(grouped == 0, axis=2, kind="stable")[:, :, :n]
        values = np.take_along_axis(grouped, order, axis=2)
        indices: NDArray[Any] = np.where(values != 0, order, 0).astype(_index_dtype(m))
        return cls(values=values, indices=indices, m=m, in_features=in_features)

    def to_dense(self) -> NDArray[np.int8]:
        """The matrix, int8 [N, K]."""
        dense = np.zeros(self.shape, dtype=np.int8)
        i, g, s = np.nonzero(self.values)
        dense[i, g * self.m + self.indices[i, g, s]] = self.values[i, g, s]
        return dense


@dataclass(frozen=True, kw_only=True, eq=False)
class BSR:
    """Block sparse rows: a CSR matrix of dense blocks of br outputs by bc inputs.

        dense[I * br : (I + 1) * br, indices[b] * bc : (indices[b] + 1) * bc] = data[b],  indptr[I] <= b < indptr[I + 1]

    data : int8 [blocks, br, bc]; what sticks out over N or K is zero.
    indices : int32 [blocks], block column of each block, ascending within a block row.
    indptr : int32 [ceil(N / br) + 1], non-decreasing, from 0 to blocks.
    shape : (N, K).

    Raises ModelError. Source: the BSR of SciPy, without its demand that blocks divide the shape.
    """

    data: NDArray[np.int8]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int32]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        check_array("BSR.data", self.data, [np.int8], 3)
        out_features, in_features = to_int_tuple("BSR.shape", self.shape, 2, 1)
        blocks, br, bc = self.data.shape
        if br < 1 or bc < 1:
            raise ModelError(f"BSR.data must have blocks of at least 1 x 1, not {br} x {bc}")
        rows, columns = -(-out_features // br), -(-in_features // bc)
        _check_pointers("BSR", self.indices, self.indptr, rows, columns, blocks)
        block_row = np.repeat(np.arange(rows), np.diff(self.indptr))
        outside = (block_row[:, None] * br + np.arange(br) >= out_features)[:, :, None] | (
            self.indices[:, None] * bc + np.arange(bc) >= in_features
        )[:, None, :]
        wrong = np.argwhere(outside & (self.data != 0))
        if wrong.size:
            b, r, c = wrong[0]
            raise ModelError(
                f"BSR.data[{b}, {r}, {c}] lies outside of shape {self.shape} and must be 0, not {self.data[b, r, c]}"
            )
        _make_contiguous(self, "data", "indices", "indptr")

    @property
    def block(self) -> tuple[int, int]:
        """(br, bc)."""
        return self.data.shape[1], self.data.shape[2]

    @classmethod
    def from_dense(cls, dense: NDArray[np.int8], *, block: tuple[int, int]) -> Self:
        """From int8 [N, K]: the blocks with a nonzero, cut from the first row and the first column on."""
        _check_dense(dense, "dense")
        br, bc = to_int_tuple("block", block, 2, 1)
        out_features, in_features = dense.shape
        rows, columns = -(-out_features // br), -(-in_features // bc)
        padded = np.zeros((rows * br, columns * bc), dtype=np.int8)
        padded[:out_features, :in_features] = dense
        blocks = padded.reshape(rows, br, columns, bc).transpose(0, 2, 1, 3)
        kept = blocks.any(axis=(2, 3))
        return cls(
            data=blocks[kept],
            indices=np.nonzero(kept)[1].astype(np.int32),
            indptr=_pointers(kept.sum(axis=1)),
            shape=(out_features, in_features),
        )

    def to_dense(self) -> NDArray[np.int8]:
        """The matrix, int8 [N, K]."""
        br, bc = self.block
        rows, columns = self.indptr.size - 1, -(-self.shape[1] // bc)
        blocks = np.zeros((rows, columns, br, bc), dtype=np.int8)
        blocks[np.repeat(np.arange(rows), np.diff(self.indptr)), self.indices] = self.data
        dense = blocks.transpose(0, 2, 1, 3).reshape(rows * br, columns * bc)
        return np.ascontiguousarray(dense[: self.shape[0], : self.shape[1]])


@dataclass(frozen=True, kw_only=True, eq=False)
class CSR:
    """Compressed sparse rows: unstructured sparsity.

        dense[i, indices[e]] = data[e],  indptr[i] <= e < indptr[i + 1]

    data : int8 [entries].  indices : int32 [entries], ascending within a row.
    indptr : int32 [N + 1], non-decreasing, from 0 to entries.
    in_features : K.

    Raises ModelError. Source: the canonical CSR of SciPy (sorted, no duplicates).
    """

    data: NDArray[np.int8]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int32]
    in_features: int

    def __post_init__(self) -> None:
        check_array("CSR.data", self.data, [np.int8], 1)
        check_int("CSR.in_features", self.in_features, 1)
        check_array("CSR.indptr", self.indptr, [np.int32], 1)
        if self.indptr.size < 2:
            raise ModelError(f"CSR.indptr must have at least 2 entries (one row), not {self.indptr.size}")
        _check_pointers("CSR", self.indices, self.indptr, self.indptr.size - 1, self.in_features, self.data.size)
        _make_contiguous(self, "data", "indices", "indptr")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.indptr.size - 1, self.in_features

    @classmethod
    def from_dense(cls, dense: NDArray[np.int8]) -> Self:
        """From int8 [N, K]: its nonzeros."""
        _check_dense(dense, "dense")
        rows, columns = np.nonzero(dense)
        return cls(
            data=dense[rows, columns],
            indices=columns.astype(np.int32),
            indptr=_pointers(np.count_nonzero(dense, axis=1)),
            in_features=dense.shape[1],
        )

    def to_dense(self) -> NDArray[np.int8]:
        """The matrix, int8 [N, K]."""
        dense = np.zeros(self.shape, dtype=np.int8)
        dense[np.repeat(np.arange(self.shape[0]), np.diff(self.indptr)), self.indices] = self.data
        return dense


Weight = Dense | NM | BSR | CSR
"""Any format."""


def _make_contiguous(weight: Weight, *names: str) -> None:
    """Store these arrays C-contiguous; a frozen dataclass is written to only here, while it is being made."""
    for name in names:
        object.__setattr__(weight, name, np.ascontiguousarray(getattr(weight, name)))


def _check_dense(dense: NDArray[np.int8], name: str) -> None:
    check_array(name, dense, [np.int8], 2)
    if dense.size == 0:
        raise ModelError(f"{name} must have at least one row and one column, not shape {dense.shape}")


def _check_group(m: int, in_features: int) -> None:
    check_int("in_features", in_features, 1)
    if m != in_features:
        check_int("m, unless it is in_features,", m, 1, GROUP_MAX)


def _index_dtype(m: int) -> type[np.uint8] | type[np.int32]:
    return np.uint8 if m <= GROUP_MAX else np.int32


def _pointers(counts: NDArray[np.intp]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _check_pointers(
    name: str, indices: NDArray[np.int32], indptr: NDArray[np.int32], rows: int, columns: int, entries: int
) -> None:
    """The rules that the index arrays of CSR and BSR share."""
    check_array(f"{name}.indices", indices, [np.int32], 1)
    check_array(f"{name}.indptr", indptr, [np.int32], 1)
    if indices.size != entries:
        raise ModelError(f"{name}.indices must have {entries} entries, one for each of data, not {indices.size}")
    if indptr.size != rows + 1:
        raise ModelError(f"{name}.indptr must have {rows + 1} entries, not {indptr.size}")
    if indptr[0] != 0 or indptr[-1] != entries or np.any(np.diff(indptr) < 0):
        raise ModelError(f"{name}.indptr must rise from 0 to {entries} without a fall, not {indptr.tolist()}")
    wrong = np.flatnonzero((indices < 0) | (indices >= columns))
    if wrong.size:
        raise ModelError(f"{name}.indices[{wrong[0]}] must be from 0 to {columns - 1}, not {indices[wrong[0]]}")
    row = np.repeat(np.arange(rows), np.diff(indptr))
    falls = np.flatnonzero((np.diff(indices) <= 0) & (row[1:] == row[:-1]))
    if falls.size:
        e = falls[0]
        raise ModelError(
            f"{name}.indices must rise within row {row[e]}, not go from {indices[e]} to {indices[e + 1]} at entry {e}"
        )
