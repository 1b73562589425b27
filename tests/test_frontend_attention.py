"""Attention as exporters write it: products of two activations on the array, heads without moving anything."""

import numpy as np
import pytest

from gossamer.compiler.layers import HostSegment, MatMul
from tests.support.frontend import (
    Builder,
    check_layers,
    check_structure,
    compile_both,
    run_network,
    run_onnx,
    worst_lsb,
)

TOKENS, WIDTH, HEADS = 10, 12, 3
SIZE = WIDTH // HEADS


def feeds(batch, seed=0, width=WIDTH):
    x = np.random.default_rng(seed).standard_normal((batch, TOKENS, width))
    return {"x": x.astype(np.float32)}


def linear(b, x, features=WIDTH, width=WIDTH):
    product = b.op("MatMul", x, b.constant(b.rng.standard_normal((width, features)) * width**-0.5))
    return b.op("Add", product, b.constant(b.rng.standard_normal(features) * 0.1))


def heads(b, x, perm, batch):
    split = b.op("Reshape", x, b.constant([batch, TOKENS, HEADS, SIZE], np.int64))
    return b.op("Transpose", split, perm=perm)


def joined(b, y, batch):
    turned = b.op("Transpose", y, perm=[0, 2, 1, 3])
    return b.op("Reshape", turned, b.constant([batch, TOKENS, WIDTH], np.int64))


def separate(b, x, batch):
    """BERT: three projections, K turned at once."""
    q, k, v = (linear(b, x) for _ in range(3))
    return heads(b, q, [0, 2, 1, 3], batch), heads(b, k, [0, 2, 3, 1], batch), heads(b, v, [0, 2, 1, 3], batch)


def turned_twice(b, x, batch):
    """Heads first, then K's last two axes."""
    q, k, v = (heads(b, linear(b, x), [0, 2, 1, 3], batch) for _ in range(3))
    return q, b.op("Transpose", k, perm=[0, 1, 3, 2]), v


def packed_gather(b, x, batch):
    """One projection, the three parts gathered from a leading axis (timm)."""
    all_three = linear(b, x, 3 * WIDTH)
    parts = b.op("Reshape", all_three, b.constant([batch, TOKENS, 3, HEADS, SIZE], np.int64))
    parts = b.op("Transpose", parts, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.op("Gather", parts, b.constant(i, np.int64), axis=0) for i in range(3))
    return q, b.op("Transpose", k, perm=[0, 1, 3, 2]), v


def packed_split(b, x, batch):
    """One projection, split along the channels (GPT-2)."""
    all_three = linear(b, x, 3 * WIDTH)
    sizes = b.constant([WIDTH] * 3, np.int64)
    names = [f"part{i}" for i in range(3)]
    b.op("Split", all_three, sizes, out=names[0], axis=-1)
    b.nodes[-1].output.extend(names[1:])
    q, k, v = names
    return heads(b, q, [0, 2, 1, 3], batch), heads(b, k, [0, 2, 3, 1], batch), heads(b, v, [0, 2, 1, 3], batch)


def packed_slice(b, x, batch):
    """One projection, sliced."""
    all_three = linear(b, x, 3 * WIDTH)
    axis = b.constant([2], np.int64)
    parts = [
        b.op("Slice", all_three, b.constant([i * WIDTH], np.int64), b.constant([(i + 1) * WIDTH], np.int64), axis)
        for i in range(3)
    ]
    q, k, v = parts
    return heads(b, q, [0, 2, 1, 3], batch), heads(b, k, [0, 2, 3, 1], batch), heads(b, v, [0, 2, 1, 3], batch)


def three_axes(b, x, batch):
    """Batch and heads in one axis (torch's multi_head_attention_forward)."""
    shape = [batch * HEADS, TOKENS, SIZE]
    flat = [b.op("Reshape", y, b.constant(shape, np.int64)) for y in separate(b, x, batch)[::2]]
    k = heads(b, linear(b, x), [0, 2, 3, 1], batch)
    return flat[0], b.op("Reshape", k, b.constant([batch * HEADS, SIZE, TOKENS], np.int64)), flat[1]


def tokens_first(b, x, batch):
    """Tokens before the batch (torch's default), with a batch of one: heads by Reshape to [tokens, heads, size]."""
    x = b.op("Transpose", x, perm=[1, 0, 2])
    all_three = b.op("Reshape", linear(b, x, 3 * WIDTH), b.constant([TOKENS, 1, 3, WIDTH], np.int64))
    parts = b.op("Transpose", all_three, perm=[2, 0, 1, 3])
    rows = [b.op("Gather", parts, b.constant(i, np.int64), axis=0) for i in range(3)]
    flat = [b.op("Reshape", y, b.constant([TOKENS, HEADS, SIZE], np.int64)) for y in rows]
    q, k, v = (b.op("Transpose", y, perm=[1, 0, 2]) for y in flat)
    return q, b.op("Transpose", k, perm=[0, 2, 1]), v


SPELLINGS = [separate, turned_twice, packed_gather, packed_split, packed_slice, three_axes]


def attention(spelling, batch, *, scale="after", mask=None):
    b = Builder(("x", (batch, TOKENS, WIDTH)))
    q, k, v = spelling(b, "x", batch)
    factor = b.constant(SIZE**-0.5)
    root = b.constant(SIZE**-0.25)
    if scale == "before":
        q = b.op("Mul", q, factor)
    if scale == "both":
        q, k = b.op("Mul", q, root), b.op("Mul", k, root)
    scores = b.op("MatMul", q, k)
    if scale == "after":
        scores = b.op("Mul", scores, factor)
    if scale == "divided":
        scores = b.op("Div", scores, b.constant(SIZE**0.5))
    if mask is not None:
        scores = mask(b, scores)
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    if spelling is three_axes:
        y = b.op("Reshape", y, b.constant([batch, HEADS, TOKENS, SIZE], np.int64))
    return b.model(linear(b, joined(b, y, batch)))


def products(network):
    return [layer for layer in network.layers if isinstance(layer, MatMul)]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling, batch):
    x = feeds(batch)
    lsb, network = worst_lsb(attention(spelling, batch), x, products=True)
    check_structure(network)
    assert lsb <= 2
    scores, context = products(network)
    assert (scores.transposed, context.transposed) == (True, False)
    assert scores.products == context.products == batch * HEADS
    # Heads are runs of channels of what the projections wrote, and of what the next layer reads.
    for name in (scores.a, scores.b, context.b, context.output):
        assert network.tensors[name].shape == (batch, WIDTH, 1, TOKENS)
    (host,) = (stage for stage in network.stages if isinstance(stage, HostSegment))
    assert set(host.ops) == {"Softmax"}
    assert len(network.layers) == 6


@pytest.mark.parametrize("scale", ["before", "both", "divided", "after"])
def test_the_scale_is_part_of_the_requantisation(scale):
    x = feeds(1)
    model = attention(separate, 1, scale=scale)
    lsb, network = worst_lsb(model, x, products=True)
    assert lsb <= 2
    assert len(network.layers) == 6
    (host,) = (stage for stage in network.stages if isinstance(stage, HostSegment))
    assert set(host.ops) == {"Softmax"}
    network, twin, _ = compile_both(model, [x], products=True)
    check_layers(network, twin, x)


def test_tokens_before_the_batch():
    b = Builder(("x", (1, TOKENS, WIDTH)))
    q, k, v = tokens_first(b, "x", 1)
    y = b.op("MatMul", b.op("Softmax", b.op("MatMul", q, k), axis=-1), v)
    y = b.op("Reshape", b.op("Transpose", y, perm=[1, 0, 2]), b.constant([TOKENS, WIDTH], np.int64))
    lsb, network = worst_lsb(b.model(b.op("Gemm", y, b.weight(WIDTH, WIDTH))), feeds(1), products=True)
    check_structure(network)
    assert lsb <= 2
    (host,) = (stage for stage in network.stages if isinstance(stage, HostSegment))
    assert set(host.ops) == {"Softmax"}
    assert len(network.layers) == 6


def test_products_that_lie_wrongly_go_to_the_host():
    """Tokens before a batch of two: what the projection wrote is not heads of whole images."""
    b = Builder(("x", (TOKENS, 2, WIDTH)))
    q, k = (
        b.op("Transpose", b.op("Reshape", linear(b, "x"), b.constant([TOKENS, 2 * HEADS, SIZE], np.int64)), perm=perm)
        for perm in ([1, 0, 2], [1, 2, 0])
    )
    lsb, network = worst_lsb(b.model(b.op("MatMul", q, k)), {"x": feeds(2)["x"].transpose(1, 0, 2)}, products=True)
    check_structure(network)
    assert lsb <= 2


def test_without_the_option_products_stay_on_the_host():
    _, network = worst_lsb(attention(separate, 1), feeds(1))
    assert not products(network)
    (host,) = (stage for stage in network.stages if isinstance(stage, HostSegment))
    assert host.ops.count("MatMul") == 2
    assert host.macs == 2 * HEADS * TOKENS * TOKENS * SIZE


def test_second_operand_of_a_qdq_model_becomes_symmetric():
    b = Builder(("x", (1, TOKENS, WIDTH)))
    scale, zero = b.constant(0.03), b.constant(100, np.uint8)

    def rounded(y):
        return b.op("DequantizeLinear", b.op("QuantizeLinear", y, scale, zero), scale, zero)

    x = rounded("x")
    q, k = rounded(linear(b, x)), rounded(linear(b, x))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]))
    network, twin, _ = compile_both(b.model(scores), [feeds(1)], products=True)
    (ours,), _ = run_network(network, feeds(1))
    (product,) = products(network)
    assert np.abs(ours - run_onnx(twin, feeds(1))[0]).max() <= 2 * network.tensors[product.output].scale
    assert network.tensors[product.a].zero_point == 100
    assert network.tensors[product.b].zero_point == 0


def test_two_dimensional_product_of_two_inputs():
    b = Builder(("p", (7, 5)), ("q", (5, 9)))
    rng = np.random.default_rng(1)
    x = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("p", (7, 5)), ("q", (5, 9)))}
    lsb, network = worst_lsb(b.model(b.op("MatMul", "p", "q")), x, products=True)
    assert lsb <= 1
    (product,) = network.layers
    assert not product.transposed
    assert [network.tensors[t].shape for t in (product.a, product.b, product.output)] == [
        (1, 5, 1, 7), (1, 9, 1, 5), (1, 9, 1, 7)
    ]  # fmt: skip


# --- static masks ---------------------------------------------------------------------------------------------------

LONG = 40


def masked_attention(mask):
    b = Builder(("x", (1, LONG, WIDTH)))
    q, k, v = (linear(b, "x") for _ in range(3))
    scores = mask(b, b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])))
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    return b.model(linear(b, y)), {"x": np.random.default_rng(0).standard_normal((1, LONG, WIDTH)).astype(np.float32)}


CAUSAL = np.tril(np.ones((LONG, LONG), bool))
WINDOW = np.abs(np.subtract.outer(np.arange(LONG), np.arange(LONG))) < 4


@pytest.mark.parametrize("kept", [CAUSAL, WINDOW])
@pytest.mark.parametrize("spelling", ["add", "add_infinity", "where", "where_not"])
def test_static_masks_leave_out_tiles(kept, spelling):
    def mask(b, scores):
        if spelling.startswith("add"):
            low = -np.inf if spelling == "add_infinity" else np.finfo(np.float32).min
            return b.op("Add", scores, b.constant(np.where(kept, 0, low)))
        if spelling == "where":
            return b.op("Where", b.constant(kept, bool), scores, b.constant(-np.inf))
        return b.op("Where", b.constant(~kept, bool), b.constant(-1e9), scores)

    model, x = masked_attention(mask)
    network, twin, _ = compile_both(model, [x], products=True)
    check_structure(network)
    outputs, codes = run_network(network, x)
    (theirs,) = run_onnx(twin, x)
    assert np.abs(outputs[0] - theirs).max() <= 2 * network.tensors[network.outputs[0]].scale
    scores, context = products(network)
    tiles = np.array([[kept[i : i + 16, j : j + 16].any() for j in range(0, LONG, 16)] for i in range(0, LONG, 16)])
    for product in (scores, context):
        assert product.mask_tile == (16, 16)
        np.testing.assert_array_equal(product.mask, tiles)
    left_out = ~tiles.repeat(16, 0).repeat(16, 1)[:LONG, :LONG]
    zero = network.tensors[scores.output].zero_point
    assert (codes[scores.output][0, :, 0].T[left_out] == zero).all()


def test_a_mask_of_padding_is_not_a_static_one():
    def mask(b, scores):
        b.inputs += Builder(("mask", (1, 1, LONG))).inputs
        return b.op("Add", scores, "mask")

    model, x = masked_attention(mask)
    network, _, _ = compile_both(model, [x | {"mask": np.zeros((1, 1, LONG), np.float32)}], products=True)
    assert [p.mask for p in products(network)] == [None, None]


def test_the_same_mask_of_keys_for_every_row_is_no_layer():
    """One row of -infinity is no shift of channels that the array could add."""

    def mask(b, scores):
        return b.op("Add", scores, b.constant(np.where(np.arange(LONG) < 30, 0, -np.inf)[None]))

    model, x = masked_attention(mask)
    lsb, network = worst_lsb(model, x, products=True)
    assert lsb <= 2
    assert len(network.layers) == 6


def test_without_products_the_host_is_told_why():
    model = attention(SPELLINGS[0], 1)
    network, _, _ = compile_both(model, [feeds(1)])
    reasons = [s.reason for s in network.stages if isinstance(s, HostSegment)]
    assert any("a product of two activations, and the spec has array.dynamic_operands = false" in r for r in reasons)
