"""Time: the recurrence of arch/timing.py, computed for every instruction and burst and never for every clock.

Each of the five units has a pointer to its next instruction. A unit moves on as soon as what its next start depends on
is known: instructions fetched, posts made. The order in which units are visited does not matter, since every cycle is
a maximum of cycles already known; when no unit can move on and not all is done, the program has deadlocked.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.access import (
    D_G,
    D_NX,
    D_NY,
    L_ADDR,
    L_BEATS,
    L_BLOCKS,
    L_BS,
    L_KIND,
    L_ROWS,
    L_RS,
    M_NX,
    M_NY,
    M_STEPS,
    S_ADDR,
    S_BEATS,
    S_BLOCKS,
    S_BS,
    S_ROWS,
    S_RS,
)
from gossamer.arch.errors import SimulationError
from gossamer.arch.isa import SEMAPHORES, Unit
from gossamer.arch.jit import jit
from gossamer.arch.memory import Trace, burst_length, first_beat
from gossamer.arch.program import AcceleratorStage, Program
from gossamer.arch.run import COUNTERS, EVENT_FIELDS, StageRun
from gossamer.arch.spec import ArchSpec
from gossamer.arch.timing import (
    FETCH_LATENCY,
    LOAD_LATENCY,
    STORE_LATENCY,
    WAITED_FETCH,
    WAITED_UNIT,
    drain_latency,
    matmul_latency,
)
from gossamer.sim.tokens import explain_deadlock

__all__ = ["time_stage"]

_AT = {name: i for i, name in enumerate(COUNTERS)}
_UNITS = [u.name.lower() for u in Unit]
_BUSY = tuple(_AT.get(f"busy_{u}", -1) for u in _UNITS)
_STALL_FETCH = tuple(_AT.get(f"stall_{u}_fetch", -1) for u in _UNITS)
_STALL = tuple(_AT[f"stall_{s.waiter.name.lower()}_{s.name}"] for s in SEMAPHORES)
_BEATS_READ = _AT["beats_read_activation"]  # the other kinds follow in order of LoadKind
_BEATS_WRITTEN, _BEATS_FETCHED = _AT["beats_written"], _AT["beats_fetched"]
_BURSTS_READ, _BURSTS_WRITTEN, _BURSTS_FETCHED = _AT["bursts_read"], _AT["bursts_written"], _AT["bursts_fetched"]
_STEPS, _SLOTS = _AT["steps"], _AT["slots"]
_SEMAPHORES = len(SEMAPHORES)
_LOAD, _MATMUL, _DRAIN, _STORE = int(Unit.LOAD), int(Unit.MATMUL), int(Unit.DRAIN), int(Unit.STORE)
_FETCHED, _START, _FIRST, _LAST, _FREE, _END, _WAITED = (EVENT_FIELDS.index(f) for f in EVENT_FIELDS[1:])

_DONE, _DEADLOCK, _TRACE_SHORT, _TRACE_EARLY = 0, 1, 2, 3
_UNKNOWN = -(1 << 60)
_COUNT, _ACCEPTED, _BEAT, _LEAVES, _LEAD, _TAIL = range(6)
"""State of a data port: bursts so far; acceptance, last beat and departure of the last one; cycles from acceptance to
data that could be on the bus, and from last beat to departure (the response of a write)."""


def time_stage(program: Program, stage: AcceleratorStage, trace: Trace | None = None) -> StageRun:
    """Events, cycles and counters of one stage; values play no part.

    trace : what a memory outside of the contract did, to be replayed.
    Raises SimulationError for a deadlock, and for a trace that is not of this program.
    """
    matrix = np.ascontiguousarray(program.instructions[stage.first : stage.first + stage.count])
    events = np.zeros((stage.count, len(EVENT_FIELDS)), dtype=np.int64)
    counters = np.zeros(len(COUNTERS), dtype=np.int64)
    used = np.zeros(3, dtype=np.int64)
    tape = _tape(trace)
    state = _recur(matrix, _numbers(program.spec), trace is not None, *tape, events, counters, used)
    if state == _DEADLOCK:
        raise SimulationError(f"stage {stage.name!r}: {explain_deadlock(matrix, program.spec)}")
    if trace is not None:
        _check_tape(stage.name, state, used, tape)
    cycles = int(events[:, _END].max()) + 1
    return StageRun(
        name=stage.name,
        cycles=cycles,
        events=events,
        counters=dict(zip(COUNTERS, counters.tolist(), strict=True)),
    )


def _tape(
    trace: Trace | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """fetch, fetch_beats, read and write of a trace, contiguous; empty without one."""
    if trace is None:
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64), np.zeros((0, 4), np.int64)
    fetch, beats, read, write = (
        np.ascontiguousarray(a, dtype=np.int64) for a in (trace.fetch, trace.fetch_beats, trace.read, trace.write)
    )
    shapes = (("fetch", fetch, 3), ("read", read, 3), ("write", write, 4))
    for name, array, width in shapes:
        if array.ndim != 2 or array.shape[1] != width:
            raise SimulationError(f"trace.{name} must have shape [bursts, {width}], not {array.shape}")
    if beats.ndim != 1:
        raise SimulationError(f"trace.fetch_beats must have one dimension, not shape {beats.shape}")
    return fetch, beats, read, write


def _check_tape(name: str, state: int, used: NDArray[np.int64], tape: tuple[NDArray[np.int64], ...]) -> None:
    """Refuse a trace that is not of this program."""
    ports, recorded = ("fetch", "read", "write"), (tape[0], tape[2], tape[3])
    if state == _DONE:
        for port, count, array in zip(ports, used.tolist(), recorded, strict=True):
            if count != len(array):
                raise SimulationError(
                    f"stage {name!r}: the trace has {len(array)} {port} bursts; this program needs {count}"
                )
        return
    port, burst = ports[used[0]], int(used[1])
    if state == _TRACE_SHORT:
        raise SimulationError(
            f"stage {name!r}: the trace has {len(recorded[used[0]])} {port} bursts; this program needs more"
        )
    raise SimulationError(
        f"stage {name!r}: the trace accepts {port} burst {burst} earlier than this program asks for it"
    )


def _numbers(spec: ArchSpec) -> tuple[int, ...]:
    """What the recurrence needs of a spec, in the order that `_recur` unpacks."""
    return (
        spec.axi_bytes,
        spec.queue_depth,
        spec.fetch_burst,
        spec.fetch_beats,
        spec.read_latency,
        spec.beat_interval,
        spec.burst_gap,
        spec.write_latency,
        spec.outstanding_reads,
        spec.outstanding_writes,
        spec.burst_beats,
        matmul_latency(spec),
        drain_latency(spec),
    )


@jit
def _bursts(
    address: int,
    shape: tuple[int, int, int, int, int],
    start: int,
    bus: tuple[int, int, int, int],
    port: NDArray[np.int64],
    ring: NDArray[np.int64],
    replay: bool,
    tape: NDArray[np.int64],
) -> int:
    """Bursts of one LOAD or STORE. Returns the first beat of the first, or minus the state if the trace is wrong."""
    beats, rows, blocks, row_stride, block_stride = shape
    beat, longest, interval, gap = bus
    first_of_all = -1
    for b in range(blocks):
        for y in range(rows):
            at = address + b * block_stride + y * row_stride
            left = beats
            while left > 0:
                size = burst_length(at, left, beat, longest)
                k = port[_COUNT]
                accepted = max(start, port[_ACCEPTED], ring[k % ring.size] + 1) + 1
                first = first_beat(accepted + port[_LEAD], port[_BEAT], interval, gap)
                last = first + (size - 1) * interval
                leaves = last + port[_TAIL]
                if replay:
                    if k >= tape.shape[0]:
                        return -_TRACE_SHORT
                    if tape[k, 0] < accepted:
                        return -_TRACE_EARLY
                    accepted, first, last, leaves = tape[k, 0], tape[k, 1], tape[k, 2], tape[k, tape.shape[1] - 1]
                port[_COUNT], port[_ACCEPTED], port[_BEAT], port[_LEAVES] = k + 1, accepted, last, leaves
                ring[k % ring.size] = leaves
                if first_of_all < 0:
                    first_of_all = first
                at += size
                left -= size
    return first_of_all


@jit
def _recur(
    matrix: NDArray[np.int64],
    numbers: tuple[int, ...],
    replay: bool,
    tape_fetch: NDArray[np.int64],
    tape_beats: NDArray[np.int64],
    tape_read: NDArray[np.int64],
    tape_write: NDArray[np.int64],
    events: NDArray[np.int64],
    counters: NDArray[np.int64],
    used: NDArray[np.int64],
) -> int:
    """Fill events and counters. used : bursts fetched, read, written; port and burst where a trace is wrong."""
    count = matrix.shape[0]
    (beat, depth, fetch_burst, fetch_beats, read_latency, interval, gap, write_latency) = numbers[:8]
    (most_reads, most_writes, longest, matmul_tail, drain_tail) = numbers[8:]
    # Instructions by unit, and posts by semaphore, each in program order.
    begin = np.zeros(6, dtype=np.int64)
    post_begin = np.zeros(_SEMAPHORES + 1, dtype=np.int64)
    for i in range(count):
        begin[matrix[i, 0] % 5 + 1] += 1
        for s in range(_SEMAPHORES):
            post_begin[s + 1] += (matrix[i, 2] >> s) & 1
    begin, post_begin = np.cumsum(begin), np.cumsum(post_begin)
    members = np.empty(count, dtype=np.int64)
    fill = begin[:5].copy()
    for i in range(count):
        u = matrix[i, 0] % 5
        members[fill[u]] = i
        fill[u] += 1
    visible = np.empty(post_begin[_SEMAPHORES], dtype=np.int64)
    posted = post_begin[:_SEMAPHORES].copy()  # where the next post of each semaphore goes
    taken = post_begin[:_SEMAPHORES].copy()  # and where the next wait looks
    dispatched, started = begin[:5].copy(), begin[:5].copy()
    # FETCH
    fetched, dispatch, decide, fetch_first, fetch_last = 0, -1, 0, 0, _UNKNOWN
    # LOAD and STORE: their ports, and a ring of when each burst in flight leaves
    bus = (beat, longest, interval, gap)
    read_port = np.array([0, _UNKNOWN, _UNKNOWN, _UNKNOWN, read_latency, 0])
    write_port = np.array([0, _UNKNOWN, _UNKNOWN, _UNKNOWN, STORE_LATENCY, write_latency])
    read_ring = np.full(most_reads, _UNKNOWN, dtype=np.int64)
    write_ring = np.full(most_writes, _UNKNOWN, dtype=np.int64)
    moved = True
    while moved:
        moved = False
        while fetched < count:
            u = matrix[fetched, 0] % 5
            room = 0  # first cycle in which the queue has a place
            if u > 0 and dispatched[u] - begin[u] >= depth:
                behind = dispatched[u] - depth
                if behind >= started[u]:
                    break
                room = events[members[behind], _START] + 1
            place = fetched % fetch_burst
            if place == 0:
                burst = fetched // fetch_burst
                if burst > 0:
                    decide += 1
                if burst > 1:
                    decide = max(decide, events[fetched - fetch_burst - 1, _FETCHED])  # dispatch + 1
                accepted = decide + 1
                fetch_first = first_beat(accepted + read_latency, fetch_last, interval, gap)
                if replay:
                    if burst >= tape_fetch.shape[0] or (fetched + 1) * fetch_beats > tape_beats.size:
                        used[0], used[1] = 0, burst
                        return _TRACE_SHORT
                    if tape_fetch[burst, 0] < accepted:
                        used[0], used[1] = 0, burst
                        return _TRACE_EARLY
                size = min(fetch_burst, count - fetched) * fetch_beats
                fetch_last = fetch_first + (size - 1) * interval
                counters[_BURSTS_FETCHED] += 1
                counters[_BEATS_FETCHED] += size
            arrival = fetch_first + ((place + 1) * fetch_beats - 1) * interval
            if replay:
                if (fetched + 1) * fetch_beats > tape_beats.size:
                    used[0], used[1] = 0, fetched // fetch_burst
                    return _TRACE_SHORT
                arrival = tape_beats[(fetched + 1) * fetch_beats - 1]
            dispatch = max(arrival + FETCH_LATENCY, dispatch + 1, room)
            row = events[fetched]
            row[0] = u
            row[_FIRST] = row[_LAST] = -1
            row[_FETCHED] = dispatch + 1
            if u == 0:  # END
                row[_FETCHED] = row[_START] = row[_FREE] = row[_END] = dispatch
            dispatched[u] += 1
            fetched += 1
            moved = True
        for u in range(1, 5):
            while started[u] < dispatched[u]:
                i = members[started[u]]
                wait = matrix[i, 1]
                ready = True
                for s in range(_SEMAPHORES):
                    if (wait >> s) & 1 and taken[s] >= posted[s]:
                        ready = False
                if not ready:
                    break
                row = events[i]
                before = np.int64(0)
                if started[u] > begin[u]:
                    before = events[members[started[u] - 1], _FREE]
                # Walking up the semaphores gives every idle cycle to the lowest one that is still missing.
                start = max(before, row[_FETCHED])
                counters[_STALL_FETCH[u]] += start - before
                for s in range(_SEMAPHORES):
                    if (wait >> s) & 1 and visible[taken[s]] > start:
                        counters[_STALL[s]] += visible[taken[s]] - start
                        start = visible[taken[s]]
                waited = 0
                if row[_FETCHED] == start:
                    waited |= WAITED_FETCH
                if started[u] > begin[u] and before == start:
                    waited |= WAITED_UNIT
                for s in range(_SEMAPHORES):
                    if (wait >> s) & 1:
                        if visible[taken[s]] == start:
                            waited |= 1 << s
                        taken[s] += 1
                row[_START], row[_WAITED] = start, waited
                f = matrix[i]
                if u == _MATMUL:
                    counters[_STEPS] += f[M_STEPS]
                    counters[_SLOTS] += f[M_STEPS] * f[M_NX] * f[M_NY]
                    row[_FREE] = start + f[M_STEPS] * f[M_NX] * f[M_NY]
                    row[_END] = row[_FREE] + matmul_tail
                elif u == _DRAIN:
                    row[_FREE] = start + f[D_NX] * f[D_NY] * f[D_G]
                    row[_END] = row[_FREE] + drain_tail
                elif u == _LOAD:
                    shape = (f[L_BEATS], f[L_ROWS], f[L_BLOCKS], f[L_RS], f[L_BS])
                    row[_FIRST] = _bursts(f[L_ADDR], shape, start, bus, read_port, read_ring, replay, tape_read)
                    counters[_BEATS_READ + f[L_KIND]] += f[L_BEATS] * f[L_ROWS] * f[L_BLOCKS]
                    row[_LAST], row[_FREE] = read_port[_BEAT], read_port[_ACCEPTED]
                    row[_END] = row[_LAST] + LOAD_LATENCY
                else:
                    shape = (f[S_BEATS], f[S_ROWS], f[S_BLOCKS], f[S_RS], f[S_BS])
                    row[_FIRST] = _bursts(f[S_ADDR], shape, start, bus, write_port, write_ring, replay, tape_write)
                    counters[_BEATS_WRITTEN] += f[S_BEATS] * f[S_ROWS] * f[S_BLOCKS]
                    row[_LAST], row[_FREE] = write_port[_BEAT], write_port[_ACCEPTED]
                    row[_END] = write_port[_LEAVES] + 1
                if row[_FIRST] < 0 and u in (_LOAD, _STORE):
                    used[0] = 1 if u == _LOAD else 2
                    used[1] = read_port[_COUNT] if u == _LOAD else write_port[_COUNT]
                    return _TRACE_EARLY if row[_FIRST] == -_TRACE_EARLY else _TRACE_SHORT
                counters[_BUSY[u]] += row[_FREE] - start
                for s in range(_SEMAPHORES):
                    if (f[2] >> s) & 1:
                        visible[posted[s]] = row[_END]
                        posted[s] += 1
                started[u] += 1
                moved = True
    counters[_BURSTS_READ], counters[_BURSTS_WRITTEN] = read_port[_COUNT], write_port[_COUNT]
    used[0], used[1], used[2] = counters[_BURSTS_FETCHED], read_port[_COUNT], write_port[_COUNT]
    if fetched < count:
        return _DEADLOCK
    for u in range(1, 5):
        if started[u] < dispatched[u]:
            return _DEADLOCK
    return _DONE
