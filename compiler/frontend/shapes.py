"""Shapes and constants: what can be known of a model before it runs.

Both passes work on untyped graphs, straight after import. They need each other: shapes are often computed by chains
of Shape, Gather and Concat whose values are constants once the input's shape is known.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gossamer.arch.errors import ModelError
from gossamer.compiler.frontend.control import inline_known_branches
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.importer import SMALL, dtype_name
from gossamer.compiler.frontend.ops import Array, Host, TensorInfo

__all__ = ["evaluate", "fold_constants", "infer_shapes", "node_of", "run_session"]

FOLD_LIMIT = 1 << 28
"""No constant larger than this many elements is made."""

_WINDOWS = ("Conv", "ConvInteger", "ConvTranspose", "Pool")
"""How the names of operators end that slide a window."""

_NEVER_FOLDED = {
    "DequantizeLinear",  # its codes and scales are wanted as they are
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
}


def infer_shapes(graph: Graph) -> Graph:
    """Give every tensor its shape and dtype, as far as they do not depend on data."""
    before, now = (-1, -1), (0, 0)
    while now != before:
        graph = inline_known_branches(fold_constants(_asked(_inferred(graph))))
        before, now = now, (len(graph), _unknown(graph))
        if not now[1]:
            break
    _check_not_empty(graph)
    return graph


def _check_not_empty(graph: Graph) -> None:
    """Refuse a window that fits its input nowhere: sizes given for open dimensions are too small for it."""
    for op in graph.order():
        windowed = isinstance(op, Host) and op.node.op_type.endswith(_WINDOWS)
        shape = graph.info(op.output).shape if windowed and op.outputs[0] else None
        if shape is not None and min(shape[2:], default=1) < 1:
            given = ", ".join(f"{name!r} {list(graph.shape(name))}" for name in graph.inputs)
            raise ModelError(
                f"{op.name!r} is empty: its output would be {list(shape)}; the model's inputs are {given}, open sizes "
                "come from dims="
            )


def _unknown(graph: Graph) -> int:
    """Tensors of unknown shape."""
    return sum(graph.info(t).shape is None for op in graph for t in op.outputs if t)


def _inferred(graph: Graph) -> Graph:
    """One run of ONNX's own inference, large constants standing in as inputs."""
    model = _light(graph, graph.outputs)
    known = [graph.info(t) for op in graph for t in op.outputs if t and t not in graph.outputs]
    model.graph.value_info.extend(_value_info(info) for info in known if info.shape is not None)
    try:
        found = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"shapes of {graph.name!r} contradict each other: {error}") from None
    graph = graph.copy()
    for value in (*found.value_info, *found.output):
        if value.type.HasField("tensor_type") and value.name not in graph.inputs:
            graph.tensors[value.name] = _info(value)
        elif value.type.WhichOneof("value"):  # a sequence, a map or an optional
            graph.tensors[value.name] = TensorInfo(name=value.name, dtype="unknown")
    return graph


def _light(graph: Graph, outputs: Iterable[str]) -> onnx.ModelProto:
    """The graph as a model without large constants, which are inputs instead."""
    inputs = [_value_info(graph.info(name)) for name in graph.inputs]
    small = []
    for name, value in graph.constants.items():
        if value.size <= SMALL:
            small.append(numpy_helper.from_array(value, name))
        else:
            inputs.append(_value_info(graph.info(name)))
    nodes = [node_of(op) for op in graph if isinstance(op, Host)]
    body = helper.make_graph(nodes, graph.name, inputs, [onnx.ValueInfoProto(name=name) for name in outputs], small)
    opsets = [helper.make_opsetid(d, v) for d, v in graph.opset.items()]
    return helper.make_model(body, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets, True))


def _asked(graph: Graph) -> Graph:
    """Shapes that ONNX cannot infer, as onnxruntime does: it knows operations of its own, and the insides of others."""
    unknown = [t for op in graph if isinstance(op, Host) for t in op.outputs if t and _askable(graph, op, t)]
    if not unknown:
        return graph
    try:
        found = run_session(_light(graph, unknown)).get_outputs()
    except Exception:  # what cannot run says so when it should: here it only has no shapes
        return graph
    graph = graph.copy()
    for value in found:
        # A shape of no axes may be a number's, or not known at all.
        if value.type.startswith("tensor(") and value.shape and all(isinstance(n, int) for n in value.shape):
            dtype = _ORT_TYPES.get(value.type[len("tensor(") : -1], value.type[len("tensor(") : -1])
            graph.tensors[value.name] = TensorInfo(name=value.name, shape=tuple(value.shape), dtype=dtype)
    return graph


def _askable(graph: Graph, op: Host, tensor: str) -> bool:
    """Whether a tensor's shape is not known though those of all that the operation reads are."""
    info = graph.info(tensor)
    return info.shape is None and info.dtype != "unknown" and all(graph.info(t).shape is not None for t in op.reads)


_ORT_TYPES = {"float": "float32", "double": "float64"}
"""numpy's names of types that onnxruntime calls otherwise."""


def run_session(model: onnx.ModelProto) -> Any:
    """An onnxruntime session for a model, quiet."""
    import onnxruntime  # slow to import, and few models need it

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def node_of(op: Host) -> onnx.NodeProto:
    """The ONNX node of a Host operation, with the operation's present inputs and outputs."""
    if tuple(op.node.input) == op.inputs and tuple(op.node.output) == op.outputs:
        return op.node
    node = onnx.NodeProto()
    node.CopyFrom(op.node)
    del node.input[:], node.output[:]
    node.input.extend(op.inputs)
    node.output.extend(op.outputs)
    return node


def _value_info(info: TensorInfo) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, helper.np_dtype_to_tensor_dtype(np.dtype(info.dtype)), info.shape)


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    dtype = dtype_name(kind.elem_type) if kind.elem_type else "unknown"
    shape = None
    if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
        shape = tuple(d.dim_value for d in kind.shape.dim)
    return TensorInfo(name=value.name, shape=shape, dtype=dtype)


def fold_constants(graph: Graph) -> Graph:
    """Compute every operation whose inputs are all constants (or only the shape of a known tensor)."""
    graph = graph.copy()
    for op in graph.order():
        if not isinstance(op, Host) or op.captured or set(op.outputs) & set(graph.outputs):
            continue
        values = _evaluate(graph, op)
        if values is None:
            continue
        graph.remove(op.name)
        for name, value in values.items():
            graph.constants[name] = value
            graph.tensors[name] = TensorInfo(name=name, shape=value.shape, dtype=str(value.dtype))
    graph.prune()
    return graph


def _evaluate(graph: Graph, op: Host) -> dict[str, Array] | None:
    """The values of an operation's outputs, or None when they are not constant."""
    kind = op.node.op_type
    if op.node.domain not in ("", "ai.onnx") or kind in _NEVER_FOLDED:
        return None
    if kind == "Shape":
        shape = graph.info(op.inputs[0]).shape
        attributes = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}
        if shape is None:
            return None
        return {op.output: np.array(shape[attributes.get("start", 0) : attributes.get("end", len(shape))], np.int64)}
    if not all(name in graph.constants for name in op.reads):
        return None
    if kind == "ConstantOfShape":
        return _constant_of_shape(graph, op)
    sizes = [graph.info(o).shape for o in op.outputs if o]
    if any(shape is not None and np.prod(shape, dtype=np.float64) > FOLD_LIMIT for shape in sizes):
        return None
    return evaluate(op, {name: graph.constants[name] for name in op.reads}, graph.opset)


def _constant_of_shape(graph: Graph, op: Host) -> dict[str, Array] | None:
    shape = tuple(int(n) for n in graph.constants[op.inputs[0]])
    if np.prod(shape, dtype=np.float64) > FOLD_LIMIT:
        return None
    fill = next((numpy_helper.to_array(a.t) for a in op.node.attribute if a.name == "value"), np.zeros(1, np.float32))
    return {op.output: np.full(shape, fill.reshape(-1)[0], dtype=fill.dtype)}


def evaluate(op: Host, feeds: dict[str, Array], opset: dict[str, int]) -> dict[str, Array] | None:
    """ONNX's reference evaluator on one node; None for what it does not implement."""
    from onnx.reference import ReferenceEvaluator

    names = [o for o in op.outputs if o]
    body = helper.make_graph(
        [node_of(op)],
        "constant",
        [onnx.ValueInfoProto(name=n) for n in feeds],
        [onnx.ValueInfoProto(name=n) for n in names],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid(d, v) for d, v in opset.items()])
    try:
        results: Any = ReferenceEvaluator(model).run(names, feeds)
    except Exception:  # whatever it was, the operation simply stays in the graph
        return None
    if not all(isinstance(r, np.ndarray | np.generic) for r in results):
        return None
    return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}
