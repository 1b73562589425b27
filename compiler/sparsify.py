"""The sparsify pass: name the pattern each weight has, after imposing the one the user asked for.

Imposing keeps the largest weights and sets the others to zero. Accuracy is the user's business: a pattern that was
trained is found, and kept, without asking for it.
"""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from gossamer.arch.errors import ModelError
from gossamer.compiler.classify import classify
from gossamer.compiler.graph import Graph
from gossamer.compiler.layout import array_weight, model_weight
from gossamer.compiler.ops import Conv, Linear
from gossamer.compiler.patterns import Dense, Pattern

__all__ = ["Sparsity", "sparsify"]

Sparsity = str | Pattern | Mapping[str, str | Pattern]
"""One pattern for every layer, or {layer name or glob: pattern}; where several globs match, the last one counts."""


def sparsify(graph: Graph, sparsity: Sparsity | None = None) -> Graph:
    """Impose patterns by magnitude where asked, and write into every layer the pattern its weight has.

    Layers are called as their operation in the graph, which is the model's node. Depthwise convolutions are left
    alone, and so, with a note, is a layer that cannot hold the pattern. Raises ModelError for an unknown pattern, and
    for a name that matches no layer.
    """
    graph = graph.copy()
    layers = [op for op in graph.order() if isinstance(op, Conv | Linear)]
    wishes = _wishes(sparsity)
    for glob in wishes:
        if not any(_matches(op, glob) for op in layers):
            names = ", ".join(op.name for op in layers[:8]) + (", ..." if len(layers) > 8 else "")
            raise ModelError(f"sparsity: {glob!r} matches no layer; the layers are: {names or 'none'}")
    for op in layers:
        wish = next((p for glob, p in reversed(wishes.items()) if _matches(op, glob)), None)
        graph.replace(op.name, _with_pattern(graph, op, wish))
    return graph


def _wishes(sparsity: Sparsity | None) -> dict[str, Pattern]:
    if sparsity is None:
        return {}
    if isinstance(sparsity, str | Pattern):
        sparsity = {"*": sparsity}
    wishes = {glob: Pattern.parse(pattern) for glob, pattern in sparsity.items()}
    for pattern in wishes.values():
        if not pattern.imposable:
            raise ModelError(f"sparsity: {pattern} is a property of the layer and cannot be imposed")
    return wishes


def _matches(op: Conv | Linear, glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in (op.name, *op.source))


def _with_pattern(graph: Graph, op: Conv | Linear, wish: Pattern | None) -> Conv | Linear:
    groups = op.groups if isinstance(op, Conv) else 1
    weight = array_weight(graph, op, op.weight)
    if wish is not None and wish != Dense() and not (isinstance(op, Conv) and op.fixed):
        depthwise = groups > 1 and weight.shape[1] == 1
        refusal = "a depthwise convolution has one weight per channel" if depthwise else wish.refusal(weight.shape)
        if refusal:
            graph.notes.append(f"{op.name}: left as it is instead of {wish}: {refusal}")
        else:
            weight = np.where(wish.mask(weight), weight, np.zeros((), weight.dtype))
            op = replace(op, weight=model_weight(graph, op, weight))
    return replace(op, pattern=str(classify(weight, groups)))
