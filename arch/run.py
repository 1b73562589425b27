"""What a run leaves behind, the same for simulator and RTL: outputs, cycles, events and counters.

`==` compares all of it; `difference` names the first event that is not the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.isa import SEMAPHORES, LoadKind, Unit, disassemble
from gossamer.arch.program import Program

__all__ = ["COUNTERS", "EVENT_FIELDS", "Run", "StageRun"]

EVENT_FIELDS = ("unit", "fetched", "start", "first_beat", "last_beat", "free", "end", "waited")
"""Columns of an event log, one row an instruction in program order (END: fetched, start,
free and end are its dispatch, waited is 0).
first_beat and last_beat are -1 for units that do not use the bus. See arch/timing.py for what each means."""


def _counters() -> dict[str, str]:
    """The meaning of each counter, in register order."""
    units = (Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE)
    table = {f"busy_{u.name.lower()}": f"cycles in which {u.name} works: from start to free, summed" for u in units}
    for u in units:
        free = f"cycles in which {u.name} is free and does not start its next instruction, because"
        table[f"stall_{u.name.lower()}_fetch"] = f"{free} it is not fetched yet"
        for s in SEMAPHORES:
            if s.waiter is u:
                why = f"{s.poster.name} has not posted `{s.name}` and no semaphore of lower index is missing"
                table[f"stall_{u.name.lower()}_{s.name}"] = f"{free} {why}"
    for kind in LoadKind:
        table[f"beats_read_{kind.name.lower()}"] = f"beats on the read port, of LOADs of kind {kind.name}"
    table |= {
        "beats_written": "beats on the write port",
        "beats_fetched": "beats on the fetch port",
        "bursts_read": "bursts on the read port",
        "bursts_written": "bursts on the write port",
        "bursts_fetched": "bursts on the fetch port",
        "steps": "steps of all MATMULs",
        "slots": "steps x positions of all MATMULs: cycles in which the array works",
    }
    return table


COUNTERS: Mapping[str, str] = MappingProxyType(_counters())
"""The hardware's counters in register order, and what each counts from the start of a program to its end.

Stalls exclude each other, and so do busy and stall of a unit; cycles behind a unit's last instruction are nobody's.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class StageRun:
    """One accelerator stage: its cycles, events int64 [instructions, len(EVENT_FIELDS)] and counters."""

    name: str
    cycles: int
    events: NDArray[np.int64]
    counters: Mapping[str, int]

    def __repr__(self) -> str:
        return f"<StageRun {self.name!r}: {self.cycles:,} cycles, {len(self.events):,} instructions>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A Program's run. outputs : model outputs by name;  memory : DRAM at the end (None if values were off)."""

    program: Program
    stages: tuple[StageRun, ...]
    outputs: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    memory: NDArray[np.uint8] | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    """What only a model can count (useful MACs, bytes of each on-chip memory); not part of equality."""

    @property
    def cycles(self) -> int:
        """Cycles of all accelerator stages."""
        return sum(s.cycles for s in self.stages)

    @property
    def seconds(self) -> float:
        """Time on the accelerator at the spec's clock."""
        return self.cycles / (self.program.spec.clock_mhz * 1e6)

    @property
    def layers(self) -> list[dict[str, Any]]:
        """What each layer cost and waited for, one record a layer, ready for a pandas.DataFrame: see layer_report."""
        from gossamer.arch.layers import layer_report  # it reads Runs

        return layer_report(self)

    def __repr__(self) -> str:
        given = f", outputs {', '.join(self.outputs)}" if self.outputs else ", time only"
        return f"<Run of {self.program.name!r} on {self.program.spec.name}: {self.cycles:,} cycles{given}>"

    @property
    def counters(self) -> dict[str, int]:
        """Counters summed over the stages."""
        return {name: sum(s.counters[name] for s in self.stages) for name in COUNTERS}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.difference(other) is None

    __hash__ = None  # type: ignore[assignment]

    def difference(self, other: "Run") -> str | None:
        """The first thing in which two runs differ, or None: an event, cycles, a counter, a byte of memory."""
        if len(self.stages) != len(other.stages):
            return f"{len(self.stages)} stages against {len(other.stages)}"
        for mine, theirs in zip(self.stages, other.stages, strict=True):
            found = self._stage_difference(mine, theirs)
            if found:
                return f"stage {mine.name!r}: {found}"
        if self.memory is not None and other.memory is not None:
            if self.memory.shape != other.memory.shape:
                return f"memory of {self.memory.size} bytes against {other.memory.size}"
            wrong = np.flatnonzero(self.memory != other.memory)
            if wrong.size:
                at = int(wrong[0])
                return (
                    f"{wrong.size} bytes of memory differ, the first at {at:#x}{self._owner(at)}: "
                    f"{self.memory[at]} against {other.memory[at]}"
                )
        for name in dict.fromkeys((*self.outputs, *other.outputs)):
            if name not in self.outputs or name not in other.outputs:
                return f"output {name!r} is in one run only"
            if not _same(self.outputs[name], other.outputs[name]):
                return f"output {name!r} differs"
        return None

    def _stage_difference(self, mine: StageRun, theirs: StageRun) -> str | None:
        if mine.events.shape != theirs.events.shape:
            return f"{len(mine.events)} events against {len(theirs.events)}"
        rows = np.flatnonzero(np.any(mine.events != theirs.events, axis=1))
        if rows.size:
            stage = next(s for s in self.program.accelerator_stages if s.name == mine.name)
            order = rows[np.argsort(np.minimum(mine.events[rows, 2], theirs.events[rows, 2]), kind="stable")]
            i = int(order[0])
            fields = [
                f"{EVENT_FIELDS[k]} {mine.events[i, k]} against {theirs.events[i, k]}"
                for k in np.flatnonzero(mine.events[i] != theirs.events[i])
            ]
            text = disassemble(self.program.instructions[stage.first + i])
            return f"{rows.size} events differ, the first is instruction {i} ({text}): {', '.join(fields)}"
        if mine.cycles != theirs.cycles:
            return f"{mine.cycles} cycles against {theirs.cycles}"
        for name in COUNTERS:
            if mine.counters[name] != theirs.counters[name]:
                return f"counter {name} is {mine.counters[name]} against {theirs.counters[name]}"
        return None

    def _owner(self, address: int) -> str:
        for tensor in self.program.tensors.values():
            if tensor.address <= address < tensor.address + tensor.size:
                return f" (tensor {tensor.name!r})"
        return ""


def _same(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    """Equal, where a NaN of a host stage equals itself: a second run is equal to the first."""
    both_float = np.issubdtype(a.dtype, np.inexact) and np.issubdtype(b.dtype, np.inexact)
    return np.array_equal(a, b, equal_nan=both_float)
