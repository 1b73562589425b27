"""ONNX out: a graph as a model again, in floating point or with every quantisation point of the Network (QDQ).

A quantised tensor t is written by its operation as "t/raw" and passes a QuantizeLinear and DequantizeLinear, so that
everybody who reads t reads what the array would hold.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gossamer.arch.errors import ModelError
from gossamer.compiler.frontend.functions import Function
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.integers import integer_weights
from gossamer.compiler.frontend.ops import (
    Activation,
    Add,
    Affine,
    Array,
    AveragePool,
    Compute,
    Concat,
    Conv,
    Dequantise,
    GlobalAveragePool,
    Host,
    Linear,
    MaxPool,
    Op,
    Product,
    Quant,
    Quantise,
    Reshape,
    TensorInfo,
    Transpose,
    View,
)
from gossamer.compiler.frontend.shapes import node_of

__all__ = ["Writer", "export_model", "host_ops", "rename", "value_info"]


def export_model(graph: Graph, qdq: bool = False) -> onnx.ModelProto:
    """The graph as an ONNX model with float inputs and outputs.

    qdq : put QuantizeLinear and DequantizeLinear at exactly the points where the Network rounds, with int8 weights
    and int32 biases; needs a graph after the quantise pass. Otherwise everything is float32, and before the quantise
    pass a quantised model's own points stay: they cut off what is outside of their codes, as a Relu6 does.
    """
    points = qdq or not graph.quantised
    writer = Writer(graph, qdq=qdq, points=points)
    for name in graph.inputs:
        if points and (quant := graph.info(name).quant) is not None:
            writer.round_trip(name, f"{name}/dq", quant)
            writer.read_as[name] = f"{name}/dq"
    for op in graph.order():
        writer.operation(op)
    for name in graph.outputs:
        if name in graph.constants:
            writer.constants[name] = graph.constants[name]
    inputs = [value_info(graph.info(name)) for name in graph.inputs]
    outputs = [value_info(graph.info(name)) for name in graph.outputs]
    return writer.model(graph.name, inputs, outputs)


def host_ops(graph: Graph, op: Op, reason: str) -> list[Op]:
    """The same operation as Host operations; constants it needs are added to the graph."""
    writer = Writer(graph, qdq=False)
    writer.operation(op)
    for name, value in writer.constants.items():
        graph.constants.setdefault(name, value)
        graph.tensors.setdefault(name, TensorInfo(name=name, shape=value.shape, dtype=str(value.dtype)))
    hosts: list[Op] = []
    # Every intermediate has the shape of the output, but for those of products, which nobody else may ask for.
    shape = None if isinstance(op, Product) else graph.info(op.output).shape
    for number, node in enumerate(writer.nodes):
        last = node is writer.nodes[-1]
        for tensor in node.output:
            if tensor not in graph.tensors:
                graph.tensors[tensor] = TensorInfo(name=tensor, shape=shape)
        hosts.append(
            Host(
                name=op.name if last else graph.fresh(f"{op.name}/{node.op_type}{number}"),
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                source=op.source,
                node=node,
                reason=reason,
            )
        )
    return hosts


def rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Replace tensor names in a node and its subgraphs (whose own names ONNX keeps apart from outer ones)."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in body.node:
                rename(inner, names)
            for output in body.output:
                output.name = names.get(output.name, output.name)


def value_info(info: TensorInfo) -> onnx.ValueInfoProto:
    """A tensor's name, type and shape for a model's inputs or outputs."""
    if info.dtype == "unknown":
        raise ModelError(f"tensor {info.name!r} is not a tensor of known type; sequences and maps are not taken")
    if info.dtype == "string":
        return helper.make_tensor_value_info(info.name, onnx.TensorProto.STRING, info.shape)
    return helper.make_tensor_value_info(info.name, helper.np_dtype_to_tensor_dtype(np.dtype(info.dtype)), info.shape)


class Writer:
    """Collects ONNX nodes and constants for operations of one graph.

    qdq : as in export_model;  points : only activations pass QuantizeLinear and DequantizeLinear.
    """

    def __init__(self, graph: Graph, *, qdq: bool, points: bool = False) -> None:
        self.graph, self.qdq, self.points = graph, qdq, qdq or points
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.read_as: dict[str, str] = {}
        self.opset = dict(graph.opset) or {"": 17}
        self.opset.setdefault("", 17)

    def model(
        self, name: str, inputs: Iterable[onnx.ValueInfoProto], outputs: Iterable[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Everything written so far as a model."""
        constants = [numpy_helper.from_array(np.asarray(v, order="C"), n) for n, v in self.constants.items()]
        body = helper.make_graph(self.nodes, name, list(inputs), list(outputs), constants)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opset.items()]
        return helper.make_model(body, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets, True))

    def node(self, kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Append a node of one output, and return that output's name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{kind}:{output}", **attributes))
        return output

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant, and return its name. Raises ModelError when the model has another one of that name."""
        array = np.asarray(value, dtype=dtype)
        given = self.graph.constants.get(name)
        if given is not None and not np.array_equal(given, array):
            raise ModelError(f"the model's tensor {name!r} has a name that the compiler gives; it must be renamed")
        self.constants[name] = array
        return name

    def round_trip(self, source: str, target: str, quant: Quant) -> None:
        """target = dequantise(quantise(source))."""
        self.node("QuantizeLinear", self._parameters(source, target, quant), f"{target}/codes")
        self.node("DequantizeLinear", self._parameters(f"{target}/codes", target, quant), target)

    def quantise(self, source: str, codes: str, quant: Quant) -> None:
        """codes = quantise(source)."""
        self.node("QuantizeLinear", self._parameters(source, codes, quant), codes)

    def dequantise(self, codes: str, target: str, quant: Quant) -> None:
        """target = dequantise(codes)."""
        self.node("DequantizeLinear", self._parameters(codes, target, quant), target)

    def _parameters(self, source: str, stem: str, quant: Quant) -> tuple[str, str, str]:
        scale = self.constant(f"{stem}/scale", quant.scale)
        return source, scale, self.constant(f"{stem}/zero_point", quant.zero_point, np.dtype(quant.dtype))

    def operation(self, op: Op) -> None:
        """Append an operation, with the quantisation of its outputs."""
        if isinstance(op, Host):
            self._host(op)
            return
        quant = self.graph.info(op.output).quant if self.points else None
        if quant is None or (self.qdq and isinstance(op, View | Concat)):  # moving codes does not round
            self._typed(op, op.output)
            return
        self._typed(op, f"{op.output}/raw")
        self.round_trip(f"{op.output}/raw", op.output, quant)

    def _host(self, op: Host) -> None:
        for name in op.reads:
            if name in self.graph.constants:
                self.constants[name] = self.graph.constants[name]
        node = onnx.NodeProto()
        node.CopyFrom(node_of(op))
        node.name = op.name
        rounded = [(t, q) for t in op.outputs if self.points and t and (q := self.graph.info(t).quant) is not None]
        rename(node, self.read_as | {name: f"{name}/raw" for name, _ in rounded})
        self.nodes.append(node)
        for name, quant in rounded:
            self.round_trip(f"{name}/raw", name, quant)

    def _typed(self, op: Op, target: str) -> None:
        inputs = [self.read_as.get(name, name) for name in op.inputs]
        if isinstance(op, Compute):
            self._compute(op, inputs, target)
        elif isinstance(op, MaxPool):
            pooled = target if op.activation is None else f"{op.output}/pooled"
            self.node(
                "MaxPool", inputs, pooled,
                kernel_shape=op.kernel, strides=op.stride, dilations=op.dilation, pads=op.pads,
            )  # fmt: skip
            if op.activation is not None:
                self.function(op.activation, pooled, target)
        elif isinstance(op, Activation):
            self.function(op.function, inputs[0], target)
        elif isinstance(op, Concat):
            self.node("Concat", inputs, target, axis=op.axis)
        elif isinstance(op, Reshape):
            self.node("Reshape", [inputs[0], self.constant(f"{op.output}/shape", op.shape, np.int64)], target)
        elif isinstance(op, Transpose):
            self.node("Transpose", inputs, target, perm=op.perm)
        elif isinstance(op, Quantise):
            self.quantise(inputs[0], target, op.quant)
        elif isinstance(op, Dequantise):
            self.dequantise(inputs[0], target, op.quant)
        else:
            raise AssertionError(f"no ONNX form for {type(op).__name__}")

    def _compute(self, op: Compute, inputs: list[str], target: str) -> None:
        """The operation proper, then the residual, then the clamp or table."""
        before = target
        if op.activation is not None:
            before = op.pre or f"{op.output}/linear"
        quant = self.graph.info(op.pre).quant if self.points and op.pre else None
        rounded = before
        if quant is not None:
            before = f"{op.pre}/raw"
        if isinstance(op, Add):
            self.node("Add", inputs, before)
        elif isinstance(op, Product):
            self._matmul(op, inputs, before)
        elif op.residual:
            self._product(op, inputs[0], f"{op.output}/product")
            self.node("Add", [f"{op.output}/product", inputs[-1]], before)
        else:
            self._product(op, inputs[0], before)
        if quant is not None:
            self.round_trip(before, rounded, quant)
        if op.activation is not None:
            self.function(op.activation, rounded, target)

    def _product(self, op: Compute, x: str, target: str) -> None:
        stem = f"{op.output}/"
        if isinstance(op, Conv):
            weight, bias = self._weights(op, stem, transposed=False)
            self.node(
                "Conv", [x, weight, *bias], target, kernel_shape=op.weight.shape[2:],
                strides=op.stride, dilations=op.dilation, pads=op.pads, group=op.groups,
            )  # fmt: skip
        elif isinstance(op, Linear):
            self._linear(op, x, target, stem)
        elif isinstance(op, Affine):
            self._affine(op, x, target, stem)
        elif isinstance(op, AveragePool):
            self.node(
                "AveragePool", [x], target, kernel_shape=op.kernel, strides=op.stride, pads=op.pads, count_include_pad=1
            )
        elif isinstance(op, GlobalAveragePool):
            axes: dict[str, Any] = {"axes": op.axes} if self.opset[""] < 18 else {}
            extra = [] if axes else [self.constant(f"{stem}axes", op.axes, np.int64)]
            self.node("ReduceMean", [x, *extra], target, keepdims=int(op.keepdims), **axes)
        else:
            raise AssertionError(f"no ONNX form for {type(op).__name__}")

    def _linear(self, op: Linear, x: str, target: str, stem: str) -> None:
        if len(self.graph.shape(op.inputs[0])) == 2:
            weight, bias = self._weights(op, stem, transposed=False)
            self.node("Gemm", [x, weight, *bias], target, transB=1)
            return
        weight, bias = self._weights(op, stem, transposed=True)
        product = self.node("MatMul", [x, weight], f"{stem}matmul" if bias else target)
        if bias:
            self.node("Add", [product, *bias], target)

    def _matmul(self, op: Product, inputs: list[str], target: str) -> None:
        """Operands into heads, the product of all of them at once, and the result as its tensor has it."""
        stem = f"{op.output}/"

        def moved(x: str, name: str, perm: tuple[int, ...], shape: tuple[int, ...]) -> str:
            turned = self.node("Transpose", [x], f"{stem}{name}/turned", perm=perm)
            size = self.constant(f"{stem}{name}/shape", shape, np.int64)
            return self.node("Reshape", [turned, size], f"{stem}{name}")

        heads: list[str] = []
        for x, name, runs, layout in zip(inputs, "ab", op.runs, op.layouts, strict=False):
            images, channels, _, tokens = layout.shape
            width = channels // runs
            shape = self.constant(f"{stem}{name}/split", (images, tokens, runs, width), np.int64)
            split = self.node("Reshape", [x, shape], f"{stem}{name}/runs")
            if name == "b" and op.transposed:
                heads.append(moved(split, name, (0, 2, 3, 1), (op.products, width, tokens)))
            else:
                heads.append(moved(split, name, (0, 2, 1, 3), (op.products, tokens, width)))
        rows, _, columns = op.size
        mask = None if op.mask is None else self.constant(f"{stem}mask", op.mask)
        if mask is not None and not op.transposed:
            heads[0] = self.node("Mul", [heads[0], mask], f"{stem}a/masked")
        y = self.node("MatMul", heads, f"{stem}matmul")
        if op.factor != 1.0:
            y = self.node("Mul", [y, self.constant(f"{stem}factor", op.factor)], f"{stem}scaled")
        if mask is not None and op.transposed:
            y = self.node("Mul", [y, mask], f"{stem}masked")
        runs = op.runs[2]
        shape = self.constant(f"{stem}y/split", (op.products // runs, runs, rows, columns), np.int64)
        split = self.node("Reshape", [y, shape], f"{stem}y/runs")
        turned = self.node("Transpose", [split], f"{stem}y/turned", perm=(0, 2, 1, 3))
        final = self.constant(f"{stem}y/shape", self.graph.shape(op.output), np.int64)
        self.node("Reshape", [turned, final], target)

    def _affine(self, op: Affine, x: str, target: str, stem: str) -> None:
        scale, shift = op.scale, op.shift
        if self.qdq and (step := self._input_scale(op)) is not None and op.weight_scale is not None:
            codes, bias = integer_weights(op, step, op.weight_scale)
            wide = op.weight_scale.astype(np.float64)
            scale, shift = codes * wide, bias * (step * wide)
        shape = [1] * len(self.graph.shape(op.inputs[0]))
        shape[op.axis] = -1
        if not shift.any():
            self.node("Mul", [x, self.constant(f"{stem}weight", scale.reshape(shape))], target)
            return
        scaled = self.node("Mul", [x, self.constant(f"{stem}weight", scale.reshape(shape))], f"{stem}scaled")
        self.node("Add", [scaled, self.constant(f"{stem}bias", shift.reshape(shape))], target)

    def _input_scale(self, op: Op) -> float | None:
        quant = self.graph.info(op.inputs[0]).quant
        return None if quant is None else quant.scale

    def _weights(self, op: Conv | Linear, stem: str, *, transposed: bool) -> tuple[str, list[str]]:
        """Names of the weight and of the bias (if any), float32 or behind DequantizeLinear."""
        axis = 1 if transposed else 0
        step = self._input_scale(op) if self.qdq else None
        if step is None or op.weight_scale is None:
            weight = self.constant(f"{stem}weight", op.weight.T if transposed else op.weight)
            return weight, [] if op.bias is None else [self.constant(f"{stem}bias", op.bias)]
        codes, bias = integer_weights(op, step, op.weight_scale)
        self.constant(f"{stem}weight/codes", codes.T if transposed else codes, np.int8)
        self.constant(f"{stem}weight/scale", op.weight_scale)
        zero = self.constant(f"{stem}weight/zero_point", np.zeros(len(codes)), np.int8)
        weight = self.node(
            "DequantizeLinear", [f"{stem}weight/codes", f"{stem}weight/scale", zero], f"{stem}weight", axis=axis
        )
        if op.bias is None:
            return weight, []
        self.constant(f"{stem}bias/codes", bias, np.int32)
        self.constant(f"{stem}bias/scale", step * op.weight_scale.astype(np.float64))
        return weight, [
            self.node("DequantizeLinear", [f"{stem}bias/codes", f"{stem}bias/scale"], f"{stem}bias", axis=0)
        ]

    def function(self, f: Function, x: str, target: str) -> None:
        """target = f(x), in operators that every opset since 17 has."""
        if f.is_clamp:
            if (f.lo, f.hi) == (0.0, math.inf):
                self.node("Relu", [x], target)
                return
            lo = self.constant(f"{target}/lo", f.lo) if f.lo > -math.inf else ""
            hi = self.constant(f"{target}/hi", f.hi) if f.hi < math.inf else ""
            self.node("Clip", [x, lo, hi], target)
        elif f.kind == "selu":
            self.node("Selu", [x], target, alpha=f.alpha, gamma=f.beta)
        elif f.kind in _DIRECT:
            kind, names = _DIRECT[f.kind]
            self.node(kind, [x], target, **{name: getattr(f, name) for name in names})
        elif f.kind == "quick_gelu":
            bent = self.node("Mul", [x, self.constant(f"{target}/bend", 1.702)], f"{target}/bent")
            self.node("Mul", [x, self.node("Sigmoid", [bent], f"{target}/gate")], target)
        elif f.kind in ("silu", "mish"):
            gate = self.node("Sigmoid" if f.kind == "silu" else "Softplus", [x], f"{target}/gate")
            if f.kind == "mish":
                gate = self.node("Tanh", [gate], f"{target}/tanh")
            self.node("Mul", [x, gate], target)
        else:
            self._gelu(f, x, target)

    def _gelu(self, f: Function, x: str, target: str) -> None:
        def constant(name: str, value: float) -> str:
            return self.constant(f"{target}/{name}", value)

        if f.kind == "gelu":
            inner = self.node("Mul", [x, constant("rsqrt2", math.sqrt(0.5))], f"{target}/inner")
            bent = self.node("Erf", [inner], f"{target}/erf")
        else:
            square = self.node("Mul", [x, x], f"{target}/square")
            cubic = self.node("Mul", [square, constant("cubic", 0.044715)], f"{target}/cubed")
            factor = self.node("Add", [cubic, constant("one", 1.0)], f"{target}/factor")
            scaled = self.node("Mul", [x, constant("root", math.sqrt(2 / math.pi))], f"{target}/scaled")
            inner = self.node("Mul", [scaled, factor], f"{target}/inner")
            bent = self.node("Tanh", [inner], f"{target}/tanh")
        gate = self.node("Add", [bent, constant("one", 1.0)], f"{target}/gate")
        half = self.node("Mul", [x, constant("half", 0.5)], f"{target}/halved")
        self.node("Mul", [half, gate], target)


_DIRECT: dict[str, tuple[str, tuple[str, ...]]] = {
    "leaky_relu": ("LeakyRelu", ("alpha",)),
    "hard_sigmoid": ("HardSigmoid", ("alpha", "beta")),
    "hard_swish": ("HardSwish", ()),
    "sigmoid": ("Sigmoid", ()),
    "tanh": ("Tanh", ()),
    "elu": ("Elu", ("alpha",)),
    "celu": ("Celu", ("alpha",)),
    "softsign": ("Softsign", ()),
    "abs": ("Abs", ()),
    "softplus": ("Softplus", ()),
}
