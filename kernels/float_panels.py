"""A float32 weight laid out for the float kernels on lines: `lay_out(...)`.

Four outputs are worked on together, a panel. Activations stand as lines, one for an input, in blocks of `run` inputs
with a line of zeros at the end of each block. Entry e = pointers[b * panels + p] .. pointers[b * panels + p + 1] of
panel p in block b has the four weights weights[4 * e : 4 * e + 4], for the outputs lines[4 * (b * panels + p) :][:4].

    shared    inputs[e], of the block: the one input that the four weights belong to
    own       inputs[4 * e + c]: the input of weight c; an output with fewer nonzeros than the others of its panel is
              filled up with weights of 0 on the line of zeros

Shared inputs are right where neighbouring outputs have their nonzeros at the same inputs: dense weights, and blocks of
4 outputs and more. A line of activations is then loaded once for four products and the multipliers never wait. With
inputs of their own every product needs a load, so a block is what the first-level cache holds, and in every block
outputs are sorted by their number of nonzeros, so that the four of a panel hardly differ. N:M and unstructured weights
are like that. Both are counted, and the cheaper one is taken: the pattern need not be told. Where 16 outputs share
their inputs, rows need not be turned at all: kernels/float_rows.py.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.kernels.checks import check_array
from gossamer.kernels.vectors import aligned_empty

__all__ = ["PANEL", "FloatPanels", "FloatWeight", "Nonzeros", "SparseMatrix", "find_nonzeros", "lay_out"]

PANEL = 4
"""Outputs of a panel."""

_OWN_RUN = 128
"""Inputs of a block with inputs of their own: 128 lines of 4 vectors of 64 bytes fill two thirds of 48 KiB."""
_SHARED_RUN = 1024
"""Inputs of a block with shared inputs: 256 KiB of lines stay in a second-level cache."""
_OWN_COST = 1.5
"""Cycles of an entry with four inputs, against one with a shared input: 12 to 8 at a tile of 4 x 64 bytes."""


@runtime_checkable
class SparseMatrix(Protocol):
    """A sparse array or matrix of SciPy, in any of its formats."""

    shape: tuple[int, ...]

    def tocoo(self) -> Any:
        """Its coordinates."""


FloatWeight = NDArray[np.float32] | SparseMatrix
"""float32 [N, K]: an array with zeros in it, or a sparse array of SciPy."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Nonzeros:
    """The nonzeros of a weight of `shape` [N, K], sorted by output i and then by input k: int64, and float32 values."""

    shape: tuple[int, int]
    i: NDArray[np.int64]
    k: NDArray[np.int64]
    values: NDArray[np.float32]

    @property
    def density(self) -> float:
        """Their share of all weights."""
        return self.values.size / (self.shape[0] * self.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatPanels:
    """A weight ready for the float kernels (layout: see the module).

    shape : (N, K).  nonzeros : weights that are not 0.  shared : whether a panel's outputs share their inputs.
    run : inputs of a block.  blocks, panels : their numbers.  pointers : int64 [blocks * panels + 1].
    inputs : uint16 [entries] if shared, else uint8 [4 * entries].  weights : float32 [4 * entries], aligned.
    lines : uint32 [blocks * panels * 4], a permutation of the outputs, padded to fours, in each block.
    """

    shape: tuple[int, int]
    nonzeros: int
    shared: bool
    run: int
    blocks: int
    panels: int
    pointers: NDArray[np.int64]
    inputs: NDArray[np.uint16] | NDArray[np.uint8]
    weights: NDArray[np.float32]
    lines: NDArray[np.uint32]

    @property
    def density(self) -> float:
        """Share of the weights that are not 0."""
        return self.nonzeros / (self.shape[0] * self.shape[1])

    @property
    def cost(self) -> float:
        """Time, in weights that are multiplied at the peak."""
        return PANEL * int(self.pointers[-1]) * (1 if self.shared else _OWN_COST)

    def to_dense(self) -> NDArray[np.float32]:
        """The matrix, float32 [N, K]."""
        entries = np.arange(self.pointers[-1])
        cell = np.searchsorted(self.pointers, entries, side="right") - 1
        inputs = (
            self.inputs.reshape(-1, 1 if self.shared else PANEL).astype(np.int64)
            + (cell // self.panels * self.run)[:, None]
        )
        outputs = self.lines.reshape(-1, PANEL)[cell]
        weights = self.weights.reshape(-1, PANEL)
        dense = np.zeros((self.panels * PANEL, self.blocks * self.run + 1), dtype=np.float32)
        inputs, outputs = np.broadcast_arrays(inputs, outputs)
        dense[outputs[weights != 0], inputs[weights != 0]] = weights[weights != 0]
        return dense[: self.shape[0], : self.shape[1]]


def lay_out(weight: Nonzeros) -> FloatPanels:
    """Lay a weight out."""
    own, shared = _own(weight), _shared(weight)
    return shared if shared.cost <= own.cost else own


def find_nonzeros(weight: FloatWeight) -> Nonzeros:
    """Of an array or a sparse array; raises ModelError when it is no float32 matrix."""
    if isinstance(weight, SparseMatrix) and not isinstance(weight, np.ndarray):
        found = weight.tocoo()
        if found.dtype != np.float32 or len(found.shape) != 2:
            raise ModelError(f"weight must be float32 with 2 dimensions, not {found.dtype} of shape {found.shape}")
        found.sum_duplicates()  # and sorts by column and then by row
        kept = np.flatnonzero(found.data)
        order = kept[np.lexsort((found.col[kept], found.row[kept]))]
        shape = (int(found.shape[0]), int(found.shape[1]))
        i, k, values = found.row[order].astype(np.int64), found.col[order].astype(np.int64), found.data[order]
    else:
        check_array("weight", weight, [np.float32], 2)
        shape = (weight.shape[0], weight.shape[1])
        i, k = np.nonzero(weight)
        values = weight[i, k]
    if min(shape) < 1:
        raise ModelError(f"weight must have at least one row and one column, not shape {shape}")
    return Nonzeros(shape=shape, i=i, k=k, values=values)


def _shared(weight: Nonzeros) -> FloatPanels:
    (n, inputs), i, k, values = weight.shape, weight.i, weight.k, weight.values
    run = min(_SHARED_RUN, inputs + -inputs % 16)
    blocks, panels = -(-inputs // run), -(-n // PANEL)
    keys, entry = np.unique(((k // run) * panels + i // PANEL) * run + k % run, return_inverse=True)
    weights = aligned_empty((keys.size, PANEL), np.float32)
    weights[...] = 0
    weights[entry, i % PANEL] = values
    return FloatPanels(
        shape=weight.shape,
        nonzeros=values.size,
        shared=True,
        run=run,
        blocks=blocks,
        panels=panels,
        pointers=np.searchsorted(keys, run * np.arange(blocks * panels + 1)),
        inputs=(keys % run).astype(np.uint16),
        weights=weights.reshape(-1),
        lines=np.tile(np.arange(panels * PANEL, dtype=np.uint32), blocks),
    )


def _own(weight: Nonzeros) -> FloatPanels:
    (n, inputs), i, k, values = weight.shape, weight.i, weight.k, weight.values
    run = min(_OWN_RUN, inputs + -inputs % 16)
    blocks, panels = -(-inputs // run), -(-n // PANEL)
    outputs = panels * PANEL
    cell = (k // run) * outputs + i  # a block of an output
    counts = np.bincount(cell, minlength=blocks * outputs).reshape(blocks, outputs)
    order = np.argsort(counts, axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(outputs)[None, :], axis=1)
    fullest = np.take_along_axis(counts, order, axis=1)[:, PANEL - 1 :: PANEL]  # they are sorted
    pointers = np.concatenate([[0], np.cumsum(fullest)])
    by_cell = np.argsort(cell, kind="stable")
    firsts = np.cumsum(counts) - counts.ravel()
    rank = np.empty_like(cell)
    rank[by_cell] = np.arange(cell.size) - firsts[cell[by_cell]]
    where = place.ravel()[cell]
    entry = pointers[(k // run) * panels + where // PANEL] + rank
    indices = np.full((pointers[-1], PANEL), run, dtype=np.uint8)
    weights = aligned_empty(indices.shape, np.float32)
    weights[...] = 0
    indices[entry, where % PANEL] = k % run
    weights[entry, where % PANEL] = values
    return FloatPanels(
        shape=weight.shape,
        nonzeros=values.size,
        shared=False,
        run=run,
        blocks=blocks,
        panels=panels,
        pointers=pointers,
        inputs=indices.reshape(-1),
        weights=weights.reshape(-1),
        lines=order.astype(np.uint32).reshape(-1),
    )
