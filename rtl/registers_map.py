"""The registers a host sees: one table for the hardware, its Markdown and its JSON. Needs no hardware library."""

from dataclasses import dataclass
from typing import Any

from gossamer.arch.isa import ErrorCode
from gossamer.arch.run import COUNTERS

__all__ = ["LITE_BITS", "REGISTERS", "Register", "as_json", "as_markdown"]

LITE_BITS = 10
"""Address bits of the register port: one KiB."""


@dataclass(frozen=True, kw_only=True)
class Register:
    """A 32-bit register. access : r, w, rw, or rw1c (write ones to clear)."""

    name: str
    address: int
    access: str
    doc: str
    reset: int = 0


def _table() -> tuple[Register, ...]:
    errors = ", ".join(f"{int(e)} {e.name.lower()}" for e in ErrorCode)
    rows = [
        ("identity", "r", "reads 0x474f5353", 0x474F5353),
        ("control", "w", "bit 0: start the program; ignored while one runs", 0),
        ("status", "r", "bit 0: running; bit 1: done; bit 2: done with an error", 0),
        ("error", "r", f"error code: {errors}", 0),
        ("error_index", "r", "index of the instruction that the error is about", 0),
        ("program_low", "rw", "byte address of the program, bits 31..0; aligned to a fetch burst", 0),
        ("program_high", "rw", "byte address of the program, bits 39..32", 0),
        ("program_length", "rw", "instructions of the program, END included", 0),
        ("interrupt_enable", "rw", "bit 0: raise the interrupt when a program is done", 0),
        ("interrupt_status", "rw1c", "bit 0: a program is done", 0),
        ("cycles_low", "r", "cycles of the program, bits 31..0", 0),
        ("cycles_high", "r", "cycles of the program, bits 63..32", 0),
    ]
    out = [
        Register(name=name, address=4 * k, access=access, doc=doc, reset=reset)
        for k, (name, access, doc, reset) in enumerate(rows)
    ]
    for k, (counter, doc) in enumerate(COUNTERS.items()):
        out.append(Register(name=f"counter_{counter}", address=0x100 + 4 * k, access="r", doc=doc))
    if out[-1].address >= 1 << LITE_BITS:
        raise AssertionError("the counters do not fit the address range")
    return tuple(out)


REGISTERS = _table()


def as_json() -> list[dict[str, Any]]:
    """The map as plain data."""
    return [{"name": r.name, "address": r.address, "access": r.access, "description": r.doc} for r in REGISTERS]


def as_markdown() -> str:
    """The map as a table."""
    lines = ["| address | register | access | meaning |", "|---|---|---|---|"]
    lines += [f"| {r.address:#05x} | `{r.name}` | {r.access} | {r.doc} |" for r in REGISTERS]
    return "\n".join(lines) + "\n"
