"""Values: the compiled machine against the naive interpreter, the kernels and the definitions of arch/."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gossamer.arch.isa import Encoding, Instruction, MatmulMode, Op, to_matrix
from gossamer.arch.numerics import Requant, requantise
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import decode_steps, legal_encodings
from gossamer.kernels import stream_matmul
from gossamer.kernels.steps import make_bench
from gossamer.sim import simulate
from gossamer.sim.array import drain, matmul
from gossamer.sim.machine import make_machine, sizes_of
from gossamer.sim.moves import decode_records
from gossamer.sim.random_programs import random_program
from tests.support.interpreter import Interpreter
from tests.support.specs import random_spec
from tests.support.stepper import step_program

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("block", range(6))
def test_values_equal_interpreter(block: int) -> None:
    """Every byte of DRAM, on random specs and programs; and every event, since these programs make sense in time."""
    for seed in range(25 * block, 25 * block + 25):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng)
        program = random_program(rng, spec, int(rng.integers(1, 25)))
        run = simulate(program, garbage=seed)
        expected = Interpreter(spec, program.memory()).run(program.instructions)
        assert np.array_equal(run.memory, expected), f"seed {seed}"
        assert np.array_equal(run.stages[0].events, step_program(program.instructions, spec)[0]), f"seed {seed}"


def test_garbage_never_reaches_dram() -> None:
    """Idle lanes and ragged edges hold whatever bits were there before; the checker proves that nobody stores them."""
    for seed in range(500, 530):
        rng = np.random.default_rng(seed)
        program = random_program(rng, random_spec(rng), 20, ragged=True)
        plain = simulate(program)
        for garbage in (1, 2):
            assert simulate(program, garbage=garbage) == plain, f"seed {seed}"


def test_records_decode_as_the_contract_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        spec = random_spec(rng)
        for encoding in legal_encodings(spec):
            data = rng.integers(0, 256, 700, dtype=np.uint8)
            values, selects = decode_steps(data, spec, encoding)
            mine = np.zeros_like(values), np.zeros_like(selects)
            decode_records(data, int(encoding), sizes_of(spec), 0, *mine)
            assert np.array_equal(mine[0], values)
            assert np.array_equal(mine[1], selects)


ARRAY = ArchSpec(name="array", lanes=3, columns=8, group=8, macs=4, hop=2, depth=12, activation_bytes=256, ppu=2)


@pytest.mark.parametrize("mode", MatmulMode)
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("accumulate", [0, 1])
def test_matmul_equals_kernel(mode: MatmulMode, signed: int, accumulate: int) -> None:
    machine = make_machine(ARRAY, garbage=mode + 2 * signed + 4 * accumulate)
    rng = np.random.default_rng(1)
    machine.offsets[:] = rng.integers(0, 60, machine.offsets.size)
    before = machine.accumulators.copy()
    fields = {"mode": int(mode), "signed": signed, "zero_point": 0x85, "accumulate": accumulate, "bank": 1}
    shape = {"acc_base": 2, "steps": 300, "weight_base": 5, "offset_base": 7, "act_base": 1, "nx": 3, "ny": 2}
    row = to_matrix([Instruction.make(Op.MATMUL, **fields, **shape, sx=1, sy=4)])[0]
    matmul(row, sizes_of(ARRAY), machine, make_bench(ARRAY.columns, ARRAY.macs))
    positions = np.array([8 + 8 * (4 * y + x) for y in range(2) for x in range(3)])
    expected = before.copy()
    stream_matmul(
        machine.activations.view(np.int8 if signed else np.uint8),
        machine.offsets[7:307],
        machine.values[5:305],
        machine.selects[5:305],
        positions,
        expected[:, 14:20],
        hop=2,
        group=8,
        zero_point=0x85 - 256 if signed else 0x85,
        accumulate=bool(accumulate),
        maximum=mode is MatmulMode.MAXIMUM,
    )
    assert np.array_equal(machine.accumulators, expected)
    assert not np.array_equal(machine.accumulators, before)


def test_accumulators_wrap() -> None:
    """Registers of 32 bits: a hand-made program may overflow them."""
    machine = make_machine(ARRAY)
    machine.activations[:] = 255
    machine.values[:, :, 0] = 127
    machine.accumulators[:] = 2**31 - 1
    row = to_matrix([Instruction.make(Op.MATMUL, accumulate=1, steps=1, nx=1, ny=1)])[0]
    matmul(row, sizes_of(ARRAY), machine, make_bench(ARRAY.columns, ARRAY.macs))
    assert machine.accumulators[0, 0, 0] == 2**31 - 1 + 255 * 127 - 2**32


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("table", [False, True])
def test_drain_equals_definition(residual: bool, table: bool) -> None:
    rng = np.random.default_rng(3)
    machine = make_machine(ARRAY, garbage=3)
    channels, lanes, count = ARRAY.columns, ARRAY.lanes, ARRAY.depth
    bias = rng.integers(-(2**31), 2**31, channels).astype("<i4")
    multiplier, shift = rng.integers(0, 1 << 24, channels), rng.integers(20, 48, channels)
    words = np.zeros((channels, 8), dtype=np.uint8)
    words[:, :4] = bias.view(np.uint8).reshape(channels, 4)
    words[:, 4:7] = multiplier[:, None] >> np.array([0, 8, 16]) & 255
    words[:, 7] = shift
    machine.parameters[: words.size] = words.reshape(-1)
    fields = {"nx": count, "ny": 1, "sx": 4, "column_groups": 4, "dest": 100, "zero_point": -3, "lo": -120, "hi": 119}
    if residual:
        fields |= {"residual": 1, "residual_signed": 1, "residual_zero": 0xF0, "residual_multiplier": 60000}
        fields |= {"residual_shift": 20, "residual_base": 0}
    if table:
        fields |= {"table_enable": 1, "table": 1}
    codes = machine.outputs[:, : count * channels].reshape(lanes, count, channels).view(np.int8).copy()
    q = Requant(
        multiplier=multiplier, shift=shift, zero_point=-3, lo=-120, hi=119,
        residual_multiplier=60000, residual_shift=20, residual_zero_point=-16,
    )  # fmt: skip
    expected = requantise(
        machine.accumulators[:, :count], bias, q, codes if residual else None, machine.tables[1] if table else None
    )
    drain(to_matrix([Instruction.make(Op.DRAIN, **fields)])[0], sizes_of(ARRAY), machine)
    got = machine.outputs[:, 200 : 200 + count * channels].reshape(lanes, count, channels)
    assert np.array_equal(got, expected & 0xFF)


SCRIPT = """
import hashlib
import numpy as np
from gossamer.sim import simulate
from tests.support.specs import random_spec
from gossamer.sim.random_programs import random_program
for seed in (11, 14):
    rng = np.random.default_rng(seed)
    program = random_program(rng, random_spec(rng, lanes=2, columns=4), 8)
    run = simulate(program)
    digest = hashlib.sha256(run.memory.tobytes() + run.stages[0].events.tobytes())
    print(digest.hexdigest(), sorted(run.statistics.items()))
"""


def test_compiled_and_interpreted_code_agree() -> None:
    """NUMBA_DISABLE_JIT=1 runs the same functions as plain Python."""
    out = []
    for disabled in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", "-c", SCRIPT]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        out.append(done.stdout)
    assert out[0] == out[1]


def test_encodings_all_appear() -> None:
    """The random specs reach every encoding."""
    found: set[Encoding] = set()
    for seed in range(40):
        found.update(legal_encodings(random_spec(np.random.default_rng(seed))))
    assert found == {Encoding.DENSE, Encoding.INDEX, Encoding.MASK}
