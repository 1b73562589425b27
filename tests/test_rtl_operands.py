"""Dynamic operands in hardware: what is built for them, and which loads are refused. Values: test_rtl_cosim.py."""

import pytest
from amaranth.sim import Simulator

from gossamer.arch import isa
from gossamer.arch.isa import Encoding, ErrorCode, Instruction, LoadKind, Op
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.decode import Decoder
from gossamer.rtl.verilog import rtlil

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
