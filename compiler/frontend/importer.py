"""ONNX in: read a model, check it, fix its dimensions, and give every node a place in a Graph.

After import every operation is a Host operation, exactly as ONNX has it; the recognise pass gives types.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from gossamer.arch.errors import ModelError, reason
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array, Host, TensorInfo
from gossamer.compiler.frontend.precision import in_float32

__all__ = ["OPSET", "captured", "dtype_name", "import_model", "load"]

OPSET = 17
"""Older models are converted to this version of the standard operators; newer ones are kept as they are."""

READABLE = 13
"""Since this version operators have had the inputs and attributes that we read; a model of it, or newer, that cannot be
converted is taken as it is."""

SMALL = 1024
"""Initialisers of at most this many elements may be shapes or axes, so that shape inference has to see them."""

_BATCH_NAMES = {"batch", "batch_size", "batchsize", "bs"}
"""What a batch is called, on whichever axis it stands."""
_FIRST_NAMES = {"n", "b", "none", "unk__0", ""}
"""What may be called so is a batch on the first axis; on another it could be anything."""
_MULTIPLIES = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization"}
"""Operators whose constants are weights, not masks."""

_NOT_TAKEN = {"complex64", "complex128", "string"}

Model = str | os.PathLike[str] | bytes | onnx.ModelProto


def import_model(model: Model, dims: Mapping[str, int] | None = None) -> Graph:
    """Read an ONNX model into a Graph of untyped operations.

    model : path, serialised model, or ModelProto (not changed).
    dims : sizes of dynamic dimensions, by their name in the model or as "input.axis"; a dynamic batch is 1: what is
           called batch on any axis, and what is called N, or nothing, on the first.

    Raises ModelError for what is not ONNX, for weights that are not finite, and for dimensions nobody fixed.
    """
    proto, note = in_float32(_dense(_inlined(load(model))))
    multiplied = {name for node in proto.graph.node if node.op_type in _MULTIPLIES for name in node.input}
    weights = {t.name: _array(t, may_mask=t.name not in multiplied) for t in proto.graph.initializer}
    skeleton = _modern(_skeleton(proto, weights))
    graph = Graph(name=proto.graph.name or "model", opset=_opset(skeleton))
    graph.constants = {t.name: _array(t) for t in skeleton.graph.initializer} | {
        name: value for name, value in weights.items() if value.size > SMALL
    }
    for name, value in graph.constants.items():
        graph.tensors[name] = TensorInfo(name=name, shape=value.shape, dtype=str(value.dtype))
    sizes = _Sizes(dims or {})
    inputs = [i for i in skeleton.graph.input if i.name not in graph.constants]
    graph.inputs = tuple(i.name for i in inputs)
    graph.outputs = tuple(o.name for o in skeleton.graph.output)
    for value_info in inputs:
        graph.tensors[value_info.name] = _input_info(value_info, sizes)
    sizes.check_all_used()
    if note:
        graph.notes.append(note)
    for op in _operations(skeleton.graph):
        graph.add(op)
    for name in graph.outputs:
        if name in graph.constants:
            _give_out(graph, name)
    graph.verify()
    return graph


def _give_out(graph: Graph, name: str) -> None:
    """An output that is an initialiser is written by an operation, as every other is."""
    stored = graph.fresh(f"{name}/value")
    graph.constants[stored] = graph.constants.pop(name)
    graph.tensors[stored] = replace(graph.info(name), name=stored)
    graph.redirect(name, stored)
    node = helper.make_node("Identity", [stored], [name])
    graph.add(Host(name=graph.fresh(f"{name}/given"), inputs=(stored,), outputs=(name,), source=(name,), node=node))


def load(model: Model) -> onnx.ModelProto:
    """Parse a model from wherever it is; raises ModelError when it is not one."""
    if isinstance(model, onnx.ModelProto):
        proto, where = model, "model"
    elif not isinstance(model, str | bytes | os.PathLike):
        raise ModelError(f"model must be an ONNX file (path, bytes or ModelProto), not {type(model).__name__}")
    else:
        where = "model" if isinstance(model, bytes) else f"{Path(model)}"
        try:
            proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(os.fspath(model))
        except FileNotFoundError:
            raise ModelError(f"{where}: no such file (or a file of external weights beside it is missing)") from None
        except OSError as error:
            raise ModelError(f"{where}: not an ONNX model ({reason(error)})") from None
        except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{where}: not an ONNX model ({error})") from None
    if not proto.opset_import or not proto.graph.output:
        raise ModelError(f"{where}: not an ONNX model (it has no operator set or no output)")
    return proto


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    if not proto.functions:
        return proto
    from onnx import inliner

    return inliner.inline_local_functions(proto)


def _dense(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with sparse initialisers written out: their zeros are found again."""
    if not proto.graph.sparse_initializer:
        return proto
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for sparse in proto.graph.sparse_initializer:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        places = (indices,) if indices.ndim == 1 else (np.ravel_multi_index(tuple(indices.T), dense.shape),)
        dense.reshape(-1)[places] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del model.graph.sparse_initializer[:]
    return model


def dtype_name(elem_type: int) -> str:
    """numpy's name of an ONNX element type, "string" for text."""
    if elem_type == onnx.TensorProto.STRING:
        return "string"
    return str(np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)))


def _array(tensor: onnx.TensorProto, may_mask: bool = True) -> Array:
    """An initialiser's value, refused when it could only poison what follows.

    may_mask : the tensor may be an attention mask, whose entries are -infinity.
    """
    value = numpy_helper.to_array(tensor)
    name = str(value.dtype)
    if name in _NOT_TAKEN and value.size > 1:
        raise ModelError(f"weight {tensor.name!r} is {name}; must be real, or integer with scales")
    if name == "float32" and not np.isfinite(value.sum(dtype=np.float64)):
        bad = ~np.isfinite(value)
        # An infinite scalar is a bound, not a weight.
        if may_mask:
            bad &= value != -np.inf
        if np.isnan(value).any() or (value.size > 1 and bad.any()):
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ModelError(
                f"weight {tensor.name!r}: {int(bad.sum())} of {value.size} elements are not finite, the first at "
                f"{list(where)} is {value[where]}; must be finite"
            )
    return value


def _skeleton(proto: onnx.ModelProto, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """The model with large initialisers turned into inputs, cheap to copy, convert and infer on."""
    model = onnx.ModelProto(ir_version=max(proto.ir_version, 8))
    model.opset_import.extend(proto.opset_import)
    graph = model.graph
    graph.name = proto.graph.name or "model"
    graph.node.extend(proto.graph.node)
    graph.output.extend(proto.graph.output)
    graph.input.extend(i for i in proto.graph.input if i.name not in weights)
    for tensor in proto.graph.initializer:
        if weights[tensor.name].size <= SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with standard operators of version OPSET or newer."""
    version = next((i.version for i in model.opset_import if i.domain in ("", "ai.onnx")), None)
    if version is None or version >= OPSET:
        return model
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises bare RuntimeError and others, one per adapter
        if version >= READABLE:
            return model
        raise ModelError(
            f"model uses opset {version}, which could not be converted to {OPSET}: {error}; export it with opset 17"
        ) from None


class _Sizes:
    """Sizes for dynamic dimensions, with a memory of which ones were asked for."""

    def __init__(self, given: Mapping[str, int]) -> None:
        if not isinstance(given, Mapping):
            raise ModelError(f"dims must be {{name: size}}, not {type(given).__name__}")
        for name, size in given.items():
            if not isinstance(size, int) or size < 1:
                raise ModelError(f"dims[{name!r}] must be a positive integer, not {size!r}")
        self.given = dict(given)
        self.seen: set[str] = set()
        self.missing: dict[str, str] = {}

    def find(self, tensor: str, axis: int, name: str) -> int:
        """Size of one dynamic dimension; 1 while it is missing."""
        place = f"{tensor}.{axis}"
        self.seen |= {place, name} - {""}
        for key in (place, name):
            if key and key in self.given:
                return self.given[key]
        if name.lower() in _BATCH_NAMES or (axis == 0 and name.lower() in _FIRST_NAMES):
            return self.given.get("batch", 1) if name not in self.given else self.given[name]
        self.missing.setdefault(name or place, f"axis {axis} of input {tensor!r}")
        return 1

    def check_all_used(self) -> None:
        """Every dynamic dimension needs a size; and a misspelt name would otherwise be ignored in silence."""
        if self.missing:
            places = ", ".join(f"{name!r} ({place})" for name, place in self.missing.items())
            wanted = ", ".join(f"{name!r}: size" for name in self.missing)
            raise ModelError(f"the model leaves dimensions open: {places}; pass dims={{{wanted}}}")
        unknown = sorted(set(self.given) - self.seen - {"batch"})
        if unknown:
            known = ", ".join(sorted(self.seen)) or "none"
            raise ModelError(f"dims: {unknown[0]!r} is not a dynamic dimension of this model; they are: {known}")


def _opset(model: onnx.ModelProto) -> dict[str, int]:
    return {"" if i.domain == "ai.onnx" else i.domain: i.version for i in model.opset_import}


def _input_info(value_info: onnx.ValueInfoProto, sizes: _Sizes) -> TensorInfo:
    kind = value_info.type
    if not kind.HasField("tensor_type"):
        raise ModelError(f"input {value_info.name!r} is not a tensor; sequences, maps and optionals are not taken")
    dtype = dtype_name(kind.tensor_type.elem_type)
    if dtype in _NOT_TAKEN:
        raise ModelError(f"input {value_info.name!r} is {dtype}; must be real (or an integer type that hosts read)")
    if not kind.tensor_type.HasField("shape"):
        raise ModelError(f"input {value_info.name!r} has no shape; the model must state its rank")
    shape = []
    for axis, dim in enumerate(kind.tensor_type.shape.dim):
        fixed = dim.HasField("dim_value") and dim.dim_value > 0
        shape.append(dim.dim_value if fixed else sizes.find(value_info.name, axis, dim.dim_param))
    return TensorInfo(name=value_info.name, shape=tuple(shape), dtype=dtype)


def _operations(graph: onnx.GraphProto) -> Iterator[Host]:
    taken: set[str] = set()
    for node in graph.node:
        stem = node.name or next((o for o in node.output if o), node.op_type)
        name, number = stem, 0
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        yield Host(
            name=name,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            source=(name,),
            node=node,
            captured=tuple(sorted(captured(node))),
        )


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that subgraphs of a node read from outside."""
    found: set[str] = set()
    for attribute in node.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {i.name for i in (*body.input, *body.initializer)}
            for inner in body.node:
                found |= ({i for i in inner.input if i} | captured(inner)) - own
                own |= set(inner.output)
            found |= {o.name for o in body.output} - own
    return found
