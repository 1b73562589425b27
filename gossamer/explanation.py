"""Facts about where a run's time went, as plain data for `gossamer explain` and for scripts."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.arch.program import Program
    from gossamer.arch.run import Run
    from gossamer.sim.breakdown import LayerParts
    from gossamer.trials import Trial

__all__ = ["IDLE", "INSIDE", "MEANING", "explain"]

MEANING = {
    "columns": "columns without a channel (inside the bound)",
    "imbalance": "slots of steps without a nonzero (inside the bound)",
    "metadata": "selects and padding of weight records (inside the bound)",
    "lanes": "lanes without a position",
    "traffic": "padding channels, halos, operands loaded again, offsets",
    "ppu": "the PPUs need longer than array and buses",
    "start": "before a layer's first MATMUL: what could not be loaded ahead",
    "memory": "waiting for data on the bus",
    "drain": "waiting for PPUs or for room in the output buffer",
    "waiting": "waiting for loads that had to wait themselves",
    "fetch": "waiting for instructions",
    "tail": "drain and store after the last MATMUL",
    "hidden": "loads done in the time of other layers",
}
"""What each part is, for reports."""

INSIDE = ("columns", "imbalance", "metadata")
"""Parts that lie between the ideal and the bound; the others sum to cycles - bound."""


IDLE = {
    "empty": "slots without a nonzero",
    "columns": "columns without a channel",
    "lanes": "lanes without a position",
    "still": "the array stands still",
}
"""Why MACs idle, for reports: what a layer's cycles x lanes x columns x macs hold beside products."""

IDLE_LAYER = 0.1
"""A layer that keeps a smaller share of the MACs busy is named, with the reasons."""


def explain(what: "Run | Program | str | Path", trials: "Iterable[Trial]" = ()) -> dict[str, Any]:
    """Where the cycles of a run went (gossamer.sim.breakdown), with trials of changes, the best first.

    what : a run; a Program, or its file, is simulated first (time only).  trials : of gossamer.trials.try_changes.

    Raises GossamerError when the Program has no notes on its layers, and what loading and simulating raise.
    """
    from gossamer.api import simulate
    from gossamer.arch.run import Run
    from gossamer.inspection import host_stages
    from gossamer.sim.breakdown import break_down  # numba: only who has a run pays for it
    from gossamer.trials import best, ranked

    run = what if isinstance(what, Run) else simulate(what)
    found, host = break_down(run), host_stages(run.program)
    tried = ranked(trials)
    helps = best(tried)
    return {
        "kind": "explanation",
        "program": found.program,
        "spec": found.spec,
        "cycles": found.cycles,
        "bound": found.bound,
        "ideal": found.ideal,
        "ratio": found.cycles / found.bound if found.bound else 0.0,
        "utilisation": found.macs.useful / max(found.cycles, 1),
        "macs": found.macs.to_dict(),
        "parts": found.total.to_dict(),
        "end": found.end,
        "host": host,
        "layers": [
            {**asdict(layer), "utilisation": layer.macs.useful / max(layer.cycles, 1), "idle": _idle(layer)}
            for layer in found.layers
        ],
        "trials": [{**asdict(t), "same_work": t.same_work} for t in tried],
        "best": helps.change if helps else None,
    }


def _idle(layer: "LayerParts") -> str:
    """Why a layer leaves most MACs idle, the longest first; empty where it keeps enough of them busy."""
    shares = {name: value / max(layer.cycles, 1) for name, value in layer.macs.to_dict().items()}
    if shares.pop("useful") >= IDLE_LAYER:
        return ""
    why = dict.fromkeys(IDLE, "")
    works = layer.cycles - layer.macs.still
    # Seventeen positions on sixteen lanes leave fifteen of 32 places without one: half is what too small a map leaves.
    why["lanes"] = "fewer positions than lanes" if layer.macs.lanes >= works / 2 else "no lane grid divides the map"
    if layer.kind == "maxpool":
        why["empty"] = "a maximum has no products"
    elif layer.pattern.startswith("depthwise"):
        why["empty"] = "each column reads a channel of its own"
    if layer.bound > works:
        why["still"] = f"the {layer.limit} bus needs longer"
    named = sorted(((n, v) for n, v in shares.items() if v >= 0.01), key=lambda item: -item[1])
    return ", ".join(f"{IDLE[n]} {v:.1%}" + (f" ({why[n]})" if why[n] else "") for n, v in named)
