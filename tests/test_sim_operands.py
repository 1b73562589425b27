"""Dynamic operands: weights that are loaded from activations, natural and transposed, by hand and what is refused."""

import numpy as np
import pytest

from gossamer.arch.access import L_ENC, L_KIND
from gossamer.arch.errors import ProgramError, SimulationError
from gossamer.arch.isa import Encoding, Instruction, LoadKind, Op, to_matrix
from gossamer.arch.program import AcceleratorStage, Program, Segment
from gossamer.arch.spec import ArchSpec
from gossamer.arch.sync import synchronise
from gossamer.sim import simulate
from gossamer.sim.machine import Machine, make_machine, sizes_of
from gossamer.sim.moves import load
from gossamer.sim.random_programs import random_program
from tests.support.interpreter import Interpreter
from tests.support.specs import random_spec

SPEC = ArchSpec(
    name="small", lanes=2, columns=4, group=4, macs=2, hop=4, depth=4, axi_bytes=8, dynamic_operands=True,
    activation_bytes=64, output_bytes=64, weight_steps=16, offset_steps=16, parameter_channels=16,
)  # fmt: skip
"""A beat of TRANSPOSED fills four steps; one of NATURAL holds two rows of four columns."""


def operand(encoding: Encoding, **fields: int) -> Instruction:
    region = {"rows": 1, "blocks": 1, "tile_beats": 1, **fields}
    return Instruction.make(Op.LOAD, kind=LoadKind.WEIGHT, encoding=encoding, **region)


def loaded(spec: ArchSpec, instruction: Instruction, dram: np.ndarray) -> Machine:
    machine = make_machine(spec)
    load(to_matrix([instruction])[0], sizes_of(spec), machine, dram)
    return machine


def matrix_of(machine: Machine, dest: int, steps: int, spec: ArchSpec) -> np.ndarray:
    """The matrix [reduction, columns] that stands in the weight buffer; its selects must be the implied ones."""
    assert np.array_equal(
        machine.selects[dest : dest + steps].transpose(0, 2, 1).reshape(-1, spec.columns),
        np.repeat(np.arange(steps * spec.macs)[:, None] % spec.group, spec.columns, axis=1),
    )
    return machine.values[dest : dest + steps].transpose(0, 2, 1).reshape(-1, spec.columns)


@pytest.mark.parametrize("part", [0, 1])
def test_natural_takes_its_part_of_every_beat(part: int) -> None:
    b = np.random.default_rng(0).integers(-128, 128, (6, 8)).astype(np.int8)
    machine = loaded(SPEC, operand(Encoding.NATURAL, beats=6, dest=5, step_beats=part), b.view(np.uint8).reshape(-1))
    assert np.array_equal(matrix_of(machine, 5, 3, SPEC), b[:, 4 * part : 4 * part + 4])


def test_natural_with_more_columns_than_a_beat_has_bytes() -> None:
    spec = SPEC.evolve(columns=16)
    b = np.random.default_rng(1).integers(-128, 128, (6, 16)).astype(np.int8)
    machine = loaded(spec, operand(Encoding.NATURAL, beats=4, rows=3, row_stride=4), b.view(np.uint8).reshape(-1))
    assert np.array_equal(matrix_of(machine, 0, 3, spec), b)


def test_transposed_continues_the_reduction_block_by_block() -> None:
    b = np.random.default_rng(2).integers(-128, 128, (3, 4, 16)).astype(np.int8)  # block, column, reduction
    region = {"beats": 2, "rows": 4, "blocks": 3, "row_stride": 2, "block_stride": 8}
    spec = SPEC.evolve(weight_steps=32)
    machine = loaded(spec, operand(Encoding.TRANSPOSED, dest=8, tile_beats=2, **region), b.view(np.uint8).reshape(-1))
    assert np.array_equal(matrix_of(machine, 8, 24, spec), b.transpose(0, 2, 1).reshape(48, 4))


def test_transposed_with_steps_wider_than_a_beat() -> None:
    spec = SPEC.evolve(axi_bytes=4, macs=8, group=8, hop=8, columns=8)
    b = np.random.default_rng(3).integers(-128, 128, (8, 16)).astype(np.int8)
    machine = loaded(spec, operand(Encoding.TRANSPOSED, tile_beats=4, beats=32, dest=3), b.view(np.uint8).reshape(-1))
    assert np.array_equal(matrix_of(machine, 3, 2, spec), b.T)


REFUSED = [
    (operand(Encoding.NATURAL, beats=3), "a NATURAL load must have a multiple of 2 beats"),
    (operand(Encoding.NATURAL, beats=4, step_beats=2), "step_beats of a NATURAL load must be below 2"),
    (
        operand(Encoding.TRANSPOSED, beats=4, rows=2),
        "a block of a TRANSPOSED load must have tile_beats (at least 1) beats for each of 4 columns",
    ),
    (
        operand(Encoding.TRANSPOSED, beats=4, tile_beats=0),
        "a block of a TRANSPOSED load must have tile_beats (at least 1) beats for each of 4 columns",
    ),
    (operand(Encoding.TRANSPOSED, beats=4, dest=2), "dest of a TRANSPOSED load must be a multiple of 4"),
]


def program(spec: ArchSpec, *rows: Instruction) -> Program:
    dram = np.zeros(4096, dtype=np.uint8)
    matrix = to_matrix([*rows, Instruction.make(Op.END)])
    synchronise(matrix, spec, dram)
    return Program(
        spec=spec,
        instructions=matrix,
        dram_bytes=dram.size,
        segments=(Segment(address=0, data=dram),),
        stages=(AcceleratorStage(name="main", first=0, count=len(matrix)),),
    )


@pytest.mark.parametrize(("instruction", "message"), REFUSED)
def test_what_is_refused(instruction: Instruction, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        simulate(program(SPEC, instruction))
    assert str(caught.value).endswith(f"is not legal for spec 'small': {message}")


def test_wide_steps_need_whole_ones() -> None:
    spec = SPEC.evolve(axi_bytes=4, macs=8, group=8, hop=8, columns=8)
    with pytest.raises(ProgramError, match=r"tile_beats of a TRANSPOSED load must be a multiple of 2$"):
        simulate(program(spec, operand(Encoding.TRANSPOSED, beats=24, tile_beats=3)))


@pytest.mark.parametrize("encoding", [Encoding.NATURAL, Encoding.TRANSPOSED])
def test_a_spec_without_them_refuses(encoding: Encoding) -> None:
    with pytest.raises(ProgramError, match=r"its encodings are 0 \(DENSE\), 1 \(INDEX\)$"):
        simulate(program(SPEC.evolve(dynamic_operands=False), operand(encoding, beats=4)))


def test_no_more_steps_than_the_buffer_has() -> None:
    with pytest.raises(ProgramError, match=r"writes WEIGHT 15\.\.16, which has 16$"):
        simulate(program(SPEC, operand(Encoding.NATURAL, beats=4, dest=15)))


def test_a_step_reads_only_what_its_selects_can_pick() -> None:
    """Of the first window only elements 8..15 are written; step k of an operand reads elements 2k and 2k + 1."""
    spec = SPEC.evolve(group=16, hop=16, columns=16, lanes=1)
    tile = {"tile_beats": 1, "tile_rows": 1}
    half = Instruction.make(Op.LOAD, kind=LoadKind.ACTIVATION, beats=1, rows=1, blocks=1, dest=1, **tile)
    offsets = Instruction.make(Op.LOAD, kind=LoadKind.OFFSET, beats=2, rows=1, blocks=1)
    weights = operand(Encoding.NATURAL, beats=20)

    def first_step(k: int) -> Program:
        return program(spec, half, offsets, weights, Instruction.make(Op.MATMUL, steps=1, nx=1, ny=1, weight_base=k))

    simulate(first_step(4))
    with pytest.raises(SimulationError, match="some were written by nobody"):
        simulate(first_step(3))


def test_random_programs_use_both() -> None:
    """Values against the interpreter."""
    found: set[int] = set()
    for seed in range(700, 712):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng, dynamic_operands=True)
        made = random_program(rng, spec, 8)
        matrix = made.instructions
        found.update(matrix[(matrix[:, 0] == Op.LOAD) & (matrix[:, L_KIND] == LoadKind.WEIGHT), L_ENC].tolist())
        expected = Interpreter(spec, made.memory()).run(matrix)
        assert np.array_equal(simulate(made, garbage=seed).memory, expected), f"seed {seed}"
    assert found >= {Encoding.NATURAL, Encoding.TRANSPOSED}
