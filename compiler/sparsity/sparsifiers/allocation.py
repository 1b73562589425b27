"""How much each layer should lose when all of them together lose a given share.

Everything here works on weights alone; allocation by cycles is in budget.py.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.patterns import Array

__all__ = ["ALLOCATIONS", "allocate", "check_allocation", "cost_budget"]

Weights = Mapping[str, Array]
Shares = dict[str, float]


def allocate(rule: str, weights: Weights, zeros: float) -> Shares:
    """The share of zeros of every layer.

    rule : one of ALLOCATIONS.  weights : [out, in / groups, *kernel] by layer.  zeros : share over all layers, 0 to 1.
    Raises ModelError for another rule.
    """
    check_allocation(rule)
    return ALLOCATIONS[rule](weights, zeros) if weights else {}


def check_allocation(rule: str) -> None:
    """Raise ModelError for what is neither one of ALLOCATIONS nor cost with a budget."""
    if isinstance(rule, str) and rule.startswith("cost"):
        cost_budget(rule)
    elif rule not in ALLOCATIONS:
        raise ModelError(f"allocation must be {', '.join(ALLOCATIONS)}, or cost with a budget (cost 60%), not {rule!r}")


def cost_budget(rule: str) -> tuple[float, bool]:
    """The share of cycles that "cost 60%" leaves, and whether only the layers' own errors count. Raises ModelError."""
    match = re.fullmatch(r"cost\s+(\d+(?:\.\d+)?)\s*%(\s+by\s+layer)?", rule.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise ModelError(
            f"allocation {rule!r} must be cost with a budget of cycles from above 0% to 100% (cost 60%), "
            "and by layer where only the layers' own errors are to count (cost 60% by layer)"
        )
    return float(match[1]) / 100, match[2] is not None


def uniform(weights: Weights, zeros: float) -> Shares:
    """The same share everywhere."""
    return dict.fromkeys(weights, zeros)


def erk(weights: Weights, zeros: float) -> Shares:
    """Erdős-Rényi-Kernel: densities in proportion to (sum of the dimensions) / (product of the dimensions).

    Evci et al., "Rigging the Lottery" (ICML 2020), section 3: small layers stay denser. Layers that would be denser
    than dense are dense, and the others share what is left.
    """
    dense: set[str] = set()
    sizes = {name: w.size for name, w in weights.items()}
    raw = {name: sum(w.shape) / w.size for name, w in weights.items()}
    budget = (1.0 - zeros) * sum(sizes.values())
    while True:
        sparse = [name for name in weights if name not in dense]
        left = budget - sum(sizes[name] for name in dense)
        unit = left / sum(raw[name] * sizes[name] for name in sparse) if sparse else 0.0
        over = {name for name in sparse if unit * raw[name] > 1.0}
        if not over:
            return {name: 0.0 if name in dense else 1.0 - unit * raw[name] for name in weights}
        # The paper's code makes the largest dense first; the others get denser by it, so none can come back.
        worst = max(raw[name] for name in over)
        dense |= {name for name in over if raw[name] == worst}


def global_threshold(weights: Weights, zeros: float) -> Shares:
    """One threshold of magnitude for all layers."""
    return _by_scores({name: np.abs(w).reshape(-1) for name, w in weights.items()}, zeros)


def lamp(weights: Weights, zeros: float) -> Shares:
    """Layer-adaptive magnitude: w² over the sum of the squares in its layer that are not smaller, one threshold.

    Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (ICLR 2021), equation 3. The largest weight
    of a layer scores 1, so no layer is ever emptied before the others are.
    """
    return _by_scores({name: lamp_scores(w) for name, w in weights.items()}, zeros)


def lamp_scores(weight: Array) -> Array:
    """LAMP scores of all weights, float64, in ascending order."""
    squares = np.sort(np.square(weight.reshape(-1), dtype=np.float64))
    rest = np.cumsum(squares[::-1])[::-1]
    scores: Array = np.divide(squares, rest, out=np.zeros_like(squares), where=rest > 0)
    return scores


def _by_scores(scores: dict[str, Array], zeros: float) -> Shares:
    """Shares of scores that are among the smallest of all."""
    every = np.concatenate(list(scores.values()))
    count = round(every.size * zeros)
    if count == 0:
        return dict.fromkeys(scores, 0.0)
    threshold = np.partition(every, count - 1)[count - 1]
    below = {name: int((s < threshold).sum()) for name, s in scores.items()}
    spare = count - sum(below.values())  # of those that are equal, the first layers give theirs
    for name, s in scores.items():
        take = min(spare, int((s == threshold).sum()))
        below[name] += take
        spare -= take
    return {name: below[name] / s.size for name, s in scores.items()}


ALLOCATIONS: dict[str, Callable[[Weights, float], Shares]] = {
    "uniform": uniform,
    "erk": erk,
    "lamp": lamp,
    "global": global_threshold,
}
"""Rules by name."""
