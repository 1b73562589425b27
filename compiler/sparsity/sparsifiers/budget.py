"""Allocation by cost: for every layer one of several patterns, so that the error is least and the cycles fit.

A choice of one from each group under a budget (a multiple-choice knapsack), solved exactly by dynamic programming over
cycles counted in STEPS-ths of the budget. Costs are rounded up, so the budget is never exceeded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.patterns import Pattern

__all__ = ["Choice", "choose"]

STEPS = 4000


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A pattern for a layer, the cycles the layer then takes, and how much worse the network gets by it."""

    pattern: Pattern
    cycles: float
    error: float


def choose(layers: Mapping[str, Sequence[Choice]], budget: float) -> dict[str, Choice]:
    """One choice for each layer: the least sum of errors whose cycles add up to no more than the budget.

    Raises ModelError when even the cheapest choices need more.
    """
    least = sum(min(c.cycles for c in choices) for choices in layers.values())
    if least > budget:
        raise ModelError(
            f"allocation: the layers need {least:,.0f} cycles with the cheapest of their patterns; the budget is "
            f"{budget:,.0f}: allow sparser patterns or more cycles"
        )
    unit = budget / STEPS
    best = np.zeros(STEPS + 1)  # least error for at most so many units
    taken: list[np.ndarray] = []
    for choices in layers.values():
        found = np.full(STEPS + 1, np.inf)
        which = np.zeros(STEPS + 1, dtype=np.int64)
        for index, choice in enumerate(choices):
            units = int(np.ceil(choice.cycles / unit - 1e-9))
            if units > STEPS:
                continue
            total = np.full(STEPS + 1, np.inf)
            total[units:] = best[: STEPS + 1 - units] + choice.error
            which[total < found] = index
            found = np.minimum(found, total)
        best = found
        taken.append(which)
    if not np.isfinite(best[STEPS]):  # only rounding up made it too much
        return {name: min(choices, key=lambda c: c.cycles) for name, choices in layers.items()}
    result: dict[str, Choice] = {}
    at = STEPS
    for (name, choices), which in zip(reversed(list(layers.items())), reversed(taken), strict=True):
        result[name] = choices[which[at]]
        at -= int(np.ceil(result[name].cycles / unit - 1e-9))
    return {name: result[name] for name in layers}
