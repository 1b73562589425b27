"""Dynamic operands in hardware: what is built for them, and which loads are refused. Values: test_rtl_cosim.py."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from gossamer.arch import isa
from gossamer.arch.isa import Encoding, ErrorCode, Instruction, LoadKind, Op
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.rtl.decode import Decoder
from gossamer.rtl.model import Model
from gossamer.rtl.verilog import rtlil
from gossamer.verification import verify
from tests.support.networks import random_codes, reference
from tests.support.products import attention
from tests.support.rtl_specs import needs_hardware_tools

TINY = ArchSpec.load("tiny")
"""A beat of TRANSPOSED fills four steps."""


def decoded(spec: ArchSpec, instruction: Instruction) -> ErrorCode:
    """What the decoder says of an instruction."""
    decoder = Decoder(spec)
    word = int.from_bytes(isa.encode(isa.to_matrix([instruction]))[0].tobytes(), "little")
    found = []

    async def bench(context):
        context.set(decoder.word, word)
        await context.delay(1e-9)
        found.append(ErrorCode(context.get(decoder.error)))

    simulator = Simulator(decoder)
    simulator.add_testbench(bench)
    simulator.run()
    return found[0]


def load(kind: LoadKind, encoding: Encoding, dest: int) -> Instruction:
    return Instruction.make(Op.LOAD, kind=kind, encoding=encoding, dest=dest, beats=4, rows=1, blocks=1, tile_beats=1)


@pytest.mark.parametrize(
    ("encoding", "dest", "legal"),
    [
        (Encoding.NATURAL, 3, True),
        (Encoding.TRANSPOSED, 8, True),
        (Encoding.TRANSPOSED, 9, False),
        (Encoding.TRANSPOSED, 10, False),
        (Encoding.DENSE, 9, True),
    ],
)
def test_which_destinations_are_legal(encoding: Encoding, dest: int, legal: bool) -> None:
    code = ErrorCode.NONE if legal else ErrorCode.ILLEGAL_FIELD
    assert decoded(TINY, load(LoadKind.WEIGHT, encoding, dest)) is code


@pytest.mark.parametrize("encoding", [Encoding.NATURAL, Encoding.TRANSPOSED])
def test_no_encoding_that_the_machine_does_not_have(encoding: Encoding) -> None:
    plain = TINY.evolve(dynamic_operands=False)
    assert decoded(plain, load(LoadKind.WEIGHT, encoding, 0)) is ErrorCode.ILLEGAL_FIELD
    assert decoded(TINY, load(LoadKind.PARAMETER, encoding, 0)) is ErrorCode.ILLEGAL_FIELD


def test_nothing_is_built_for_what_a_spec_does_not_have() -> None:
    plain, whole = rtlil(TINY.evolve(dynamic_operands=False)), rtlil(TINY)
    for part in ("load.operands", "weights_0.bank_3"):
        assert f"{part}\n" not in plain
        assert f"{part}\n" in whole
    assert "weights_0.bank_4\n" not in whole


@needs_hardware_tools
def test_attention_in_hardware() -> None:
    """Q K^T and P V of two heads, compiled: the same events and bytes, and what NumPy computes."""
    rng = np.random.default_rng(0)
    network = attention(rng, 1, 2, 10, 13, 12, merged=True)
    program = build_program(network, TINY)
    codes = {name: random_codes(rng, network.tensors[name]) for name in network.inputs}
    with Model(TINY) as model:
        found = verify(program, codes, model=model)
    assert found.difference is None
    place = program.tensors["context"]
    memory = found.hardware.memory
    assert memory is not None
    got = place.from_memory(memory[place.address : place.address + place.size])
    assert np.array_equal(got, reference(network, codes)["context"])
