"""The last pass: a quantised graph becomes a Network, layers for the array and segments for the host.

Views vanish (their readers take the tensor itself), concatenations become tuples of inputs, and every remaining
operation is a convolution, a maximum, or part of a host segment.
"""

from dataclasses import replace
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.numerics import code_range
from gossamer.compiler.frontend.functions import Function
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.integers import integer_weights
from gossamer.compiler.frontend.layout import array_weight
from gossamer.compiler.frontend.ops import (
    Activation,
    Affine,
    AveragePool,
    Compute,
    Concat,
    Conv,
    GlobalAveragePool,
    Host,
    Layout,
    Linear,
    MaxPool,
    Op,
    Product,
    Quant,
    Reshape,
    TensorInfo,
    View,
)
from gossamer.compiler.frontend.products import MASK_TILE
from gossamer.compiler.frontend.segments import build_segment, host_groups, stage_order
from gossamer.compiler.frontend.shapes import run_session
from gossamer.compiler.layers import Conv as ConvLayer
from gossamer.compiler.layers import HostSegment, Layer, MatMul, Network, Tensor
from gossamer.compiler.layers import MaxPool as MaxLayer

__all__ = ["lower"]

COPY_WEIGHT = 64
"""Weight code of an identity. A power of two: scale / 64 is exact, and 64 * 255 stays far from overflow."""


def lower(graph: Graph) -> Network:
    """Build the Network of a graph that has been through quantise."""
    return _Lowering(graph).network()


class _Lowering:
    """State of one lowering: where each of the graph's tensors really lives."""

    def __init__(self, graph: Graph) -> None:
        self.graph = _without_output_views(graph)
        self.roots: dict[str, tuple[str, ...]] = {}
        self.tensors: dict[str, Tensor] = {}
        self.host_types: dict[str, tuple[str, tuple[int, ...]]] = {}

    def network(self) -> Network:
        """All stages, in order."""
        graph = self.graph
        groups = host_groups(graph)
        self._find_roots()
        stages: list[Layer | HostSegment] = []
        for unit in stage_order(graph, groups):
            if isinstance(unit, list):
                segment = build_segment(graph, f"host{sum(isinstance(s, HostSegment) for s in stages)}", unit)
                stages.append(segment)
                _check_runs(segment)
                for name in (*segment.inputs, *segment.outputs):
                    self._declare(name)
            else:
                stages += self._layer(unit)
        for name in (*graph.inputs, *graph.outputs):
            self._declare(name, border=True)
        return Network(
            name=graph.name,
            tensors=self.tensors,
            stages=tuple(stages),
            inputs=graph.inputs,
            outputs=graph.outputs,
            host_types=self.host_types,
            notes=tuple(graph.notes),
        )

    def _find_roots(self) -> None:
        """Follow views and concatenations to the tensors that exist."""
        for op in self.graph.order():
            if isinstance(op, View):
                self.roots[op.output] = self._root(op.inputs[0])
            elif isinstance(op, Concat):
                parts = tuple(root for tensor in op.inputs for root in self._root(tensor))
                self.roots[op.output] = (op.output,) if self._must_copy(op) else parts

    def _root(self, tensor: str) -> tuple[str, ...]:
        return self.roots.get(tensor, (tensor,))

    def _must_copy(self, op: Concat) -> bool:
        """Whether somebody cannot read a concatenation piece by piece."""
        todo = [op.output]
        while todo:
            tensor = todo.pop()
            if tensor in self.graph.outputs:
                return True
            for user in self.graph.consumers(tensor):
                as_residual = isinstance(user, Compute) and user.residual and user.inputs[-1] == tensor
                if isinstance(user, Host | Product) or as_residual:
                    return True
                if isinstance(user, View | Concat):
                    todo.append(user.output)
        return False

    def _declare(self, name: str, border: bool = False) -> None:
        """Make a tensor of the array known, or the type of one that only hosts touch."""
        info = self.graph.info(name)
        if info.quant is not None and info.layout is not None:
            if name not in self.tensors:
                self.tensors[name] = _tensor(info)
            if not border:
                return
        # A shape that depends on data is written (-1,).
        self.host_types[name] = (info.dtype, (-1,) if info.shape is None else info.shape)

    def _quant(self, tensor: str) -> Quant:
        quant = self.graph.info(tensor).quant
        if quant is None:
            raise ModelError(f"tensor {tensor!r} has no quantisation; run the quantise pass before lower")
        return quant

    def _layout(self, tensor: str) -> Layout:
        layout = self.graph.info(tensor).layout
        if layout is None:
            raise ModelError(f"tensor {tensor!r} has no layout; run the legalise pass before lower")
        return layout

    def _layer(self, op: Op) -> list[Layer]:
        if isinstance(op, View) or (isinstance(op, Concat) and self.roots[op.output] != (op.output,)):
            return []
        if isinstance(op, Concat):
            inputs = tuple(root for tensor in op.inputs for root in self._root(tensor))
        else:
            inputs = self._root(op.inputs[0])
        for name in (*inputs, op.output):
            self._declare(name)
        if isinstance(op, MaxPool):
            return [self._maximum(op, inputs)]
        if isinstance(op, Product):
            return [self._matmul(op)]
        weight, bias, scale, pattern = self._product(op)
        return [self._conv(op, inputs, weight, bias, scale, pattern)]

    def _maximum(self, op: MaxPool, inputs: tuple[str, ...]) -> MaxLayer:
        quant = self._quant(op.output)
        lo, hi = _clamp(op, quant)
        pads = op.pads if len(op.pads) == 4 else (0, op.pads[0], 0, op.pads[1])
        return MaxLayer(
            name=op.name,
            inputs=inputs,
            output=op.output,
            kernel=_two(op.kernel),
            stride=_two(op.stride),
            dilation=_two(op.dilation),
            pads=_four(pads),
            lo=lo,
            hi=hi,
            source=op.source,
        )

    def _matmul(self, op: Product) -> MatMul:
        (a,), (b,) = (self._root(tensor) for tensor in op.inputs)
        for name in (a, b):
            self._declare(name)
        quant = self._quant(op.output)
        before, lo, hi, table = self._epilogue(op, quant)
        return MatMul(
            name=op.name,
            a=a,
            b=b,
            output=op.output,
            transposed=op.transposed,
            products=op.products,
            scale=self._quant(a).scale * self._quant(b).scale / before.scale * op.factor,
            zero_point=before.zero_point,
            lo=lo,
            hi=hi,
            signed=before.signed,
            table=table,
            mask=None if op.mask is None else np.ascontiguousarray(op.mask[::MASK_TILE, ::MASK_TILE]),
            mask_tile=(1, 1) if op.mask is None else (MASK_TILE, MASK_TILE),
            source=op.source,
        )

    def _epilogue(self, op: Op, quant: Quant) -> tuple[Quant, int, int, NDArray[np.uint8] | None]:
        """Codes before a table (or of the output), the clamp in them, and the table of a function that needs one."""
        function = _function(op)
        if function is None or function.is_clamp:
            return quant, *_clamp(op, quant), None
        # A lone function looks up its input's own codes; a fused one those of the value before it.
        before = self._quant(op.pre if isinstance(op, Compute) else op.inputs[0])
        return before, *code_range(before.signed), _table(function, before, quant)

    def _product(self, op: Op) -> tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.float64], str]:
        """Weight codes, bias codes, real scale of one accumulator unit per channel, and the pattern's name."""
        step = self._quant(op.inputs[0]).scale
        channels = self._layout(op.output).shape[1]
        if isinstance(op, Conv | Linear | Affine):
            if op.weight_scale is None:
                raise ModelError(f"layer {op.name!r} has no weight scales; run the quantise pass before lower")
            codes, bias = integer_weights(op, step, op.weight_scale)
            scale = step * op.weight_scale.astype(np.float64)
            if isinstance(op, Affine):
                return codes.reshape(-1, 1, 1, 1), bias, scale, f"depthwise {channels}"
            return np.ascontiguousarray(array_weight(self.graph, op, codes)), bias, scale, op.pattern or "dense"
        value, kernel, unit = COPY_WEIGHT, (1, 1), step / COPY_WEIGHT
        if isinstance(op, AveragePool | GlobalAveragePool):
            kernel = _two(op.kernel) if isinstance(op, AveragePool) else self._layout(op.inputs[0]).shape[2:]
            value, unit = 1, step / prod(kernel)
        weight = np.full((channels, 1, *kernel), value, dtype=np.int8)
        return weight, np.zeros(channels, np.int32), np.full(channels, unit), f"depthwise {channels}"

    def _conv(
        self,
        op: Op,
        inputs: tuple[str, ...],
        weight: NDArray[np.int8],
        bias: NDArray[np.int32],
        unit: NDArray[np.float64],
        pattern: str,
    ) -> ConvLayer:
        quant = self._quant(op.output)
        before, lo, hi, table = self._epilogue(op, quant)
        residual = op.inputs[-1] if isinstance(op, Compute) and op.residual else None
        ratio = 0.0
        if residual is not None:
            (residual,) = self._root(residual)
            self._declare(residual)
            ratio = self._quant(residual).scale / before.scale
        stride, dilation, pads, groups = _geometry(op, weight)
        return ConvLayer(
            name=op.name,
            inputs=inputs,
            output=op.output,
            weight=weight,
            bias=bias,
            scale=unit / before.scale,
            stride=stride,
            dilation=dilation,
            pads=pads,
            groups=groups,
            residual=residual,
            residual_ratio=ratio,
            zero_point=before.zero_point,
            lo=lo,
            hi=hi,
            signed=before.signed,
            table=table,
            pattern=pattern,
            source=op.source,
        )


def _check_runs(segment: HostSegment) -> None:
    """onnxruntime has to take a segment: better it says so now than when the Program runs. Raises ModelError."""
    try:
        run_session(onnx.load_from_string(segment.model))
    except Exception as error:  # onnxruntime's errors are many, and say what is wrong
        kinds = ", ".join(dict.fromkeys(segment.ops))
        raise ModelError(f"onnxruntime refuses what is left to the host ({kinds}): {error}") from error


def _two(values: tuple[int, ...]) -> tuple[int, int]:
    """One or two spatial numbers as (vertical, horizontal)."""
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def _four(pads: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Begins and ends of one or two spatial axes as (top, left, bottom, right)."""
    return (0, pads[0], 0, pads[1]) if len(pads) == 2 else (pads[0], pads[1], pads[2], pads[3])


def _geometry(
    op: Op, weight: NDArray[np.int8]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], int]:
    """Stride, dilation, pads and groups of the convolution that an operation is."""
    if isinstance(op, Conv):
        return _two(op.stride), _two(op.dilation), _four(op.pads), op.groups
    if isinstance(op, Linear):
        return (1, 1), (1, 1), (0, 0, 0, 0), 1
    if isinstance(op, AveragePool):
        return _two(op.stride), (1, 1), _four(op.pads), len(weight)
    return (1, 1), (1, 1), (0, 0, 0, 0), len(weight)


def _function(op: Op) -> Function | None:
    """The function an operation ends in."""
    if isinstance(op, Activation):
        return op.function
    return op.activation if isinstance(op, Compute | MaxPool) else None


def _clamp(op: Op, quant: Quant) -> tuple[int, int]:
    """Smallest and largest code of an operation's output."""
    function = _function(op)
    lo, hi = code_range(quant.signed)
    if function is None or not function.is_clamp:
        return lo, hi
    bounds = quant.quantise([function.lo, function.hi])
    return max(lo, int(bounds[0])), min(hi, int(bounds[1]))


def _table(function: Function, before: Quant, after: Quant) -> NDArray[np.uint8]:
    """Output codes for all 256 input codes, indexed by code & 0xFF, as bit patterns."""
    lo, hi = code_range(before.signed)
    codes = np.arange(lo, hi + 1)
    table = np.zeros(256, dtype=np.uint8)
    table[codes & 0xFF] = (after.quantise(function(before.dequantise(codes))) & 0xFF).astype(np.uint8)
    return table


def _tensor(info: TensorInfo) -> Tensor:
    assert info.quant is not None
    assert info.layout is not None
    return Tensor(
        name=info.name,
        shape=info.layout.shape,
        scale=info.quant.scale,
        zero_point=info.quant.zero_point,
        signed=info.quant.signed,
        model_shape=info.shape or (),
        channels_last=info.layout.channels_last,
    )


def _without_output_views(graph: Graph) -> Graph:
    """Give model outputs a tensor of their own where they are only another shape of one.

    A tensor nobody else reads takes the output's name and shape; any other is copied.
    """
    graph = graph.copy()
    for name in graph.outputs:
        while isinstance(view := graph.producer(name), View):
            before = graph.producer(view.inputs[0])
            alone = graph.sole_consumer(view.inputs[0]) is view
            if isinstance(before, Compute | MaxPool | Activation) and alone:
                graph.remove(view.name)
                graph.replace(before.name, replace(before, outputs=(name,), source=before.source + view.source))
            elif isinstance(before, Reshape) and isinstance(view, Reshape) and alone:
                graph.remove(before.name)
                graph.replace(view.name, replace(view, inputs=before.inputs, source=before.source + view.source))
            else:
                _copy_output(graph, name, view)
    return graph


def _copy_output(graph: Graph, name: str, view: View) -> None:
    """Let an output be a copy of a view instead of the view itself."""
    hidden = graph.fresh(f"{name}/view")
    graph.tensors[hidden] = replace(graph.info(name), name=hidden)
    graph.replace(view.name, replace(view, outputs=(hidden,)))
    graph.redirect(name, hidden)
    copy = graph.fresh(f"{name}/copy")
    nothing = Function(kind="clip")
    graph.add(Activation(name=copy, inputs=(hidden,), outputs=(name,), source=view.source, function=nothing))
