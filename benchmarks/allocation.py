"""Rules that distribute zeros among layers, each given the same cycles: what is left of a network."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import sources
from encoder import cosine, embeddings, prose
from rich.table import Table

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.frontend.calibrate import samples
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import array_weight
from gossamer.compiler.frontend.ops import Conv, Linear
from gossamer.compiler.passes import import_model, run_passes
from gossamer.compiler.sparsity.patterns import Pattern
from gossamer.compiler.sparsity.sparsifiers.allocation import allocate
from gossamer.compiler.sparsity.sparsifiers.cycles import layer_cycles
from gossamer.compiler.sparsity.sparsifiers.inputs import input_moments
from gossamer.compiler.sparsity.sparsify import prune

__all__ = ["compare"]

LEVELS = ("dense", "6:8", "4:8", "2:8")
"""What a layer may become: with two MACs for a window of eight, each saves a step a window. In the order of zeros."""

HALVINGS = 9
"""Of the interval in which the share of zeros is looked for that takes a budget of cycles."""

TOKENS = 128
"""Of a sentence: as many as the array needs not to wait for weights."""

BATCH = 4
"""Images of digits; 596 are to be classified."""

Plan = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network with its calibration, and what is measured of it. what : the measure's name."""

    graph: Graph
    calibration: list[sources.Feed]
    what: str
    measure: Callable[[Graph], float]


def compare(spec_name: str, networks: list[str]) -> Table:
    """A table of all rules within the cycles of uniform 6:8, of uniform 4:8 and half way between, and so on."""
    spec = ArchSpec.load(spec_name)
    table = Table(title=f"within the same cycles on {spec.name}, over those of the dense layers; Wanda")
    for column in ("network", "budget", "allocation", "zeros", "cycles", "cosine or accuracy"):
        table.add_column(column, justify="left" if column in ("network", "allocation") else "right")
    for name in networks:
        subject = _minilm() if name == "minilm" else _digits()
        trial = _Trial(subject, spec)
        uniform = [trial.cycles(dict.fromkeys(trial.weights, level)) for level in LEVELS]
        for budget in (uniform[1], (uniform[1] + uniform[2]) / 2, uniform[2], (uniform[2] + uniform[3]) / 2):
            plans = {rule: trial.within(rule, budget) for rule in ("uniform", "erk", "lamp", "global")}
            plans["cost by layer"] = trial.by_cost(budget, " by layer")
            plans["cost"] = trial.by_cost(budget, "")
            for rule, plan in plans.items():
                zeros, cycles, left = trial.result(plan)
                table.add_row(
                    f"{name} ({subject.what})", f"{budget:.3f}", rule, f"{zeros:.3f}", f"{cycles:.3f}", f"{left:.4f}"
                )
    return table


class _Trial:
    """One network on one spec: what its layers cost with each level, and what a plan leaves of it."""

    def __init__(self, subject: Subject, spec: ArchSpec) -> None:
        self.subject, self.spec = subject, spec
        graph = subject.graph
        pool = [op for op in graph.order() if isinstance(op, Conv | Linear)]
        weights = {op.name: array_weight(graph, op, op.weight) for op in pool}
        self.weights = {n: w for n, w in weights.items() if not Pattern.parse(LEVELS[-1]).refusal(w.shape)}
        layers = [op for op in pool if op.name in self.weights]
        self.moments = input_moments(graph, layers, subject.calibration)
        self.costs = {
            op.name: {
                level: layer_cycles(graph, op, weights[op.name] * Pattern.parse(level).mask(weights[op.name]), spec)
                for level in LEVELS
            }
            for op in layers
        }
        self.whole = sum(costs["dense"] for costs in self.costs.values())

    def cycles(self, plan: Plan) -> float:
        """Over those of the dense layers."""
        return sum(self.costs[name][level] for name, level in plan.items()) / self.whole

    def within(self, rule: str, budget: float) -> Plan:
        """The plan of a rule with the largest share of zeros that the budget asks for."""
        low, high = 0.0, 0.75
        best = dict.fromkeys(self.weights, LEVELS[-1])
        for _ in range(HALVINGS):
            share = (low + high) / 2
            plan = {name: _nearest(zeros) for name, zeros in allocate(rule, self.weights, share).items()}
            if self.cycles(plan) <= budget * (1 + 1e-9):
                best, high = plan, share
            else:
                low = share
        return best

    def by_cost(self, budget: float, how: str) -> Plan:
        """What the compiler chooses."""
        wish = dict.fromkeys(self.weights, " | ".join(LEVELS))
        _, report = prune(
            self.subject.graph, wish, sparsifier="wanda", allocation=f"cost {budget:.4%}{how}", spec=self.spec,
            moments=self.moments, calibration=self.subject.calibration[:8],
        )  # fmt: skip
        return dict.fromkeys(self.weights, "dense") | {layer.layer: layer.pattern for layer in report}

    def result(self, plan: Plan) -> tuple[float, float, float]:
        """Share of zeros, cycles, and what is measured."""
        pruned, report = prune(self.subject.graph, plan, sparsifier="wanda", moments=self.moments)
        zeros = sum(layer.zeros * self.weights[layer.layer].size for layer in report)
        size = sum(w.size for w in self.weights.values())
        return zeros / size, self.cycles(plan), self.subject.measure(pruned)


def _nearest(zeros: float) -> str:
    return min(LEVELS, key=lambda level: abs(Pattern.parse(level).zeros - zeros))


def _minilm() -> Subject:
    """Cosine of sentence vectors with those of the dense network."""
    graph = run_passes(import_model(sources.load("minilm").model, {"batch": 1, "sequence": TOKENS}), until="partition")
    trial = samples(graph, sources.tokens(sources.SENTENCES, TOKENS))
    dense = embeddings(export_model(graph), trial)
    return Subject(
        graph=graph,
        calibration=prose(64, TOKENS),
        what="cosine",
        measure=lambda pruned: cosine(dense, embeddings(export_model(pruned), trial)),
    )


def _digits() -> Subject:
    """Accuracy of the network that was trained dense."""
    sys.path.append(str(Path(__file__).parents[1] / "examples" / "digits"))
    from data import load, model_path

    training, test = load()
    graph = run_passes(import_model(onnx.load(model_path("digits-dense")), {"batch": BATCH}), until="partition")
    feeds: list[list[sources.Feed]] = [
        [{"image": images[i : i + BATCH]} for i in range(0, len(images), BATCH)]
        for images in (test.images, training.images[:256])
    ]

    def accuracy(pruned: Graph) -> float:
        found = embeddings(export_model(pruned), feeds[0]).argmax(axis=1)
        return float((found == test.labels).mean())

    return Subject(graph=graph, calibration=feeds[1], what="accuracy", measure=accuracy)
