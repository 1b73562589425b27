"""What a spec cannot run goes to the host, one layer at a time, instead of refusing the network.

A layer that no tiling fits becomes a host segment that computes the same codes; a mean over a large window is cut into
its two axes first; and where a spec has no tables, only the function behind a layer goes to the host.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gossamer.arch.errors import CapacityError
from gossamer.arch.numerics import code_range
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.mapped import map_layer
from gossamer.compiler.backend.placing import place_tensors
from gossamer.compiler.layers import Conv, HostSegment, Layer, MatMul, MaxPool, Network, Tensor

__all__ = ["fitted", "layer_on_host"]

Stage = Layer | HostSegment


def fitted(network: Network, spec: ArchSpec) -> Network:
    """The network with every layer that the spec cannot run replaced; notes say which, and why."""
    if spec.tables == 0:
        network = _without_tables(network, spec)
    while True:
        try:
            placements = place_tensors(network, spec)
        except CapacityError as error:
            network = _without_products(network, str(error))
            continue
        stages: list[Stage] = []
        tensors = dict(network.tensors)
        notes = list(network.notes)
        for stage in network.stages:
            new: Sequence[Stage] = (stage,)
            if not isinstance(stage, HostSegment):
                try:
                    map_layer(stage, placements, spec)
                except CapacityError as error:
                    new = _replaced(stage, tensors, str(error))
                    notes.append(f"{error}: {_DONE[len(new)]}")
            stages += new
        if len(notes) == len(network.notes):
            return network
        network = replace(network, stages=tuple(stages), tensors=tensors, notes=tuple(notes))


_DONE = {1: "it runs on the host", 2: "cut into its two axes"}


def _replaced(layer: Layer, tensors: dict[str, Tensor], reason: str) -> Sequence[Stage]:
    """Stages instead of a layer that fits in no tiling; tensors between them are added."""
    if isinstance(layer, Conv) and _is_mean(layer):
        return _two_means(layer, tensors)
    return (layer_on_host(layer, tensors, reason),)


def _without_products(network: Network, reason: str) -> Network:
    """The products that a message names, or else all of them, on the host."""
    products = {layer.name for layer in network.layers if isinstance(layer, MatMul)}
    if not products:
        raise CapacityError(reason)
    named = {name for name in products if repr(name) in reason} or products
    tensors = dict(network.tensors)
    stages = tuple(
        layer_on_host(s, tensors, reason) if isinstance(s, MatMul) and s.name in named else s for s in network.stages
    )
    return replace(network, stages=stages, notes=(*network.notes, f"{reason}: {_DONE[1]}"))


def _is_mean(layer: Conv) -> bool:
    """A depthwise sum over a window of more than one row and more than one column."""
    k, width, rows, columns = layer.weight.shape
    alike = width == 1 and layer.groups == k and (layer.weight == layer.weight.flat[0]).all()
    return bool(alike and min(rows, columns) > 1 and len(layer.inputs) == 1 and not any(layer.pads))


def _two_means(layer: Conv, tensors: dict[str, Tensor]) -> Sequence[Stage]:
    """First along rows, in the input's own codes, then along columns. The mean of rows is rounded, to half a code."""
    source = tensors[layer.inputs[0]]
    k, _, rows, columns = layer.weight.shape
    n, _, h, w = source.shape
    across = (w - (columns - 1) * layer.dilation[1] - 1) // layer.stride[1] + 1
    shape = (n, k, h, across)
    middle = replace(source, name=f"{layer.output}/rows", shape=shape, model_shape=shape, channels_last=False)
    tensors[middle.name] = middle
    lo, hi = code_range(source.signed)
    one = layer.weight[:, :, :1, :1]
    first = Conv(
        name=f"{layer.name}/rows",
        inputs=layer.inputs,
        output=middle.name,
        weight=np.ones((k, 1, 1, columns), np.int8),
        bias=np.zeros(k, np.int32),
        scale=np.full(k, 1 / columns),
        stride=(1, layer.stride[1]),
        dilation=(1, layer.dilation[1]),
        groups=k,
        zero_point=source.zero_point,
        lo=lo,
        hi=hi,
        signed=source.signed,
        pattern=layer.pattern,
        source=layer.source,
    )
    second = replace(
        layer,
        inputs=(middle.name,),
        weight=np.ascontiguousarray(np.broadcast_to(one, (k, 1, rows, 1))),
        scale=layer.scale * columns,
        stride=(layer.stride[0], 1),
        dilation=(layer.dilation[0], 1),
    )
    return first, second


def _without_tables(network: Network, spec: ArchSpec) -> Network:
    """Layers end before their tables, which the host looks up."""
    stages: list[Stage] = []
    tensors = dict(network.tensors)
    for stage in network.stages:
        if isinstance(stage, HostSegment | MaxPool) or stage.table is None:
            stages.append(stage)
            continue
        before = replace(
            tensors[stage.output],
            name=f"{stage.output}/before",
            scale=1.0,
            zero_point=stage.zero_point,
            signed=stage.signed,
        )
        tensors[before.name] = before
        reason = f"layer {stage.name!r} ends in a table of 256 entries, and spec {spec.name!r} has buffers.tables = 0"
        stages += [replace(stage, output=before.name, table=None), _lookup(stage, before, tensors, reason)]
    return replace(network, stages=tuple(stages), tensors=tensors)


# --- layers as ONNX -------------------------------------------------------------------------------------------------


class _Segment:
    """Nodes of a host segment that takes and gives codes, and calculates with them as whole numbers in float32."""

    def __init__(self, layer: Layer, tensors: dict[str, Tensor]) -> None:
        self.layer, self.tensors = layer, tensors
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[str] = []

    def op(self, kind: str, *inputs: str | Any, **attributes: Any) -> str:
        """Append a node; what is not a name becomes a constant. Returns the output's name."""
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        output = f"{self.layer.name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        """A constant: whole numbers as int64, real ones as float32."""
        array = np.asarray(value)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        self.constants.append(numpy_helper.from_array(array, f"{self.layer.name}/c{len(self.constants)}"))
        return self.constants[-1].name

    def read(self, name: str, *, centred: bool = True) -> str:
        """Codes (less the zero point) of a tensor in array shape."""
        tensor = self.tensors[name]
        n, c, h, w = tensor.shape
        if name not in self.inputs:
            self.inputs.append(name)
        x = self.op("Cast", name, to=onnx.TensorProto.FLOAT)
        x = self.op("Reshape", x, np.array((n, h, w, c) if tensor.channels_last else tensor.shape))
        if tensor.channels_last:
            x = self.op("Transpose", x, perm=[0, 3, 1, 2])
        return self.op("Sub", x, float(tensor.zero_point)) if centred and tensor.zero_point else x

    def write(self, x: str, bounds: tuple[int, int]) -> None:
        """Round codes in array shape, clamp them and give them out in the model's shape."""
        layer, tensor = self.layer, self.tensors[self.layer.output]
        x = self.op("Clip", self.op("Round", x), float(bounds[0]), float(bounds[1]))
        if not isinstance(layer, MaxPool) and layer.table is not None:
            x = self.look_up(x, layer.table, tensor.signed)
        if tensor.channels_last:
            x = self.op("Transpose", x, perm=[0, 2, 3, 1])
        x = self.op("Reshape", x, np.array(tensor.model_shape or tensor.shape))
        self.nodes.append(helper.make_node("Cast", [x], [layer.output], to=_element(tensor)))

    def look_up(self, codes: str, table: Any, signed: bool) -> str:
        """Entries of a table of bit patterns for codes of either sign."""
        entries = (table.view(np.int8) if signed else table).astype(np.float32)
        index = self.op("Cast", codes, to=onnx.TensorProto.INT64)
        return self.op("Gather", entries, self.op("Mod", index, np.array(256)))

    def finished(self, reason: str, macs: int, kind: str = "") -> HostSegment:
        """The segment."""
        info = helper.make_tensor_value_info
        shapes = {n: self.tensors[n].model_shape or self.tensors[n].shape for n in (*self.inputs, self.layer.output)}
        graph = helper.make_graph(
            self.nodes,
            self.layer.name,
            [info(n, _element(self.tensors[n]), shapes[n]) for n in self.inputs],
            [info(self.layer.output, _element(self.tensors[self.layer.output]), shapes[self.layer.output])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return HostSegment(
            name=f"{self.layer.name}/host",
            model=model.SerializeToString(),
            inputs=tuple(self.inputs),
            outputs=(self.layer.output,),
            reason=reason,
            ops=(kind or type(self.layer).__name__,),
            macs=macs,
        )


def _element(tensor: Tensor) -> int:
    return int(onnx.TensorProto.INT8 if tensor.signed else onnx.TensorProto.UINT8)


def layer_on_host(layer: Layer, tensors: dict[str, Tensor], reason: str) -> HostSegment:
    """A segment that computes a layer's codes in floating point: the same, but for sums past 24 bits and ties."""
    s = _Segment(layer, tensors)
    out = tensors[layer.output]
    macs = 0
    if isinstance(layer, MaxPool):
        s.write(_maximum(s, layer), (layer.lo, layer.hi))
    elif isinstance(layer, MatMul):
        s.write(_product(s, layer), (layer.lo, layer.hi))
        first = tensors[layer.a].shape
        macs = prod(out.shape) * prod(first) // (layer.products * first[3])
    else:
        s.write(_convolution(s, layer), (layer.lo, layer.hi))
        macs = layer.weight.size * out.shape[0] * out.shape[2] * out.shape[3]
    return s.finished(reason, macs)


def _lookup(layer: Conv | MatMul, before: Tensor, tensors: dict[str, Tensor], reason: str) -> HostSegment:
    s = _Segment(layer, tensors)
    s.write(s.read(before.name, centred=False), code_range(before.signed))
    return s.finished(reason, 0, "table")


def _joined(s: _Segment, names: tuple[str, ...], *, centred: bool) -> str:
    parts = [s.read(name, centred=centred) for name in names]
    return parts[0] if len(parts) == 1 else s.op("Concat", *parts, axis=1)


def _convolution(s: _Segment, layer: Conv) -> str:
    y = s.op(
        "Conv",
        _joined(s, layer.inputs, centred=True),
        layer.weight.astype(np.float32),
        layer.bias.astype(np.float32),
        strides=layer.stride,
        dilations=layer.dilation,
        pads=layer.pads,
        group=layer.groups,
    )
    y = s.op("Mul", y, layer.scale.astype(np.float32).reshape(1, -1, 1, 1))
    if layer.residual is not None:
        y = s.op("Add", y, s.op("Mul", s.read(layer.residual), float(layer.residual_ratio)))
    return s.op("Add", y, float(layer.zero_point))


def _maximum(s: _Segment, layer: MaxPool) -> str:
    x = _joined(s, layer.inputs, centred=False)
    return s.op(
        "MaxPool", x, kernel_shape=layer.kernel, strides=layer.stride, dilations=layer.dilation, pads=layer.pads
    )


def _product(s: _Segment, layer: MatMul) -> str:
    def heads(name: str, transposed: bool) -> str:
        n, c, _, tokens = s.tensors[name].shape
        width = n * c // layer.products
        split = s.op("Reshape", s.read(name), np.array([layer.products, width, tokens]))
        return split if transposed else s.op("Transpose", split, perm=[0, 2, 1])

    a, b = heads(layer.a, False), heads(layer.b, layer.transposed)
    keep = None
    n, c, _, tokens = s.tensors[layer.output].shape
    if layer.mask is not None:
        rows, keys = layer.mask_tile
        first = s.tensors[layer.a].shape
        columns = n * c // layer.products if layer.transposed else first[0] * first[1] // layer.products
        keep = layer.mask.repeat(rows, axis=0).repeat(keys, axis=1)[:tokens, :columns].astype(np.float32)
        if not layer.transposed:
            a = s.op("Mul", a, keep)
    y = s.op("Mul", s.op("MatMul", a, b), float(layer.scale))
    if keep is not None and layer.transposed:
        y = s.op("Mul", y, keep)
    y = s.op("Transpose", s.op("Add", y, float(layer.zero_point)), perm=[0, 2, 1])
    return s.op("Reshape", y, np.array([n, c, 1, tokens]))
