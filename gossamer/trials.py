"""What one change of spec or pattern would bring: each is compiled and simulated, nothing is estimated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gossamer.arch.errors import GossamerError
from gossamer.arch.spec import ArchSpec

if TYPE_CHECKING:
    from gossamer.compiler.layers import Network

__all__ = ["Trial", "changed_specs", "try_changes"]

PATTERNS = ("4:8", "2:8")
"""Imposed on layers that can hold them and have more nonzeros now."""

_DOUBLED = (
    "axi_bytes",
    "ppu",
    "depth",
    "activation_bytes",
    "output_bytes",
    "weight_steps",
    "queue_depth",
    "outstanding_reads",
    "macs",
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A change and what it did. cycles : None when it could not be compiled, for `reason`.

    macs, buffer_bytes : of the changed spec over those of the given one: what the change costs.
    """

    change: str
    cycles: int | None
    speedup: float
    macs: float
    buffer_bytes: float
    reason: str = ""


def changed_specs(spec: ArchSpec) -> Iterator[tuple[str, ArchSpec]]:
    """Neighbours of a spec with one thing changed each, those that are legal."""
    changes: list[tuple[str, dict[str, Any]]] = [
        (f"{name} {getattr(spec, name)} -> {2 * getattr(spec, name)}", {name: 2 * getattr(spec, name)})
        for name in _DOUBLED
    ]
    fine, coarse = 2 * spec.lanes, 2 * spec.columns
    if spec.columns % 2 == 0:
        changes.append((f"lanes x columns -> {fine} x {spec.columns // 2}", {"lanes": fine, "columns": coarse // 4}))
    if spec.lanes % 2 == 0:
        changes.append((f"lanes x columns -> {spec.lanes // 2} x {coarse}", {"lanes": fine // 4, "columns": coarse}))
    changes.append((f"group {spec.group} -> {2 * spec.group}", {"group": 2 * spec.group, "hop": 2 * spec.hop}))
    changes.append((f"read_latency {spec.read_latency} -> 1", {"read_latency": 1}))
    for text, values in changes:
        try:
            yield text, spec.evolve(**values)
        except GossamerError:  # not a legal spec
            continue


def try_changes(
    network: "Network",
    spec: ArchSpec,
    cycles: int,
    progress: Callable[[str, int, int], object] | None = None,
    *,
    refine: bool = False,
    chains: bool = True,
) -> list[Trial]:
    """Compile and simulate the network with one change at a time, the best first.

    cycles : what the network takes on `spec` as it is.  refine, chains : as in gossamer.compile.
    Patterns are imposed on the quantised weights by magnitude:
    right for time, which does not depend on what the weights are, and no statement on accuracy.
    """
    jobs = [(text, network, changed) for text, changed in changed_specs(spec)]
    for pattern in PATTERNS:
        pruned = _pruned(network, pattern)
        if pruned is not None:
            jobs.append((f"pattern {pattern}", pruned, spec))
    found = []
    for done, (text, candidate, changed) in enumerate(jobs):
        if progress:
            progress(f"try {text}", done, len(jobs))
        found.append(_measure(text, replace(candidate, notes=()), changed, spec, cycles, refine=refine, chains=chains))
    return sorted(found, key=lambda t: -t.speedup)


def _measure(
    text: str, network: "Network", changed: ArchSpec, spec: ArchSpec, cycles: int, *, refine: bool, chains: bool
) -> Trial:
    from gossamer.api import compile
    from gossamer.sim.simulate import simulate

    taken, reason = None, ""
    try:
        program = compile(network, changed, refine=refine, chains=chains)
        taken = simulate(program, values=False, check=False).cycles
    except GossamerError as error:
        reason = str(error)
    return Trial(
        change=text,
        cycles=taken,
        speedup=cycles / taken if taken else 0.0,
        macs=changed.peak_macs / spec.peak_macs,
        buffer_bytes=sum(changed.buffer_bytes.values()) / sum(spec.buffer_bytes.values()),
        reason=reason,
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
