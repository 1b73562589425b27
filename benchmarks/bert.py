"""A BERT encoder as an ONNX graph, from the tensors of a safetensors file.

Written as exporters write it: dynamic batch and sequence, heads by Reshape and Transpose, an additive mask made from
the attention mask, GELU spelt out with Erf, and a masked mean over tokens for the sentence.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["bert_model", "read_safetensors"]

OPSET = 17
Array = NDArray[Any]


def read_safetensors(path: Path) -> dict[str, Array]:
    """The float32 tensors of a safetensors file: eight bytes of length, a JSON header, raw data."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    found: dict[str, Array] = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            found[name] = np.frombuffer(raw[start + first : start + last], np.float32).reshape(entry["shape"])
    return found


class _Writer:
    """Nodes and initialisers of the graph being written."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def op(self, kind: str, *inputs: str | Array, out: str = "", **attributes: Any) -> str:
        """Append a node; arrays among the inputs become initialisers."""
        out = out or f"{kind.lower()}_{len(self.nodes)}"
        names = []
        for value in inputs:
            if not isinstance(value, str):
                self.constants[f"{out}.constant_{len(self.constants)}"] = value
                value = list(self.constants)[-1]
            names.append(value)
        self.nodes.append(helper.make_node(kind, names, [out], name=f"/{out}", **attributes))
        return out

    def weight(self, name: str) -> str:
        """An initialiser under its own name."""
        self.constants[name] = self.weights[name]
        return name

    def linear(self, x: str, name: str) -> str:
        """x @ W.T + b."""
        product = self.op("MatMul", x, np.ascontiguousarray(self.weights[f"{name}.weight"].T), out=f"{name}/matmul")
        return self.op("Add", self.weight(f"{name}.bias"), product, out=f"{name}/add")

    def norm(self, x: str, name: str, epsilon: float) -> str:
        """Layer normalisation over the features."""
        return self.op(
            "LayerNormalization", x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"),
            out=f"{name}/norm", axis=-1, epsilon=epsilon,
        )  # fmt: skip


def bert_model(weights: dict[str, Array], config: dict[str, Any]) -> onnx.ModelProto:
    """The encoder with its pooling.

    weights : tensors under their names in a BertModel;  config : the model's config.json.
    Inputs input_ids, attention_mask, token_type_ids: int64 [batch, sequence]. Output sentence: float32
    [batch, hidden], of length one.
    """
    w = _Writer(weights)
    epsilon = float(config["layer_norm_eps"])
    x = _embeddings(w, epsilon)
    mask = _additive_mask(w)
    for layer in range(config["num_hidden_layers"]):
        x = _layer(w, f"encoder.layer.{layer}", x, mask, config["num_attention_heads"], epsilon)
    _pooling(w, x)
    axes = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, axes)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    output = helper.make_tensor_value_info("sentence", TensorProto.FLOAT, ["batch", config["hidden_size"]])
    constants = [numpy_helper.from_array(value, name) for name, value in w.constants.items()]
    graph = helper.make_graph(w.nodes, "bert", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _embeddings(w: _Writer, epsilon: float) -> str:
    words = w.op("Gather", w.weight("embeddings.word_embeddings.weight"), "input_ids")
    kinds = w.op("Gather", w.weight("embeddings.token_type_embeddings.weight"), "token_type_ids")
    length = w.op("Gather", w.op("Shape", "input_ids"), np.array(1), axis=0)
    end = w.op("Unsqueeze", length, np.array([0]))
    places = w.op("Slice", w.weight("embeddings.position_embeddings.weight"), np.array([0]), end, np.array([0]))
    return w.norm(w.op("Add", w.op("Add", words, kinds), places), "embeddings.LayerNorm", epsilon)


def _additive_mask(w: _Writer) -> str:
    wide = w.op("Unsqueeze", "attention_mask", np.array([1, 2]))
    real = w.op("Cast", wide, to=TensorProto.FLOAT)
    missing = w.op("Sub", np.array(1.0, np.float32), real)
    return w.op("Mul", missing, np.array(np.finfo(np.float32).min))


def _layer(w: _Writer, name: str, x: str, mask: str, heads: int, epsilon: float) -> str:
    hidden = w.weights[f"{name}.attention.self.query.weight"].shape[0]
    split = np.array([0, 0, heads, hidden // heads])
    joined = np.array([0, 0, hidden])
    q, k, v = (
        w.op("Reshape", w.linear(x, f"{name}.attention.self.{part}"), split) for part in ("query", "key", "value")
    )
    q = w.op("Transpose", q, perm=[0, 2, 1, 3])
    k = w.op("Transpose", k, perm=[0, 2, 3, 1])
    v = w.op("Transpose", v, perm=[0, 2, 1, 3])
    scores = w.op("MatMul", q, k, out=f"{name}/scores")
    scaled = w.op("Div", scores, np.array(np.sqrt(hidden / heads), np.float32))
    chances = w.op("Softmax", w.op("Add", scaled, mask), axis=-1)
    context = w.op("Transpose", w.op("MatMul", chances, v, out=f"{name}/context"), perm=[0, 2, 1, 3])
    mixed = w.linear(w.op("Reshape", context, joined), f"{name}.attention.output.dense")
    x = w.norm(w.op("Add", mixed, x), f"{name}.attention.output.LayerNorm", epsilon)
    wide = w.linear(x, f"{name}.intermediate.dense")
    bent = w.op("Erf", w.op("Div", wide, np.array(np.sqrt(2.0), np.float32)))
    gated = w.op("Mul", wide, w.op("Add", bent, np.array(1.0, np.float32)))
    narrow = w.linear(w.op("Mul", gated, np.array(0.5, np.float32)), f"{name}.output.dense")
    return w.norm(w.op("Add", narrow, x), f"{name}.output.LayerNorm", epsilon)


def _pooling(w: _Writer, x: str) -> None:
    mask = w.op("Unsqueeze", w.op("Cast", "attention_mask", to=TensorProto.FLOAT), np.array([2]))
    total = w.op("ReduceSum", w.op("Mul", x, mask), np.array([1]), keepdims=0)
    mean = w.op("Div", total, w.op("ReduceSum", mask, np.array([1]), keepdims=0))
    length = w.op("ReduceL2", mean, axes=[1], keepdims=1)
    w.op("Div", mean, w.op("Clip", length, np.array(1e-12, np.float32)), out="sentence")
