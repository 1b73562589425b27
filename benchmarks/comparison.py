"""A network beside onnxruntime: the same quantised graph, tensor by tensor, and each layer given the same codes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from gossamer.arch.numerics import make_requant
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Host
from gossamer.compiler.layers import Conv, Layer, MatMul, MaxPool, Network, Tensor
from gossamer.kernels import conv2d, max_pool2d, requantise

__all__ = ["Twin", "layer_differences"]

Codes = dict[str, NDArray[np.int64]]
Feed = Mapping[str, NDArray[np.generic]]


class Twin:
    """A quantised graph under onnxruntime, with QuantizeLinear and DequantizeLinear done as written.

    last : the last tensor on the accelerator.  answer : what to compare with the floating-point model: the first
    output, or `last` where a softmax on the host stands between, behind which all outputs look alike.
    """

    def __init__(self, graph: Graph, network: Network) -> None:
        self.network = network
        self.last = network.layers[-1].output
        ends = graph.producer(network.outputs[0])
        while isinstance(ends, Host) and ends.node.op_type in ("Reshape", "Identity", "Squeeze"):
            ends = graph.producer(ends.inputs[0])
        softmax = isinstance(ends, Host) and ends.node.op_type in ("Softmax", "LogSoftmax")
        self.answer = self.last if softmax else network.outputs[0]
        quantised = export_model(graph, qdq=True)
        written = {output for node in quantised.graph.node for output in node.output}
        names = {t: next((n for n in (f"{t}/codes", f"{t}/dq/codes") if n in written), "") for t in network.tensors}
        self._codes = {tensor: name for tensor, name in names.items() if name}
        self._quantised = _session(quantised, tuple(self._codes.values()))
        self._float = _session(export_model(graph), (self.answer,))

    def codes(self, feed: Feed) -> Codes:
        """Codes [N, C, H, W] of every tensor of the accelerator that the graph knows."""
        values = self._quantised.run(list(self._codes.values()), dict(feed))
        tensors = self.network.tensors
        return {t: _to_array(tensors[t], v.astype(np.int64)) for t, v in zip(self._codes, values, strict=True)}

    def floats(self, feed: Feed) -> NDArray[np.float64]:
        """The answer of the floating-point graph."""
        return np.asarray(self._float.run([self.answer], dict(feed))[0], dtype=np.float64)


def _session(model: onnx.ModelProto, outputs: tuple[str, ...]) -> onnxruntime.InferenceSession:
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(o) for o in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _to_array(tensor: Tensor, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    n, c, h, w = tensor.shape
    return codes.reshape(n, h, w, c).transpose(0, 3, 1, 2) if tensor.channels_last else codes.reshape(tensor.shape)


def layer_differences(network: Network, theirs: Codes) -> tuple[int, int, int]:
    """Codes that differ, codes compared, and the largest difference, each layer given onnxruntime's input codes.

    Behind a table the difference is counted in entries: by how much the code before it must have been off.
    """
    known = dict(theirs)
    different = compared = largest = 0
    for layer in network.layers:
        ours = run_layer(layer, network, known)
        if layer.output not in known:  # a tensor that the graph does not have: part of a layer that was cut
            known[layer.output] = ours
            continue
        off = np.abs(ours - known[layer.output])
        table = None if isinstance(layer, MaxPool) else layer.table
        if table is not None and off.max(initial=0) > 1:
            entries = (table.view(np.int8) if network.tensors[layer.output].signed else table).astype(np.int64)
            ordered = entries[np.arange(layer.lo, layer.hi + 1) & 0xFF]
            off = -(-off // max(1, int(np.abs(np.diff(ordered)).max())))
        different, compared = different + int((off > 0).sum()), compared + off.size
        largest = max(largest, int(off.max(initial=0)))
    return different, compared, largest


def run_layer(layer: Layer, network: Network, codes: Codes) -> NDArray[np.int64]:
    """Output codes [N, C, H, W] of a layer with the reference kernels."""
    if isinstance(layer, MatMul):
        return _product(layer, network, codes)
    first = network.tensors[layer.inputs[0]]
    x = _narrow(np.concatenate([codes[n] for n in layer.inputs], axis=1), first)
    if isinstance(layer, MaxPool):
        pooled = max_pool2d(x, layer.kernel, stride=layer.stride, pads=layer.pads, dilation=layer.dilation)
        return np.clip(pooled.astype(np.int64), layer.lo, layer.hi)
    acc = conv2d(
        x, layer.weight, zero_point=first.zero_point, stride=layer.stride, pads=layer.pads, dilation=layer.dilation,
        groups=layer.groups,
    )  # fmt: skip
    residual, zero = None, 0
    if layer.residual:
        other = network.tensors[layer.residual]
        residual, zero = _narrow(codes[layer.residual], other), other.zero_point
    requant = make_requant(
        layer.scale,
        zero_point=layer.zero_point,
        lo=layer.lo,
        hi=layer.hi,
        residual_ratio=layer.residual_ratio if layer.residual else None,
        residual_zero_point=zero,
    )
    table = _table(layer, network)
    return requantise(acc, layer.bias, requant, residual, table, axis=1).astype(np.int64)


def _narrow(codes: NDArray[np.int64], tensor: Tensor) -> NDArray[Any]:
    return codes.astype(np.int8) if tensor.signed else codes.astype(np.uint8)


def _table(layer: Conv | MatMul, network: Network) -> NDArray[np.int8] | NDArray[np.uint8] | None:
    signed = network.tensors[layer.output].signed
    return layer.table if layer.table is None or not signed else layer.table.view(np.int8)


def _product(layer: MatMul, network: Network, codes: Codes) -> NDArray[np.int64]:
    def heads(name: str) -> NDArray[np.float64]:
        """[products, tokens, width]; sums of 8-bit products are exact in float64."""
        n, c, _, tokens = network.tensors[name].shape
        x = (codes[name] - network.tensors[name].zero_point).astype(np.float64)
        return x.reshape(layer.products, n * c // layer.products, tokens).transpose(0, 2, 1)

    a, b = heads(layer.a), heads(layer.b)
    keep = None
    if layer.mask is not None:
        keep = layer.mask.repeat(layer.mask_tile[0], axis=0).repeat(layer.mask_tile[1], axis=1)
        keep = keep[: a.shape[1], : b.shape[1]]
        if not layer.transposed:
            a = a * keep
    acc = (a @ (b.transpose(0, 2, 1) if layer.transposed else b)).astype(np.int32)
    columns = acc.shape[-1]
    requant = make_requant(np.full(columns, layer.scale), zero_point=layer.zero_point, lo=layer.lo, hi=layer.hi)
    y = requantise(acc, np.zeros(columns, np.int32), requant, None, _table(layer, network)).astype(np.int64)
    if keep is not None and layer.transposed:
        y = np.where(keep, y, layer.zero_point)
    return y.transpose(0, 2, 1).reshape(network.tensors[layer.output].shape)
