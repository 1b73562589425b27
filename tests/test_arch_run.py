"""Latencies by hand, and what two runs say when they differ."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer.arch.isa import SEMAPHORES, Instruction, Op, to_matrix
from gossamer.arch.layout import Placement
from gossamer.arch.program import AcceleratorStage, HostStage, Program
from gossamer.arch.run import COUNTERS, EVENT_FIELDS, Run, StageRun
from gossamer.arch.spec import ArchSpec
from gossamer.arch.timing import (
    WAITED_FETCH,
    WAITED_UNIT,
    drain_latency,
    matmul_latency,
    reduce_stages,
    skew,
)

TINY, SERVER = ArchSpec.load("tiny"), ArchSpec.load("server")

# ---- timing ----


def test_latencies_of_tiny() -> None:
    """4 columns by twos: one register; 4 lanes by twos: one; one multiply stage; two MACs: one adder stage."""
    assert skew(TINY) == 2
    assert reduce_stages(TINY) == 1
    assert matmul_latency(TINY) == 5 + 2 + 1 + 1
    assert drain_latency(TINY) == 5 + 2 + 1


def test_latencies_of_server() -> None:
    """64 columns by fours: 15 registers; 16 lanes by fours: 3; two multiply stages; two MACs: one adder stage."""
    assert skew(SERVER) == 18
    assert matmul_latency(SERVER) == 5 + 18 + 2 + 1
    assert drain_latency(SERVER) == 5 + 3 + 1
    assert drain_latency(SERVER.evolve(tables=0)) == 5 + 3, "without tables there is no stage for them"


@pytest.mark.parametrize(("macs", "stages"), [(1, 0), (2, 1), (4, 1), (8, 2), (16, 2), (32, 3)])
def test_an_adder_stage_for_every_factor_of_four(macs: int, stages: int) -> None:
    assert reduce_stages(ArchSpec(group=32, hop=32, macs=macs, axi_bytes=32, columns=32)) == stages


@pytest.mark.parametrize(
    ("columns", "every", "registers"), [(16, 16, 0), (16, 128, 0), (16, 15, 1), (16, 4, 3), (16, 1, 15), (1, 1, 0)]
)
def test_a_broadcast_is_registered_between_its_groups(columns: int, every: int, registers: int) -> None:
    spec = ArchSpec(columns=columns, broadcast_columns=every, lanes=1)
    assert skew(spec) == registers
    assert skew(spec.evolve(lanes=9, broadcast_lanes=4)) == registers + 2


def test_waited_bits_are_apart() -> None:
    semaphores = sum(1 << s.index for s in SEMAPHORES)
    assert WAITED_FETCH & semaphores == WAITED_UNIT & semaphores == WAITED_FETCH & WAITED_UNIT == 0


# ---- counters ----


def test_counters_are_these() -> None:
    names = tuple(COUNTERS)
    assert len(names) == 4 + 4 * (1 + 3) + 6 + 7
    assert names[:4] == ("busy_load", "busy_matmul", "busy_drain", "busy_store")
    assert names[4:8] == (
        "stall_load_fetch",
        "stall_load_matmul_to_load",
        "stall_load_drain_to_load",
        "stall_load_store_to_load",
    )
    assert names[-2:] == ("steps", "slots")


def test_every_counter_has_a_meaning_of_its_own() -> None:
    assert len(set(COUNTERS.values())) == len(COUNTERS)
    assert all(len(doc) > 10 and doc[-1] != "." for doc in COUNTERS.values())
    stall = COUNTERS["stall_drain_matmul_to_drain"]
    assert "DRAIN is free" in stall
    assert "MATMUL has not posted `matmul_to_drain`" in stall


# ---- runs ----


def a_program() -> Program:
    load = Instruction.make(Op.LOAD, beats=2, rows=1, blocks=1, kind=2)
    matmul = Instruction.make(Op.MATMUL, steps=3, nx=2, ny=1)
    end = Instruction.make(Op.END)
    tensors = [
        Placement(name=n, address=a, shape=(1, 8, 1, 2), block=8, border=(0, 0, 0, 0), scale=1.0, zero_point=0,
                  signed=True, model_shape=(1, 8, 1, 2))
        for n, a in (("image", 64), ("logits", 80))
    ]  # fmt: skip
    return Program(
        spec=TINY,
        instructions=to_matrix([load, end, load, matmul, end]),
        dram_bytes=128,
        tensors={t.name: t for t in tensors},
        stages=(
            AcceleratorStage(name="one", first=0, count=2),
            HostStage(name="host", model=b"", inputs=(), outputs=(), reason=""),
            AcceleratorStage(name="two", first=2, count=3),
        ),
    )


def a_stage(name: str, rows: int) -> StageRun:
    events = np.zeros((rows, len(EVENT_FIELDS)), dtype=np.int64)
    events[:, EVENT_FIELDS.index("start")] = 10 * np.arange(rows)
    counters = {counter: 3 * i for i, counter in enumerate(COUNTERS)}
    return StageRun(name=name, cycles=50 + rows, events=events, counters=counters)


def a_run() -> Run:
    return Run(
        program=a_program(),
        stages=(a_stage("one", 2), a_stage("two", 3)),
        outputs={"logits": np.arange(4, dtype=np.float32), "label": np.array([3])},
        memory=np.arange(128, dtype=np.uint8),
        statistics={"useful_macs": 1.0},
    )


def with_event(run: Run, stage: int, *changes: tuple[int, str, int]) -> Run:
    stages = list(run.stages)
    events = stages[stage].events.copy()
    for row, name, value in changes:
        events[row, EVENT_FIELDS.index(name)] = value
    stages[stage] = replace(stages[stage], events=events)
    return replace(run, stages=tuple(stages))


def assert_differ(a: Run, b: Run, message: str) -> None:
    assert a.difference(b) == message
    assert b.difference(a) is not None
    assert a != b
    assert b != a


def test_a_run_equals_its_like() -> None:
    a, b = a_run(), a_run()
    assert a == b
    assert a.difference(b) is None
    assert a != "run"
    assert a.program is not b.program
    with pytest.raises(TypeError, match=r"^unhashable type: 'Run'$"):
        hash(a)


def test_statistics_take_no_part() -> None:
    assert a_run() == replace(a_run(), statistics={})


def test_a_run_without_values_equals_one_with_them() -> None:
    assert replace(a_run(), memory=None) == a_run() == replace(a_run(), memory=None)


def test_sums_over_stages() -> None:
    run = a_run()
    assert run.cycles == 52 + 53
    assert run.seconds == 105 / 100e6
    assert run.counters == {counter: 6 * i for i, counter in enumerate(COUNTERS)}


def test_the_event_that_starts_first_is_named() -> None:
    a = a_run()
    b = with_event(a, 1, (2, "end", 7), (1, "first_beat", -1), (1, "end", 9))
    assert_differ(
        a, b,
        "stage 'two': 2 events differ, the first is instruction 1 (MATMUL steps=3 nx=2 ny=1): "
        "first_beat 0 against -1, end 0 against 9",
    )  # fmt: skip


def test_the_first_event_is_first_in_time_and_not_in_the_program() -> None:
    a = with_event(a_run(), 1, (0, "start", 90))
    b = with_event(a, 1, (0, "end", 1), (2, "waited", 4096))
    assert_differ(a, b, "stage 'two': 2 events differ, the first is instruction 2 (END): waited 0 against 4096")
    early = with_event(a, 1, (0, "start", 5), (2, "waited", 4096))
    assert_differ(
        a, early,
        "stage 'two': 2 events differ, the first is instruction 0 (LOAD kind=2 beats=2 rows=1 blocks=1): "
        "start 90 against 5",
    )  # fmt: skip


def test_the_first_stage_comes_first() -> None:
    a = a_run()
    b = with_event(with_event(a, 1, (0, "end", 7)), 0, (1, "fetched", 3))
    assert_differ(a, b, "stage 'one': 1 events differ, the first is instruction 1 (END): fetched 0 against 3")


def changed_stage(run: Run, **changes: Any) -> Run:
    return replace(run, stages=(run.stages[0], replace(run.stages[1], **changes)))


def test_cycles_and_counters_are_named() -> None:
    a = a_run()
    assert_differ(a, changed_stage(a, cycles=54), "stage 'two': 53 cycles against 54")
    for counter in COUNTERS:
        counters = {**a.stages[1].counters, counter: -1}
        found = a.stages[1].counters[counter]
        assert_differ(
            a, changed_stage(a, counters=counters), f"stage 'two': counter {counter} is {found} against -1"
        )  # fmt: skip


def test_missing_events_and_stages_are_named() -> None:
    a = a_run()
    assert_differ(a, replace(a, stages=a.stages[:1]), "2 stages against 1")
    assert_differ(a, changed_stage(a, events=a.stages[1].events[:2]), "stage 'two': 3 events against 2")


def with_bytes(run: Run, *at: int) -> Run:
    assert run.memory is not None
    memory: NDArray[np.uint8] = run.memory.copy()
    memory[list(at)] ^= 128
    return replace(run, memory=memory)


@pytest.mark.parametrize(
    ("at", "owner"),
    [(63, ""), (64, " (tensor 'image')"), (79, " (tensor 'image')"), (80, " (tensor 'logits')"), (96, "")],
)
def test_a_byte_is_named_with_its_tensor(at: int, owner: str) -> None:
    a = a_run()
    b = with_bytes(a, 127, at)
    assert_differ(a, b, f"2 bytes of memory differ, the first at {at:#x}{owner}: {at} against {at ^ 128}")


def test_memory_of_another_size() -> None:
    a = a_run()
    assert_differ(a, replace(a, memory=np.zeros(64, dtype=np.uint8)), "memory of 128 bytes against 64")


def test_events_come_before_bytes_and_bytes_before_outputs() -> None:
    a = a_run()
    outputs = replace(a, outputs={**a.outputs, "label": np.array([4])})
    assert_differ(a, outputs, "output 'label' differs")
    both = with_bytes(outputs, 64)
    assert_differ(a, both, "1 bytes of memory differ, the first at 0x40 (tensor 'image'): 64 against 192")
    assert re.match(r"stage 'one': 1 events differ", a.difference(with_event(both, 0, (0, "end", 1))) or "")


def test_an_output_of_one_run_only() -> None:
    a = a_run()
    b = replace(a, outputs={"logits": a.outputs["logits"]})
    assert_differ(a, b, "output 'label' is in one run only")
    assert_differ(b, a, "output 'label' is in one run only")


def test_a_nan_equals_itself() -> None:
    a = replace(a_run(), outputs={"p": np.array([np.nan, 1.0], dtype=np.float32)})
    b = replace(a_run(), outputs={"p": np.array([np.nan, 1.0], dtype=np.float32)})
    assert a == b
    assert_differ(a, replace(a, outputs={"p": np.array([0.0, 1.0], dtype=np.float32)}), "output 'p' differs")
    assert_differ(a, replace(a, outputs={"p": np.array(["nan", "1"])}), "output 'p' differs")
