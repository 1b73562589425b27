"""The static checker: what it accepts, and what it says of everything it refuses."""

import numpy as np
import pytest

from gossamer.arch.errors import ProgramError, SimulationError
from gossamer.arch.isa import SEMAPHORES, Encoding, Instruction, LoadKind, Op, Unit, column, semaphore, to_matrix
from gossamer.arch.layout import Placement
from gossamer.arch.program import AcceleratorStage, Program, Segment
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import StepStream, encode_steps
from gossamer.arch.sync import synchronise
from gossamer.sim import check_program, simulate
from gossamer.sim.random_programs import random_program
from tests.support.order import conflicts, surely_before
from tests.support.specs import random_spec

SPEC = ArchSpec(
    name="small", lanes=2, columns=4, group=4, macs=2, hop=2, depth=4, axi_bytes=8, ppu=2, tables=1, queue_depth=4,
    activation_bytes=64, output_bytes=64, weight_steps=8, offset_steps=16, parameter_channels=16,
)  # fmt: skip
DRAM = 4096
WEIGHTS, OFFSETS, PARAMETERS, TABLE, RESULT = 64, 96, 112, 128, 256
"""Beats. DENSE records of the spec are 8 bytes: one beat a step."""


def make(op: Op, **fields: int) -> Instruction:
    return Instruction.make(op, **fields)


def base() -> dict[str, Instruction]:
    """A legal program by name: load everything, multiply, drain, store."""
    string = {"rows": 1, "blocks": 1}
    return {
        "weight": make(Op.LOAD, kind=LoadKind.WEIGHT, address=WEIGHTS, dest=0, beats=2, **string),
        "offset": make(Op.LOAD, kind=LoadKind.OFFSET, address=OFFSETS, dest=0, beats=1, **string),
        "parameter": make(Op.LOAD, kind=LoadKind.PARAMETER, address=PARAMETERS, dest=0, beats=4, **string),
        "table": make(Op.LOAD, kind=LoadKind.TABLE, address=TABLE, dest=0, beats=32, **string),
        "activation": make(
            Op.LOAD, kind=LoadKind.ACTIVATION, address=0, dest=0, beats=4, rows=1, blocks=1, grid=1, tile_beats=2,
            tile_rows=1, step_beats=2, step_rows=1,
        ),
        "matmul": make(Op.MATMUL, steps=2, nx=2, ny=1, sx=1),
        "drain": make(Op.DRAIN, nx=2, ny=1, column_groups=2, sx=2, lo=-128, hi=127, table_enable=1),
        "store": make(Op.STORE, source=0, address=RESULT, beats=2, rows=1, blocks=1, grid=1, tile_beats=1, tile_rows=1),
    }  # fmt: skip


def image() -> np.ndarray:
    dram = np.zeros(DRAM, dtype=np.uint8)
    rng = np.random.default_rng(0)
    dram[: 8 * 8] = rng.integers(0, 256, 64)
    values = rng.integers(1, 100, (2, 4, 2)).astype(np.int8)
    selects = np.array([[[0, 1]] * 4, [[2, 3]] * 4], dtype=np.uint8)
    stream = StepStream(offsets=np.zeros(2, np.int64), values=values, selects=selects)
    dram[8 * WEIGHTS : 8 * WEIGHTS + 16] = encode_steps(stream, SPEC, Encoding.DENSE)
    words = np.zeros((4, 8), dtype=np.uint8)
    words[:, 6], words[:, 7] = 128, 30
    dram[8 * PARAMETERS : 8 * PARAMETERS + 32] = words.reshape(-1)
    dram[8 * TABLE : 8 * TABLE + 256] = np.arange(256)
    return dram


def build(rows, spec: ArchSpec = SPEC, dram: np.ndarray | None = None, *, order: bool = True, **more) -> Program:
    dram = image() if dram is None else dram
    matrix = to_matrix([*rows, make(Op.END)])
    if order:
        synchronise(matrix, spec, dram)
    return Program(
        spec=spec,
        instructions=matrix,
        dram_bytes=dram.size,
        segments=(Segment(address=0, data=dram),),
        stages=(AcceleratorStage(name="main", first=0, count=len(matrix)),),
        **more,
    )


def changed(name: str, **fields: int) -> list[Instruction]:
    """The legal program with fields of one instruction changed."""
    rows = base()
    old = rows[name]
    rows[name] = make(old.op, **{**dict(old.fields), **fields})
    return list(rows.values())


def without(name: str) -> list[Instruction]:
    return [row for key, row in base().items() if key != name]


def refusal(program: Program) -> str:
    with pytest.raises((ProgramError, SimulationError)) as caught:
        check_program(program, program.memory())
    return f"{type(caught.value).__name__}: {caught.value}"


def test_the_legal_program_is_accepted() -> None:
    assert simulate(build(base().values())).cycles > 0


FIELDS = [
    ("weight", {"encoding": 2}, r"its encodings are 0 \(DENSE\), 1 \(INDEX\)"),
    ("offset", {"encoding": 1}, "encoding must be 0, except for weights"),
    ("weight", {"encoding": 1, "beats": 1}, "a load of weights must hold at least one record"),
    ("table", {"beats": 31}, "a load of tables must be a multiple of 256 bytes"),
    ("activation", {"tile_beats": 0}, "tile_beats and tile_rows must be at least 1"),
    ("activation", {"grid": 2}, r"grid must be at most 1 \(2 lanes\)"),
    ("store", {"grid": 2}, r"grid must be at most 1 \(2 lanes\)"),
    ("offset", {"rows": 4095, "blocks": 4095}, "rows \\* blocks must be at most 65536"),
    ("store", {"rows": 4095, "blocks": 17}, "rows \\* blocks must be at most 65536"),
    ("store", {"rows": 2}, r"its region needs more lanes than the grid has \(2 in all\)"),
    ("store", {"beats": 3}, r"its region needs more lanes than the grid has \(2 in all\)"),
    ("matmul", {"nx": 3, "ny": 2}, r"acc_base \+ nx \* ny must be at most depth \(4\)"),
    ("matmul", {"acc_base": 3}, r"acc_base \+ nx \* ny must be at most depth \(4\)"),
    ("drain", {"acc_base": 3}, r"acc_base \+ nx \* ny must be at most depth \(4\)"),
    ("drain", {"column_groups": 3}, "column_groups must be at most 2"),
    ("drain", {"raw": 1}, "raw accumulators take neither a residual nor a table"),
    ("drain", {"table": 1}, "table must be below 1"),
    ("drain", {"residual": 1, "residual_shift": 8}, "residual_shift must be from 9 to 31"),
    ("drain", {"residual_shift": 9}, "residual_shift must be 0 without a residual"),
    ("drain", {"lo": 5, "hi": 4}, "lo must be at most hi"),
    ("drain", {"lo": -200}, "lo and hi must be 8-bit codes"),
]


@pytest.mark.parametrize(("name", "fields", "message"), FIELDS)
def test_illegal_field(name: str, fields: dict[str, int], message: str) -> None:
    program = build(changed(name, **fields), order=False)
    index = list(base()).index(name)
    op = base()[name].op.name
    with pytest.raises(ProgramError, match=rf"^stage 'main': instruction {index} \({op} .*\) is not legal for spec "
                                           rf"'small': {message}"):  # fmt: skip
        check_program(program, program.memory())
    with pytest.raises(ProgramError, match=message):
        simulate(program, check=False)


RANGES = [
    ("weight", {"dest": 7}, r"writes WEIGHT 7\.\.8, which has 8"),
    ("offset", {"dest": 4}, r"writes OFFSET 16\.\.19, which has 16"),
    ("parameter", {"dest": 13}, r"writes PARAMETER 104\.\.135, which has 128"),
    ("table", {"dest": 1}, r"writes TABLE 1\.\.1, which has 1"),
    ("activation", {"dest": 7}, r"writes ACTIVATION 56\.\.71, which has 64"),
    ("activation", {"address": 509}, r"reads DRAM 4072\.\.4103, which has 4096"),
    ("matmul", {"act_base": 15}, r"reads ACTIVATION 60\.\.67, which has 64"),
    ("matmul", {"weight_base": 7}, r"reads WEIGHT 7\.\.8, which has 8"),
    ("matmul", {"offset_base": 15}, r"reads OFFSET 15\.\.16, which has 16"),
    ("drain", {"dest": 30}, r"writes OUTPUT 64\.\.67, which has 64"),
    ("drain", {"to_activation": 1, "dest": 30}, r"writes ACTIVATION 64\.\.67, which has 64"),
    ("drain", {"param_base": 7}, r"reads PARAMETER 112\.\.143, which has 128"),
    ("store", {"source": 8}, r"reads OUTPUT 64\.\.71, which has 64"),
    ("store", {"address": 511}, r"writes DRAM 4088\.\.4103, which has 4096"),
]


@pytest.mark.parametrize(("name", "fields", "message"), RANGES)
def test_out_of_range(name: str, fields: dict[str, int], message: str) -> None:
    program = build(changed(name, **fields), order=False)
    assert message.replace("\\", "") in refusal(program)
    with pytest.raises(ProgramError, match=message):
        simulate(program, check=False)


UNWRITTEN = [
    ("weight", "SimulationError: stage 'main': instruction 4 (MATMUL ", "reads row 0 of the weight buffer"),
    ("offset", "SimulationError: stage 'main': instruction 4 (MATMUL ", "reads entry 0 of the offset buffer"),
    (
        "activation",
        "SimulationError: stage 'main': instruction 4 (MATMUL ",
        "reads activations of which, in every lane",
    ),
    ("parameter", "SimulationError: stage 'main': instruction 5 (DRAIN ", "reads the parameters of channel 0"),
    ("table", "SimulationError: stage 'main': instruction 5 (DRAIN ", "reads table 0, which nobody wrote"),
    ("matmul", "SimulationError: stage 'main': instruction 5 (DRAIN ", "reads accumulator 0, which nobody wrote"),
    (
        "drain",
        "SimulationError: stage 'main': instruction 6 (STORE ",
        "stores byte 0 of the output buffer of lane 0, which",
    ),
]


@pytest.mark.parametrize(("name", "who", "message"), UNWRITTEN)
def test_unwritten(name: str, who: str, message: str) -> None:
    found = refusal(build(without(name)))
    assert found.startswith(who)
    assert message in found


def test_lane_without_activations() -> None:
    """The right lane gets nothing. That its results are garbage matters only when they are stored."""
    rows = changed("activation", beats=2)
    found = refusal(build(rows))
    assert "instruction 7 (STORE " in found
    assert "stores byte 0 of the output buffer of lane 1, made from bytes that nobody wrote by instruction 5" in found
    rows[-1] = make(Op.STORE, address=RESULT, beats=1, rows=1, blocks=1, grid=1, tile_beats=1, tile_rows=1)
    check_program(build(rows), image())


def test_zero_weights_read_nothing() -> None:
    """Step 1 selects elements 2 and 3 only: where its weights are zero, they may be missing."""
    rows = base()
    rows["early"] = make(Op.DRAIN, to_activation=1, nx=1, ny=1, column_groups=1, hi=127, table_enable=1)
    program = build(rows.values())
    check_program(program, program.memory())
    # Two good elements come from a DRAIN into empty banks; the other two are never written.
    first = [v for k, v in base().items() if k not in ("activation", "store")]
    bias = make(Op.DRAIN, to_activation=1, nx=1, ny=1, column_groups=1, hi=127)
    zeros = make(Op.LOAD, kind=LoadKind.WEIGHT, address=200, dest=4, beats=2, rows=1, blocks=1)
    from_nothing = make(Op.MATMUL, steps=1, nx=1, ny=1, weight_base=4)
    rest = [make(Op.MATMUL, steps=1, nx=1, ny=1), make(Op.DRAIN, nx=1, ny=1, column_groups=2, hi=127)]
    stores = [make(Op.STORE, address=RESULT, source=0, beats=1, rows=1, blocks=1, tile_beats=1, tile_rows=1)]
    fill = make(Op.LOAD, kind=LoadKind.OUTPUT, beats=1, rows=1, blocks=1, tile_beats=1, tile_rows=1)
    good = build([*first[:4], fill, zeros, from_nothing, bias, *rest, *stores])
    check_program(good, good.memory())
    both = make(Op.MATMUL, steps=2, nx=1, ny=1)
    assert "reads activations of which" in refusal(build([*first[:4], zeros, from_nothing, bias, both]))


def test_missing_residual_and_sums() -> None:
    fields = {"table_enable": 0, "residual": 1, "residual_shift": 9, "residual_base": 16}
    assert "reads a residual that, in every lane and at every position, nobody wrote" in refusal(
        build(changed("drain", **fields))
    )
    assert "(MATMUL accumulate=1" in refusal(build(changed("matmul", accumulate=1)))


@pytest.mark.parametrize(("shift", "residual_shift"), [(0, 0), (48, 0), (30, 31)])
def test_illegal_shift(shift: int, residual_shift: int) -> None:
    dram = image()
    dram[8 * PARAMETERS + 8 + 7] = shift
    fill = make(Op.LOAD, kind=LoadKind.OUTPUT, beats=8, rows=1, blocks=1, tile_beats=8, tile_rows=1)
    fields = {"residual": 1, "residual_shift": residual_shift, "residual_base": 8} if residual_shift else {}
    found = refusal(build([fill, *changed("drain", **fields)], dram=dram))
    channel = 0 if shift == 30 else 1
    assert f"takes shift {shift} from channel {channel}; it must be from 1 to 47" in found
    assert found.startswith("ProgramError: stage 'main': instruction 7 (DRAIN ")


def test_residual_in_place() -> None:
    fill = make(Op.LOAD, kind=LoadKind.OUTPUT, beats=8, rows=1, blocks=1, tile_beats=8, tile_rows=1)
    residual = {"residual": 1, "residual_shift": 9}
    check_program(build([fill, *changed("drain", **residual)]), image())
    for wrong in ({"residual_base": 1}, {"sx": 1}):
        found = refusal(build([fill, *changed("drain", **residual, **wrong)]))
        assert "reads a residual where another position of it writes" in found


def test_own_residual_needs_a_way_through_another_unit() -> None:
    """A DRAIN may start before the one before has ended, so program order alone does not carry a residual."""
    rows = base()
    second = make(Op.DRAIN, nx=2, ny=1, column_groups=2, sx=2, dest=8, hi=127, residual=1, residual_shift=9)
    *before, last = rows.values()
    found = refusal(build([*before, second, last]))
    assert "instruction 7 (DRAIN " in found
    assert "may start before instruction 6 (DRAIN " in found
    # The STORE waits for the first DRAIN, and reads where the second does, which therefore waits for the STORE.
    program = build([*before, last, second])
    check_program(program, program.memory())


def test_offsets_are_constants() -> None:
    found = refusal(build(changed("store", address=OFFSETS - 1)))
    assert "instruction 1 (LOAD kind=3 " in found
    assert "offsets must be constants" in found
    tensor = Placement(
        name="x", address=8 * OFFSETS, shape=(1, 8, 1, 1), block=8, border=(0, 0, 0, 0), scale=1.0, zero_point=0,
        signed=False, model_shape=(8,),
    )  # fmt: skip
    program = build(base().values(), tensors={"x": tensor}, inputs=("x",))
    assert "offsets must be constants" in refusal(program)


def test_deadlock() -> None:
    program = build(base().values())
    program.instructions[0, 1] |= 1 << semaphore(Unit.STORE, Unit.LOAD).index
    assert "SimulationError: stage 'main': the Program deadlocks: LOAD waits for store_to_load" in refusal(program)


def flood(credit: bool) -> Program:
    """A STORE posts 300 times; with credit, as many LOADs between them take the posts."""
    rows = []
    to_load, from_store = semaphore(Unit.STORE, Unit.LOAD).index, semaphore(Unit.LOAD, Unit.STORE).index
    one = {"beats": 1, "rows": 1, "blocks": 1, "tile_beats": 1, "tile_rows": 1}
    rows.append(make(Op.LOAD, kind=LoadKind.OUTPUT, post=1 << from_store, **one))
    for k in range(300):
        wait = 1 << from_store if k == 0 else 0
        rows.append(make(Op.STORE, address=RESULT, wait=wait, post=1 << to_load, **one))
        if credit:
            rows.append(make(Op.LOAD, kind=LoadKind.PARAMETER, address=0, beats=1, rows=1, blocks=1, wait=1 << to_load))
    return build(rows, order=False)


def test_semaphore_overflow() -> None:
    assert "instruction 256 (STORE " in refusal(flood(False))
    assert "may be the post that takes semaphore store_to_load over 255" in refusal(flood(False))
    check_program(flood(True), image())


def test_posts_that_nobody_takes_are_legal() -> None:
    program = build(base().values())
    program.instructions[7, 2] |= 1 << semaphore(Unit.STORE, Unit.MATMUL).index
    check_program(program, program.memory())


def test_dropped_semaphores_are_found() -> None:
    """Drop each pair of wait and post of random programs: the checker refuses if and only if a hazard is uncovered."""
    verdicts = {True: 0, False: 0}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        program = random_program(rng, random_spec(rng), 12)
        matrix, dram = program.instructions, program.memory()
        pairs = conflicts(matrix, program.spec, dram)
        before = surely_before(matrix)
        assert all(before[j, i] for j, i in pairs)
        for s in SEMAPHORES:
            posters, waiters = (np.flatnonzero(matrix[:, k] >> s.index & 1) for k in (2, 1))
            for poster, waiter in list(zip(posters, waiters, strict=False))[:3]:
                matrix[poster, 2] ^= 1 << s.index
                matrix[waiter, 1] ^= 1 << s.index
                left = surely_before(matrix)
                legal = all(left[j, i] for j, i in pairs)
                verdicts[legal] += 1
                if legal:
                    check_program(program, dram)
                else:
                    assert "may start before instruction" in refusal(program)
                matrix[poster, 2] ^= 1 << s.index
                matrix[waiter, 1] ^= 1 << s.index
    assert min(verdicts.values()) > 5


def test_hazard_names_both_instructions() -> None:
    program = build(base().values())
    s = semaphore(Unit.MATMUL, Unit.DRAIN).index
    program.instructions[:, 1:3] &= ~(1 << s)
    found = refusal(program)
    assert found.startswith("SimulationError: stage 'main': instruction 6 (DRAIN ")
    assert "may start before instruction 3 (LOAD kind=5 " in found
    assert "it reads TABLE 0..0, which instruction 3 writes" in found
    assert "no chain of semaphores leads from LOAD 3 to DRAIN 6" in found


def test_fields_of_the_walk_agree_with_the_instruction_set() -> None:
    """Every rule above names a field that exists."""
    for name, fields, _ in FIELDS + RANGES:
        for field in fields:
            assert column(base()[name].op, field) > 0
