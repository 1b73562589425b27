"""Semaphores: the fewest waits and posts that keep the meaning of the program order.

An instruction has to wait for the latest instruction of each other unit that it conflicts with, unless something it
(or its unit before it) already waited for implies that. Every wait has its own post, on the semaphore between the two
units; since units start and end in order, waits and posts pair up by their order.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.access import accesses, dependencies, offset_ranges
from gossamer.arch.jit import jit
from gossamer.arch.spec import ArchSpec

__all__ = ["synchronise"]

_UNTAKEN = isa.SEMAPHORE_MAX // 2
"""Posts of a semaphore that may stand in program order before the wait that takes the first of them."""


def synchronise(matrix: NDArray[np.int64], spec: ArchSpec, dram: NDArray[np.uint8]) -> None:
    """Fill in the wait and post masks of a stage's instructions (int64 matrix form, changed in place)."""
    needed = dependencies(matrix, accesses(matrix, spec, offset_ranges(matrix, spec, dram)))
    units = np.zeros(matrix.shape[0], dtype=np.int64)
    for op, unit in isa.UNIT_OF.items():
        units[matrix[:, 0] == op] = unit
    between = np.zeros((5, 5), dtype=np.int64)
    for s in isa.SEMAPHORES:
        between[s.poster, s.waiter] = s.index
    matrix[:, 1:3] = 0
    _assign(matrix, units, needed, between)


@jit
def _assign(
    matrix: NDArray[np.int64], units: NDArray[np.int64], needed: NDArray[np.int64], between: NDArray[np.int64]
) -> None:
    count = matrix.shape[0]
    # known[i, u]: the latest instruction of unit u that has ended when i starts, as far as the semaphores tell.
    known = np.full((count, 5), -1, dtype=np.int64)
    latest = np.full((5, 5), -1, dtype=np.int64)
    newest = np.full(5, -1, dtype=np.int64)  # the latest instruction of each unit before i
    waiters = np.full((5, 5, _UNTAKEN), -1, dtype=np.int64)
    pairs = np.zeros((5, 5), dtype=np.int64)
    for i in range(count):
        own = units[i]
        here = latest[own]
        while True:
            # Wait for the youngest instruction first: it is the likeliest to imply the others.
            most, chosen = -1, -1
            for u in range(1, 5):
                if needed[i, u] > here[u] and needed[i, u] > most:
                    most, chosen = needed[i, u], u
            if chosen < 0:
                break
            # Too many posts in a row before their waits would run the semaphore over: wait for everything so far.
            turn = pairs[chosen, own] % _UNTAKEN
            if most < waiters[chosen, own, turn]:
                most = newest[chosen]
            waiters[chosen, own, turn] = i
            pairs[chosen, own] += 1
            bit = np.int64(1) << between[chosen, own]
            matrix[i, 1] |= bit
            matrix[most, 2] |= bit
            for u in range(1, 5):
                here[u] = max(here[u], known[most, u])
            here[chosen] = max(here[chosen], most)
        known[i] = here
        newest[own] = i
