"""Time: the engine against timelines written by hand and against the clock-by-clock oracle."""

import numpy as np
import pytest

from gossamer.arch.errors import SimulationError
from gossamer.arch.isa import Instruction, Op, Unit, semaphore, to_matrix
from gossamer.arch.memory import Trace
from gossamer.arch.run import COUNTERS, EVENT_FIELDS
from gossamer.arch.spec import ArchSpec
from gossamer.arch.timing import LOAD_LATENCY, STORE_LATENCY, WAITED_FETCH, WAITED_UNIT, drain_latency, matmul_latency
from gossamer.sim import engine
from gossamer.sim.engine import time_stage
from tests.support.specs import random_spec
from tests.support.stepper import Stuck, step_program
from tests.support.timing_programs import program_of, random_timing_program

ONE = ArchSpec(
    name="one", lanes=1, columns=1, group=1, macs=1, hop=1, depth=4, tables=0, axi_bytes=32, queue_depth=2,
    fetch_burst=4, read_latency=2, write_latency=2, outstanding_reads=1, outstanding_writes=2, burst_beats=4,
    activation_bytes=128, output_bytes=128, ppu_stages=1,
)  # fmt: skip
"""One PE. An instruction is one beat on the fetch port."""

WAIT = {(s, w): 1 << semaphore(s, w).index for s in list(Unit)[1:] for w in list(Unit)[1:] if s is not w}
L, M, D, S = Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE


def run(*rows: Instruction, spec: ArchSpec = ONE):
    program = program_of(to_matrix([*rows, Instruction.make(Op.END)]), spec)
    return time_stage(program, program.stages[0])


def load(beats=1, rows=1, address=0, **masks):
    return Instruction.make(Op.LOAD, beats=beats, rows=rows, row_stride=beats, blocks=1, address=address, **masks)


def store(beats=1, **masks):
    return Instruction.make(Op.STORE, beats=beats, rows=1, blocks=1, tile_beats=beats, tile_rows=1, **masks)


def matmul(steps=1, nx=1, **masks):
    return Instruction.make(Op.MATMUL, steps=steps, nx=nx, ny=1, **masks)


def drain(nx=1, **masks):
    return Instruction.make(Op.DRAIN, nx=nx, ny=1, column_groups=1, **masks)


def test_timeline_of_a_chain() -> None:
    """FETCH asks in cycle 0, the address is accepted in 1, and two cycles later four instructions come in 3 4 5 6; two
    cycles from beat to dispatch, one more to `fetched`. END is the second burst: accepted in 2, its beat in 7.
    LOAD: address decided in 6, accepted in 7, beat in 9, in memory in 14. MATMUL issues 3 slots, 14 15 16.
    STORE: decided in 30, accepted in 31, data in 34, response in 36, seen in 37.
    """
    assert (matmul_latency(ONE), drain_latency(ONE), LOAD_LATENCY, STORE_LATENCY) == (6, 6, 5, 3)
    done = run(
        load(post=WAIT[L, M]),
        matmul(3, wait=WAIT[L, M], post=WAIT[M, D]),
        drain(wait=WAIT[M, D], post=WAIT[D, S]),
        store(wait=WAIT[D, S]),
    )
    expected = [
        # unit, fetched, start, first, last, free, end, waited
        (1, 6, 6, 9, 9, 7, 14, WAITED_FETCH),
        (2, 7, 14, -1, -1, 17, 23, WAIT[L, M]),
        (3, 8, 23, -1, -1, 24, 30, WAIT[M, D]),
        (4, 9, 30, 34, 34, 31, 37, WAIT[D, S]),
        (0, 9, 9, -1, -1, 9, 9, 0),
    ]
    assert done.events.tolist() == [list(row) for row in expected]
    assert done.cycles == 38
    counted = {name: n for name, n in done.counters.items() if n}
    assert counted == {
        "busy_load": 1, "busy_matmul": 3, "busy_drain": 1, "busy_store": 1,
        "stall_load_fetch": 6, "stall_matmul_fetch": 7, "stall_drain_fetch": 8, "stall_store_fetch": 9,
        "stall_matmul_load_to_matmul": 7, "stall_drain_matmul_to_drain": 15, "stall_store_drain_to_store": 21,
        "beats_read_activation": 1, "beats_written": 1, "beats_fetched": 5,
        "bursts_read": 1, "bursts_written": 1, "bursts_fetched": 2, "steps": 3, "slots": 3,
    }  # fmt: skip


def test_timeline_of_bursts() -> None:
    """One read in flight. Row of 6 beats at beat 127: the page ends after one beat, then 4 are the longest burst, then
    one. Decided in 6, beat in 9; decided in 10, beats 13 to 16; decided in 17, beat in 20.
    """
    done = run(load(beats=6, address=127), load())
    assert done.events[:2].tolist() == [
        [1, 6, 6, 9, 20, 18, 25, WAITED_FETCH],
        [1, 7, 18, 24, 24, 22, 29, WAITED_UNIT],  # its address waits for the beat in 20: decided in 21
    ]
    assert done.counters["bursts_read"] == 4


def test_timeline_back_to_back() -> None:
    """Units start again in the cycle they are free in. The last MATMUL finds no place in its queue of two (the first
    leaves it in 6) until the second starts in 16: dispatched in 17."""
    done = run(*(matmul(5, nx=2) for _ in range(4)))
    assert done.events[:4, 2].tolist() == [6, 16, 26, 36]
    assert done.events[:4, 1].tolist() == [6, 7, 8, 18]
    assert done.events[:4, 7].tolist() == [WAITED_FETCH, WAITED_UNIT, WAITED_UNIT, WAITED_UNIT]


def test_wait_may_take_a_later_post() -> None:
    """The LOAD stands first and waits for the MATMUL that stands second."""
    done = run(load(wait=WAIT[M, L]), matmul(post=WAIT[M, L]))
    assert done.events[1, 6] == done.events[0, 2]


def compare(matrix, spec, noise=None):
    """None, or what differs between engine and oracle."""
    program = program_of(matrix, spec)
    try:
        events, cycles, counters, trace = step_program(matrix, spec, noise)
    except Stuck:
        with pytest.raises(SimulationError, match="deadlocks"):
            time_stage(program, program.stages[0])
        return None
    done = time_stage(program, program.stages[0], None if noise is None else trace)
    wrong = np.argwhere(done.events != events)
    if len(wrong):
        i, k = wrong[0]
        return f"event {i}: {EVENT_FIELDS[k]} is {done.events[i, k]}, should be {events[i, k]}"
    if done.cycles != cycles:
        return f"{done.cycles} cycles, should be {cycles}"
    different = [n for n in COUNTERS if done.counters[n] != counters[n]]
    return f"counters {different}" if different else None


def random_case(seed):
    rng = np.random.default_rng(seed)
    spec = random_spec(rng)
    return random_timing_program(rng, spec, int(rng.integers(1, 30))).instructions, spec


@pytest.mark.parametrize("block", range(10))
def test_engine_equals_oracle(block: int) -> None:
    """Every event, the cycles and every counter of 1000 programs on 1000 specs; deadlocks are the same too."""
    for seed in range(100 * block, 100 * block + 100):
        assert compare(*random_case(seed)) is None, f"seed {seed}"


def test_replayed_memory_equals_oracle() -> None:
    """A memory that is late at random, recorded and replayed."""
    for seed in range(3000, 3150):
        assert compare(*random_case(seed), noise=seed) is None, f"seed {seed}"


@pytest.mark.parametrize("name", ["matmul_latency", "drain_latency"])
def test_the_comparison_bites(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An engine that is wrong by one cycle is found within a few programs."""
    right = getattr(engine, name)
    monkeypatch.setattr(engine, name, lambda spec: right(spec) + 1)
    assert any(compare(*random_case(seed)) is not None for seed in range(20))


def test_the_comparison_bites_on_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine._numbers
    for k in range(len(right(ONE))):

        def wrong(spec: ArchSpec, k: int = k) -> tuple[int, ...]:
            numbers = list(right(spec))
            numbers[k] += numbers[k] if k == 0 else 1  # a beat of another power of two
            return tuple(numbers)

        monkeypatch.setattr(engine, "_numbers", wrong)
        assert any(compare(*random_case(seed)) is not None for seed in range(60)), f"number {k}"


def test_slower_memory_makes_nothing_earlier() -> None:
    for seed in range(4000, 4060):
        matrix, spec = random_case(seed)
        fast = program_of(matrix, spec)
        slow = program_of(matrix, spec.evolve(read_latency=spec.read_latency + 1 + seed % 7))
        try:
            a, b = (time_stage(p, p.stages[0]).events for p in (fast, slow))
        except SimulationError:
            continue
        assert np.all(b[:, 1:7] >= a[:, 1:7]), f"seed {seed}"


def test_deadlock_names_what_is_stuck() -> None:
    message = r"^stage 'main': the Program deadlocks: LOAD waits for matmul_to_load at instruction 0 \(LOAD .*\); "
    with pytest.raises(SimulationError, match=message + "MATMUL waits for load_to_matmul at instruction 1"):
        run(load(wait=WAIT[M, L], post=WAIT[L, M]), matmul(wait=WAIT[L, M], post=WAIT[M, L]))


def test_deadlock_of_a_full_queue() -> None:
    """MATMUL's queue of two is full, so that the LOAD behind, which all wait for, is never dispatched."""
    rows = [matmul(wait=WAIT[L, M]), matmul(), matmul(), matmul()]
    with pytest.raises(SimulationError, match=r"LOAD never gets instruction 4"):
        run(*rows, load(post=WAIT[L, M]))


def recorded(matrix):
    program = program_of(matrix, ONE)
    return program, step_program(matrix, ONE, 7)[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"read": t.read[:-1]}, r"^stage 'main': the trace has 1 read bursts; this program needs more"),
        (lambda t: {"read": np.concatenate([t.read, t.read])}, r"the trace has 4 read bursts; this program needs 2"),
        (lambda t: {"read": t.read - 100}, r"accepts read burst 0 earlier than this program asks for it"),
        (lambda t: {"write": t.write[:0]}, r"the trace has 0 write bursts; this program needs more"),
        (lambda t: {"fetch": t.fetch[:0]}, r"the trace has 0 fetch bursts; this program needs more"),
        (lambda t: {"fetch": t.fetch - 100}, r"accepts fetch burst 0 earlier"),
        (lambda t: {"write": t.read}, r"^trace.write must have shape \[bursts, 4\], not \(2, 3\)$"),
        (lambda t: {"fetch_beats": t.read}, r"^trace.fetch_beats must have one dimension"),
    ],
)
def test_trace_of_another_program(change, message: str) -> None:
    program, trace = recorded(to_matrix([load(), load(), store(), Instruction.make(Op.END)]))
    fields = {name: getattr(trace, name) for name in ("fetch", "fetch_beats", "read", "write")}
    with pytest.raises(SimulationError, match=message):
        time_stage(program, program.stages[0], Trace(**{**fields, **change(trace)}))
