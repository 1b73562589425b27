"""What the hardware must refuse, it refuses with an error code and the instruction's index, and never hangs."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.errors import SimulationError
from gossamer.arch.isa import SEMAPHORE_MAX, SEMAPHORES, ErrorCode, Instruction, LoadKind, Op, Unit, semaphore
from gossamer.rtl.model import HardwareError, Memory, Model
from gossamer.sim.random_programs import random_program
from gossamer.verification import verify
from tests.support.rtl_specs import SMALL_SPECS, needs_hardware_tools

pytestmark = needs_hardware_tools

LIMIT = 3_000_000
make = Instruction.make


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(SMALL_SPECS["tiny"], limit=LIMIT) as made:
        yield made


def words_of(rows: Sequence[Instruction]) -> NDArray[np.uint8]:
    return isa.encode(isa.to_matrix(rows))


def failure(model: Model, words: NDArray[np.uint8], **memory: int) -> tuple[ErrorCode, int]:
    """The error that a program ends with; afterwards the machine runs a good program as ever."""
    dram = np.zeros(1 << 16, dtype=np.uint8)
    with pytest.raises(HardwareError) as caught:
        model.run_words("bad", words, dram, Memory(**memory))
    program = random_program(np.random.default_rng(1), model.spec, 10)
    assert verify(program, model=model).difference is None
    return caught.value.code, caught.value.index


def load(**fields: int) -> Instruction:
    given = {"kind": int(LoadKind.OFFSET), "beats": 2, "rows": 1, "blocks": 1, "address": 0}
    return make(Op.LOAD, **(given | fields))


def store(**fields: int) -> Instruction:
    given = {"beats": 4, "rows": 1, "blocks": 1, "address": 64, "tile_beats": 4, "tile_rows": 1}
    return make(Op.STORE, **(given | fields))


END = make(Op.END)


@pytest.mark.parametrize("opcode", [0, 6, 15])
def test_illegal_opcode(model: Model, opcode: int) -> None:
    words = words_of([load(), END, END])
    words[1] = 0
    words[1, 0] = opcode
    assert failure(model, words) == (ErrorCode.ILLEGAL_OPCODE, 1)


def test_bits_outside_of_every_field(model: Model) -> None:
    words = words_of([load(), load(), END])
    words[1, 31] |= 0x80
    assert failure(model, words) == (ErrorCode.ILLEGAL_FIELD, 1)


@pytest.mark.parametrize("op", [Op.LOAD, Op.MATMUL, Op.DRAIN, Op.STORE])
def test_counts_of_zero(model: Model, op: Op) -> None:
    counts = [f for f in isa.FORMATS[op] if f.low]
    assert counts
    for wrong in counts:
        matrix = isa.to_matrix([make(op, **{f.name: 1 for f in counts}), END])
        matrix[0, isa.column(op, wrong.name)] = 0
        assert failure(model, isa.encode(matrix)) == (ErrorCode.ILLEGAL_FIELD, 0), wrong.name


@pytest.mark.parametrize(("kind", "encoding"), [(6, 0), (7, 0), (2, 2), (2, 5), (2, 7), (0, 1)])
def test_loads_this_machine_has_not(model: Model, kind: int, encoding: int) -> None:
    matrix = isa.to_matrix([load(), END])
    matrix[0, isa.column(Op.LOAD, "kind")] = kind
    matrix[0, isa.column(Op.LOAD, "encoding")] = encoding
    assert failure(model, isa.encode(matrix)) == (ErrorCode.ILLEGAL_FIELD, 0)


def test_semaphore_of_another_unit(model: Model) -> None:
    for s in SEMAPHORES:
        wrong = next(op for op in (Op.LOAD, Op.MATMUL) if isa.UNIT_OF[op] is not s.waiter)
        fields = {"steps": 1, "nx": 1, "ny": 1} if wrong is Op.MATMUL else {"beats": 1, "rows": 1, "blocks": 1}
        words = words_of([load(), make(wrong, **fields), END])
        value = int.from_bytes(words[1].tobytes(), "little") | (1 << s.index) << 4
        words[1] = np.frombuffer(value.to_bytes(32, "little"), dtype=np.uint8)
        assert failure(model, words) == (ErrorCode.ILLEGAL_SEMAPHORE, 1), s.name


def test_program_without_end(model: Model) -> None:
    assert failure(model, words_of([load(), load()])) == (ErrorCode.NO_END, 2)


def test_semaphore_overflow(model: Model) -> None:
    post = 1 << semaphore(Unit.LOAD, Unit.STORE).index
    code, _ = failure(model, words_of([load(post=post)] * (SEMAPHORE_MAX + 1) + [END]))
    assert code is ErrorCode.SEMAPHORE_OVERFLOW


def test_deadlock(model: Model) -> None:
    wait = 1 << semaphore(Unit.LOAD, Unit.STORE).index
    code, _ = failure(model, words_of([load(), store(wait=wait), END]))
    assert code is ErrorCode.DEADLOCK


def test_deadlock_before_the_end_is_fetched(model: Model) -> None:
    """More instructions wait than the queue holds: FETCH itself is stuck."""
    wait = 1 << semaphore(Unit.LOAD, Unit.STORE).index
    code, _ = failure(model, words_of([store(wait=wait)] * (3 * model.spec.queue_depth) + [load(post=wait), END]))
    assert code is ErrorCode.DEADLOCK


def test_two_writers_in_one_partition(model: Model) -> None:
    """LOAD and DRAIN write one partition of the output buffer at the same time."""
    spec = model.spec
    long = load(kind=int(LoadKind.OUTPUT), beats=32, tile_beats=32, tile_rows=1)
    drain = make(Op.DRAIN, nx=8, ny=1, column_groups=spec.column_groups, sx=spec.column_groups)
    code, _ = failure(model, words_of([long, *[drain] * 12, END]))
    assert code is ErrorCode.PORT_CONFLICT


@pytest.mark.parametrize("stall", [0, 100])
def test_error_responses(model: Model, stall: int) -> None:
    rows = [load(beats=5), load(beats=40), store(), store(address=510, beats=4), load(), END]
    words = words_of(rows)
    assert failure(model, words, read_error=0, stall=stall) == (ErrorCode.READ_RESPONSE, 0)
    assert failure(model, words, read_error=17, stall=stall) == (ErrorCode.READ_RESPONSE, 1)
    assert failure(model, words, write_error=0, stall=stall) == (ErrorCode.WRITE_RESPONSE, 2)
    assert failure(model, words, write_error=2, stall=stall) == (ErrorCode.WRITE_RESPONSE, 3)
    code, _ = failure(model, words, fetch_error=5, stall=stall)
    assert code is ErrorCode.FETCH_RESPONSE


def test_random_words(model: Model) -> None:
    """Random bits and flipped bits of good programs: an end or an error code, and never a hang.

    Counts stay small, so that what happens to be legal ends soon.
    """
    rng = np.random.default_rng(4)
    codes, others = set(), set()
    for k in range(300):
        program = random_program(np.random.default_rng(k % 5), model.spec, 10)
        words = isa.encode(program.instructions)
        if k % 3 == 0:
            words[rng.integers(len(words))] = rng.integers(0, 256, 32, dtype=np.uint8)
        else:
            for _ in range(int(rng.integers(1, 4))):
                words[rng.integers(len(words)), rng.integers(32)] ^= 1 << rng.integers(8)
        try:
            model.run_words("noise", words, np.zeros(1 << 16, dtype=np.uint8))
        except HardwareError as error:
            codes.add(error.code)
        except SimulationError as error:
            others.add(str(error))
    assert len(others) <= 1  # addresses beyond the memory break a rule of the bus
    assert all("rule of the bus" in other for other in others)
    assert {ErrorCode.ILLEGAL_OPCODE, ErrorCode.ILLEGAL_FIELD, ErrorCode.ILLEGAL_SEMAPHORE} <= codes
