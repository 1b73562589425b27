"""Functions that exporters write as several operations: HardSwish, SiLU, GELU, Mish, HardSigmoid.

A cone of element-wise operations that depends on one tensor is one function of one number, however it is written. So
the cones are evaluated on probe points and compared with the functions the accelerator knows, instead of matching
each exporter's spelling.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.compiler.frontend.functions import Function
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Activation, Add, Affine, Host, Op

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
        ("quick_gelu", 0, 0),
    )
)
_KNOWN_VALUES = np.stack([f(_PROBES) for f in _KNOWN])


_ROOTS = 6
"""A tensor is followed back to at most this many others, the nearest ones."""


@dataclass(frozen=True, kw_only=True)
class _Cone:
    """A tensor as a function of one other tensor: its values at the probe points, and how many operations it took."""

    root: str
    values: Real
    size: int


Cones = dict[str, _Cone]
"""A tensor as a function of each of the tensors before it, by their names, itself included."""


def recognise_functions(graph: Graph) -> Graph:
    """Replace the last operation of each recognised cone by one Activation; what it no longer needs is pruned."""
    graph = graph.copy()
    known: dict[str, Cones] = {}
    for op in graph.order():
        cones = _cones(graph, op, known)
        for root, cone in cones.items():
            function = _match(cone.values) if cone.size > 1 else None
            if function is not None and graph.info(root).shape == graph.info(op.output).shape:
                inside = _sources(graph, op, root)
                new = Activation(name=op.name, inputs=(root,), outputs=op.outputs[:1], source=inside, function=function)
                graph.replace(op.name, new)
                cones = _cones(graph, new, known)
                break
        if cones:
            known[op.output] = cones
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


def _cones(graph: Graph, op: Op, known: dict[str, Cones]) -> Cones:
    """The operation's output as a function of the tensors before it."""

    def of(tensor: str) -> Cones:
        near = dict(list(known.get(tensor, {}).items())[-_ROOTS:])
        return near | {tensor: _Cone(root=tensor, values=_PROBES, size=0)}

    found: Cones = {}
    if isinstance(op, Add) or (isinstance(op, Host) and op.node.op_type in ("Mul", "Div", "Sub")):
        a, b = (of(tensor) for tensor in op.inputs[:2])
        for root in a.keys() & b.keys():
            kind = "Add" if isinstance(op, Add) else op.node.op_type
            values = _combined(kind, a[root].values, b[root].values)
            if values is not None:
                found[root] = _Cone(root=root, values=values, size=a[root].size + b[root].size + 1)
        return found
    if not op.inputs or not op.inputs[0]:
        return found
    for root, x in of(op.inputs[0]).items():
        values = _unary(graph, op, x.values)
        if values is not None and np.isfinite(values).all():
            found[root] = _Cone(root=root, values=values, size=x.size + 1)
    return found


def _combined(kind: str, a: Real, b: Real) -> Real | None:
    with np.errstate(all="ignore"):
        values = {"Add": a + b, "Sub": a - b, "Mul": a * b, "Div": a / b}[kind]
    return values if np.isfinite(values).all() else None


def _unary(graph: Graph, op: Op, x: Real) -> Real | None:
    """An operation of one tensor, at the probe points; None when it is no function of one number."""
    if isinstance(op, Activation):
        return op.function(x)
    if isinstance(op, Affine):
        if op.residual or np.ptp(op.scale) or np.ptp(op.shift):
            return None
        return np.asarray(op.scale[0] * x + op.shift[0], dtype=np.float64)
    if not isinstance(op, Host):
        return None
    kind = op.node.op_type
    with np.errstate(all="ignore"):
        if kind == "Erf":
            return np.array([math.erf(v) for v in x])
        if kind in _UNARY:
            return np.asarray(_UNARY[kind](x), dtype=np.float64)
        if kind == "Pow" and (power := graph.constants.get(op.inputs[1])) is not None and power.size == 1:
            return np.asarray(x ** float(power.reshape(-1)[0]), dtype=np.float64)
    return None


_UNARY = {"Exp": np.exp, "Log": np.log, "Neg": np.negative, "Reciprocal": np.reciprocal}
"""Operations that only ever appear inside such cones."""
