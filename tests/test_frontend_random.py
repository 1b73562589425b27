"""Random small networks: the Network, its QDQ twin and the float model agree."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.frontend import (
    Builder,
    check_layers,
    check_same_function,
    check_structure,
    compile_both,
    run_network,
    run_onnx,
)

ACTIVATIONS = ["Relu", "HardSwish", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "Softplus"]


@st.composite
def recipes(draw):
    """Steps (kind, operand choice, operand choice, detail); each makes a new map of the same size."""
    kinds = [
        "conv",
        "conv",
        "conv1x1",
        "depthwise",
        "activation",
        "add",
        "concat",
        "max",
        "average",
        "lrn",
        "bn",
        "linear",
    ]
    step = st.tuples(st.sampled_from(kinds), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
    return draw(st.lists(step, min_size=1, max_size=8)), draw(st.integers(0, 2**16)), draw(st.booleans())


def build(steps, seed):
    b = Builder(("x", (1, 4, 6, 6)), seed=seed)
    maps = [("x", 4)]
    for kind, first, second, detail in steps:
        x, c = maps[first % len(maps)]
        y, d = maps[second % len(maps)]
        if kind == "conv":
            maps.append((b.conv(x, c, 4 + detail % 3, pads=[1, 1, 1, 1], bias=detail % 2 == 0), 4 + detail % 3))
        elif kind == "conv1x1":
            maps.append((b.conv(x, c, 4, k=1, groups=2 if c % 2 == 0 else 1), 4))
        elif kind == "depthwise":
            maps.append((b.conv(x, c, c, groups=c, pads=[2, 2, 2, 2], dilations=[2, 2]), c))
        elif kind == "activation":
            maps.append((b.op(ACTIVATIONS[detail % len(ACTIVATIONS)], x), c))
        elif kind == "add" and c == d:
            maps.append((b.op("Add", x, y), c))
        elif kind == "concat":
            maps.append((b.op("Concat", x, y, axis=1), c + d))
        elif kind == "max":
            maps.append((b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), c))
        elif kind == "average":
            pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
            maps.append((b.op("AveragePool", x, **pads), c))
        elif kind == "lrn":
            maps.append((b.op("LRN", x, size=3), c))
        elif kind == "bn":
            maps.append((b.bn(x, c), c))
        elif kind == "linear":
            tokens = b.op("Transpose", x, perm=[0, 2, 3, 1])
            tokens = b.op("Add", b.op("MatMul", tokens, b.weight(c, 4)), b.weight(4, scale=0.2))
            maps.append((b.op("Transpose", tokens, perm=[0, 3, 1, 2]), 4))
    outputs = list(dict.fromkeys([maps[-1][0], maps[len(maps) // 2][0]]))
    return b.model(*(o for o in outputs if o != "x"))


@settings(max_examples=40)
@given(recipes())
def test_random_networks(recipe):
    steps, seed, signed = recipe
    model = build(steps, seed)
    if not model.graph.output:
        return
    feeds = {"x": np.random.default_rng(seed).standard_normal((1, 4, 6, 6)).astype(np.float32)}
    network, twin, graph = compile_both(model, [feeds], signed=signed)
    check_same_function(model, graph, feeds)
    check_structure(network)
    check_layers(network, twin, feeds)
    outputs, _ = run_network(network, feeds)
    for ours, real in zip(outputs, run_onnx(model, feeds), strict=True):
        span = max(1e-3, float(np.ptp(real)))
        assert np.abs(ours - real).mean() <= 0.05 * span  # quantised, but the same function
