"""An oracle for hazards: pairs of instructions that touch the same thing, and paths of semaphores between them."""

import numpy as np

from gossamer.arch.access import Space, accesses, offset_ranges
from gossamer.arch.isa import SEMAPHORES, Op


def conflicts(matrix, spec, dram):
    """Pairs (earlier, later) of which the later must not start before the earlier has ended, looking at each pair."""
    touched = accesses(matrix, spec, offset_ranges(matrix, spec, dram))
    ranges = [[] for _ in matrix]
    for i, space, low, high, write in zip(
        touched.instruction.tolist(), touched.space.tolist(), touched.low.tolist(), touched.high.tolist(),
        touched.write.tolist(), strict=True,
    ):  # fmt: skip
        ranges[i].append((space, low, high, write))
    pairs = set()
    for i in range(len(matrix)):
        for j in range(i):
            for space, low, high, write in ranges[i]:
                for other, first, last, wrote in ranges[j]:
                    if space != other or low >= last or first >= high or not (write or wrote):
                        continue
                    same_unit = matrix[i, 0] == matrix[j, 0]
                    reads_own = matrix[i, 0] == Op.DRAIN and space == Space.OUTPUT and wrote and not write
                    if not same_unit or reads_own:
                        pairs.add((j, i))
    return pairs


def surely_before(matrix):
    """bool [N, N]: (j, i) if in every timing j has ended when i starts, by semaphores and in-order units alone.

    Reachability from the end of j to the start of i over: start to start and end to end within a unit, start to end
    of an instruction, end of the k-th poster to start of the k-th waiter.
    """
    count = len(matrix)
    edges = np.zeros((2 * count, 2 * count), dtype=bool)  # node i: start of i, node count + i: its end
    edges[np.arange(count), count + np.arange(count)] = True
    for op in set(matrix[:, 0].tolist()):
        rows = np.flatnonzero(matrix[:, 0] == op)
        edges[rows[:-1], rows[1:]] = True
        edges[count + rows[:-1], count + rows[1:]] = True
    for s in SEMAPHORES:
        posters, waiters = (np.flatnonzero(matrix[:, k] >> s.index & 1) for k in (2, 1))
        edges[count + posters[: len(waiters)], waiters] = True
    reach = edges
    while True:
        more = reach | (reach.astype(np.float32) @ reach.astype(np.float32) > 0)
        if np.array_equal(more, reach):
            return reach[count:, :count]
        reach = more
