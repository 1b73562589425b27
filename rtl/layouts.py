"""Amaranth layouts derived from arch.isa: nothing about an instruction is written down a second time.

An entry of a unit's queue is the instruction without its opcode, and its index in the program.
"""

from typing import Any

from amaranth.hdl import Cat, Const, Value, signed, unsigned
from amaranth.lib import data

from gossamer.arch.isa import COMMON, FORMATS, SEMAPHORES, WORD_BYTES, Field, Op

__all__ = ["INDEX_BITS", "WAITED_BITS", "covered_mask", "entry_layout", "entry_value", "field_value", "semaphores"]

INDEX_BITS = 24
"""Bits of an instruction's index: the longest program is 2**24 instructions."""

WAITED_BITS = len(SEMAPHORES) + 2
"""What held an instruction back, as in arch/timing.py: semaphores, fetch, unit."""

semaphores = len(SEMAPHORES)


def field_value(word: Any, field: Field) -> Any:
    """A field of a 256-bit instruction word."""
    value = word[field.start : field.start + field.bits]
    return value.as_signed() if field.signed else value


def _fields(op: Op) -> tuple[Field, ...]:
    return (*COMMON[1:], *FORMATS[op])


def entry_layout(op: Op) -> Any:
    """Layout of a queue entry: index, wait, post, then the fields of the operation."""
    members: dict[str, Any] = {"index": unsigned(INDEX_BITS)}
    for f in _fields(op):
        members[f.name] = signed(f.bits) if f.signed else unsigned(f.bits)
    return data.StructLayout(members)


def entry_value(op: Op, word: Any, index: Any) -> Any:
    """The queue entry of an instruction word, as bits of `entry_layout(op)`."""
    return Cat(Value.cast(index)[:INDEX_BITS], *(word[f.start : f.start + f.bits] for f in _fields(op)))


def covered_mask(op: Op) -> Any:
    """The bits of an instruction word that a field covers."""
    mask = 0
    for f in (*COMMON, *FORMATS[op]):
        mask |= ((1 << f.bits) - 1) << f.start
    return Const(mask, 8 * WORD_BYTES)
