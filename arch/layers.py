"""Time by layer: what each layer of a Program cost, what its units waited for, and how far it is from its bound."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.isa import SEMAPHORES, Unit
from gossamer.arch.program import AcceleratorStage, Program
from gossamer.arch.run import EVENT_FIELDS, Run, StageRun

__all__ = ["layer_report", "stalls"]

_FETCHED, _START, _FREE, _END = (EVENT_FIELDS.index(name) for name in ("fetched", "start", "free", "end"))
_WORKERS = (Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE)
CAUSES = ("fetch", *(s.name for s in SEMAPHORES))
"""What an instruction can be held up by, in the order of the columns of `stalls`."""


def stalls(program: Program, stage: AcceleratorStage, done: StageRun) -> NDArray[np.int64]:
    """Cycles that each instruction kept its free unit waiting, by cause: int64 [instructions, len(CAUSES)].

    The columns of one unit's instructions sum to its stall counters.
    """
    matrix = program.instructions[stage.first : stage.first + stage.count]
    events = done.events
    out = np.zeros((len(matrix), len(CAUSES)), dtype=np.int64)
    reached = np.zeros(len(matrix), dtype=np.int64)  # the unit is idle, explained up to here
    for unit in _WORKERS:
        rows = np.flatnonzero(events[:, 0] == unit)
        reached[rows[1:]] = events[rows[:-1], _FREE]
    workers = np.flatnonzero(events[:, 0] != Unit.FETCH)
    out[workers, 0] = np.maximum(events[workers, _FETCHED] - reached[workers], 0)
    reached = np.maximum(reached, events[:, _FETCHED])
    for s in SEMAPHORES:
        waiters, posters = (np.flatnonzero(matrix[:, k] >> s.index & 1) for k in (1, 2))
        visible = events[posters[: waiters.size], _END]
        out[waiters, 1 + s.index] = np.maximum(visible - reached[waiters], 0)
        reached[waiters] = np.maximum(reached[waiters], visible)
    return out


def layer_report(run: Run) -> list[dict[str, Any]]:
    """One record for every layer the Program has notes of, in program order.

    name, kind, pattern, mapping, stage, macs, useful_macs : as noted.
    begin, end : cycles of its first start and last end within the stage.
    cycles : from the last end of the layers before to its own; layers overlap, so this is what it added.
    busy : cycles by unit;  stalls : cycles by unit and cause, only those that are not 0.
    bound : lower bound in cycles;  ratio : cycles / bound (0 without a bound).
    utilisation : useful MACs over what the array could do in its cycles.
    """
    program = run.program
    out = []
    for stage, done in zip(program.accelerator_stages, run.stages, strict=True):
        waits = stalls(program, stage, done)
        reached = 0
        for note in program.layers:
            first, last = note.first - stage.first, note.first + note.count - stage.first
            if not 0 <= first < last <= stage.count:
                continue
            events = done.events[first:last]
            # LOADs run ahead into the next layer: what a layer made is what its other units finished.
            own = events[events[:, 0] != Unit.LOAD]
            end = int((own if len(own) else events)[:, _END].max())
            cycles = max(end - reached, 0)
            bound = note.bound(program.spec)
            peak = cycles * program.spec.peak_macs
            out.append(
                {
                    "name": note.name,
                    "kind": note.kind,
                    "pattern": note.pattern,
                    "mapping": note.mapping,
                    "stage": stage.name,
                    "macs": note.macs,
                    "useful_macs": note.useful_macs,
                    "begin": int(events[:, _START].min()),
                    "end": end,
                    "cycles": cycles,
                    "busy": _busy(events),
                    "stalls": _by_cause(events, waits[first:last]),
                    "bound": bound,
                    "ratio": cycles / bound if bound else 0.0,
                    "utilisation": note.useful_macs / peak if peak else 0.0,
                }
            )
            reached = max(reached, end)
    return out


def _busy(events: NDArray[np.int64]) -> dict[str, int]:
    held = events[:, _FREE] - events[:, _START]
    return {u.name.lower(): int(held[events[:, 0] == u].sum()) for u in _WORKERS}


def _by_cause(events: NDArray[np.int64], waits: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    out = {}
    for unit in _WORKERS:
        total = waits[events[:, 0] == unit].sum(axis=0)
        out[unit.name.lower()] = {cause: int(n) for cause, n in zip(CAUSES, total, strict=True) if n}
    return out
