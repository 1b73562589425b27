"""Structured removal, factored weights and permutation: the network computes what it should, with other channels."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frontend import Builder, check_structure, graph_until, run_network, run_onnx

from gossamer.arch.packing import pack
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.fuse import fuse
from gossamer.compiler.frontend.layout import array_weight, model_weight
from gossamer.compiler.frontend.lower import lower
from gossamer.compiler.frontend.ops import Add, Conv, Linear
from gossamer.compiler.frontend.quantise import quantise
from gossamer.compiler.passes import Options, import_model, run_passes
from gossamer.compiler.sparsity.branches import sparse_and_low_rank
from gossamer.compiler.sparsity.channels import find_channels, is_depthwise, reindex
from gossamer.compiler.sparsity.factor import low_rank, monarch
from gossamer.compiler.sparsity.patterns import NM, Pattern, channel_rows
from gossamer.compiler.sparsity.permute import layer_steps, permute_for_nm, reorder_steps, useful_steps
from gossamer.compiler.sparsity.reorder import Grid, keep_order, step_order, steps_of
from gossamer.compiler.sparsity.shrink import drop_dead_channels, remove_channels
from gossamer.compiler.sparsity.sparsify import prune

FEED = {"x": np.random.default_rng(3).standard_normal((1, 3, 12, 12)).astype(np.float32)}


def coupled(seed=0):
    """Everything that ties channels together: residual, depthwise, normalisation, concatenation, a flattened head."""
    b = Builder(("x", (1, 3, 12, 12)), seed=seed)
    stem = b.op("Relu", b.conv("x", 3, 24, pads=[1, 1, 1, 1]), out="stem")
    wide = b.op("Relu", b.conv(stem, 24, 40, k=1), out="wide")
    deep = b.op("Relu", b.conv(wide, 40, 40, groups=40, pads=[1, 1, 1, 1]), out="deep")
    back = b.conv(deep, 40, 24, k=1)
    y = b.op("Relu", b.op("Add", stem, back), out="sum")
    side = b.op("Relu", b.bn(b.conv(y, 24, 16, k=1, bias=False), 16), out="side")
    other = b.op("Relu", b.conv(y, 24, 32, pads=[1, 1, 1, 1]), out="other")
    y = b.op("MaxPool", b.op("Concat", side, other, axis=1), kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("Relu", b.conv(y, 48, 24, k=3), out="last")
    return b.model(b.op("Gemm", b.op("Flatten", y), b.weight(10, 24 * 16), transB=1, out="head"))


def layers(graph):
    return {op.name: op for op in graph.order() if isinstance(op, Conv | Linear)}


def run(graph, feed=FEED):
    return run_onnx(export_model(graph), feed)[0]


# --- which channels are the same ones ---------------------------------------------------------------------------------


def test_spaces_of_a_coupled_network():
    graph = graph_until(coupled(), "legalise")
    spaces = [s for s in find_channels(graph).spaces if not s.fixed]
    assert sorted(s.size for s in spaces) == [16, 24, 24, 32, 40]
    tied = next(s for s in spaces if len(s.writers) == 2)  # the residual addition
    assert sorted(tied.writers) == ["n_conv0", "n_conv6"]
    assert len(tied.readers) == 3
    through = next(s for s in spaces if s.size == 40)  # the depthwise convolution
    assert len(through.along) == 1
    second = next(s for s in spaces if s.size == 32)
    assert second.readers[0][1] == 16  # behind the other half of the concatenation


def test_inputs_and_outputs_are_fixed():
    graph = graph_until(coupled(), "legalise")
    fixed = {s.fixed for s in find_channels(graph).spaces if s.fixed}
    assert fixed == {"'x' is an input of the model", "'head' is an output of the model"}


@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_any_order_of_free_channels_gives_the_same_codes(seed):
    """To the bit: after quantise only the places of channels change."""
    graph = run_passes(import_model(coupled()), options=Options(calibration=[FEED]))
    channels = find_channels(graph)
    rng = np.random.default_rng(seed)
    index = {i: rng.permutation(s.size) for i, s in enumerate(channels.spaces) if not s.fixed}
    moved = lower(reindex(graph, channels, index))
    check_structure(moved)
    before, codes = run_network(lower(graph), FEED)
    after, moved_codes = run_network(moved, FEED)
    np.testing.assert_array_equal(after[0], before[0])
    assert any(not np.array_equal(moved_codes[t], codes[t]) for t in codes)  # inside, channels did move


TOKENS = {"x": np.random.default_rng(4).standard_normal((1, 12, 32)).astype(np.float32)}


def encoder(heads=4, width=32, tokens=12):
    """A transformer's layer: normalisations and softmax on the host, products of attention in the array."""
    b = Builder(("x", (1, tokens, width)))
    split = b.constant([1, tokens, heads, width // heads], np.int64)
    joined = b.constant([1, tokens, width], np.int64)

    def linear(x, inputs, outputs):
        return b.op("Add", b.op("MatMul", x, b.weight(inputs, outputs, scale=inputs**-0.5)), b.weight(outputs))

    def norm(x):
        return b.op("LayerNormalization", x, b.weight(width, scale=1.0), b.weight(width, scale=0.1), axis=-1)

    x = norm("x")
    q, k, v = (b.op("Reshape", linear(x, width, width), split) for _ in range(3))
    q, k, v = (b.op("Transpose", t, perm=p) for t, p in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))
    chances = b.op("Softmax", b.op("MatMul", q, k), axis=-1)
    mixed = b.op("Reshape", b.op("Transpose", b.op("MatMul", chances, v), perm=[0, 2, 1, 3]), joined)
    x = norm(b.op("Add", linear(mixed, width, width), x))
    wide = b.op("Relu", linear(x, width, 64))
    x = norm(b.op("Add", linear(wide, 64, width), x))
    return b.model(linear(x, width, 5))


def shuffled(space, rng):
    """Any order of a space's channels that it allows."""
    run = space.run or space.size
    return np.concatenate([start + rng.permutation(run) for start in range(0, space.size, run)])


def test_spaces_of_a_transformer():
    """Everything is free but tokens and the model's output: heads within themselves, the stream by the host's leave."""
    graph = graph_until(encoder(), "partition", products=True)
    spaces = find_channels(graph).spaces
    assert {s.fixed for s in spaces if s.fixed and "tokens as channels" not in s.fixed} == {
        f"'{graph.outputs[0]}' is an output of the model"
    }
    free = [s for s in spaces if not s.fixed]
    query, value = (s for s in free if s.run)
    assert query.run == value.run == 8
    assert [len(query.writers), len(query.readers)] == [2, 0]
    assert [len(value.writers), len(value.readers)] == [1, 1]
    hidden = next(s for s in free if s.size == 64)
    assert not hidden.host
    stream = [s for s in free if s.host]
    assert sorted(len(s.readers) for s in stream) == [0, 0, 1, 1, 3]
    assert all("is no layer of the array" in s.kept for s in stream)
    assert value.kept == "they are heads of 8 channels"


@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_any_order_of_a_transformers_channels_gives_the_same_codes(seed):
    """The host, too, computes to the bit what it did: it has its channels in the order it knows."""
    graph = run_passes(import_model(encoder()), options=Options(calibration=[TOKENS], products=True))
    channels = find_channels(graph)
    rng = np.random.default_rng(seed)
    index = {i: shuffled(s, rng) for i, s in enumerate(channels.spaces) if not s.fixed}
    assert len(index) == 8
    moved = reindex(graph, channels, index)
    moved.verify()
    network = lower(moved)
    check_structure(network)
    before, codes = run_network(lower(graph), TOKENS)
    after, moved_codes = run_network(network, TOKENS)
    np.testing.assert_array_equal(after[0], before[0])
    assert sum(not np.array_equal(moved_codes[t], codes[t]) for t in codes) >= 8
    np.testing.assert_allclose(run(moved, TOKENS), run(graph, TOKENS), rtol=1e-3, atol=1e-5)


# --- channels that go -------------------------------------------------------------------------------------------------


def without(graph, channels, gone):
    """The graph in which nobody reads some channels: {space number: bool [size]}."""
    graph = graph.copy()
    for number, dead in gone.items():
        space = channels.spaces[number]
        for name, first in space.readers:
            op = graph.op(name)
            weight = array_weight(graph, op, op.weight).copy()
            weight[:, first : first + space.size][:, dead] = 0
            graph.replace(name, replace(op, weight=model_weight(graph, op, weight)))
    return graph


@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_fewer_channels_are_channels_that_nobody_reads(seed):
    graph = graph_until(coupled(), "legalise")
    channels = find_channels(graph)
    rng = np.random.default_rng(seed)
    gone = {i: rng.permutation(s.size) < s.size // 2 for i, s in enumerate(channels.spaces) if not s.fixed}
    smaller = reindex(graph, channels, {i: np.flatnonzero(~dead) for i, dead in gone.items()})
    masked = without(graph, channels, gone)
    np.testing.assert_allclose(run(smaller), run(masked), rtol=1e-4, atol=1e-5)
    dropped = drop_dead_channels(masked, granule=1)  # and they are found when a pruner left them behind
    assert {n: op.weight.shape for n, op in layers(dropped).items()} == {
        n: op.weight.shape for n, op in layers(smaller).items()
    }
    np.testing.assert_allclose(run(dropped), run(masked), rtol=1e-4, atol=1e-5)


def test_half_of_all_channels():
    graph = graph_until(coupled(), "legalise")
    smaller, lost = remove_channels(graph, dict.fromkeys(layers(graph), 0.5))
    assert {name: op.weight.shape[:2] for name, op in layers(smaller).items()} == {
        "n_conv0": (12, 3), "n_conv2": (20, 12), "n_conv4": (20, 1), "n_conv6": (12, 20),
        "n_conv9": (8, 12), "n_conv12": (16, 12), "n_conv16": (12, 24), "n_head": (10, 12 * 16),
    }  # fmt: skip
    assert all(0 < share < 0.5 for share in lost.values())  # the weaker half carries less than half
    energy = (graph.op("n_conv2").weight ** 2).sum(axis=(1, 2, 3))
    kept = np.sort(np.argsort(energy)[20:])
    np.testing.assert_array_equal(smaller.op("n_conv2").bias, graph.op("n_conv2").bias[kept])
    check_structure(lower(run_passes_from(smaller)))


def run_passes_from(graph):
    return quantise(fuse(graph), [FEED])


def test_channels_that_are_always_zero_are_dropped():
    graph = graph_until(coupled(), "legalise")
    op = graph.op("n_conv12")
    weight, bias = op.weight.copy(), op.bias.copy()
    weight[[3, 30]], bias[3] = 0, 0  # 30 still gives its bias
    graph.replace("n_conv12", replace(op, weight=weight, bias=bias))
    assert drop_dead_channels(graph).op("n_conv12").weight.shape[0] == 32  # less than a window saves nothing
    dropped = drop_dead_channels(graph, granule=1)
    assert dropped.op("n_conv12").weight.shape[0] == 31
    assert dropped.op("n_conv16").weight.shape[1] == 47
    np.testing.assert_allclose(run(dropped), run(graph), rtol=1e-4, atol=1e-5)


def test_as_many_channels_stay_as_fill_windows():
    graph = graph_until(coupled(), "legalise")
    op = graph.op("n_conv12")
    weight, bias = op.weight.copy(), op.bias.copy()
    weight[5:15], bias[5:15] = 0, 0
    graph.replace("n_conv12", replace(op, weight=weight, bias=bias))
    dropped = drop_dead_channels(graph)
    assert dropped.op("n_conv12").weight.shape[0] == 24  # 22 of 32 are alive
    np.testing.assert_allclose(run(dropped), run(graph), rtol=1e-4, atol=1e-5)


def test_dead_channels_stay_where_the_others_would_find_worse_windows():
    """The first of every 8 channels is dead, and each output reads one of the others: 1:8 with them, not without."""
    graph = graph_until(coupled(), "legalise")
    place = np.arange(40) % 8
    one = place == 1 + np.arange(24)[:, None] % 7
    for name, mask in (("n_conv2", np.arange(24) < 8), ("n_conv6", one)):
        op = graph.op(name)
        graph.replace(name, replace(op, weight=op.weight * mask[..., None, None]))
    spec = replace(ArchSpec.load("tiny"), macs=1, group=8, hop=8)

    def steps(g):
        return [layer_steps(channel_rows(layers(g)[name].weight) != 0, spec) for name in ("n_conv2", "n_conv6")]

    dropped = drop_dead_channels(graph, granule=1)
    assert layers(dropped)["n_conv6"].weight.shape[1] == 35
    assert sum(steps(dropped)) > sum(steps(graph))
    assert drop_dead_channels(graph, granule=1, spec=spec).op("n_conv6") is graph.op("n_conv6")
    dense = graph.copy()  # nothing to lose where the windows are full
    op = graph.op("n_conv6")
    dense.replace("n_conv6", replace(op, weight=np.where(place[:, None, None] > 0, np.float32(1), 0) + 0 * op.weight))
    assert layers(drop_dead_channels(dense, granule=1, spec=spec))["n_conv6"].weight.shape[1] == 35


def test_a_zero_that_does_not_stay_zero_is_kept():
    b = Builder(("x", (1, 3, 6, 6)))
    y = b.conv("x", 3, 8)
    y = b.conv(b.op("Sigmoid", y), 8, 8)
    graph = graph_until(b.model(b.op("Relu", y)), "legalise")
    op = graph.op("n_conv0")
    keep = (np.arange(8) != 5).astype(np.float32)
    graph.replace("n_conv0", replace(op, weight=op.weight * keep[:, None, None, None], bias=op.bias * keep))
    assert drop_dead_channels(graph, granule=1).op("n_conv0").weight.shape[0] == 8


def test_removal_by_the_pass_with_a_pattern_on_what_is_left():
    graph = graph_until(coupled(), "legalise")
    pruned, report = prune(graph, {"n_conv2": "channels 40% + 2:8", "n_head": "channels 10%"})
    op = layers(pruned)["n_conv2"]
    assert op.weight.shape == (24, 24, 1, 1)
    assert op.pattern == "2:8"
    assert [(r.layer, r.pattern) for r in report] == [("n_conv2", "channels 40% + 2:8")]
    assert report[0].zeros == pytest.approx(1 - 0.6 / 4)
    assert pruned.notes == ["n_head: left as it is instead of channels 10%: 'head' is an output of the model"]


def test_a_layer_that_became_too_small_for_its_pattern_is_left():
    graph, report = prune(graph_until(coupled(), "legalise"), {"n_conv0": "channels 75%", "n_conv2": "4:8"})
    assert graph.op("n_conv2").weight.shape[1] == 6
    assert [r.layer for r in report] == ["n_conv0"]
    assert graph.notes == ["n_conv2: left as it is instead of 4:8: 6 input channels are fewer than a group of 8"]


# --- products of smaller matrices -------------------------------------------------------------------------------------


def test_a_monarch_matrix_is_found_exactly():
    """The projection of Dao et al. gives back what was a product of the two factors."""
    rng = np.random.default_rng(0)
    blocks, p, s = 4, 4, 4  # n = 16 = blocks²: every part has rank 1
    left, right = rng.standard_normal((blocks, s, blocks)), rng.standard_normal((blocks, blocks, p))
    whole = np.einsum("jsk,kji->jski", left, right).reshape(16, 16)
    first, second = monarch(whole, blocks)
    np.testing.assert_allclose(second @ first, whole, atol=1e-12)
    assert np.count_nonzero(first) == np.count_nonzero(second) == 16 * 4
    assert np.linalg.norm(rng.standard_normal((16, 16)) - whole) > 1


def test_monarch_is_the_best_of_its_rank_in_every_part():
    rng = np.random.default_rng(1)
    whole = rng.standard_normal((48, 96))
    first, second = monarch(whole, 4)
    parts = whole.reshape(4, 12, 4, 24).transpose(0, 2, 1, 3)
    lost = np.linalg.svd(parts, compute_uv=False)[..., 3:]  # rank 48 / 16
    assert ((whole - second @ first) ** 2).sum() == pytest.approx((lost**2).sum())
    assert (first != 0).mean() == pytest.approx(1 / 4)
    np.testing.assert_array_equal(second.reshape(4, 12, 4, 4, 3)[0, :, :, 1:], 0)  # an output run reads its own parts


def test_low_rank_is_the_truncated_decomposition():
    whole = np.random.default_rng(2).standard_normal((20, 30))
    first, second = low_rank(whole, 7)
    assert first.shape == (7, 30)
    lost = np.linalg.svd(whole, compute_uv=False)[7:]
    assert ((whole - second @ first) ** 2).sum() == pytest.approx((lost**2).sum())


@pytest.mark.parametrize("text", ["monarch 4", "lowrank 6"])
def test_factored_layers_compute_the_product(text):
    graph = graph_until(coupled(), "legalise")
    pruned, report = prune(graph, {"n_conv2": text})
    a, b = (layers(pruned)[n].weight[:, :, 0, 0] for n in ("n_conv2/first", "n_conv2"))
    plain = graph.copy()
    plain.replace("n_conv2", replace(plain.op("n_conv2"), weight=(b @ a)[:, :, None, None]))
    np.testing.assert_allclose(run(pruned), run(plain), rtol=1e-4, atol=1e-5)
    assert report[0].zeros == pytest.approx(1 - ((a != 0).sum() + (b != 0).sum()) / (40 * 24))
    check_structure(lower(run_passes_from(pruned)))


def butterfly_and_low_rank(shape, seed=4):
    """A butterfly of blocks of 4 plus a product of rank 3."""
    rng = np.random.default_rng(seed)
    sparse = rng.standard_normal(shape)
    sparse *= Pattern.parse("butterfly 4 4").mask(sparse)
    return sparse + rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1])) / 2


@pytest.mark.parametrize("text", ["butterfly 4 4", "2:8"])
def test_a_sparse_matrix_plus_one_of_low_rank_is_found_exactly(text):
    pattern, rng = Pattern.parse(text), np.random.default_rng(5)
    sparse = rng.standard_normal((64, 96))
    sparse *= pattern.mask(sparse)
    whole = sparse + rng.standard_normal((64, 3)) @ rng.standard_normal((3, 96)) / 4
    found, (a, b) = sparse_and_low_rank(whole, lambda rest: np.where(pattern.mask(rest), rest, 0), 3)
    assert (a.shape, b.shape) == ((3, 96), (64, 3))
    assert ((whole - found - b @ a) ** 2).sum() < 1e-10 * (whole**2).sum()
    assert found == pytest.approx(sparse, abs=1e-3) or text == "2:8"  # which two of 8, the sum need not say


def test_two_branches_lose_less_than_either():
    whole = np.random.default_rng(6).standard_normal((48, 48))
    keep = Pattern.parse("butterfly 4 4").mask(whole)
    found, (a, b) = sparse_and_low_rank(whole, lambda rest: np.where(keep, rest, 0), 6)
    error = ((whole - found - b @ a) ** 2).sum()
    singular = np.linalg.svd(np.where(keep, 0, whole), compute_uv=False)
    assert error < (singular[6:] ** 2).sum()  # less than one after the other: the mask first, then what it left
    np.testing.assert_array_equal(found[~keep], 0)


def test_in_outputs_two_branches_lose_less_when_they_know_the_inputs():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((400, 48)) @ (rng.standard_normal((48, 48)) * np.geomspace(0.1, 3, 48))
    gram, whole = x.T @ x / len(x), rng.standard_normal((48, 48))
    keep = Pattern.parse("butterfly 4 4").mask(whole)
    errors = []
    for known in (gram, None):
        found, (a, b) = sparse_and_low_rank(whole, lambda rest: np.where(keep, rest, 0), 6, known)
        errors.append((((whole - found - b @ a) @ x.T) ** 2).sum())
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(("name", "added"), [("n_conv2", 1), ("n_conv6", 2)])
def test_branches_are_one_layer_more_each_and_no_addition(name, added):
    """n_conv2 is followed by a function, n_conv6 by an addition; all end up in the layers, and nothing is lost."""
    graph = graph_until(coupled(), "legalise")
    op = graph.op(name)
    whole = butterfly_and_low_rank(op.weight.shape[:2]).astype(np.float32)
    graph.replace(name, replace(op, weight=whole[:, :, None, None]))
    pruned, report = prune(graph, {name: "butterfly 4 4 + lowrank 3"})
    assert [(r.layer, r.pattern) for r in report] == [(name, "butterfly 4 4 + lowrank 3")]
    assert report[0].error < 1e-6
    stem, first, second = (layers(pruned)[n] for n in (name, f"{name}/low_rank/first", f"{name}/low_rank"))
    assert [stem.pattern, first.pattern, second.pattern] == ["butterfly 4 4", "dense", "dense"]
    assert second.bias is None
    used = sum(np.count_nonzero(part.weight) for part in (stem, first, second))
    assert report[0].zeros == pytest.approx(1 - used / whole.size)
    np.testing.assert_allclose(run(pruned), run(graph), rtol=1e-3, atol=1e-4)
    fused = fuse(pruned)
    assert not [op for op in fused.order() if isinstance(op, Add)]
    assert sum(layers(fused)[n].residual for n in (name, f"{name}/low_rank")) == added
    check_structure(lower(quantise(fused, [FEED])))


def test_a_layer_between_tokens_becomes_branches():
    b = Builder(("x", (2, 5, 16)))
    y = b.op("Relu", b.op("MatMul", "x", b.weight(16, 24), out="wide"))
    model = b.model(b.op("Add", b.op("MatMul", y, b.weight(24, 16), out="narrow"), "x", out="sum"))
    feed = {"x": np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)}
    graph = graph_until(model, "legalise")
    pruned, report = prune(graph, "2:8 + lowrank 2", sparsifier="sparsegpt", calibration=[feed])
    alone = prune(graph, "2:8", sparsifier="sparsegpt", calibration=[feed])[1]
    assert all(both.error < single.error for both, single in zip(report, alone, strict=True))
    weights = {n: op.weight.astype(np.float64) for n, op in layers(pruned).items()}
    plain = graph.copy()
    for n in layers(graph):
        product = weights[f"{n}/low_rank"] @ weights[f"{n}/low_rank/first"]
        plain.replace(n, replace(plain.op(n), weight=(weights[n] + product).astype(np.float32)))
    np.testing.assert_allclose(run(pruned, feed), run(plain, feed), rtol=1e-4, atol=1e-5)
    fused = fuse(pruned)
    assert len(fused) == 6
    check_structure(lower(quantise(fused, [feed])))


def test_a_grouped_convolution_is_no_matrix():
    b = Builder(("x", (1, 8, 6, 6)))
    model = b.model(b.conv("x", 8, 8, k=1, groups=2))
    graph, report = prune(graph_until(model, "legalise"), "lowrank 2")
    assert report == ()
    assert graph.notes == ["n_conv0: left as it is instead of lowrank 2: a grouped convolution is no single matrix"]


def test_a_kernel_is_no_matrix():
    graph, report = prune(graph_until(coupled(), "legalise"), {"n_conv0": "lowrank 2"})
    assert report == ()
    assert graph.notes == [
        "n_conv0: left as it is instead of lowrank 2: only a linear layer or a 1x1 convolution is a matrix"
    ]


# --- orders that cost less --------------------------------------------------------------------------------------------


def plain_steps(used, group, macs, columns):
    """Steps of aligned windows, spelt out."""
    total = 0
    out, taps, inputs = used.shape
    for tile in range(0, out, columns):
        for tap in range(taps):
            for window in range(0, inputs, group):
                part = used[tile : tile + columns, tap, window : window + group]
                total += -(-int(part.sum(axis=1).max()) // macs)
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3), st.integers(1, 40))
@settings(max_examples=25)
def test_steps_are_those_of_the_packer(seed, out, taps, inputs):
    rng = np.random.default_rng(seed)
    used = rng.random((out, taps, inputs)) < rng.random()
    spec = ArchSpec.load("tiny")
    grid = Grid(group=spec.group, macs=spec.macs, columns=spec.columns)
    assert steps_of(used, grid) == plain_steps(used, spec.group, spec.macs, spec.columns)
    if spec.hop == spec.group:
        wide = np.pad(used, ((0, 0), (0, 0), (0, -inputs % spec.block)))
        rows = wide.transpose(1, 2, 0).reshape(-1, out).astype(np.int8)
        tiles = [rows[:, i : i + spec.columns] for i in range(0, out, spec.columns)]
        assert layer_steps(used, spec) == sum(pack(np.arange(len(rows)), tile, spec).steps for tile in tiles)


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.booleans(), st.booleans())
@settings(max_examples=20)
def test_a_new_order_is_counted_right_and_never_worse(seed, size, read, made):
    rng = np.random.default_rng(seed)
    grid = Grid(group=4, macs=2, columns=8)
    readers = [rng.random((20, 2, size)) < 0.3] if read else []
    writers = [rng.random((size, 1, 20)) < 0.3] if made else []
    order, before, after = step_order(size, readers, writers, grid, rounds=8)
    assert sorted(order.tolist()) == list(range(size))
    assert before == sum(plain_steps(u, 4, 2, 8) for u in (*readers, *writers))
    moved = [u[:, :, order] for u in readers] + [u[order] for u in writers]
    assert after == sum(plain_steps(u, 4, 2, 8) for u in moved) <= before


def test_a_shuffled_block_pattern_is_put_in_order_again():
    """Input channels of one block in every group at first: sorting them back saves every step that can be saved."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.random((4, 16)) < 0.3, np.ones((8, 4), bool))[:, None, :]
    grid = Grid(group=4, macs=2, columns=8)
    best = plain_steps(blocks, 4, 2, 8)
    shuffled = blocks[:, :, rng.permutation(64)]
    _, before, after = step_order(64, [shuffled], [], grid)
    assert before > 1.3 * best
    assert after <= 1.1 * best


def test_outputs_that_ask_for_a_step_in_the_same_windows_find_each_other():
    """Every output has a third nonzero in some windows, the same ones for eight outputs, and they lie anywhere."""
    rng = np.random.default_rng(1)
    third = np.repeat(rng.random((8, 16)) < 0.4, 8, axis=0)  # [64 outputs, 16 windows]
    used = np.arange(4) < 2 + third[:, :, np.newaxis]
    used = used.reshape(64, 1, 64)
    best = plain_steps(used, 4, 2, 8)
    shuffled = used[rng.permutation(64)]
    _, before, after = step_order(64, [], [shuffled], Grid(group=4, macs=2, columns=8))
    assert before > 1.3 * best
    assert after == best


def test_nm_keeps_everything_when_an_order_allows_it():
    """Two large channels in some groups and none in others: N:M in the old order loses some, in the new one nothing."""
    rng = np.random.default_rng(0)
    large = rng.uniform(1, 2, (16, 32)).astype(np.float32)
    scores = np.concatenate([large, np.full((16, 32), 1e-3, np.float32)])  # all large ones come first
    order, before, after = keep_order([(scores, 2)], 4)
    assert before < 0.6 * large.sum()
    assert after == pytest.approx(large.sum(), rel=0.02)
    assert sorted(order.tolist()) == list(range(32))


def test_permuted_for_nm_the_network_is_the_same_and_keeps_more():
    graph = graph_until(coupled(), "legalise")
    patterns = dict.fromkeys(("n_conv2", "n_conv6", "n_conv9", "n_conv12"), NM(2, 8))
    moved, gains = permute_for_nm(graph, patterns)
    np.testing.assert_allclose(run(moved), run(graph), rtol=1e-4, atol=1e-5)
    assert set(gains) == set(patterns)
    assert all(gain > 1.0 for gain in gains.values())
    plain, permuted = (prune(graph, dict.fromkeys(patterns, "2:8"), permute=p)[1] for p in (False, True))
    assert sum(r.error for r in permuted) < sum(r.error for r in plain)


def test_steps_are_saved_and_every_code_of_the_output_stays():
    spec = ArchSpec.load("tiny")
    graph = run_passes(import_model(coupled()), options=Options(sparsity="unstructured 80%", calibration=[FEED]))
    moved, report = reorder_steps(graph, spec)
    assert report
    names = [n for n, op in layers(graph).items() if not is_depthwise(op)]
    steps = [sum(layer_steps(codes_used(g, n), spec) for n in names) for g in (graph, moved)]
    assert steps[1] < steps[0]
    assert steps[1] >= sum(useful_steps(codes_used(graph, n), spec) for n in names)
    before, _ = run_network(lower(graph), FEED)
    after, _ = run_network(lower(moved), FEED)
    np.testing.assert_array_equal(after[0], before[0])


@pytest.mark.parametrize("run", [0, 8, 12, 16])
def test_channels_keep_to_their_runs(run):
    rng = np.random.default_rng(0)
    readers, writers = [rng.random((20, 1, 48)) < 0.3], [rng.random((48, 1, 20)) < 0.3]
    order, before, after = step_order(48, readers, writers, Grid(group=4, macs=2, columns=8), 20, run)
    assert after < before
    scores = [(np.abs(rng.standard_normal((48, 64))).astype(np.float32) ** 3, 2)]
    kept, worse, better = keep_order(scores, 8, run=run)
    assert better > worse or run == 8
    for found in (order, kept):
        assert sorted(found.tolist()) == list(range(48))
        np.testing.assert_array_equal(found // (run or 48), np.arange(48) // (run or 48))


def test_a_transformer_takes_fewer_steps_and_gives_the_same_codes():
    spec = replace(ArchSpec.load("tiny"), hop=4)
    options = Options(sparsity="unstructured 80%", calibration=[TOKENS], products=True)
    graph = run_passes(import_model(encoder()), options=options)
    moved, report = reorder_steps(graph, spec)
    assert {change.channels for change in report} == {32, 64}
    steps = [sum(layer_steps(codes_used(g, n), spec) for n in layers(graph)) for g in (graph, moved)]
    assert steps[1] < 0.85 * steps[0]
    before, _ = run_network(lower(graph), TOKENS)
    after, _ = run_network(lower(moved), TOKENS)
    np.testing.assert_array_equal(after[0], before[0])


def codes_used(graph, name):
    op = graph.op(name)
    codes = np.rint(op.weight / op.weight_scale.reshape(-1, *[1] * (op.weight.ndim - 1)))
    return channel_rows(array_weight(graph, op, codes)) != 0
