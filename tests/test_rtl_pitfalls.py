"""Bugs that accelerators of this kind are known to have, each as a test. The others are held elsewhere:

a semaphore that overflows in silence         test_rtl_errors (test_semaphore_overflow), test_sim_checker
a second run that differs from the first      test_rtl_cosim (test_runs_leave_nothing_behind)
garbage that enables something                test_rtl_cosim (test_random_bits_at_power_on; lanes without data)
an illegal configuration that hangs           test_rtl_errors (test_random_words, test_numbers_that_make_no_sense)
a size of the array that was never built      test_rtl_specs
bursts across 4 KiB, narrow or not aligned    test_rtl_cocotb (test_slaves_check_the_rules_of_the_bus)
an encoding that no test has ever loaded      test_rtl_coverage (test_no_holes)
an estimate apart from the simulator          test_backend: the compiler only has a bound, which cycles never beat
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.errors import SimulationError
from gossamer.arch.isa import Encoding, Instruction, LoadKind, Op, Unit
from gossamer.arch.program import AcceleratorStage, Program, Segment
from gossamer.arch.run import EVENT_FIELDS
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import legal_encodings, record_bytes
from gossamer.arch.sync import synchronise
from gossamer.arch.timing import LOAD_LATENCY, matmul_latency
from gossamer.rtl.example import example
from gossamer.rtl.model import HardwareError, Memory, Model
from gossamer.sim.random_programs import random_program
from gossamer.verification import Verification, verify
from tests.support.rtl_specs import SMALL_SPECS, needs_hardware_tools

pytestmark = needs_hardware_tools

COUNTS = ("beats", "rows", "blocks", "steps", "nx", "ny", "column_groups", "tile_beats", "tile_rows")
FREE, START, FIRST, LAST, END = (EVENT_FIELDS.index(n) for n in ("free", "start", "first_beat", "last_beat", "end"))


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(SMALL_SPECS["tiny"]) as made:
        yield made


@pytest.fixture(scope="module", params=["tiny", "mask", "all-of-window", "no-select"])
def any_model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with Model(SMALL_SPECS[request.param]) as made:
        yield made


def program_of(spec: ArchSpec, rows: Sequence[Instruction], memory: NDArray[np.uint8]) -> Program:
    """Instructions with their semaphores, and END."""
    matrix = isa.to_matrix([*rows, Instruction.make(Op.END)])
    synchronise(matrix, spec, memory)
    return Program(
        name="pitfall",
        spec=spec,
        instructions=matrix,
        dram_bytes=memory.size,
        segments=(Segment(address=0, data=memory),),
        stages=(AcceleratorStage(name="main", first=0, count=len(matrix)),),
    )


def agreed(program: Program, model: Model, memory: Memory | None = None) -> Verification:
    found = verify(program, model=model, memory=memory)
    assert found.difference is None
    return found


def fields_of(program: Program, op: Op) -> dict[str, int]:
    """Of the program's only MATMUL, DRAIN or STORE, without its semaphores."""
    row = next(r for r in program.instructions if r[0] == op)
    return {f.name: int(row[isa.column(op, f.name)]) for f in isa.FORMATS[op] if f.name not in ("wait", "post")}


def summed(spec: ArchSpec, matmuls: Sequence[dict[str, int]], positions: int) -> Program:
    """The example's data, these MATMULs, and a DRAIN and a STORE of all positions."""
    base, _ = example(spec, shift=4, largest=9)
    loads = [
        Instruction.make(Op.LOAD, **{f.name: int(r[isa.column(Op.LOAD, f.name)]) for f in isa.FORMATS[Op.LOAD]})
        for r in base.instructions
        if r[0] == Op.LOAD and r[isa.column(Op.LOAD, "kind")] != LoadKind.OUTPUT
    ]
    given, groups = fields_of(base, Op.MATMUL), spec.column_groups
    beats = -(-spec.columns * positions // spec.axi_bytes)
    blank = {"kind": int(LoadKind.OUTPUT), "beats": beats, "rows": 1, "blocks": 1, "tile_beats": beats, "tile_rows": 1}
    at = base.dram_bytes // spec.axi_bytes
    rows = [
        *loads,
        Instruction.make(Op.LOAD, **blank),
        *(Instruction.make(Op.MATMUL, **(given | changes)) for changes in matmuls),
        Instruction.make(Op.DRAIN, **(fields_of(base, Op.DRAIN) | {"nx": positions, "sx": groups})),
        Instruction.make(
            Op.STORE, **(fields_of(base, Op.STORE) | {"address": at, "beats": beats, "tile_beats": beats,
                                                      "row_stride": beats}),
        ),
    ]  # fmt: skip
    return program_of(spec, rows, np.pad(base.memory(), (0, spec.lanes * beats * spec.axi_bytes)))


def test_accumulator_read_before_it_is_written(any_model: Model) -> None:
    """A PE adds to the same accumulator again after 1, 2, ... cycles; MATMULs that go on follow one another at once."""
    spec = any_model.spec
    steps = min(spec.weight_steps, spec.offset_steps, spec.group // spec.macs)
    room = spec.output_bytes // spec.axi_bytes * spec.axi_bytes // spec.columns
    for positions in range(1, min(spec.depth, room) + 1):
        agreed(summed(spec, [{"steps": steps, "nx": positions}], positions), any_model)
    for length in range(1, matmul_latency(spec) + 3):
        chain = [{"steps": 1, "accumulate": int(k > 0)} for k in range(length)]
        found = agreed(summed(spec, chain, 1), any_model)
        assert found.hardware.counters["slots"] == length


def test_hang_under_other_timing(model: Model) -> None:
    """One program under a hundred memories."""
    program = random_program(np.random.default_rng(3), model.spec, 25)
    cycles = {
        agreed(program, model, Memory(stall=int(stall), seed=k)).hardware.cycles
        for k, stall in enumerate(np.linspace(2, 250, 100))
    }
    assert len(cycles) > 90


def test_simulator_ahead_of_hardware(model: Model) -> None:
    """Every opcode of the table is known to the hardware, and no other is."""
    for opcode in range(16):
        words = isa.encode(isa.to_matrix([Instruction.make(Op.END)] * 2))
        words[0] = 0
        words[0, 0] = opcode
        if opcode == Op.END:
            run = model.run_words("end", words[:1], np.zeros(64, dtype=np.uint8))
            assert run.events[0, 0] == Unit.FETCH
            continue
        with pytest.raises(HardwareError) as caught:
            model.run_words("opcode", words, np.zeros(64, dtype=np.uint8))
        known = opcode in set(Op)
        # A known one is stopped for its counts, all zero.
        assert caught.value.code is (isa.ErrorCode.ILLEGAL_FIELD if known else isa.ErrorCode.ILLEGAL_OPCODE)


def test_selects_loaded_after_their_values(any_model: Model) -> None:
    """Values and selects of every encoding come in one stream, as fast as bytes that are only copied."""
    spec = any_model.spec
    room = min(spec.activation_bytes, spec.weight_steps * record_bytes(spec, Encoding.DENSE)) // spec.axi_bytes
    plain = {"beats": room, "rows": 1, "blocks": 1}
    memory = np.random.default_rng(1).integers(0, 256, room * spec.axi_bytes, dtype=np.uint8)
    loads = [Instruction.make(Op.LOAD, kind=int(LoadKind.ACTIVATION), tile_beats=room, tile_rows=1, **plain)]
    loads += [
        Instruction.make(Op.LOAD, kind=int(LoadKind.WEIGHT), encoding=int(encoding), **plain)
        for encoding in legal_encodings(spec)
    ]
    # Each alone: the first of a program is fetched at the same time.
    logs = [agreed(program_of(spec, [load], memory), any_model).hardware.stages[0].events[0] for load in loads]
    assert all((log == logs[0]).all() for log in logs)
    assert logs[0][END] - logs[0][LAST] == LOAD_LATENCY


def test_weights_loaded_between_products(model: Model) -> None:
    """With two halves of the weight buffer, LOADs hide behind MATMULs: the array never waits after the first."""
    spec = model.spec
    half, runs = spec.weight_steps // 2, 8
    size = record_bytes(spec, Encoding.INDEX)
    beats = half * size // spec.axi_bytes
    memory = np.random.default_rng(1).integers(0, 256, 4096, dtype=np.uint8)
    memory[2048:] = 0  # offsets: every window begins where the bank does
    bank = spec.activation_row_bytes // spec.axi_bytes * 16
    wide = {"rows": 1, "blocks": 1}
    rows = [
        Instruction.make(
            Op.LOAD, kind=int(LoadKind.ACTIVATION), beats=bank, tile_beats=bank, tile_rows=1, **wide
        ),
        Instruction.make(
            Op.LOAD, kind=int(LoadKind.OFFSET), address=2048 // spec.axi_bytes,
            beats=half * 2 // spec.axi_bytes, **wide,
        ),
    ]  # fmt: skip
    for k in range(runs):
        at = k % 2 * half
        rows += [
            Instruction.make(
                Op.LOAD, kind=int(LoadKind.WEIGHT), encoding=int(Encoding.INDEX), dest=at, beats=beats, **wide
            ),
            Instruction.make(
                Op.MATMUL, steps=half, weight_base=at, nx=4, ny=1, sx=1, accumulate=int(k > 0)
            ),
        ]  # fmt: skip
    events = agreed(program_of(spec, rows, memory), model).hardware.stages[0].events
    array = events[events[:, 0] == Unit.MATMUL]
    assert len(array) == runs
    assert (array[1:, START] == array[:-1, FREE]).all()


def test_nine_cycles_or_ten(model: Model) -> None:
    """The example on `tiny`, by hand from arch/timing.py: cycle 0 is the first in which FETCH is not idle."""
    program, _ = example(model.spec)
    events = agreed(program, model).hardware.stages[0].events
    # Burst 0 is accepted in 1, its 16 beats come from 13 on; an instruction has 4 and is dispatched 2 behind its last,
    # so LOADs are there (fetched) from 13 + 3 + 2 + 1 on, one every 4 cycles.
    assert events[:4, 1].tolist() == [19, 23, 27, 31]
    # The first LOAD starts at once; its burst is accepted a cycle later and answers 12 cycles after that.
    assert events[0, [START, FIRST, LAST, FREE, END]].tolist() == [19, 32, 32, 20, 37]
    # A step of 4 elements takes 2 MACs 2 cycles; latency 5 + 2 (skew) + 1 (multiply) + 1 (adders).
    matmul = events[5]
    assert matmul[FREE] - matmul[START] == 2
    assert matmul[END] - matmul[FREE] == 9
    drain, store = events[6], events[7]
    assert drain[START] == max(matmul[END], events[4, END])
    assert drain[END] - drain[START] == 4 + 5 + 2 + 1  # 4 groups of one column, PPU of 2 stages, a table
    assert store[START] == drain[END]
    assert store[FIRST] - store[START] == 1 + 3


def test_loads_counted_otherwise_than_done(model: Model) -> None:
    """Beats and bursts in the hardware's counters are those that the memory saw."""
    for seed in range(4):
        program = random_program(np.random.default_rng(seed), model.spec, 25)
        counters = agreed(program, model).hardware.counters
        trace = model.trace()
        assert counters["bursts_fetched"] == len(trace.fetch)
        assert counters["beats_fetched"] == len(trace.fetch_beats)
        assert counters["bursts_read"] == len(trace.read)
        assert counters["bursts_written"] == len(trace.write)
        columns = {f.name: isa.column(Op.LOAD, f.name) for f in isa.FORMATS[Op.LOAD]}
        for kind in LoadKind:
            rows = [r for r in program.instructions if r[0] == Op.LOAD and r[columns["kind"]] == kind]
            beats = sum(int(r[columns["beats"]] * r[columns["rows"]] * r[columns["blocks"]]) for r in rows)
            assert counters[f"beats_read_{kind.name.lower()}"] == beats


def outcome(model: Model, words: NDArray[np.uint8]) -> str:
    """What becomes of a program: "ended", or the error in words."""
    try:
        model.run_words("wrong", words, np.zeros(1 << 20, dtype=np.uint8))
    except SimulationError as error:
        return str(error)
    return "ended"


@pytest.mark.parametrize("op", [Op.LOAD, Op.MATMUL, Op.DRAIN, Op.STORE])
def test_illegal_configuration_that_hangs(op: Op) -> None:
    """Numbers that the static checker refuses (more positions than accumulators, places outside of a memory, shifts
    the wrong way round): the machine ends or says why not, and then runs a good program as ever."""
    spec = SMALL_SPECS["tiny"]
    base, _ = example(spec)
    good = random_program(np.random.default_rng(1), spec, 10)
    matrix = base.instructions
    row = next(k for k, r in enumerate(matrix) if r[0] == op)
    ended = 0
    with Model(spec, limit=100_000) as model:
        for field in isa.FORMATS[op]:
            # Counts stay small, so that what is legal for the hardware ends soon.
            for value in (20, 40) if field.name in COUNTS else (field.maximum // 3, field.maximum):
                wrong = matrix.copy()
                wrong[row, isa.column(op, field.name)] = value
                said = outcome(model, isa.encode(wrong))
                assert "did not finish" not in said, f"{field.name} = {value}"
                ended += said == "ended"
                assert verify(good, model=model).difference is None, f"{field.name} = {value}"
    assert ended > 3


def test_a_hang_would_be_seen() -> None:
    """A program that takes longer than the limit is no end."""
    program = random_program(np.random.default_rng(1), SMALL_SPECS["tiny"], 10)
    with Model(SMALL_SPECS["tiny"], limit=100) as model:
        assert outcome(model, isa.encode(program.instructions)) == "the hardware did not finish within 100 cycles"
