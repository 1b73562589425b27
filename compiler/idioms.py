"""Functions that exporters write as several operations: HardSwish, SiLU, GELU, Mish, HardSigmoid.

A cone of element-wise operations that depends on one tensor is one function of one number, however it is written. So
the cones are evaluated on probe points and compared with the functions the accelerator knows, instead of matching
each exporter's spelling.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.compiler.functions import Function
from gossamer.compiler.graph import Graph
from gossamer.compiler.ops import Activation, Add, Affine, Host, Op

__all__ = ["recognise_functions"]

Real = NDArray[np.float64]

_PROBES: Real = np.concatenate([np.linspace(-8.0, 8.0, 129), [-0.3, 0.7, 2.71, -5.3, 1e-3]])

_KNOWN = tuple(
    Function(kind=kind, alpha=alpha, beta=beta)
    for kind, alpha, beta in (
        ("hard_swish", 0, 0),
        ("silu", 0, 0),
        ("gelu", 0, 0),
        ("gelu_tanh", 0, 0),
        ("mish", 0, 0),
        ("hard_sigmoid", 1 / 6, 0.5),
        ("hard_sigmoid", 0.2, 0.5),
        ("sigmoid", 0, 0),
        ("softplus", 0, 0),
    )
)
_KNOWN_VALUES = np.stack([f(_PROBES) for f in _KNOWN])


@dataclass(frozen=True, kw_only=True)
class _Cone:
    """A tensor as a function of one other tensor: its values at the probe points."""

    root: str
    values: Real
    size: int


def recognise_functions(graph: Graph) -> Graph:
    """Replace the last operation of each recognised cone by one Activation; what it no longer needs is pruned."""
    graph = graph.copy()
    cones: dict[str, _Cone] = {}
    for op in graph.order():
        cone = _cone(graph, op, cones)
        if cone is None:
            continue
        cones[op.output] = cone
        function = _match(cone.values) if cone.size > 1 else None
        if function is not None and graph.info(cone.root).shape == graph.info(op.output).shape:
            inside = _sources(graph, op, cone.root)
            new = Activation(
                name=op.name, inputs=(cone.root,), outputs=op.outputs[:1], source=inside, function=function
            )
            graph.replace(op.name, new)
    graph.prune()
    return graph


def _match(values: Real) -> Function | None:
    distance = np.abs(_KNOWN_VALUES - values).max(axis=1)
    best = int(distance.argmin())
    return _KNOWN[best] if distance[best] < 2e-5 else None


def _sources(graph: Graph, op: Op, root: str) -> tuple[str, ...]:
    """Names of the model's nodes between root and op."""
    found: dict[str, None] = {}
    todo = [op]
    while todo:
        current = todo.pop()
        found.update(dict.fromkeys(reversed(current.source)))
        todo += [p for t in current.reads if t != root and (p := graph.producer(t)) is not None]
    return tuple(reversed(found))


def _cone(graph: Graph, op: Op, cones: dict[str, _Cone]) -> _Cone | None:
    """The operation's output as a function of one tensor, or None."""

    def of(tensor: str) -> _Cone:
        return cones.get(tensor) or _Cone(root=tensor, values=_PROBES, size=0)

    if isinstance(op, Activation):
        x = of(op.inputs[0])
        return _Cone(root=x.root, values=op.function(x.values), size=x.size + 1)
    if isinstance(op, Affine) and not op.residual:
        if np.ptp(op.scale) or np.ptp(op.shift):
            return None
        x = of(op.inputs[0])
        return _Cone(root=x.root, values=op.scale[0] * x.values + op.shift[0], size=x.size + 1)
    if isinstance(op, Add) or (isinstance(op, Host) and op.node.op_type == "Mul"):
        a, b = (cones.get(t) for t in op.inputs[:2])
        root = (a or b or of(op.inputs[0])).root
        x, y = (of(t) if t != root else _Cone(root=root, values=_PROBES, size=0) for t in op.inputs[:2])
        if x.root != root or y.root != root:
            return None
        values = x.values + y.values if isinstance(op, Add) else x.values * y.values
        return _Cone(root=root, values=values, size=x.size + y.size + 1)
    return _unary(graph, op, of(op.inputs[0])) if isinstance(op, Host) and op.inputs and op.inputs[0] else None


def _unary(graph: Graph, op: Host, x: _Cone) -> _Cone | None:
    """Operations that only ever appear inside such cones."""
    kind = op.node.op_type
    with np.errstate(all="ignore"):
        if kind == "Erf":
            values = np.array([math.erf(v) for v in x.values])
        elif kind == "Exp":
            values = np.exp(x.values)
        elif kind == "Log":
            values = np.log(x.values)
        elif kind == "Neg":
            values = -x.values
        elif kind == "Reciprocal":
            values = 1.0 / x.values
        elif kind == "Pow" and (power := graph.constants.get(op.inputs[1])) is not None and power.size == 1:
            values = x.values ** float(power.reshape(-1)[0])
        else:
            return None
    return _Cone(root=x.root, values=values, size=x.size + 1) if np.isfinite(values).all() else None
