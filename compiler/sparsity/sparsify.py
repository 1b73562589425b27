"""The sparsify pass: impose the patterns the user asked for, and name the one each weight has.

What changes is a matter of three choices: the pattern (what the zeros look like), the sparsifier (which weights go,
and what the others do about it) and the allocation (how much each layer loses). Accuracy is the user's business: a
pattern that was trained is found, and kept, without asking for it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from gossamer.arch.errors import ModelError
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.frontend.calibrate import Calibration
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import array_weight, model_weight
from gossamer.compiler.frontend.ops import Array, Conv, Linear
from gossamer.compiler.sparsity.branches import branch, sparse_and_low_rank
from gossamer.compiler.sparsity.classify import classify
from gossamer.compiler.sparsity.factor import factor
from gossamer.compiler.sparsity.patterns import (
    NM,
    Channels,
    Combined,
    Dense,
    LowRank,
    Monarch,
    Pattern,
    PlusLowRank,
)
from gossamer.compiler.sparsity.patterns.pattern import percent
from gossamer.compiler.sparsity.permute import permute_for_nm
from gossamer.compiler.sparsity.shrink import drop_dead_channels, remove_channels
from gossamer.compiler.sparsity.sparsifiers.allocation import allocate, check_allocation, cost_budget
from gossamer.compiler.sparsity.sparsifiers.budget import Choice, choose
from gossamer.compiler.sparsity.sparsifiers.cycles import layer_cycles
from gossamer.compiler.sparsity.sparsifiers.inputs import input_moments
from gossamer.compiler.sparsity.sparsifiers.interface import Sparsifier
from gossamer.compiler.sparsity.sparsifiers.interface import sparsifier as sparsifier_of
from gossamer.compiler.sparsity.sparsifiers.moments import Moments, reconstruction_error
from gossamer.compiler.sparsity.sparsifiers.sensitivity import output_errors

__all__ = ["Pruned", "Sparsity", "check_wishes", "prune", "sparsify"]

Sparsity = str | Pattern | Mapping[str, str | Pattern]
"""One pattern for every layer, or {layer name or glob: pattern}; where several globs match, the last one counts.

A text may give several patterns to choose from, joined by "|", when they are allocated by cost."""

Layer = Conv | Linear


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What became of a layer. error : the share of its output energy that pruning took (reconstruction_error)."""

    layer: str
    pattern: str
    zeros: float
    error: float


def sparsify(
    graph: Graph,
    sparsity: Sparsity | None = None,
    *,
    sparsifier: str | Sparsifier = "magnitude",
    allocation: str = "uniform",
    sequential: bool = False,
    permute: bool = False,
    calibration: Calibration | None = None,
    spec: ArchSpec | None = None,
) -> Graph:
    """Impose patterns where asked, and write into every layer the pattern its weight has. See prune.

    Layers' inputs are measured only when the sparsifier or the allocation depends on them; then the error that each
    layer is left with becomes a note.
    """
    method = sparsifier_of(sparsifier)
    measured = method.needs_inputs or allocation.startswith("cost")
    graph, report = prune(
        graph,
        sparsity,
        sparsifier=method,
        allocation=allocation,
        sequential=sequential,
        permute=permute,
        calibration=calibration if measured else None,
        spec=spec,
    )
    if measured:
        graph.notes += [f"{p.layer}: {p.pattern} by {method.name} leaves an error of {p.error:.2%}" for p in report]
    return graph


def check_wishes(sparsity: object, sparsifier: str | Sparsifier, allocation: str, sequential: bool) -> None:
    """Raise ModelError for a choice of how to prune that is misspelt, or that no pattern would make use of."""
    method = sparsifier_of(sparsifier)
    check_allocation(allocation)
    if sparsity is not None and not isinstance(sparsity, str | Pattern | Mapping):
        raise ModelError(
            f"sparsity must be a pattern such as '2:8', or {{layer or glob: pattern}}, not {type(sparsity).__name__}"
        )
    if sparsity is not None and sparsity != {}:
        return
    for what, given, idle in (
        ("allocation", allocation, "uniform"),
        ("sparsifier", method.name, "magnitude"),
        ("sequential", sequential, False),
    ):
        if given != idle:
            raise ModelError(f"{what} {given!r} prunes nothing by itself; say to which pattern with sparsity=")


def prune(
    graph: Graph,
    sparsity: Sparsity | None = None,
    *,
    sparsifier: str | Sparsifier = "magnitude",
    allocation: str = "uniform",
    sequential: bool = False,
    permute: bool = False,
    calibration: Calibration | None = None,
    moments: Mapping[str, Moments] | None = None,
    spec: ArchSpec | None = None,
) -> tuple[Graph, tuple[Pruned, ...]]:
    """The sparsified graph, and a report of every layer that was changed.

    Layers are called as their operation in the graph, which is the model's node. Depthwise convolutions are left
    alone, and so, with a note, is a layer that cannot hold the pattern.

    sparsifier : magnitude, wanda, sparsegpt, or an object like them (see sparsifiers.interface).
    allocation : uniform, erk, lamp or global distribute the pattern's share of zeros among the layers with the same
                 wish; "cost 60%" chooses one of each layer's patterns, so that the layers with a choice take 60% of
                 their cycles as they are, on `spec`, with the least error of the model's outputs: the sum of what
                 each layer's pruning alone does to them. "cost 60% by layer" takes the sum of the layers' own errors
                 instead, which needs no runs of the model.
    sequential : measure a layer's inputs after the layers before it have been pruned, as SparseGPT's authors do.
    permute : first reorder channels, where that is free, so that N:M keeps larger weights.
    calibration : inputs of the model, for sparsifiers that need them, and for errors in outputs instead of weights.
    moments : of the layers' inputs, when they have been measured already (sparsifiers.inputs.input_moments).

    Raises ModelError for an unknown pattern, and for a name that matches no layer.
    """
    check_wishes(sparsity, sparsifier, allocation, sequential)
    method = sparsifier_of(sparsifier)
    graph = graph.copy()
    layers = _layers(graph)
    wishes = _wishes(sparsity)
    for glob in wishes:
        if not any(_matches(op, glob) for op in layers):
            names = ", ".join(op.name for op in layers[:8]) + (", ..." if len(layers) > 8 else "")
            raise ModelError(f"sparsity: {glob!r} matches no layer; the layers are: {names or 'none'}")
    chosen = {op.name: g for op in layers if (g := next((g for g in reversed(wishes) if _matches(op, g)), None))}
    plan = {op.name: _possible(graph, op, wishes[chosen[op.name]]) for op in layers if op.name in chosen}
    busy = [op for op in layers if any(p != Dense() for p in plan.get(op.name, ()))]
    work = _Work(graph, method, calibration, moments, sequential)
    if allocation.startswith("cost"):
        final = _by_cost(work, busy, plan, allocation, spec)
    else:
        final = _by_share(work, busy, plan, chosen, allocation)
    rebuilt = _rebuild(work, final)
    if permute:
        work.change(permute_for_nm(work.graph, {name: p for name, p in final.items() if isinstance(p, NM)})[0])
    return _impose(work, final, rebuilt, spec)


def _rebuild(work: "_Work", final: dict[str, Pattern]) -> dict[str, Pruned]:
    """Remove channels and factor matrices where that is wished; `final` keeps what zeros are still to be made."""
    reports: dict[str, Pruned] = {}
    shares = {}
    for name, pattern in final.items():
        first = pattern.parts[0] if isinstance(pattern, Combined) else pattern
        if isinstance(first, Channels):
            shares[name] = first.sparsity
            final[name] = pattern.rest if isinstance(pattern, Combined) else Dense()
    if shares:
        before = {op.name: op for op in _layers(work.graph) if op.name in shares}
        smaller, lost = remove_channels(work.graph, shares, work.moments([*before.values()]))
        work.change(smaller)
        for name, error in lost.items():
            kept = work.layer(name).weight.size / before[name].weight.size
            reports[name] = Pruned(layer=name, pattern=f"channels {percent(shares[name])}", zeros=1 - kept, error=error)
    for name, pattern in [*final.items()]:
        if isinstance(pattern, Monarch | LowRank | PlusLowRank):
            reports[name] = _split(work, work.layer(name), pattern)
            final[name] = Dense()
    return reports


def _split(work: "_Work", op: Layer, pattern: Monarch | LowRank | PlusLowRank) -> Pruned:
    """Make a matrix a product of two, or two branches."""
    moments = work.moments([op]).get(op.name)
    whole = work.weight(op)
    sparse = np.zeros(whole.shape[:2])
    if isinstance(pattern, PlusLowRank):
        inputs = moments if work.method.needs_inputs else None
        sparse, pair = sparse_and_low_rank(
            whole.reshape(whole.shape[:2]).astype(np.float64),
            lambda rest: work.method(rest.reshape(whole.shape), pattern.sparse, inputs).reshape(rest.shape),
            pattern.rank,
            None if inputs is None else inputs.gram[0],
        )
        names = branch(work.graph, op, sparse, pair)
    else:
        names = factor(work.graph, op, pattern)
    a, b = (part.reshape(part.shape[:2]) for part in (work.layer(name).weight for name in names))
    error = reconstruction_error(whole, (sparse + b @ a).reshape(whole.shape), moments)
    zeros = 1.0 - sum(int(np.count_nonzero(part)) for part in (sparse, a, b)) / whole.size
    return Pruned(layer=op.name, pattern=str(pattern), zeros=zeros, error=error)


def _impose(
    work: "_Work", final: dict[str, Pattern], reports: dict[str, Pruned], spec: ArchSpec | None
) -> tuple[Graph, tuple[Pruned, ...]]:
    """Make the zeros, drop what they leave without use, and name the patterns."""
    busy = [op for op in _layers(work.graph) if final.get(op.name, Dense()) != Dense()]
    for op in busy:
        pattern = final[op.name]
        refusal = pattern.refusal(work.weight(op).shape)
        if refusal:  # it had more channels when it was asked
            work.graph.notes.append(f"{op.name}: left as it is instead of {pattern}: {refusal}")
            continue
        weight, error = work.pruned(op, pattern, busy)
        work.graph.replace(op.name, replace(op, weight=model_weight(work.graph, op, weight)))
        zeros = 1.0 - float((weight != 0).mean())
        before = reports.get(op.name)
        if before is not None:  # some of its channels went first
            pattern_text, zeros = f"{before.pattern} + {pattern}", 1.0 - (1.0 - before.zeros) * (1.0 - zeros)
            error = before.error + (1.0 - before.error) * error
        else:
            pattern_text = str(pattern)
        reports[op.name] = Pruned(layer=op.name, pattern=pattern_text, zeros=zeros, error=error)
    graph = drop_dead_channels(work.graph, 8 if spec is None else spec.block, spec)
    for op in _layers(graph):
        groups = op.groups if isinstance(op, Conv) else 1
        graph.replace(op.name, replace(op, pattern=str(classify(array_weight(graph, op, op.weight), groups))))
    return graph, tuple(reports.values())


def _layers(graph: Graph) -> list[Layer]:
    return [op for op in graph.order() if isinstance(op, Layer)]


class _Work:
    """A graph whose layers are pruned one by one, and what is known of their inputs."""

    def __init__(
        self,
        graph: Graph,
        method: Sparsifier,
        calibration: Calibration | None,
        moments: Mapping[str, Moments] | None,
        sequential: bool,
    ) -> None:
        self.graph, self.method, self.calibration, self.sequential = graph, method, calibration, sequential
        self.given = moments is not None
        self.known = dict(moments or {})

    def change(self, graph: Graph) -> None:
        """Go on with a graph of other shapes."""
        if self.given:
            raise ModelError("moments that were measured before channels moved do not fit; give calibration")
        self.graph, self.known = graph, {}

    def layer(self, name: str) -> Layer:
        """The layer as it is now."""
        op = self.graph.op(name)
        assert isinstance(op, Layer)
        return op

    def weight(self, op: Layer) -> Array:
        """The weight as the array sees it."""
        return array_weight(self.graph, op, op.weight)

    def moments(self, layers: list[Layer]) -> Mapping[str, Moments]:
        """Moments of the inputs of these layers as the graph is now; nothing where nobody needs them."""
        missing = [op for op in layers if op.name not in self.known]
        if missing and not self.given and (self.method.needs_inputs or self.calibration is not None):
            self.known |= input_moments(self.graph, missing, self.calibration)
        return self.known

    def pruned(self, op: Layer, pattern: Pattern, others: list[Layer]) -> tuple[Array, float]:
        """The weight with the pattern, and the error it leaves. Layers beside it are measured with it."""
        if pattern == Dense():
            return self.weight(op), 0.0
        alike = [other for other in others if other.inputs[0] == op.inputs[0]] if self.sequential else others
        weight, moments = self.weight(op), self.moments(alike).get(op.name)
        after = self.method(weight, pattern, moments)
        return after, reconstruction_error(weight, after, moments)


# --- what is wished, and what is possible ---------------------------------------------------------------------------


def _wishes(sparsity: Sparsity | None) -> dict[str, tuple[Pattern, ...]]:
    if sparsity is None:
        return {}
    if isinstance(sparsity, str | Pattern):
        sparsity = {"*": sparsity}
    wishes = {glob: tuple(_parse(wish)) for glob, wish in sparsity.items()}
    for patterns in wishes.values():
        for pattern in patterns:
            if not pattern.imposable:
                raise ModelError(f"sparsity: {pattern} is a property of the layer and cannot be imposed")
    return wishes


def _parse(wish: str | Pattern) -> Iterable[Pattern]:
    if isinstance(wish, Pattern):
        return (wish,)
    if not isinstance(wish, str):
        raise ModelError(f"sparsity: a layer's pattern must be text such as '2:8', not {type(wish).__name__}")
    return map(Pattern.parse, wish.split("|"))


def _matches(op: Layer, glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in (op.name, *op.source))


def _possible(graph: Graph, op: Layer, patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """The patterns the layer can hold, with a note of the others; dense when it can hold none."""
    if isinstance(op, Conv) and op.fixed:
        return (Dense(),)
    weight = array_weight(graph, op, op.weight)
    depthwise = isinstance(op, Conv) and op.groups > 1 and weight.shape[1] == 1
    found = []
    for pattern in patterns:
        refusal = "a depthwise convolution has one weight per channel" if depthwise else pattern.refusal(weight.shape)
        if isinstance(pattern, Monarch | LowRank | PlusLowRank) and isinstance(op, Conv) and op.groups > 1:
            refusal = refusal or "a grouped convolution is no single matrix"
        if pattern != Dense() and refusal:
            graph.notes.append(f"{op.name}: left as it is instead of {pattern}: {refusal}")
        else:
            found.append(pattern)
    return tuple(found) or (Dense(),)


# --- how much each layer loses ---------------------------------------------------------------------------------------


def _by_share(
    work: _Work, layers: list[Layer], plan: Mapping[str, tuple[Pattern, ...]], wish: Mapping[str, str], rule: str
) -> dict[str, Pattern]:
    """Shares of zeros by a rule on the weights, apart for every wish."""
    several = next((op for op in layers if len(plan[op.name]) > 1), None)
    if several is not None:
        patterns = " | ".join(map(str, plan[several.name]))
        raise ModelError(
            f"sparsity: {several.name!r} has the choice of {patterns}; a choice is made by cost, not {rule!r}: "
            "use allocation cost with a budget (cost 60%)"
        )
    final: dict[str, Pattern] = {op.name: plan[op.name][0] for op in layers}
    for glob in dict.fromkeys(wish[op.name] for op in layers):
        pool = {op.name: work.weight(op) for op in layers if wish[op.name] == glob}
        pattern = final[next(iter(pool))]
        shares = allocate(rule, pool, pattern.zeros)
        if rule != "uniform":
            final |= {name: pattern.with_zeros(share) for name, share in shares.items()}
    return final


def _by_cost(
    work: _Work, layers: list[Layer], plan: Mapping[str, tuple[Pattern, ...]], text: str, spec: ArchSpec | None
) -> dict[str, Pattern]:
    """The least error under a budget of cycles."""
    share, by_layer = cost_budget(text)
    if spec is None:
        raise ModelError("allocation by cost needs the spec on which cycles are counted")
    if work.sequential:
        raise ModelError("allocation by cost compares layers before any is pruned; it cannot be sequential")
    weights: dict[str, list[Array]] = {}
    errors: dict[str, list[float]] = {}
    for op in layers:
        for pattern in plan[op.name]:
            if not pattern.only_zeros:
                raise ModelError(f"allocation by cost chooses among patterns of zeros, and {pattern} changes shapes")
            weight, error = work.pruned(op, pattern, layers)
            weights.setdefault(op.name, []).append(weight)
            errors.setdefault(op.name, []).append(error)
    whole = sum(layer_cycles(work.graph, op, work.weight(op), spec) for op in layers)
    cycles = {op.name: [layer_cycles(work.graph, op, w, spec) for w in weights[op.name]] for op in layers}
    if not by_layer:
        errors = output_errors(work.graph, weights, work.calibration)
    choices = {
        op.name: [
            Choice(pattern=pattern, cycles=c, error=e)
            for pattern, c, e in zip(plan[op.name], cycles[op.name], errors[op.name], strict=True)
        ]
        for op in layers
    }
    return {name: choice.pattern for name, choice in choose(choices, whole * share).items()}
