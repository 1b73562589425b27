"""Facts about where a run's time went, as plain data for `gossamer explain` and for scripts."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.arch.program import Program
    from gossamer.arch.run import Run
    from gossamer.trials import Trial

__all__ = ["INSIDE", "MEANING", "explain"]

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


def explain(what: "Run | Program | str | Path", trials: "Iterable[Trial]" = ()) -> dict[str, Any]:
    """Where the cycles of a run went (gossamer.sim.breakdown), with trials of changes, the best first.

    what : a run; a Program, or its file, is simulated first (time only).  trials : of gossamer.trials.try_changes.

    Raises GossamerError when the Program has no notes on its layers, and what loading and simulating raise.
    """
    from gossamer.api import simulate
    from gossamer.arch.run import Run
    from gossamer.sim.breakdown import break_down  # numba: only who has a run pays for it

    found = break_down(what if isinstance(what, Run) else simulate(what))
    tried = [asdict(t) for t in trials]
    return {
        "kind": "explanation",
        "program": found.program,
        "spec": found.spec,
        "cycles": found.cycles,
        "bound": found.bound,
        "ideal": found.ideal,
        "ratio": found.cycles / found.bound if found.bound else 0.0,
        "parts": found.total.to_dict(),
        "end": found.end,
        "layers": [{**asdict(layer), "parts": layer.parts.to_dict()} for layer in found.layers],
        "trials": tried,
        "best": tried[0]["change"] if tried and tried[0]["speedup"] > 1 else None,
    }
