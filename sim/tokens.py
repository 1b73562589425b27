"""The untimed Program: in what order can instructions start, does it ever get stuck, and who comes before whom.

An instruction can start when it has been dispatched, the one before it in its unit has started, and every semaphore
it waits on holds a count. Dispatch is in program order and needs a place in the unit's queue of queue_depth. Each of
these moves only enables others (the machine is a marked graph), so any order of moves ends in the same place: what
is stuck here is stuck in every timing, and what is not stuck here never deadlocks.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.isa import SEMAPHORES, Unit, disassemble
from gossamer.arch.jit import jit
from gossamer.arch.spec import ArchSpec

__all__ = ["Order", "clocks", "explain_deadlock", "ranks", "start_order"]

_SEMAPHORES = len(SEMAPHORES)
Order = NDArray[np.int64]
"""Instructions in an order in which they can be dispatched and started: i for a dispatch, ~i for a start."""


def start_order(matrix: NDArray[np.int64], spec: ArchSpec) -> Order:
    """One possible order of all moves, int64 [up to 2 * instructions]; shorter than whole when the Program is stuck.

    END moves once (its dispatch), every other instruction twice.
    """
    return _start_order(np.ascontiguousarray(matrix), spec.queue_depth)


@jit
def _start_order(matrix: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
    count = matrix.shape[0]
    members = np.empty((5, count), dtype=np.int64)
    dispatched, started = np.zeros(5, dtype=np.int64), np.zeros(5, dtype=np.int64)
    held = np.zeros(_SEMAPHORES, dtype=np.int64)
    order = np.empty(2 * count, dtype=np.int64)
    moves, fetched = 0, 0
    moved = True
    while moved:
        moved = False
        while fetched < count:
            u = matrix[fetched, 0] % 5
            if u > 0 and dispatched[u] - started[u] >= depth:
                break
            members[u, dispatched[u]] = fetched
            dispatched[u] += 1
            order[moves] = fetched
            moves, fetched, moved = moves + 1, fetched + 1, True
        for u in range(1, 5):
            while started[u] < dispatched[u]:
                i = members[u, started[u]]
                ready = True
                for s in range(_SEMAPHORES):
                    if (matrix[i, 1] >> s) & 1 and held[s] == 0:
                        ready = False
                if not ready:
                    break
                for s in range(_SEMAPHORES):
                    held[s] += ((matrix[i, 2] >> s) & 1) - ((matrix[i, 1] >> s) & 1)
                started[u] += 1
                order[moves] = ~i
                moves, moved = moves + 1, True
    return order[:moves]


def ranks(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of every instruction among those of its unit, int64 [instructions], from 0."""
    units = matrix[:, 0] % 5
    out = np.empty(len(matrix), dtype=np.int64)
    for u in Unit:
        rows = np.flatnonzero(units == u)
        out[rows] = np.arange(rows.size)
    return out


def clocks(matrix: NDArray[np.int64], spec: ArchSpec, order: Order) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What has surely happened, in every timing, when an instruction starts: two int64 [instructions, 5].

    ended : how many instructions of each unit have ended by then, by the semaphores alone.
    started : how many have started before its end, by semaphores and finite queues (the bound on a count).
    """
    return _clocks(np.ascontiguousarray(matrix), ranks(matrix), spec.queue_depth, order)


@jit
def _clocks(
    matrix: NDArray[np.int64], rank: NDArray[np.int64], depth: int, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    count = matrix.shape[0]
    ended = np.zeros((count, 5), dtype=np.int64)
    started = np.zeros((count, 5), dtype=np.int64)
    members = np.empty((5, count), dtype=np.int64)
    total = np.zeros(_SEMAPHORES + 1, dtype=np.int64)
    for i in range(count):
        members[matrix[i, 0] % 5, rank[i]] = i
        for s in range(_SEMAPHORES):
            total[s + 1] += (matrix[i, 2] >> s) & 1
    first = np.cumsum(total)
    poster = np.empty(first[_SEMAPHORES], dtype=np.int64)
    posted, taken = first[:_SEMAPHORES].copy(), first[:_SEMAPHORES].copy()
    dispatch = np.zeros(5, dtype=np.int64)  # what has surely started when the latest instruction is dispatched
    for move in order:
        if move >= 0:
            u = matrix[move, 0] % 5
            if u > 0 and rank[move] >= depth:
                q = members[u, rank[move] - depth]
                for v in range(5):
                    dispatch[v] = max(dispatch[v], started[q, v])
                dispatch[u] = max(dispatch[u], rank[q] + 1)
            started[move] = dispatch
            continue
        i = ~move
        u = matrix[i, 0] % 5
        if rank[i] > 0:
            before = members[u, rank[i] - 1]
            for v in range(5):
                ended[i, v] = max(ended[i, v], ended[before, v])
                started[i, v] = max(started[i, v], started[before, v])
        for s in range(_SEMAPHORES):
            if (matrix[i, 1] >> s) & 1:
                p = poster[taken[s]]
                taken[s] += 1
                w = matrix[p, 0] % 5
                for v in range(5):
                    ended[i, v] = max(ended[i, v], ended[p, v])
                    started[i, v] = max(started[i, v], started[p, v])
                ended[i, w] = max(ended[i, w], rank[p] + 1)
        started[i, u] = rank[i] + 1
        for s in range(_SEMAPHORES):
            if (matrix[i, 2] >> s) & 1:
                poster[posted[s]] = i
                posted[s] += 1
    return ended, started


def explain_deadlock(matrix: NDArray[np.int64], spec: ArchSpec) -> str:
    """Which instruction of each unit is stuck, and on what; for a Program of which `start_order` is not whole."""
    order = start_order(matrix, spec)
    dispatched = set(order[order >= 0].tolist())
    done = set((~order[order < 0]).tolist())
    held = [0] * _SEMAPHORES
    for i in done:
        for s in range(_SEMAPHORES):
            held[s] += int((matrix[i, 2] >> s) & 1) - int((matrix[i, 1] >> s) & 1)
    stuck = []
    for unit in Unit:
        waiting = [i for i in np.flatnonzero(matrix[:, 0] % 5 == unit).tolist() if i not in done]
        if unit is Unit.FETCH or not waiting:
            continue
        i = waiting[0]
        missing = [s.name for s in SEMAPHORES if matrix[i, 1] >> s.index & 1 and held[s.index] == 0]
        if i in dispatched:
            stuck.append(f"{unit.name} waits for {', '.join(missing)} at instruction {i} ({disassemble(matrix[i])})")
        else:
            stuck.append(f"{unit.name} never gets instruction {i}")
    return "the Program deadlocks: " + "; ".join(stuck)
