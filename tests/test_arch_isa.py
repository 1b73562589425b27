"""Instructions: table, encoding, decoding and what is refused."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arch import isa
from gossamer.arch.errors import ProgramError
from gossamer.arch.isa import (
    COMMON,
    FORMATS,
    MATRIX_COLUMNS,
    SEMAPHORES,
    UNIT_OF,
    WORD_BYTES,
    Encoding,
    Instruction,
    LoadKind,
    Op,
    Unit,
    column,
    decode,
    disassemble,
    encode,
    from_matrix,
    poster_mask,
    semaphore,
    to_matrix,
    waiter_mask,
)


def refused(message: str) -> Any:
    """A ProgramError with exactly this message."""
    return pytest.raises(ProgramError, match=f"^{re.escape(message)}$")


def masks(legal: int) -> st.SearchStrategy[int]:
    return st.integers(0, 4095).map(lambda m: m & legal)


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    """Any instruction, every field over its whole range, ends included."""
    op = draw(st.sampled_from(Op))
    values = {
        f.name: draw(st.sampled_from([f.minimum, f.maximum]) | st.integers(f.minimum, f.maximum)) for f in FORMATS[op]
    }
    unit = UNIT_OF[op]
    return Instruction.make(op, wait=draw(masks(waiter_mask(unit))), post=draw(masks(poster_mask(unit))), **values)


def plain(op: Op, **changes: int) -> Instruction:
    """An instruction whose counts are one and whose other fields are zero."""
    return Instruction.make(op, **{**{f.name: f.low for f in FORMATS[op]}, **changes})


# ---- the table ----


@pytest.mark.parametrize("op", Op)
def test_fields_follow_each_other_and_fit(op: Op) -> None:
    fields = (*COMMON, *FORMATS[op])
    assert fields[0].start == 0
    for a, b in pairwise(fields):
        assert a.start + a.bits == b.start
    assert fields[-1].start + fields[-1].bits <= 256
    assert len({f.name for f in fields}) == len(fields)
    for f in fields:
        assert 1 <= f.bits <= 32
        assert f.doc


@pytest.mark.parametrize("op", Op)
def test_each_bit_of_a_word_belongs_to_at_most_one_field(op: Op) -> None:
    """Seen from outside: setting one field to all ones sets exactly its bits."""
    seen = 0
    for i, f in enumerate((*COMMON, *FORMATS[op])):
        row = np.zeros((1, MATRIX_COLUMNS), dtype=np.int64)
        row[0, 0] = op
        empty = int.from_bytes(encode(row).tobytes(), "little")
        row[0, i] = (1 << f.bits) - 1 if i else op
        bits = int.from_bytes(encode(row).tobytes(), "little") ^ (empty if i else 0)
        if i:
            assert bits == ((1 << f.bits) - 1) << f.start
        assert seen & bits == 0
        seen |= bits
    assert seen < 1 << 256


def test_one_semaphore_for_every_ordered_pair_of_workers() -> None:
    workers = (Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE)
    pairs = {(s.poster, s.waiter) for s in SEMAPHORES}
    assert pairs == {(p, w) for p in workers for w in workers if p is not w}
    assert [s.index for s in SEMAPHORES] == list(range(12))
    for s in SEMAPHORES:
        assert semaphore(s.poster, s.waiter) is s
        assert s.name == f"{s.poster.name.lower()}_to_{s.waiter.name.lower()}"
    assert sum(poster_mask(u) for u in workers) == sum(waiter_mask(u) for u in workers) == 4095
    for u in workers:
        assert poster_mask(u).bit_count() == waiter_mask(u).bit_count() == 3
        assert poster_mask(u) & waiter_mask(u) == 0
    assert poster_mask(Unit.FETCH) == waiter_mask(Unit.FETCH) == 0


def test_numbers_that_hardware_and_files_keep() -> None:
    """These stand in Program files: a change needs a new format version."""
    assert {o.name: o.value for o in Op} == {"LOAD": 1, "MATMUL": 2, "DRAIN": 3, "STORE": 4, "END": 5}
    assert [k.name for k in LoadKind] == ["ACTIVATION", "OUTPUT", "WEIGHT", "OFFSET", "PARAMETER", "TABLE"]
    assert [e.name for e in Encoding] == ["DENSE", "INDEX", "MASK", "NATURAL", "TRANSPOSED"]
    assert [f.bits for f in COMMON] == [4, 12, 12]
    ends = {op: sum(f.bits for f in (*COMMON, *FORMATS[op])) for op in Op}
    assert ends == {Op.LOAD: 225, Op.MATMUL: 166, Op.DRAIN: 226, Op.STORE: 197, Op.END: 28}


def test_column_finds_a_field() -> None:
    assert column(Op.LOAD, "opcode") == column(Op.STORE, "opcode") == 0
    assert column(Op.STORE, "source") == 3
    assert column(Op.DRAIN, "table") == MATRIX_COLUMNS - 1
    with pytest.raises(KeyError, match="STORE has no field 'steps'"):
        column(Op.STORE, "steps")


# ---- round trips ----


@given(st.lists(instructions(), max_size=6))
def test_encode_and_decode_are_inverse(program: list[Instruction]) -> None:
    matrix = to_matrix(program)
    words = encode(matrix)
    assert words.shape == (len(program), WORD_BYTES)
    assert words.dtype == np.uint8
    assert np.array_equal(decode(words), matrix)
    assert from_matrix(matrix) == program


@given(instructions())
def test_a_word_is_the_sum_of_its_fields(instruction: Instruction) -> None:
    values = [int(instruction.op), instruction.wait, instruction.post, *(v for _, v in instruction.fields)]
    word = sum(
        (value % (1 << f.bits)) << f.start for f, value in zip((*COMMON, *FORMATS[instruction.op]), values, strict=True)
    )
    assert encode(to_matrix([instruction])).tobytes() == word.to_bytes(32, "little")


@given(st.binary(min_size=32, max_size=96))
def test_any_words_decode_or_are_refused(data: bytes) -> None:
    words = np.frombuffer(data[: len(data) // 32 * 32], dtype=np.uint8).reshape(-1, 32)
    try:
        matrix = decode(words)
    except ProgramError:
        return
    assert np.array_equal(encode(matrix), words)


def test_a_field_over_a_word_boundary() -> None:
    """LOAD.dest and others cross a boundary of 64 bits; all ones must come back from both halves."""
    crossing = [(op, f) for op in Op for f in FORMATS[op] if f.start // 64 != (f.start + f.bits - 1) // 64]
    assert len(crossing) >= 3
    for op, f in crossing:
        matrix = to_matrix([plain(op, **{f.name: f.maximum})])
        assert decode(encode(matrix))[0, column(op, f.name)] == f.maximum


def test_no_instructions() -> None:
    assert encode(to_matrix([])).shape == (0, 32)
    assert decode(np.zeros((0, 32), dtype=np.uint8)).shape == (0, MATRIX_COLUMNS)
    isa.check(to_matrix([]))


# ---- what is refused ----


@pytest.mark.parametrize("opcode", [0, 6, 7, 15])
def test_an_illegal_opcode(opcode: int) -> None:
    words = encode(to_matrix([plain(Op.END), plain(Op.END)]))
    words[1, 0] = opcode
    with refused(f"instruction 1: opcode {opcode} is not legal (1..5)"):
        decode(words)
    matrix = to_matrix([plain(Op.END), plain(Op.END)])
    matrix[1, 0] = opcode
    for consumer in (isa.check, lambda m: disassemble(m[1]), from_matrix):
        with pytest.raises(ProgramError, match=rf"^(instruction 1: )?opcode {opcode} is not legal \(1\.\.5\)$"):
            consumer(matrix)


@pytest.mark.parametrize("op", Op)
def test_every_stray_bit_is_refused(op: Op) -> None:
    word = encode(to_matrix([plain(op)]))
    used = sum(f.bits for f in (*COMMON, *FORMATS[op]))
    for bit in range(used, 256):
        stray = word.copy()
        stray[0, bit // 8] |= 1 << bit % 8
        with refused("instruction 0: bits outside of every field must be zero"):
            decode(stray)


@pytest.mark.parametrize("op", Op)
def test_a_foreign_semaphore_is_refused_everywhere(op: Op) -> None:
    unit = UNIT_OF[op]
    for s in SEMAPHORES:
        mask = 1 << s.index
        for label, i, legal in (("wait", 1, waiter_mask(unit)), ("post", 2, poster_mask(unit))):
            matrix = to_matrix([plain(Op.END), plain(op)])
            matrix[1, i] = mask
            if mask & legal:
                isa.check(matrix)
                assert np.array_equal(decode(encode(matrix)), matrix)
                continue
            text = f"{op.name}.{label} {mask:#x} names a semaphore of another unit; legal {legal:#x}"
            with refused(f"instruction 1: {text}"):
                isa.check(matrix)
            with refused(f"instruction 1: {text}"):
                decode(encode(matrix))
            with refused(text):
                from_matrix(matrix)


ONES = [(op, f.name) for op in Op for f in FORMATS[op] if f.low == 1]


def test_counts_are_these() -> None:
    region = {"beats", "rows", "blocks"}
    assert {n for op, n in ONES if op is Op.LOAD} == region
    assert {n for op, n in ONES if op is Op.STORE} == region | {"tile_beats", "tile_rows"}
    assert {n for op, n in ONES if op is Op.MATMUL} == {"steps", "nx", "ny"}
    assert {n for op, n in ONES if op is Op.DRAIN} == {"nx", "ny", "column_groups"}


@pytest.mark.parametrize(("op", "name"), ONES)
def test_a_count_of_zero(op: Op, name: str) -> None:
    matrix = to_matrix([plain(op)])
    matrix[0, column(op, name)] = 0
    f = next(f for f in FORMATS[op] if f.name == name)
    text = f"{op.name}.{name} must be from 1 to {f.maximum}, not 0"
    with refused(f"instruction 0: {text}"):
        isa.check(matrix)
    with refused(f"instruction 0: {text}"):
        decode(encode(matrix))
    with refused(text):
        plain(op, **{name: 0})


@pytest.mark.parametrize(("op", "name"), [(op, f.name) for op in Op for f in FORMATS[op]])
def test_a_value_beside_its_range(op: Op, name: str) -> None:
    f = next(f for f in FORMATS[op] if f.name == name)
    for value in (f.minimum - 1, f.maximum + 1):
        text = f"{op.name}.{name} must be from {f.minimum} to {f.maximum}, not {value}"
        with refused(text):
            plain(op, **{name: value})
        matrix = to_matrix([plain(op)])
        matrix[0, column(op, name)] = value
        with refused(f"instruction 0: {text}"):
            isa.check(matrix)


def test_ranges_of_signed_and_unsigned_fields() -> None:
    lo = next(f for f in FORMATS[Op.DRAIN] if f.name == "lo")
    assert (lo.minimum, lo.maximum) == (-256, 255)
    shift = next(f for f in FORMATS[Op.DRAIN] if f.name == "residual_shift")
    assert (shift.minimum, shift.maximum) == (0, 31)


def test_a_field_that_does_not_exist() -> None:
    with pytest.raises(ProgramError, match=r"^STORE has no field 'steps'; it has source, address, beats, rows, "):
        Instruction.make(Op.STORE, steps=1)
    with refused("END has no field 'steps'; it has "):
        Instruction.make(Op.END, steps=1)


# ---- reading ----


def test_an_instruction_tells_its_unit_and_fields() -> None:
    drain = plain(Op.DRAIN, lo=-3)
    assert drain.unit is Unit.DRAIN
    assert drain["lo"] == -3
    assert drain["nx"] == 1
    with pytest.raises(KeyError):
        drain["steps"]


def test_disassemble() -> None:
    load, matmul = semaphore(Unit.LOAD, Unit.MATMUL), semaphore(Unit.MATMUL, Unit.DRAIN)
    credit = semaphore(Unit.DRAIN, Unit.MATMUL)
    instruction = Instruction.make(
        Op.MATMUL,
        wait=1 << load.index | 1 << credit.index,
        post=1 << matmul.index,
        steps=4,
        nx=2,
        ny=1,
        bank=1,
    )
    text = "MATMUL bank=1 steps=4 nx=2 ny=1 wait load_to_matmul,drain_to_matmul post matmul_to_drain"
    assert disassemble(to_matrix([instruction])[0]) == text
    assert disassemble(to_matrix([plain(Op.END)])[0].tolist()) == "END"
    assert disassemble(to_matrix([plain(Op.DRAIN, lo=-5)])[0]) == "DRAIN nx=1 ny=1 column_groups=1 lo=-5"
    with refused("opcode 9 is not legal (1..5)"):
        disassemble([9, 0, 0])


@pytest.mark.parametrize(("name", "value", "most"), [("kind", 6, 5), ("encoding", 5, 4)])
def test_codes_without_a_meaning_are_refused(name, value, most):
    """Their bits would fit, but nothing reads them: by keyword, in the matrix form, and as a machine word."""
    load = Instruction.make(Op.LOAD, beats=1, rows=1, blocks=1)
    message = rf"LOAD\.{name} must be from 0 to {most}, not {value}"
    with pytest.raises(ProgramError, match=message):
        Instruction.make(Op.LOAD, beats=1, rows=1, blocks=1, **{name: value})
    matrix = isa.to_matrix([load])
    matrix[0, isa.column(Op.LOAD, name)] = value
    with pytest.raises(ProgramError, match=message):
        isa.check(matrix)
    with pytest.raises(ProgramError, match=message):
        isa.decode(isa.encode(matrix))
