"""Models in float16, bfloat16 or float64 as float32, which is what everything behind import calculates in.

float16 and bfloat16 lose nothing. The model's own rounding to them is left out; the array's is coarser.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

__all__ = ["in_float32"]

_OTHERS = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}

_TYPES = {"to", "dtype", "stash_type", "softmax_precision", "output_dtype"}
"""Attributes whose value is an element type."""


def in_float32(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model with every other real type replaced, and a note on what was; the model itself where there is none.

    Only a model that takes, gives or stores such numbers is changed: a lone constant of a type is left alone.
    """
    graph = model.graph
    stored = {t.data_type for t in graph.initializer if int(np.prod(t.dims)) > 1}
    given = {i.type.tensor_type.elem_type for i in (*graph.input, *graph.output)}
    attributes = {
        a.t.data_type for n in graph.node for a in n.attribute if a.HasField("t") and int(np.prod(a.t.dims)) > 1
    }
    found = sorted(_OTHERS[kind] for kind in (stored | given | attributes) & _OTHERS.keys())
    if not found:
        return model, ""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for part in _graphs(copy.graph):
        _convert(part)
    return copy, f"the model's {' and '.join(found)} is calculated in float32"


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _convert(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _convert_tensor(tensor)
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type in _OTHERS:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _convert_tensor(attribute.t)
            for tensor in attribute.tensors:
                _convert_tensor(tensor)
            if attribute.name in _TYPES and attribute.i in _OTHERS:
                attribute.i = TensorProto.FLOAT


def _convert_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _OTHERS:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
