"""The well-known networks that onnx ships without weights go through the whole front end."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from gossamer.compiler.layers import HostSegment
from gossamer.compiler.passes import build_network
from tests.support.frontend import check_structure, with_random_weights

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

MODELS = {
    "resnet50": {"Softmax": 1},
    "squeezenet": {"Softmax": 1},
    "densenet121": {},
    "inception_v1": {"LRN": 2, "AveragePool": 1, "Softmax": 1, "Mul": 1},  # a wide channel, scaled back before an LRN
    "inception_v2": {"AveragePool": 7, "Softmax": 1},
    "shufflenet": {"AveragePool": 3, "Softmax": 1},
}
LARGE = {
    "bvlc_alexnet": {"LRN": 2, "Softmax": 1},
    "vgg19": {"Softmax": 1},
    "zfnet512": {"LRN": 2, "Softmax": 1},
}


def compile_light(name, **options):
    model = with_random_weights(onnx.load(LIGHT / f"light_{name}.onnx"))
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    (value,) = (i for i in model.graph.input if [d.dim_value for d in i.type.tensor_type.shape.dim] == [1, 3, 224, 224])
    return build_network(model, calibration={value.name: x}, **options)


def host_operations(network):
    counts = Counter(op for stage in network.stages if isinstance(stage, HostSegment) for op in stage.ops)
    return {op: n for op, n in counts.items() if op != "Reshape"}


@pytest.mark.parametrize("name", MODELS)
def test_light_model(name):
    network = compile_light(name)
    check_structure(network)
    assert host_operations(network) == MODELS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_light_model(name):
    network = compile_light(name)
    check_structure(network)
    assert host_operations(network) == LARGE[name]


def test_shufflenet_can_be_pruned():
    network = compile_light("shufflenet", sparsity="unstructured 95%")
    patterns = Counter(layer.pattern.split()[0] for layer in network.layers if hasattr(layer, "pattern"))
    assert patterns["unstructured"] == 34
    assert patterns["fanin"] == 16  # the channel shuffles, one element in each row


def test_exported_scales_are_scalars():
    """A per-tensor scale of shape [1] is a per-channel one to onnxruntime, and some of its kernels refuse that."""
    from onnx import numpy_helper

    from gossamer.compiler.frontend.export import export_model
    from gossamer.compiler.passes import import_model, run_passes

    with pytest.warns(UserWarning, match="calibrat"):
        graph = run_passes(import_model(with_random_weights(onnx.load(LIGHT / "light_squeezenet.onnx"))))
    model = export_model(graph, qdq=True)
    shapes = {i.name: numpy_helper.to_array(i).shape for i in model.graph.initializer}
    scales = {n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert scales
    assert all(shapes[name] == () for name in scales)
