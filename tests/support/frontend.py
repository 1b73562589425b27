"""Small ONNX models for the front end's tests, a plain interpreter of a Network, and a comparison with onnxruntime."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from gossamer.arch.numerics import code_range, make_requant, requantise
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.importer import import_model
from gossamer.compiler.frontend.lower import lower
from gossamer.compiler.layers import Conv, HostSegment, MatMul, MaxPool, Network, Tensor
from gossamer.compiler.passes import Options, run_passes


class Builder:
    """Writes an ONNX model operation by operation; weights are drawn from a seeded generator."""

    def __init__(self, *inputs, seed=0, opset=17):
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs]
        self.nodes, self.weights = [], []

    def weight(self, *shape, scale=None):
        """A normal random initialiser of sane scale."""
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.constant(self.rng.standard_normal(shape) * (fan_in**-0.5 if scale is None else scale))

    def constant(self, value, dtype=np.float32):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def op(self, kind, *inputs, out=None, **attributes):
        out = out or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"n_{out}", **attributes))
        return out

    def conv(self, x, c_in, c_out, k=3, groups=1, bias=True, **attributes):
        weight = self.weight(c_out, c_in // groups, *([k, k] if isinstance(k, int) else k))
        more = [self.weight(c_out, scale=0.3)] if bias else []
        return self.op("Conv", x, weight, *more, group=groups, **attributes)

    def bn(self, x, c):
        uniform = self.rng.uniform
        values = uniform(0.5, 1.5, c), uniform(-0.3, 0.3, c), uniform(-0.3, 0.3, c), uniform(0.5, 2.0, c)
        return self.op("BatchNormalization", x, *(self.constant(v) for v in values))

    def model(self, *outputs):
        infos = [helper.make_empty_tensor_value_info(o) for o in outputs]
        graph = helper.make_graph(self.nodes, "test", self.inputs, infos, self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run_onnx(model, feeds, optimise=False):
    """onnxruntime's outputs; unoptimised, so that Quantise and Dequantise are done as written."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


# --- a Network, run in plain int64 ----------------------------------------------------------------------------------


def to_array(tensor: Tensor, codes):
    n, c, h, w = tensor.shape
    return codes.reshape(n, h, w, c).transpose(0, 3, 1, 2) if tensor.channels_last else codes.reshape(n, c, h, w)


def to_model(tensor: Tensor, array):
    return (array.transpose(0, 2, 3, 1) if tensor.channels_last else array).reshape(tensor.model_shape)


def windows(x, kernel, stride, dilation, pads, fill):
    """[N, C, H', W', kh, kw] of a padded [N, C, H, W]."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def run_conv(layer: Conv, network: Network, codes):
    first = network.tensors[layer.inputs[0]]
    for name in layer.inputs:
        assert (network.tensors[name].scale, network.tensors[name].zero_point) == (first.scale, first.zero_point)
    x = np.concatenate([codes[name] for name in layer.inputs], axis=1) - first.zero_point
    view = windows(x, layer.weight.shape[2:], layer.stride, layer.dilation, layer.pads, 0)
    groups, out_channels = layer.groups, layer.weight.shape[0]
    view = view.reshape(view.shape[0], groups, -1, *view.shape[2:])
    weight = layer.weight.astype(np.int64).reshape(groups, out_channels // groups, *layer.weight.shape[1:])
    acc = np.einsum("ngchwij,gocij->nhwgo", view, weight, optimize=True)
    acc = acc.reshape(*acc.shape[:3], out_channels)
    assert abs(acc + layer.bias).max(initial=0) < 2**31
    residual = codes[layer.residual].transpose(0, 2, 3, 1) if layer.residual else None
    requant = make_requant(
        layer.scale,
        zero_point=layer.zero_point,
        lo=layer.lo,
        hi=layer.hi,
        residual_ratio=layer.residual_ratio if layer.residual else None,
        residual_zero_point=network.tensors[layer.residual].zero_point if layer.residual else 0,
    )
    table = None
    if layer.table is not None:
        table = layer.table.view(np.int8) if network.tensors[layer.output].signed else layer.table
    lo, hi = code_range(layer.signed)
    assert lo <= layer.lo <= layer.hi <= hi
    out = requantise(acc.astype(np.int32), layer.bias, requant, residual, table)
    return out.transpose(0, 3, 1, 2).astype(np.int64)


def run_pool(layer: MaxPool, network: Network, codes):
    x = np.concatenate([codes[name] for name in layer.inputs], axis=1)
    tensor = network.tensors[layer.inputs[0]]
    if any(layer.pads):
        assert x.min() >= tensor.zero_point, "padding must not win"
    view = windows(x, layer.kernel, layer.stride, layer.dilation, layer.pads, tensor.zero_point)
    return np.clip(view.max(axis=(-1, -2)), layer.lo, layer.hi)


def run_matmul(layer: MatMul, network: Network, codes):
    def heads(name):
        """[products, tokens, width], without the zero point."""
        n, c, _, tokens = network.tensors[name].shape
        x = codes[name] - network.tensors[name].zero_point
        runs = layer.products // n
        return x.reshape(n, runs, c // runs, tokens).transpose(0, 1, 3, 2).reshape(layer.products, tokens, -1)

    a, b = heads(layer.a), heads(layer.b)
    second = network.tensors[layer.b]
    assert (second.zero_point, second.signed) == (0, True)
    keep = None
    if layer.mask is not None:
        keep = layer.mask.repeat(layer.mask_tile[0], axis=0).repeat(layer.mask_tile[1], axis=1)
        keep = keep[: a.shape[1], : b.shape[1]]
        if not layer.transposed:
            a = a * keep
    acc = a @ (b.transpose(0, 2, 1) if layer.transposed else b)
    out = network.tensors[layer.output]
    table = None
    if layer.table is not None:
        table = layer.table.view(np.int8) if out.signed else layer.table
    requant = make_requant(np.full(acc.shape[-1], layer.scale), zero_point=layer.zero_point, lo=layer.lo, hi=layer.hi)
    y = requantise(acc.astype(np.int32), np.zeros(acc.shape[-1], np.int32), requant, None, table).astype(np.int64)
    if keep is not None and layer.transposed:
        y = np.where(keep, y, layer.zero_point)
    n, c, _, tokens = out.shape
    runs = layer.products // n
    return y.reshape(n, runs, tokens, c // runs).transpose(0, 1, 3, 2).reshape(out.shape)


RUN = {Conv: run_conv, MaxPool: run_pool, MatMul: run_matmul}


def run_network(network: Network, feeds):
    """Every tensor of the network as codes in array shape (or a host value), and the outputs in the model's terms."""
    codes, host = {}, {}
    for name in network.inputs:
        host[name] = feeds[name]
        if name in network.tensors:
            t = network.tensors[name]
            lo, hi = code_range(t.signed)
            q = np.clip(np.rint(feeds[name] / np.float32(t.scale)) + t.zero_point, lo, hi).astype(np.int64)
            codes[name] = to_array(t, q)
    for stage in network.stages:
        if isinstance(stage, HostSegment):
            inputs = {}
            for name in stage.inputs:
                if name in network.tensors:
                    t = network.tensors[name]
                    inputs[name] = to_model(t, codes[name]).astype(np.int8 if t.signed else np.uint8)
                else:
                    inputs[name] = host[name]
            for name, value in zip(stage.outputs, run_onnx(stage.model, inputs), strict=True):
                if name in network.tensors:
                    codes[name] = to_array(network.tensors[name], value.astype(np.int64))
                else:
                    host[name] = value
        else:
            codes[stage.output] = RUN[type(stage)](stage, network, codes)
            assert codes[stage.output].shape == network.tensors[stage.output].shape, stage.name
    outputs = []
    for name in network.outputs:
        if name in network.tensors:
            t = network.tensors[name]
            outputs.append((to_model(t, codes[name]) - t.zero_point) * t.scale)
        else:
            outputs.append(host[name])
    return outputs, codes


def compile_both(model, calibration, **options):
    """The Network and its QDQ twin."""
    graph = run_passes(import_model(model), options=Options(calibration=calibration, **options))
    return lower(graph), export_model(graph, qdq=True), graph


def check_same_function(model, graph, feeds):
    """Before rounding, the passes change nothing: the graph in floating point is the model it came from."""
    for ours, theirs in zip(run_onnx(export_model(graph), feeds), run_onnx(model, feeds), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5)


def worst_lsb(model, feeds, calibration=None, **options):
    """Largest difference between Network and QDQ model, in units of each output's scale; and the Network."""
    network, twin, graph = compile_both(model, [feeds] if calibration is None else calibration, **options)
    check_same_function(model, graph, feeds)
    outputs, _ = run_network(network, feeds)
    worst = 0.0
    for name, ours, theirs in zip(network.outputs, outputs, run_onnx(twin, feeds), strict=True):
        assert ours.shape == theirs.shape
        scale = network.tensors[name].scale if name in network.tensors else 0.02
        worst = max(worst, float(np.abs(ours - theirs).max()) / scale)
    return worst, network


def graph_until(model, until, **options):
    """The model's graph after the named pass."""
    return run_passes(import_model(model), until=until, options=Options(**options))


def check_structure(network: Network):
    """Every stage reads what is already there, and every layer's shapes follow from its geometry."""
    ready = set(network.inputs)
    for stage in network.stages:
        outputs = stage.outputs if isinstance(stage, HostSegment) else (stage.output,)
        reads = (*stage.inputs, *([stage.residual] if isinstance(stage, Conv) and stage.residual else []))
        assert set(reads) <= ready, stage.name
        assert not set(outputs) & ready, stage.name
        ready |= set(outputs)
        if isinstance(stage, HostSegment):
            assert stage.reason
            continue
        inputs = [network.tensors[name] for name in stage.inputs]
        out = network.tensors[stage.output]
        if isinstance(stage, MatMul):
            check_matmul(stage, *inputs, out)
            continue
        n, _, h, w = inputs[0].shape
        channels = sum(t.shape[1] for t in inputs)
        assert all((t.shape[0], *t.shape[2:]) == (n, h, w) for t in inputs)
        assert len({(t.scale, t.zero_point, t.signed) for t in inputs}) == 1
        kernel = stage.weight.shape[2:] if isinstance(stage, Conv) else stage.kernel
        top, left, bottom, right = stage.pads
        size = tuple(
            (a + before + after - (k - 1) * d - 1) // s + 1
            for a, before, after, k, d, s in zip(
                (h, w), (top, left), (bottom, right), kernel, stage.dilation, stage.stride, strict=True
            )
        )
        out_channels = channels
        if isinstance(stage, Conv):
            out_channels = stage.weight.shape[0]
            assert stage.weight.shape[1] * stage.groups == channels
            assert out_channels % stage.groups == 0
            assert stage.scale.shape == stage.bias.shape == (out_channels,)
            assert stage.weight.dtype == np.int8
            assert stage.bias.dtype == np.int32
            assert stage.weight.flags.c_contiguous
            if stage.residual:
                assert network.tensors[stage.residual].shape == out.shape
                assert 0 < stage.residual_ratio < 127
        assert out.shape == (n, out_channels, *size), stage.name
        assert int(np.prod(out.model_shape)) == int(np.prod(out.shape))
    assert set(network.outputs) <= ready


def check_matmul(layer: MatMul, a: Tensor, b: Tensor, y: Tensor):
    """The products' sizes follow from the tensors."""

    def size(t: Tensor):
        n, c, h, tokens = t.shape
        assert h == 1
        assert layer.products % n == 0
        assert c * n % layer.products == 0
        return tokens, c * n // layer.products

    (rows, reduction), second, (out_rows, columns) = size(a), size(b), size(y)
    assert rows == out_rows
    assert second == ((columns, reduction) if layer.transposed else (reduction, columns))
    assert (b.signed, b.zero_point) == (True, 0)
    if layer.mask is not None:
        keys = columns if layer.transposed else reduction
        assert layer.mask.shape == (-(-rows // layer.mask_tile[0]), -(-keys // layer.mask_tile[1]))


def with_random_weights(model, seed=0):
    """A model whose weights are ConstantOfShape nodes, as in onnx's light models, with random ones of sane scale."""
    rng = np.random.default_rng(seed)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    place = {name: (node.op_type, index) for node in model.graph.node for index, name in enumerate(node.input)}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(n) for n in values[node.input[0]])
        weight = rng.standard_normal(shape, dtype=np.float32)
        weight *= np.float32((2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1)
        if place[node.output[0]] in {("BatchNormalization", 1), ("BatchNormalization", 4), ("Unsqueeze", 0)}:
            weight = np.abs(weight) * 5 + 0.5
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def check_layers(network: Network, twin, feeds):
    """Each layer, given the QDQ model's own input codes, is within one step of the QDQ model's output codes.

    Ties that float32 rounds the other way then cannot pile up from layer to layer. Behind a table one step of the
    value before it may be several steps of the output.
    """
    model = onnx.ModelProto()
    model.CopyFrom(twin)
    written = {output for node in model.graph.node for output in node.output}
    names = {t: next((n for n in (f"{t}/codes", f"{t}/dq/codes") if n in written), None) for t in network.tensors}
    shown = {t: n for t, n in names.items() if n is not None}
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in shown.values())
    values = dict(zip(shown, run_onnx(model, feeds), strict=True)) if shown else {}
    codes = {t: to_array(network.tensors[t], v.astype(np.int64)) for t, v in values.items()}
    for layer in network.layers:
        ours = RUN[type(layer)](layer, network, codes)
        theirs = codes.setdefault(layer.output, ours)
        table = getattr(layer, "table", None)
        allowed = 1
        if table is not None:
            signed = network.tensors[layer.output].signed
            entries = (table.view(np.int8) if signed else table)[np.arange(layer.lo, layer.hi + 1) & 0xFF]
            allowed += int(np.abs(np.diff(entries.astype(int))).max())
        assert np.abs(ours - theirs).max() <= allowed, layer.name
