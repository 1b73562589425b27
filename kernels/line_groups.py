"""A weight whose outputs share their inputs by fours, laid out for the int8 kernel on lines.

Group g is outputs 4 * g .. 4 * g + 3. Its steps are pointers[g] .. pointers[g + 1], with four of its inputs each, in
order, and weights of 0 where the last step has none left:

    inputs[step, i] = 64 * input, where its line begins
    weights[step, o, i] = weight[4 * g + o, input]
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.kernels.vectors import aligned_empty

__all__ = ["LineGroups", "lay_out_groups"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LineGroups:
    """The layout, see the module: int64 [groups + 1], int32 [4 * steps], int8 [16 * steps]."""

    pointers: NDArray[np.int64]
    inputs: NDArray[np.int32]
    weights: NDArray[np.int8]


def lay_out_groups(matrix: NDArray[np.int8]) -> LineGroups:
    """matrix : int8 [N, K], N a multiple of 4."""
    grouped = matrix.reshape(-1, 4, matrix.shape[1])
    group, column = np.nonzero(grouped.any(axis=1))
    counts = np.bincount(group, minlength=grouped.shape[0])
    pointers = np.concatenate([[0], np.cumsum(-(-counts // 4))])
    rank = np.arange(column.size) - (np.cumsum(counts) - counts)[group]
    step, seat = pointers[group] + rank // 4, rank % 4
    inputs: NDArray[np.int32] = aligned_empty((int(pointers[-1]), 4), np.int32)
    weights: NDArray[np.int8] = aligned_empty((int(pointers[-1]), 4, 4), np.int8)
    inputs[...], weights[...] = 0, 0
    inputs[step, seat] = 64 * column
    weights[step, :, seat] = grouped[group, :, column]
    return LineGroups(pointers=pointers, inputs=inputs.reshape(-1), weights=weights.reshape(-1))
