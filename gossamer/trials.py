"""What one change of spec or pattern would bring: each is compiled and simulated, nothing is estimated."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gossamer.arch.errors import GossamerError
from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.changes import Change, changes

if TYPE_CHECKING:
    from gossamer.arch.run import Run
    from gossamer.compiler.layers import Network

__all__ = ["Trial", "best", "ranked", "try_changes"]

PATTERNS = ("4:8", "2:8")
"""Imposed on layers that can hold them and have more nonzeros now."""

_PATTERN_PARTS = ("array", "bus", "imbalance", "metadata", "lanes", "traffic", "start", "memory", "waiting")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A change and what it did.

    cycles : None when it was not tried or could not be compiled, for `reason`.
    whose : who can make it: "accelerator", "memory" (a property of what it is connected to) or "weights".
    parts : what it can reduce, and room : the cycles of that in the run without the change.
    macs, buffer_bytes : of the changed spec over those of the given one: what the change costs.
    from_host, to_host : stages that run on the array now, and those that no longer do: its cycles are of other work.
    work : MACs of the layers on the array, over those without the change.
    """

    change: str
    cycles: int | None
    speedup: float
    macs: float
    buffer_bytes: float
    reason: str = ""
    whose: str = "accelerator"
    parts: tuple[str, ...] = ()
    room: float = 0.0
    from_host: tuple[str, ...] = ()
    to_host: tuple[str, ...] = ()
    work: float = 1.0

    @property
    def same_work(self) -> bool:
        """Whether the array runs the same layers, so that cycles compare."""
        return not self.from_host and not self.to_host


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Trials that run the same layers, the fastest first; then those that run others, the most work first."""
    return sorted(trials, key=lambda t: (not t.same_work, -t.speedup if t.same_work else -t.work, -t.speedup))


def best(trials: Iterable[Trial]) -> Trial | None:
    """The change that helps most: of those that can be made to accelerator or weights and run the same layers."""
    found = [t for t in trials if t.same_work and t.whose != "memory" and t.speedup > 1]
    return max(found, key=lambda t: t.speedup, default=None)


def try_changes(
    network: "Network",
    run: "Run",
    progress: Callable[[str, int, int], object] | None = None,
    *,
    refine: bool = False,
    chains: bool = True,
    limit: int | None = None,
) -> list[Trial]:
    """Compile and simulate the network with one change at a time; see `ranked` for their order.

    run : of the network compiled for its spec as it is.  refine, chains : as in gossamer.compile.
    limit : most changes to try, those for the parts that take most cycles; the others come last, with the reason.
    What can only reduce parts that take no cycles is not tried either. Patterns are imposed on the quantised weights
    by magnitude: right for time, which does not depend on what the weights are, and no statement on accuracy.
    """
    if not run.program.layers:
        return []
    room, spec = _room(run), run.program.spec
    shares = {name: cycles / max(run.cycles, 1) for name, cycles in room.items()}
    jobs = [_Job(change=c, network=network, room=_sum(room, c.parts)) for c in changes(spec, shares)]
    for pattern in PATTERNS:
        pruned = _pruned(network, pattern)
        if pruned is not None:
            change = Change(text=f"pattern {pattern}", spec=spec, parts=_PATTERN_PARTS, whose="weights")
            jobs.append(_Job(change=change, network=pruned, room=_sum(room, _PATTERN_PARTS)))
    jobs.sort(key=lambda job: (bool(_in_vain(job)), -job.room))
    chosen = [job for job in jobs if not _in_vain(job)][:limit]
    found: list[Trial] = []
    for job in chosen:
        if progress:
            progress(f"try {job.change.text}", len(found), len(chosen))
        found.append(_measured(job, run, refine=refine, chains=chains))
    for job in jobs[len(chosen) :]:
        found.append(_untried(job, spec, f"not tried: {_in_vain(job) or f'only {limit} were to be'}"))
    return ranked(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """A change to try. room : cycles of the parts that it can reduce."""

    change: Change
    network: "Network"
    room: float


def _in_vain(job: _Job) -> str:
    """Why a trial would be in vain, if it would."""
    nothing = job.change.only and not round(job.room)
    return job.change.reason or (f"no cycles of {', '.join(job.change.parts)}" if nothing else "")


def _sum(room: Mapping[str, float], parts: Iterable[str]) -> float:
    return sum(room[name] for name in parts)


def _room(run: "Run") -> dict[str, float]:
    """Cycles of a run by part, of the bounds by what limits them, and what the host's MACs would take at full rate."""
    from gossamer.sim.breakdown import break_down

    found = break_down(run)
    array = sum(layer.bound for layer in found.layers if layer.limit == "array")
    host = sum(max(1.0, stage.macs / run.program.spec.peak_macs) for stage in run.program.host_stages)
    return {**found.total.to_dict(), "array": array, "bus": found.bound - array, "host": host}


def _host(program: Program) -> list[str]:
    return [stage.name for stage in program.host_stages]


def _untried(job: _Job, spec: ArchSpec, reason: str = "") -> Trial:
    changed = job.change.spec
    return Trial(
        change=job.change.text,
        cycles=None,
        speedup=0.0,
        macs=changed.peak_macs / spec.peak_macs,
        buffer_bytes=sum(changed.buffer_bytes.values()) / sum(spec.buffer_bytes.values()),
        reason=reason,
        whose=job.change.whose,
        parts=job.change.parts,
        room=job.room,
    )


def _measured(job: _Job, run: "Run", *, refine: bool, chains: bool) -> Trial:
    from gossamer.api import compile
    from gossamer.sim.simulate import simulate

    before, trial = run.program, _untried(job, run.program.spec)
    try:
        with warnings.catch_warnings():  # that nothing is left on the array is in the trial
            warnings.simplefilter("ignore")
            program = compile(replace(job.network, notes=()), job.change.spec, refine=refine, chains=chains)
        cycles = simulate(program, values=False, check=False).cycles
    except GossamerError as error:
        return replace(trial, reason=str(error))
    then, now = _host(before), _host(program)
    work, of = (sum(note.macs for note in p.layers) for p in (program, before))
    return replace(
        trial,
        cycles=cycles,
        speedup=run.cycles / cycles if cycles else 0.0,
        from_host=tuple(name for name in then if name not in now),
        to_host=tuple(name for name in now if name not in then),
        work=work / of if of else 1.0,
    )


def _pruned(network: "Network", pattern: str) -> "Network | None":
    """The network with a pattern on every layer that can hold it; None if that removes no weight."""
    import numpy as np

    from gossamer.compiler.layers import Conv
    from gossamer.compiler.sparsity.patterns import parse_pattern

    wish = parse_pattern(pattern)
    stages, removed = [], 0
    for stage in network.stages:
        if isinstance(stage, Conv) and not wish.refusal(stage.weight.shape):
            # A zero stays zero: the mask counts on magnitudes, and -128 has none in int8.
            mask = wish.mask(np.abs(stage.weight.astype(np.float32)))
            removed += int(np.count_nonzero(stage.weight[~mask]))
            stage = replace(stage, weight=np.where(mask, stage.weight, 0).astype(np.int8), pattern=pattern)
        stages.append(stage)
    return replace(network, stages=tuple(stages)) if removed else None
