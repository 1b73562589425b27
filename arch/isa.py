"""The instruction set: one table of opcodes, fields, units and semaphores.

Encoder, decoder, the generated docs/isa.md and the Amaranth layouts of rtl/ are all derived from this table.
An instruction is one 256-bit little-endian word. Every instruction begins with the same three fields: opcode, the
mask of semaphores it waits on, and the mask of semaphores it posts. The rest depends on the opcode. Bits that no
field covers must be zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ProgramError

__all__ = [
    "COMMON",
    "FORMATS",
    "MATRIX_COLUMNS",
    "SEMAPHORES",
    "SEMAPHORE_MAX",
    "WORD_BYTES",
    "Encoding",
    "ErrorCode",
    "Field",
    "Instruction",
    "LoadKind",
    "MatmulMode",
    "Op",
    "Semaphore",
    "Unit",
    "column",
    "decode",
    "disassemble",
    "encode",
    "from_matrix",
    "poster_mask",
    "semaphore",
    "to_matrix",
    "waiter_mask",
]

WORD_BYTES = 32
SEMAPHORE_MAX = 255
"""Largest count of a semaphore; one more is the sticky error SEMAPHORE_OVERFLOW."""


class Unit(IntEnum):
    """The five in-order units."""

    FETCH = 0
    LOAD = 1
    MATMUL = 2
    DRAIN = 3
    STORE = 4


class Op(IntEnum):
    """Opcodes. 0 is illegal, so that empty memory is an error and not an instruction."""

    LOAD = 1
    MATMUL = 2
    DRAIN = 3
    STORE = 4
    END = 5


UNIT_OF = {Op.LOAD: Unit.LOAD, Op.MATMUL: Unit.MATMUL, Op.DRAIN: Unit.DRAIN, Op.STORE: Unit.STORE, Op.END: Unit.FETCH}


class LoadKind(IntEnum):
    """Which memory a LOAD fills."""

    ACTIVATION = 0
    OUTPUT = 1
    WEIGHT = 2
    OFFSET = 3
    PARAMETER = 4
    TABLE = 5


class Encoding(IntEnum):
    """How weight steps lie in DRAM: as records, or as activations, natural or transposed (see arch/stream.py)."""

    DENSE = 0
    INDEX = 1
    MASK = 2
    NATURAL = 3
    TRANSPOSED = 4


class MatmulMode(IntEnum):
    """What a PE does with its products."""

    SUM = 0
    MAXIMUM = 1


class ErrorCode(IntEnum):
    """Sticky error codes of the status register."""

    NONE = 0
    ILLEGAL_OPCODE = 1
    ILLEGAL_FIELD = 2
    ILLEGAL_SEMAPHORE = 3
    SEMAPHORE_OVERFLOW = 4
    FETCH_RESPONSE = 5
    READ_RESPONSE = 6
    WRITE_RESPONSE = 7
    PORT_CONFLICT = 8
    DEADLOCK = 9
    NO_END = 10


@dataclass(frozen=True, kw_only=True)
class Semaphore:
    """A counting semaphore: one unit posts it, one other unit waits on it, and it starts at zero."""

    index: int
    name: str
    poster: Unit
    waiter: Unit


_WORKERS = (Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE)

SEMAPHORES: tuple[Semaphore, ...] = tuple(
    Semaphore(index=i, name=f"{p.name.lower()}_to_{w.name.lower()}", poster=p, waiter=w)
    for i, (p, w) in enumerate((p, w) for p in _WORKERS for w in _WORKERS if p is not w)
)
"""One for every ordered pair of units. Units start in order and finish in order, so one is enough: a wait on the
k-th event of a unit also covers every earlier one. A buffer credit is a wait that the first users leave out."""


def semaphore(poster: Unit, waiter: Unit) -> Semaphore:
    """The semaphore from one unit to another."""
    return next(s for s in SEMAPHORES if s.poster is poster and s.waiter is waiter)


def poster_mask(unit: Unit) -> int:
    """Semaphores this unit may post, as a mask."""
    return sum(1 << s.index for s in SEMAPHORES if s.poster is unit)


def waiter_mask(unit: Unit) -> int:
    """Semaphores this unit may wait on, as a mask."""
    return sum(1 << s.index for s in SEMAPHORES if s.waiter is unit)


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of an instruction. `low` and `high` bound it further than its bits; `signed` is two's complement."""

    name: str
    bits: int
    doc: str
    low: int = 0
    high: int | None = None
    signed: bool = False
    start: int = 0

    @property
    def minimum(self) -> int:
        """Smallest legal value."""
        return -(1 << (self.bits - 1)) if self.signed else self.low

    @property
    def maximum(self) -> int:
        """Largest legal value."""
        if self.high is not None:
            return self.high
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


def _place(*rows: Field, start: int = 0) -> tuple[Field, ...]:
    """Give consecutive bit positions to fields."""
    placed = []
    for row in rows:
        placed.append(replace(row, start=start))
        start += row.bits
    if start > 8 * WORD_BYTES:
        raise AssertionError(f"an instruction has {start} bits; {8 * WORD_BYTES} is the most")
    return tuple(placed)


def _f(name: str, bits: int, doc: str, *, low: int = 0, high: int | None = None, signed: bool = False) -> Field:
    return Field(name=name, bits=bits, doc=doc, low=low, high=high, signed=signed)


COMMON = _place(
    _f("opcode", 4, "what to do: see the opcodes"),
    _f("wait", 12, "semaphores to wait on and take one count from, at the start"),
    _f("post", 12, "semaphores to add one count to, at the end"),
)
_AFTER = COMMON[-1].start + COMMON[-1].bits

_REGION = (
    _f("beats", 16, "n0: beats of a row, contiguous in DRAM", low=1),
    _f("rows", 12, "n1: rows of a block", low=1),
    _f("blocks", 12, "n2: blocks", low=1),
    _f("row_stride", 24, "beats from a row to the next"),
    _f("block_stride", 28, "beats from a block to the next"),
)

FORMATS: dict[Op, tuple[Field, ...]] = {
    Op.LOAD: _place(
        _f("kind", 3, "memory to fill: activation, output, weight, offset, parameter, table", high=max(LoadKind)),
        _f(
            "encoding",
            3,
            "of weight steps: dense, index, mask, natural, transposed; 0 for all other kinds",
            high=max(Encoding),
        ),
        _f("address", 32, "DRAM address of the first beat, in beats"),
        _f("dest", 20, "where to begin: beats (steps for weights, tables for tables)"),
        *_REGION,
        _f("grid", 3, "log2 of the lane grid's width: lane r is column r mod 2**grid, row r >> grid"),
        _f("tile_beats", 12, "beats of a row that a lane keeps (activation, output), or of a column (transposed)"),
        _f("tile_rows", 10, "rows of a block that a lane keeps (activation, output)"),
        _f("step_beats", 12, "beats from a lane's first beat to that of its right neighbour; part of a beat (natural)"),
        _f("step_rows", 10, "rows from a lane's first row to that of the lane below"),
        start=_AFTER,
    ),
    Op.MATMUL: _place(
        _f("mode", 1, "sum or maximum"),
        _f("signed", 1, "activation codes are int8 (1) or uint8 (0)"),
        _f("zero_point", 8, "activation code of real zero, as its 8-bit pattern"),
        _f("accumulate", 1, "0: the first step overwrites the accumulators; 1: it adds to them"),
        _f("bank", 1, "accumulator bank"),
        _f("acc_base", 8, "first accumulator"),
        _f("steps", 16, "S: steps", low=1),
        _f("weight_base", 16, "first step in the weight buffer"),
        _f("offset_base", 16, "first entry in the offset buffer"),
        _f("act_base", 20, "activation address that offset 0 means, in windows (group elements)"),
        _f("nx", 9, "positions in a row", low=1),
        _f("ny", 9, "rows of positions; nx * ny <= depth", low=1),
        _f("sx", 16, "windows from a position to the next"),
        _f("sy", 16, "windows from a row of positions to the next"),
        start=_AFTER,
    ),
    Op.DRAIN: _place(
        _f("bank", 1, "accumulator bank"),
        _f("acc_base", 8, "first accumulator"),
        _f("nx", 9, "positions in a row", low=1),
        _f("ny", 9, "rows of positions; nx * ny <= depth", low=1),
        _f("column_groups", 8, "PPU-wide groups of columns to drain, from column 0", low=1),
        _f("param_base", 16, "first entry of the parameter memory, in PPU-wide groups of channels"),
        _f("raw", 1, "1: write int32 accumulators, four bytes each, and skip the PPU"),
        _f("to_activation", 1, "destination: output buffer (0) or activation bank (1)"),
        _f("dest", 24, "first element of the destination, in PPU-wide groups"),
        _f("sx", 16, "groups from a position to the next"),
        _f("sy", 20, "groups from a row of positions to the next"),
        _f("residual", 1, "1: add a code from the output buffer"),
        _f("residual_base", 24, "its first element, in PPU-wide groups; strides as the destination's"),
        _f("residual_signed", 1, "residual codes are int8 (1) or uint8 (0)"),
        _f("residual_zero", 8, "residual code of real zero, as its 8-bit pattern"),
        _f("residual_multiplier", 16, "residual scale over output scale, times 2**residual_shift"),
        _f("residual_shift", 5, "9..31 with a residual, else 0"),
        _f("zero_point", 9, "output code of real zero", signed=True),
        _f("lo", 9, "smallest output code", signed=True),
        _f("hi", 9, "largest output code", signed=True),
        _f("table_enable", 1, "1: replace the code through a table"),
        _f("table", 2, "which table"),
        start=_AFTER,
    ),
    Op.STORE: _place(
        _f("source", 20, "first beat in the output buffer"),
        _f("address", 32, "DRAM address of the first beat, in beats"),
        *_REGION,
        _f("grid", 3, "log2 of the lane grid's width"),
        _f("tile_beats", 12, "beats of a row that a lane holds", low=1),
        _f("tile_rows", 10, "rows of a block that a lane holds", low=1),
        start=_AFTER,
    ),
    Op.END: (),
}


def column(op: Op, name: str) -> int:
    """Column of a field in the matrix form (see `to_matrix`)."""
    for i, f in enumerate((*COMMON, *FORMATS[op])):
        if f.name == name:
            return i
    raise KeyError(f"{op.name} has no field {name!r}")


MATRIX_COLUMNS = len(COMMON) + max(len(f) for f in FORMATS.values())


@dataclass(frozen=True)
class Instruction:
    """One instruction, its fields by name; fields left out are zero.

    Raises ProgramError when a field does not exist or a value does not fit.
    """

    op: Op
    fields: tuple[tuple[str, int], ...]
    wait: int = 0
    post: int = 0

    @classmethod
    def make(cls, op: Op, *, wait: int = 0, post: int = 0, **values: int) -> "Instruction":
        """An instruction from keyword fields, checked against the table."""
        known = {f.name: f for f in FORMATS[op]}
        for name in values:
            if name not in known:
                raise ProgramError(f"{op.name} has no field {name!r}; it has {', '.join(known)}")
        full = {f.name: int(values.get(f.name, 0)) for f in FORMATS[op]}
        for name, value in full.items():
            f = known[name]
            if not f.minimum <= value <= f.maximum:
                raise ProgramError(f"{op.name}.{name} must be from {f.minimum} to {f.maximum}, not {value}")
        for label, mask, legal in (
            ("wait", wait, waiter_mask(UNIT_OF[op])),
            ("post", post, poster_mask(UNIT_OF[op])),
        ):
            if mask & ~legal:
                raise ProgramError(f"{op.name}.{label} {mask:#x} names a semaphore of another unit; legal {legal:#x}")
        return cls(op, tuple(full.items()), wait, post)

    @property
    def unit(self) -> Unit:
        """The unit that executes it."""
        return UNIT_OF[self.op]

    def __getitem__(self, name: str) -> int:
        return dict(self.fields)[name]


def to_matrix(instructions: Iterable[Instruction]) -> NDArray[np.int64]:
    """Instructions as int64 [count, MATRIX_COLUMNS]: opcode, wait, post, then the fields in table order."""
    rows = [(int(i.op), i.wait, i.post, *(v for _, v in i.fields)) for i in instructions]
    matrix = np.zeros((len(rows), MATRIX_COLUMNS), dtype=np.int64)
    for k, row in enumerate(rows):
        matrix[k, : len(row)] = row
    return matrix


def from_matrix(matrix: NDArray[np.int64]) -> list[Instruction]:
    """The inverse of `to_matrix`. Raises ProgramError for an illegal value."""
    out = []
    for row in matrix.tolist():
        op = _op(row[0])
        names = [f.name for f in FORMATS[op]]
        values = dict(zip(names, row[len(COMMON) :], strict=False))
        out.append(Instruction.make(op, wait=row[1], post=row[2], **values))
    return out


def encode(matrix: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Matrix form to machine words, uint8 [count, 32]. Values are taken modulo their field's width."""
    count = matrix.shape[0]
    words = np.zeros((count, WORD_BYTES // 8), dtype=np.uint64)
    for op in Op:
        rows = np.flatnonzero(matrix[:, 0] == op)
        for i, f in enumerate((*COMMON, *FORMATS[op])):
            value = matrix[rows, i].astype(np.uint64) & np.uint64((1 << f.bits) - 1)
            word, shift = divmod(f.start, 64)
            words[rows, word] |= value << np.uint64(shift)
            if shift + f.bits > 64:
                words[rows, word + 1] |= value >> np.uint64(64 - shift)
    return words.view(np.uint8).reshape(count, WORD_BYTES)


def decode(words: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Machine words uint8 [count, 32] to matrix form.

    Raises ProgramError, naming the instruction and the field, for an illegal opcode, field or semaphore mask.
    """
    quads = np.ascontiguousarray(words).view(np.uint64).reshape(-1, WORD_BYTES // 8)
    matrix = np.zeros((quads.shape[0], MATRIX_COLUMNS), dtype=np.int64)
    matrix[:, 0] = (quads[:, 0] & np.uint64(15)).astype(np.int64)
    _check_opcodes(matrix)
    covered = np.zeros_like(quads)
    for op in Op:
        rows = np.flatnonzero(matrix[:, 0] == op)
        for i, f in enumerate((*COMMON, *FORMATS[op])):
            word, shift = divmod(f.start, 64)
            value = quads[rows, word] >> np.uint64(shift)
            mask = np.uint64((1 << f.bits) - 1)
            covered[rows, word] |= mask << np.uint64(shift)
            if shift + f.bits > 64:
                value |= quads[rows, word + 1] << np.uint64(64 - shift)
                covered[rows, word + 1] |= mask >> np.uint64(64 - shift)
            number = (value & mask).astype(np.int64)
            if f.signed:
                number -= (number >> (f.bits - 1)) << f.bits
            matrix[rows, i] = number
    stray = np.flatnonzero(np.any(quads & ~covered, axis=1))
    if stray.size:
        raise ProgramError(f"instruction {stray[0]}: bits outside of every field must be zero")
    check(matrix)
    return matrix


def _check_opcodes(matrix: NDArray[np.int64]) -> None:
    bad = np.flatnonzero(~np.isin(matrix[:, 0], [int(o) for o in Op]))
    if bad.size:
        raise ProgramError(f"instruction {bad[0]}: opcode {matrix[bad[0], 0]} is not legal (1..5)")


def check(matrix: NDArray[np.int64]) -> None:
    """Refuse illegal opcodes, values out of their field's range and another unit's semaphores (ProgramError)."""
    _check_opcodes(matrix)
    for op in Op:
        rows = np.flatnonzero(matrix[:, 0] == op)
        for i, f in enumerate(FORMATS[op], start=len(COMMON)):
            wrong = rows[(matrix[rows, i] < f.minimum) | (matrix[rows, i] > f.maximum)]
            if wrong.size:
                raise ProgramError(
                    f"instruction {wrong[0]}: {op.name}.{f.name} must be from {f.minimum} to {f.maximum}, "
                    f"not {matrix[wrong[0], i]}"
                )
        for i, label, legal in ((1, "wait", waiter_mask(UNIT_OF[op])), (2, "post", poster_mask(UNIT_OF[op]))):
            wrong = rows[(matrix[rows, i] & ~legal) != 0]
            if wrong.size:
                raise ProgramError(
                    f"instruction {wrong[0]}: {op.name}.{label} {matrix[wrong[0], i]:#x} names a semaphore of "
                    f"another unit; legal {legal:#x}"
                )


def disassemble(row: Sequence[int] | NDArray[np.int64]) -> str:
    """One instruction of the matrix form as text: `MATMUL steps=4 ... wait load_to_matmul`."""
    values = [int(v) for v in row]
    op = _op(values[0])
    named = zip((f.name for f in FORMATS[op]), values[len(COMMON) :], strict=False)
    parts = [op.name, *(f"{name}={value}" for name, value in named if value)]
    for label, mask in (("wait", values[1]), ("post", values[2])):
        names = [s.name for s in SEMAPHORES if mask >> s.index & 1]
        if names:
            parts.append(f"{label} {','.join(names)}")
    return " ".join(parts)


def _op(value: int) -> Op:
    try:
        return Op(value)
    except ValueError:
        raise ProgramError(f"opcode {value} is not legal (1..5)") from None
