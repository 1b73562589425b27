"""Decide what the array runs: give its tensors a Layout, and send every other operation to the host with a reason."""

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np
from onnx import helper

from gossamer.compiler.frontend.export import host_ops
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import (
    features_last,
    is_map,
    linear_kernel,
    map_layout,
    token_layout,
    view_layout,
)
from gossamer.compiler.frontend.ops import (
    Activation,
    Add,
    Affine,
    AveragePool,
    Concat,
    Conv,
    Dequantise,
    GlobalAveragePool,
    Host,
    Layout,
    Linear,
    MaxPool,
    Op,
    Product,
    Quantise,
    Reshape,
    Transpose,
)
from gossamer.compiler.frontend.select import select_channels

__all__ = ["legalise"]

Shape = tuple[int, ...]


class _No(Exception):
    """Why an operation stays on the host."""


def legalise(graph: Graph) -> Graph:
    """Give a Layout to every tensor the array holds; turn what it cannot run into Host operations."""
    graph = graph.copy()
    for op in graph.order():
        if isinstance(op, Host):
            selected = select_channels(graph, op)
            if selected:
                graph.replace(op.name, *(conv for conv, _ in selected))
                for conv, layout in selected:
                    graph.update(conv.output, layout=layout)
            elif not op.reason:
                graph.replace(op.name, replace(op, reason=f"{op.node.op_type} has no equivalent on the array"))
            continue
        try:
            try:
                new, layout = _Judge(graph, op).verdict()
            except _No as reason:
                if not isinstance(op, Conv | Linear | Product):
                    raise
                new, layout = _Judge(graph, _relaid(graph, op, str(reason))).verdict()
        except _No as reason:
            graph.replace(op.name, *host_ops(graph, graph.op(op.name), str(reason)))
            continue
        if new is not graph.op(op.name):
            graph.replace(op.name, new)
        graph.update(op.output, layout=layout)
    return graph


def _relaid(graph: Graph, op: Op, reason: str) -> Op:
    """The operation with inputs that the host lays out anew: moving data is its work, products are the array's."""
    for tensor in dict.fromkeys(op.inputs):
        if graph.info(tensor).layout is None:
            continue
        copy = graph.fresh(f"{tensor}/relaid")
        graph.tensors[copy] = replace(graph.info(tensor), name=copy, layout=None)
        node = helper.make_node("Identity", [tensor], [copy])
        graph.add(Host(name=copy, inputs=(tensor,), outputs=(copy,), source=op.source, node=node, reason=reason))
        op = replace(op, inputs=tuple(copy if t == tensor else t for t in op.inputs))
    graph.replace(op.name, op)
    return op


def _preferred(graph: Graph, tensor: str, depth: int = 0) -> Layout | None:
    """The layout that the consumers of a tensor from outside would like."""
    shape = graph.shape(tensor)
    for user in graph.consumers(tensor):
        found: Layout | None = None
        if isinstance(user, Conv | MaxPool | AveragePool):
            found = map_layout(shape)
        elif isinstance(user, GlobalAveragePool):
            found = map_layout(shape) if user.axes[0] > 1 else token_layout(shape)
        elif isinstance(user, Linear):
            found = token_layout(shape)
        elif isinstance(user, Affine):
            found = map_layout(shape) if user.axis == 1 and len(shape) > 2 else token_layout(shape)
        elif isinstance(user, Product):
            found = user.layouts[user.inputs.index(tensor)]
        elif isinstance(user, Reshape | Transpose) and depth < 8:
            wish = _preferred(graph, user.output, depth + 1)
            for channels_last in (False, True) if wish else ():
                assert wish is not None
                trial = Layout(shape=wish.shape, channels_last=channels_last)
                if view_layout(user, trial, shape) == wish:
                    found = trial
                    break
        elif isinstance(user, Activation | Add | Concat) and depth < 8:
            found = _preferred(graph, user.output, depth + 1)
            if found is not None and prod(found.shape) != prod(shape):
                found = None
        if found is not None:
            return found
    return None


# --- judging one operation ------------------------------------------------------------------------------------------


class _Judge:
    """One operation, the layouts of its inputs, and the rules for its kind."""

    def __init__(self, graph: Graph, op: Op) -> None:
        self.graph, self.op = graph, op

    def verdict(self) -> tuple[Op, Layout]:
        """The operation (with details made to fit) and its output's layout; raises _No."""
        op = self.op
        if isinstance(op, Quantise | Dequantise):
            raise _No("codes enter or leave the model here")
        for tensor in op.reads:
            info = self.graph.info(tensor)
            if info.shape is None or info.dtype != "float32" or tensor in self.graph.constants:
                raise _No(f"{tensor!r} is not a computed float32 tensor of known shape")
            if len(info.shape) < 2:
                raise _No(f"{tensor!r} has rank {len(info.shape)}")
        cheap = isinstance(op, Activation | Affine | Add | Concat | Reshape | Transpose)
        if cheap and all(isinstance(self.graph.producer(t), Host) for t in op.reads):
            raise _No("its inputs are made on the host, where it is cheaper to stay")
        rules: dict[type[Op], Callable[[], Layout]] = {
            Conv: self._conv,
            Linear: self._linear,
            MaxPool: self._pool,
            AveragePool: self._pool,
            GlobalAveragePool: self._global_pool,
            Affine: self._affine,
            Activation: lambda: self._layout(op.inputs[0]),
            Add: self._add,
            Concat: self._concat,
            Reshape: self._view,
            Transpose: self._view,
            Product: self._product,
        }
        layout = rules[type(op)]()
        for tensor in op.reads:  # from here on these come from outside as codes
            if self.graph.info(tensor).layout is None:
                self.graph.update(tensor, layout=self._layout(tensor))
        return self.op, layout

    def _layout(self, tensor: str) -> Layout:
        """The tensor's layout, or the one it will be given."""
        info = self.graph.info(tensor)
        if info.layout is not None:
            return info.layout
        shape = self.graph.shape(tensor)
        found = _preferred(self.graph, tensor) or (map_layout(shape) if len(shape) == 4 else token_layout(shape))
        assert found is not None
        return found

    def _need_map(self) -> Layout:
        tensor = self.op.inputs[0]
        layout, shape = self._layout(tensor), self.graph.shape(tensor)
        if not is_map(layout, shape) or len(shape) < 3:
            raise _No(f"{tensor!r} {list(shape)} lies in the array as {list(layout.shape)}, not as a feature map")
        return layout

    def _output_map(self) -> Layout:
        layout = map_layout(self.graph.shape(self.op.output))
        assert layout is not None
        return layout

    def _conv(self) -> Layout:
        self._need_map()
        return self._output_map()

    def _pool(self) -> Layout:
        self._need_map()
        return self._output_map()

    def _linear(self) -> Layout:
        assert isinstance(self.op, Linear)
        tensor = self.op.inputs[0]
        layout, shape = self._layout(tensor), self.graph.shape(tensor)
        kernel = linear_kernel(layout, shape)
        if kernel is None:
            raise _No(f"{tensor!r} {list(shape)} lies in the array as {list(layout.shape)}: its last axis is mixed")
        n, _, h, w = layout.shape
        place = (h, w) if kernel == (1, 1) else (1, 1)
        return Layout(shape=(n, self.op.weight.shape[0], *place), channels_last=True)

    def _product(self) -> Layout:
        op = self.op
        assert isinstance(op, Product)
        *operands, result = op.layouts
        for tensor, wanted in zip(op.inputs, operands, strict=True):
            found = self.graph.info(tensor).layout
            if found is not None and not found.same(wanted):
                raise _No(f"{tensor!r} lies in the array as {list(found.shape)}, not as {list(wanted.shape)}")
        for tensor, wanted in zip(op.inputs, operands, strict=True):
            self.graph.update(tensor, layout=self.graph.info(tensor).layout or wanted)
        return result

    def _global_pool(self) -> Layout:
        assert isinstance(self.op, GlobalAveragePool)
        tensor, axes = self.op.inputs[0], self.op.axes
        layout, shape = self._layout(tensor), self.graph.shape(tensor)
        n, c = layout.shape[:2]
        last = len(shape) - 1
        as_map = is_map(layout, shape) and axes == tuple(range(2, last + 1))
        first = last - len(axes)
        as_tokens = features_last(layout, shape) and axes == tuple(range(first, last)) and prod(shape[:first]) == n
        if not as_map and not as_tokens:
            raise _No(f"mean over axes {list(axes)} of {list(shape)} is not over whole feature maps")
        return Layout(shape=(n, c, 1, 1), channels_last=as_tokens)

    def _affine(self) -> Layout:
        op = self.op
        assert isinstance(op, Affine)
        layout, shape = self._layout(op.inputs[0]), self.graph.shape(op.inputs[0])
        last, as_map = features_last(layout, shape), is_map(layout, shape)
        if (last and op.axis == len(shape) - 1) or (as_map and op.axis == 1):
            return layout
        if np.ptp(op.scale) or np.ptp(op.shift) or not (last or as_map):
            raise _No(f"constants along axis {op.axis} of {list(shape)}, which is not the channel axis")
        axis = 1 if as_map else len(shape) - 1
        size = shape[axis]
        self.op = replace(op, scale=np.full(size, op.scale[0]), shift=np.full(size, op.shift[0]), axis=axis)
        return layout

    def _add(self) -> Layout:
        a, b = self.op.inputs
        known = [layout for t in (a, b) if (layout := self.graph.info(t).layout) is not None]
        layout = known[0] if known else self._layout(a)
        if not all(other.same(layout) for other in known):
            raise _No(f"{a!r} and {b!r} lie differently in the array")
        for tensor in (a, b):
            if self.graph.info(tensor).layout is None:
                self.graph.update(tensor, layout=layout)
        return layout

    def _concat(self) -> Layout:
        op = self.op
        assert isinstance(op, Concat)
        known = [layout for t in op.inputs if (layout := self.graph.info(t).layout) is not None]
        chosen: dict[str, Layout] = {}
        for tensor in op.inputs:
            shape = self.graph.shape(tensor)
            layout = self.graph.info(tensor).layout
            if layout is None:
                layout = self._like(known, shape) or self._layout(tensor)
            as_map = is_map(layout, shape) and op.axis == 1
            if not as_map and not (features_last(layout, shape) and op.axis == len(shape) - 1):
                raise _No(f"concatenation along axis {op.axis} of {list(shape)}, which is not the channel axis")
            chosen[tensor] = layout
        first = chosen[op.inputs[0]]
        n, _, h, w = first.shape
        for tensor, layout in chosen.items():
            alike = replace(layout, shape=(n, layout.shape[1], h, w)) == layout
            if not alike or not replace(layout, shape=first.shape).same(first):
                raise _No(f"{op.inputs[0]!r} and {tensor!r} lie differently in the array")
        for tensor, layout in chosen.items():
            self.graph.update(tensor, layout=layout)
        channels = sum(chosen[t].shape[1] for t in op.inputs)
        return Layout(shape=(n, channels, h, w), channels_last=first.channels_last)

    @staticmethod
    def _like(known: list[Layout], shape: Shape) -> Layout | None:
        if not known:
            return None
        return token_layout(shape) if known[0].channels_last else map_layout(shape)

    def _view(self) -> Layout:
        op = self.op
        assert isinstance(op, Reshape | Transpose)
        tensor = op.inputs[0]
        if self.graph.info(tensor).layout is None:
            wish = _preferred(self.graph, tensor)
            if wish is None:
                raise _No("nothing on the array reads it")
            layout = wish
        else:
            layout = self._layout(tensor)
        found = view_layout(op, layout, self.graph.shape(tensor))
        if found is None:
            raise _No(f"{type(op).__name__} to {list(self.graph.shape(op.output))} moves data between channels")
        return found
