"""A Network computes what onnxruntime computes on its QDQ twin, to one step of the output."""

import numpy as np
import pytest

from tests.support.frontend import Builder, worst_lsb

ONE_STEP = 1.0001


def image(c=3, size=12, n=1, seed=1):
    return np.random.default_rng(seed).standard_normal((n, c, size, size)).astype(np.float32)


def conv_bn_relu():
    b = Builder(("x", (1, 3, 12, 12)))
    y = b.op("Relu", b.bn(b.conv("x", 3, 8, pads=[1, 1, 1, 1], strides=[2, 2]), 8))
    y = b.op("Clip", b.conv(y, 8, 8, k=1), b.constant(0.0), b.constant(0.7))
    return b.model(b.conv(y, 8, 5, dilations=[2, 2]))


def residual():
    b = Builder(("x", (1, 3, 12, 12)))
    trunk = b.op("Relu", b.bn(b.conv("x", 3, 8, pads=[1, 1, 1, 1]), 8))
    branch = b.op("Relu", b.conv(trunk, 8, 8, pads=[1, 1, 1, 1]))
    branch = b.bn(b.conv(branch, 8, 8, pads=[1, 1, 1, 1]), 8)
    y = b.op("Relu", b.op("Add", branch, trunk))
    y = b.op("LeakyRelu", b.op("Add", b.conv(y, 8, 8, k=1), y), alpha=0.1)
    return b.model(y)


def unfused_add():
    b = Builder(("x", (1, 3, 12, 12)))
    a = b.op("Relu", b.conv("x", 3, 8))
    c = b.op("Tanh", b.conv("x", 3, 8))
    return b.model(b.op("Add", a, c), b.op("Add", a, a))


def pools():
    b = Builder(("x", (1, 3, 12, 12)))
    y = b.op("Relu", b.conv("x", 3, 8, pads=[1, 1, 1, 1]))
    y = b.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    z = b.op("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    z = b.op("AveragePool", z, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    z = b.op("MaxPool", z, kernel_shape=[2, 2], ceil_mode=1, strides=[2, 2])
    return b.model(z, b.op("GlobalAveragePool", y), b.op("ReduceMean", y, axes=[2, 3], keepdims=0))


def concat():
    b = Builder(("x", (1, 3, 12, 12)))
    a = b.op("Relu", b.conv("x", 3, 8, pads=[1, 1, 1, 1]))
    c = b.conv("x", 3, 4, pads=[1, 1, 1, 1])
    both = b.op("Concat", a, c, "x", axis=1)
    y = b.conv(both, 15, 8)
    z = b.op("MaxPool", b.op("Concat", both, a, axis=1), kernel_shape=[2, 2])
    return b.model(y, both, z)


def gemm():
    b = Builder(("x", (1, 3, 12, 12)))
    y = b.op("Relu", b.conv("x", 3, 8, strides=[3, 3]))
    y = b.op("Flatten", y)
    y = b.op("Relu", b.op("Gemm", y, b.weight(16, 8 * 16), b.weight(16), transB=1))
    return b.model(b.op("Add", b.op("MatMul", y, b.weight(16, 10)), b.weight(10)))


def mobilenet():
    b = Builder(("x", (1, 3, 12, 12)))
    y = b.op("HardSwish", b.bn(b.conv("x", 3, 8, pads=[1, 1, 1, 1], strides=[2, 2], bias=False), 8))
    z = b.op("HardSwish", b.bn(b.conv(y, 8, 24, k=1), 24))
    z = b.bn(b.conv(z, 24, 24, groups=24, pads=[1, 1, 1, 1]), 24)
    z = b.op("Mul", z, b.op("HardSigmoid", z, alpha=1 / 6, beta=0.5))
    gate = b.op("HardSigmoid", b.conv(b.op("GlobalAveragePool", z), 24, 24, k=1))
    z = b.conv(b.op("Mul", z, gate), 24, 8, k=1)
    y = b.op("Add", z, y)
    y = b.op("Flatten", b.op("GlobalAveragePool", b.conv(y, 8, 16, k=1, groups=2)))
    return b.model(b.op("Gemm", y, b.weight(16, 10), b.weight(10)))


def functions():
    b = Builder(("x", (1, 3, 12, 12)))
    y = "x"
    for kind, more in (("Sigmoid", {}), ("Elu", {"alpha": 0.7}), ("Softplus", {}), ("HardSigmoid", {"alpha": 0.3})):
        y = b.op(kind, b.conv(y, 3, 3, k=1), **more)
    y = b.conv(y, 3, 3, k=1)
    gelu = b.op("Erf", b.op("Div", y, b.constant(2**0.5)))
    gelu = b.op("Mul", b.op("Mul", y, b.op("Add", gelu, b.constant(1.0))), b.constant(0.5))
    silu = b.conv(gelu, 3, 3, k=1)
    silu = b.op("Mul", silu, b.op("Sigmoid", silu))
    return b.model(silu, b.op("Tanh", "x"))


def conv1d():
    b = Builder(("x", (1, 3, 144)))
    y = b.op("Relu", b.conv("x", 3, 8, k=[5], pads=[2, 2], strides=[2]))
    y = b.op("MaxPool", y, kernel_shape=[2], strides=[2])
    return b.model(b.conv(y, 8, 4, k=[3], dilations=[2]), b.op("GlobalAveragePool", y))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "build", [conv_bn_relu, residual, unfused_add, pools, concat, gemm, mobilenet, functions, conv1d]
)
def test_network_equals_qdq_model(build, signed):
    model = build()
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    worst, network = worst_lsb(model, {"x": x}, signed=signed)
    assert worst <= ONE_STEP
    assert network.layers


def mlp():
    b = Builder(("x", (4, 1, 8, 8)))
    y = b.op("Flatten", "x")
    y = b.op("Relu", b.op("Gemm", y, b.weight(32, 64), b.weight(32), transB=1))
    return b.model(b.op("Gemm", y, b.weight(32, 10), b.weight(10)))


def attention(b, x, tokens, width, heads):
    """Self-attention as exporters write it; the products of two activations stay on the host."""
    size = width // heads

    def split(name, perm):
        part = b.op("Add", b.op("MatMul", name, b.weight(width, width)), b.weight(width, scale=0.1))
        part = b.op("Reshape", part, b.constant([1, tokens, heads, size], np.int64))
        return b.op("Transpose", part, perm=perm)

    q, k, v = split(x, [0, 2, 1, 3]), split(x, [0, 2, 3, 1]), split(x, [0, 2, 1, 3])
    scores = b.op("Softmax", b.op("Mul", b.op("MatMul", q, k), b.constant(size**-0.5)), axis=-1)
    y = b.op("Transpose", b.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = b.op("Reshape", y, b.constant([1, tokens, width], np.int64))
    return b.op("Add", b.weight(width, scale=0.1), b.op("MatMul", y, b.weight(width, width)))


def transformer():
    b = Builder(("x", (1, 3, 16, 16)))
    y = b.conv("x", 3, 16, k=4, strides=[4, 4])
    y = b.op("Transpose", b.op("Reshape", y, b.constant([1, 16, 16], np.int64)), perm=[0, 2, 1])
    y = b.op("Add", y, b.constant(b.rng.standard_normal((1, 16, 16)) * 0.1))

    def norm(name):
        return b.op("LayerNormalization", name, b.constant(np.ones(16)), b.constant(np.zeros(16)), axis=-1)

    y = b.op("Add", attention(b, norm(y), 16, 16, 2), y)
    z = b.op("Add", b.op("MatMul", norm(y), b.weight(16, 64, scale=0.25)), b.weight(64, scale=0.1))
    gate = b.op("Add", b.op("Erf", b.op("Div", z, b.constant(2**0.5))), b.constant(1.0))
    z = b.op("Mul", b.op("Mul", z, gate), b.constant(0.5))
    z = b.op("Add", b.op("MatMul", z, b.weight(64, 16, scale=0.12)), b.weight(16, scale=0.1))
    y = b.op("ReduceMean", norm(b.op("Add", y, z)), axes=[1], keepdims=0)
    return b.model(b.op("Gemm", y, b.weight(16, 10), b.weight(10)))


def shuffle():
    b = Builder(("x", (1, 4, 8, 8)))
    y = b.op("Relu", b.conv("x", 4, 12, k=1, groups=2))
    y = b.op("Reshape", y, b.constant([1, 3, 4, 8, 8], np.int64))
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3, 4]), b.constant([1, 12, 8, 8], np.int64))
    return b.model(b.conv(y, 12, 12, groups=12), y)


def pool_beside_negatives():
    b = Builder(("x", (1, 4, 8, 8)))
    y = b.op("Relu", b.conv("x", 4, 4, pads=[1, 1, 1, 1]))
    y = b.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    z = b.conv("x", 4, 4, pads=[1, 1, 1, 1], strides=[2, 2])
    return b.model(b.conv(b.op("Concat", y, z, axis=1), 8, 4))


def pool_of_negatives():
    b = Builder(("x", (1, 4, 8, 8)))
    y = b.op("MaxPool", b.conv("x", 4, 4), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return b.model(b.op("Relu", b.conv(y, 4, 4, k=1)))


def views():
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Relu", b.conv("x", 4, 8, k=1))
    flat = b.op("Reshape", y, b.constant([1, 8, 36], np.int64))
    tokens = b.op("Transpose", flat, perm=[0, 2, 1])
    z = b.op("MatMul", tokens, b.weight(8, 5))
    whole = b.op("MatMul", b.op("Flatten", tokens), b.weight(288, 7))
    return b.model(z, whole, flat, b.op("Softmax", tokens, axis=-1), b.op("Unsqueeze", z, b.constant([0], np.int64)))


def batch():
    b = Builder(("x", (3, 4, 6, 6)))
    y = b.op("Relu", b.conv("x", 4, 8, strides=[2, 2]))
    y = b.op("Relu", b.op("MatMul", b.op("Flatten", y), b.weight(32, 16)))
    y = b.op("Concat", y, b.op("Flatten", b.op("GlobalAveragePool", b.conv("x", 4, 8, k=1))), axis=1)
    return b.model(b.op("MatMul", y, b.weight(24, 5)))


def host_between():
    b = Builder(("x", (1, 4, 6, 6)), ("z", (1, 4, 6, 6)))
    y = b.op("Relu", b.conv("x", 4, 4, pads=[1, 1, 1, 1]))
    w = b.op("LRN", b.conv(y, 4, 4, pads=[1, 1, 1, 1]), size=3)
    y = b.op("Add", b.op("Mul", w, y), b.op("Sin", "z"))
    v = b.op("InstanceNormalization", b.op("Add", y, w), b.constant(np.ones(4)), b.constant(np.zeros(4)))
    return b.model(b.op("Add", b.conv(v, 4, 4, k=1), w), b.op("Cos", y), "x")


def cancelling():
    """x - x: a sum far finer than what it adds."""
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("Relu", b.conv("x", 4, 4, k=1))
    z = b.op("Conv", y, b.constant(-np.eye(4).reshape(4, 4, 1, 1) * 0.9999))
    return b.model(b.op("Relu", b.op("Add", z, y)))


def around_a_layer():
    """A host operation feeds a layer and also the host operation after it: the two may not run in one go."""
    b = Builder(("x", (1, 4, 6, 6)))
    y = b.op("LRN", "x", size=3)
    return b.model(b.op("Mul", b.conv(y, 4, 4, k=1), y))


def concat_of_unlike():
    b = Builder(("x", (3, 4, 3, 3)), ("z", (3, 5)))
    y = b.op("Flatten", b.conv("x", 4, 8))
    z = b.op("MatMul", "z", b.weight(5, 6))
    return b.model(b.op("MatMul", b.op("Concat", y, z, axis=1), b.weight(14, 4)))


HOST_SEGMENTS = {
    mlp: 0, transformer: 4, shuffle: 0, pool_beside_negatives: 0, pool_of_negatives: 0, views: 1, batch: 0,
    host_between: 1, cancelling: 1, around_a_layer: 2, concat_of_unlike: 1,
}  # fmt: skip


@pytest.mark.parametrize("build", HOST_SEGMENTS)
def test_larger_network_equals_qdq_model(build):
    model = build()
    rng = np.random.default_rng(7)
    feeds = {
        i.name: rng.standard_normal([d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in model.graph.input
    }
    worst, network = worst_lsb(model, feeds)
    assert worst <= ONE_STEP
    assert len(network.stages) - len(network.layers) == HOST_SEGMENTS[build]
