"""Which channels of a graph are the same channels: what must be reordered or removed together.

The output channels of a layer are the input channels of the layers that read it, and of everything in between that
works channel by channel. An addition makes the channels of both operands the same, and a concatenation puts them side
by side. A *space* is such a set of channels; its order is free unless somebody outside sees it: the model's inputs and
outputs, and operations that mix channels in their own way.

Where the host reads or writes channels, it can be given them in the order it knows, by a Gather before or behind its
operation. A layer normalisation has no need of that to be right, but its sums would be rounded in another order.

Products of attention leave channels free within each head: the reduction of Q Kᵀ, the same for Q and K, and the columns
of P V, the same for V and the product.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import array_weight
from gossamer.compiler.frontend.ops import (
    Activation,
    Add,
    Affine,
    Array,
    AveragePool,
    Compute,
    Concat,
    Conv,
    GlobalAveragePool,
    Host,
    Linear,
    MaxPool,
    Op,
    Product,
    Reshape,
    TensorInfo,
    View,
)

__all__ = ["Channels", "Space", "channel_axis", "find_channels", "is_depthwise", "reindex"]

Index = NDArray[np.int64]


@dataclass(kw_only=True, eq=False)
class Space:
    """Channels that belong together. size : how many.  fixed : why their order is seen from outside, "" when free.

    host : why the host would have to put them in its own order, "" when it never sees them.
    run : channels keep to their runs of so many, which are heads of attention; 0 when they may go anywhere.
    writers : layers whose output channels they are.  readers : layers that read them, and at which input channel
    they begin there.  along : operations with one parameter per channel (depthwise, affine) on the way.
    """

    size: int
    fixed: str = ""
    host: str = ""
    run: int = 0
    writers: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    along: list[str] = field(default_factory=list)

    @property
    def kept(self) -> str:
        """Why none of them can be left out, "" when some can."""
        heads = f"they are heads of {self.run} channels" if self.run else ""
        return self.fixed or self.host or heads


@dataclass(frozen=True, kw_only=True, eq=False)
class Channels:
    """All spaces of a graph, and which of them each tensor of the array holds, side by side."""

    spaces: tuple[Space, ...]
    parts: Mapping[str, tuple[int, ...]]


def is_depthwise(op: Op) -> bool:
    """Whether a convolution works channel by channel."""
    return isinstance(op, Conv) and op.groups > 1 and op.weight.shape[1] == 1 and op.weight.shape[0] == op.groups


def find_channels(graph: Graph) -> Channels:
    """The spaces of a graph that has layouts (after legalise, before lower)."""
    return _Finder(graph).channels()


class _Finder:
    """Union-find over spaces as they are met."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.spaces: list[Space] = []
        self.parent: list[int] = []
        self.parts: dict[str, tuple[int, ...]] = {}

    def channels(self) -> Channels:
        for name in self.graph.inputs:
            self._fix(self._tensor(name), f"{name!r} is an input of the model")
        for op in self.graph.order():
            self._visit(op)
        for name in self.graph.outputs:
            self._fix(self._tensor(name), f"{name!r} is an output of the model")
        roots = sorted({self._root(i) for i in range(len(self.spaces))})
        number = {root: i for i, root in enumerate(roots)}
        return Channels(
            spaces=tuple(self.spaces[root] for root in roots),
            parts={t: tuple(number[self._root(i)] for i in parts) for t, parts in self.parts.items()},
        )

    def _visit(self, op: Op) -> None:
        if isinstance(op, Conv | Linear) and (isinstance(op, Linear) or op.groups == 1):
            first = 0
            for i in self._tensor(op.inputs[0]):
                self._space(i).readers.append((op.name, first))
                first += self._space(i).size
            (out,) = self._tensor(op.output)
            self._space(out).writers.append(op.name)
        elif is_depthwise(op) or isinstance(op, Affine):
            self.parts[op.output] = self._tensor(op.inputs[0])
            for i in self.parts[op.output]:
                self._space(i).along.append(op.name)
        elif isinstance(op, Add):
            self.parts[op.output] = self._tensor(op.inputs[0])
            self._same(op.inputs[1], op.output)
        elif isinstance(op, AveragePool | GlobalAveragePool | MaxPool | Activation | View):
            self.parts[op.output] = self._tensor(op.inputs[0])
        elif isinstance(op, Concat):
            self.parts[op.output] = tuple(i for t in op.inputs for i in self._tensor(t))
        elif isinstance(op, Product):
            self._product(op)
        elif isinstance(op, Host):
            for tensor in (*op.reads, *op.outputs):
                self._host(op, tensor)
            return
        else:
            kind = "a grouped convolution" if isinstance(op, Conv) else "no layer of the array"
            for tensor in (*op.reads, *op.outputs):
                self._fix(self._tensor(tensor), f"{op.name!r} is {kind}")
            return
        if isinstance(op, Compute) and op.residual:
            self._same(op.inputs[-1], op.output)

    def _product(self, op: Product) -> None:
        """Tokens that stand as channels are fixed; the others are the same in two of the tensors, head by head."""
        a, b = op.inputs[:2]
        (tokens,), pair = ((op.output,), (a, b)) if op.transposed else ((a,), (b, op.output))
        self._fix(self._tensor(tokens), f"{op.name!r} has tokens as channels")
        runs = dict(zip((a, b, op.output), op.runs, strict=True))
        if runs[pair[0]] != runs[pair[1]] or any(len(self._tensor(tensor)) != 1 for tensor in pair):
            for tensor in pair:
                self._fix(self._tensor(tensor), f"{op.name!r} has heads in several places")
            return
        self._same(*pair)
        for i in self._tensor(pair[0]):
            self._keep_runs(i, self._space(i).size // runs[pair[0]])

    def _keep_runs(self, i: int, run: int) -> None:
        """Channels of a space keep to runs, also to those they kept to before."""
        space = self._space(i)
        if run < space.size and space.run and max(run, space.run) % min(run, space.run):
            space.fixed = space.fixed or f"heads of {run} and of {space.run} channels"
        elif run < space.size:
            space.run = min(run, space.run or run)

    def _host(self, op: Host, tensor: str) -> None:
        """The host can gather channels along one axis."""
        parts = self._tensor(tensor)
        why = f"{op.name!r} is no layer of the array"
        if parts and (tensor in op.captured or channel_axis(self.graph, tensor) is None):
            self._fix(parts, why)
        for i in parts:
            self._space(i).host = self._space(i).host or why

    def _tensor(self, name: str) -> tuple[int, ...]:
        """The spaces of a tensor; a new one when nobody has said, none for what the array does not hold."""
        if name not in self.parts:
            info = self.graph.tensors.get(name)
            self.parts[name] = ()
            if info is not None and info.layout is not None:
                self.spaces.append(Space(size=info.layout.shape[1]))
                self.parent.append(len(self.parent))
                self.parts[name] = (len(self.spaces) - 1,)
        return self.parts[name]

    def _root(self, i: int) -> int:
        while self.parent[i] != i:
            i = self.parent[i]
        return i

    def _space(self, i: int) -> Space:
        return self.spaces[self._root(i)]

    def _fix(self, parts: Iterable[int], why: str) -> None:
        for i in parts:
            self._space(i).fixed = self._space(i).fixed or why

    def _same(self, a: str, b: str) -> None:
        """The channels of two tensors are the same ones."""
        left, right = self._tensor(a), self._tensor(b)
        if [self._space(i).size for i in left] != [self._space(i).size for i in right]:
            self._fix((*left, *right), f"{a!r} and {b!r} are added, and made of different parts")
            return
        for i, j in zip(map(self._root, left), map(self._root, right), strict=True):
            if i != j:
                kept, gone = self.spaces[i], self.spaces[j]
                kept.fixed = kept.fixed or gone.fixed
                kept.host = kept.host or gone.host
                self._keep_runs(i, gone.run or kept.size)
                kept.writers += gone.writers
                kept.readers += gone.readers
                kept.along += gone.along
                self.parent[j] = i


# --- another order, or fewer of them ---------------------------------------------------------------------------------


def reindex(graph: Graph, channels: Channels, index: Mapping[int, Index]) -> Graph:
    """The graph with the channels of some spaces reordered, or some of them left out.

    index : for a space by its number, which old channel stands at each new place. Weights, biases, scales and all
    that has one value per channel follow, and the shapes of tensors when there are fewer channels than before. The host
    gets all channels in the old order.
    """
    graph = graph.copy()
    where = {t: _joined(channels, parts, index) for t, parts in channels.parts.items()}
    before = {t: sum(channels.spaces[i].size for i in parts) for t, parts in channels.parts.items()}
    for op in graph.order():
        taken, made = where.get(op.inputs[0]) if op.inputs else None, where.get(op.output)
        if isinstance(op, Conv | Linear) and (taken is not None or made is not None):
            graph.replace(op.name, _layer(graph, op, taken, made))
        elif isinstance(op, Affine) and made is not None:
            scale = None if op.weight_scale is None else op.weight_scale[made]
            graph.replace(op.name, replace(op, scale=op.scale[made], shift=op.shift[made], weight_scale=scale))
        elif isinstance(op, Host):
            _gather(graph, op, where)
    resized = {t for t, chosen in where.items() if chosen is not None and len(chosen) != before[t]}
    for tensor in resized:
        chosen = where[tensor]
        assert chosen is not None
        _resize(graph, tensor, len(chosen))
    for op in graph.order():
        if isinstance(op, Reshape) and op.output in resized:
            graph.replace(op.name, replace(op, shape=graph.shape(op.output)))
        elif isinstance(op, Compute) and op.pre and op.output in resized:
            graph.update(op.pre, shape=graph.shape(op.output))
    return graph


def _gather(graph: Graph, op: Host, where: Mapping[str, Index | None]) -> None:
    """Give a host operation its inputs in the order it knows, and bring its outputs into the new one."""
    known: dict[str, str] = {}
    for tensor in dict.fromkeys((*op.reads, *op.outputs)):
        order = where.get(tensor)
        if order is None:
            continue
        known[tensor] = graph.fresh(f"{tensor}/host")
        graph.tensors[known[tensor]] = replace(graph.info(tensor), name=known[tensor], quant=None, layout=None)
    if not known:
        return
    age = graph.dag.nodes[op.name]["age"]
    inputs, outputs = (tuple(known.get(t, t) for t in tensors) for tensors in (op.inputs, op.outputs))
    graph.replace(op.name, replace(op, inputs=inputs, outputs=outputs))
    for tensor, own in known.items():
        order = where[tensor]
        assert order is not None
        if tensor in op.outputs:
            graph.add(_gather_of(graph, op, own, tensor, order), age=age)
        else:
            graph.add(_gather_of(graph, op, tensor, own, np.argsort(order)), age=age)


def _gather_of(graph: Graph, op: Host, source: str, target: str, order: Index) -> Host:
    """target = source with channel order[i] at place i, for a host operation that has one of them."""
    places = graph.fresh(f"{target}/order")
    graph.constants[places] = order
    graph.tensors[places] = TensorInfo(name=places, shape=order.shape, dtype="int64")
    axis = channel_axis(graph, source if graph.info(target).layout is None else target)
    node = helper.make_node("Gather", [source, places], [target], axis=axis)
    name = graph.fresh(f"{target}/gather")
    return Host(name=name, inputs=(source, places), outputs=(target,), source=op.source, node=node, reason=op.reason)


def _joined(channels: Channels, parts: tuple[int, ...], index: Mapping[int, Index]) -> Index | None:
    """Old channels of a tensor in their new order, None when all stay."""
    if not any(i in index for i in parts):
        return None
    pieces, first = [], 0
    for i in parts:
        size = channels.spaces[i].size
        pieces.append(first + index.get(i, np.arange(size)))
        first += size
    return np.concatenate(pieces)


def _layer(graph: Graph, op: Conv | Linear, taken: Index | None, made: Index | None) -> Conv | Linear:
    """A layer whose input and output channels have moved."""
    depthwise = is_depthwise(op)
    weight = array_weight(graph, op, op.weight)
    if taken is not None and not depthwise:
        weight = weight[:, taken]
    if made is not None:
        weight = weight[made]
        bias = None if op.bias is None else op.bias[made]
        op = replace(op, bias=bias, weight_scale=None if op.weight_scale is None else op.weight_scale[made])
    if depthwise:
        assert isinstance(op, Conv)
        op = replace(op, groups=len(weight))
    return replace(op, weight=_as_model(graph, op, weight))


def _as_model(graph: Graph, op: Conv | Linear, weight: Array) -> Array:
    """Inverse of array_weight, for a weight of another size than before."""
    if isinstance(op, Conv):
        return np.ascontiguousarray(weight).reshape(*weight.shape[:2], *op.weight.shape[2:])
    layout = graph.info(op.inputs[0]).layout
    assert layout is not None
    ordered = weight.transpose(0, 2, 3, 1) if layout.channels_last else weight
    return np.ascontiguousarray(ordered).reshape(len(weight), -1)


def channel_axis(graph: Graph, tensor: str) -> int | None:
    """The one axis of the tensor's model shape along which channels lie, None when they lie along several."""
    info = graph.info(tensor)
    assert info.layout is not None
    assert info.shape is not None
    _, c, _, _ = info.layout.shape
    index = np.broadcast_to(np.arange(c).reshape(1, c, 1, 1), info.layout.shape)
    index = info.layout.to_model(index, info.shape)
    axes = [a for a in range(index.ndim) if index.shape[a] > 1 and (np.diff(index, axis=a) != 0).any()]
    return axes[0] if len(axes) == 1 else None


def _resize(graph: Graph, tensor: str, channels: int) -> None:
    """Give a tensor of the array another number of channels."""
    info = graph.info(tensor)
    axis = channel_axis(graph, tensor)
    assert info.layout is not None
    assert info.shape is not None
    assert axis is not None, f"{tensor!r} cannot have other channels"
    n, c, h, w = info.layout.shape
    shape = list(info.shape)
    shape[axis] = shape[axis] // c * channels
    graph.update(tensor, shape=tuple(shape), layout=replace(info.layout, shape=(n, channels, h, w)))
    assert prod(shape) == n * channels * h * w
