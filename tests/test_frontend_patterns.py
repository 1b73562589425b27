"""Patterns: text round trip, imposing by magnitude, and finding what was imposed."""

import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.classify import classify
from gossamer.compiler.sparsity.patterns import (
    NM,
    VNM,
    Block,
    BlockDiagonal,
    Butterfly,
    Channels,
    Combined,
    Dense,
    FanIn,
    Grouped,
    LowRank,
    Monarch,
    Pattern,
    PlusLowRank,
    Taps,
    Transposable,
    Unstructured,
)
from gossamer.compiler.sparsity.sparsify import sparsify
from tests.support.frontend import Builder, graph_until


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


shares = st.integers(0, 999).map(lambda n: n / 1000)
patterns = st.one_of(
    st.just(Dense()),
    st.tuples(st.integers(1, 32), st.sampled_from([2, 4, 8, 16, 32]), st.booleans())
    .filter(lambda t: t[0] <= t[1])
    .map(lambda t: NM(*t)),
    st.builds(Block, st.integers(1, 64), st.integers(1, 64), shares),
    st.builds(VNM, st.integers(1, 128), st.integers(1, 4), st.integers(5, 64)),
    st.builds(FanIn, shares),
    st.builds(Unstructured, shares),
    st.builds(Grouped, st.integers(2, 64), st.booleans()),
    st.builds(Transposable, st.integers(1, 2), st.sampled_from([2, 4, 8, 16, 32])),
    st.builds(Taps, st.integers(1, 9)),
    st.builds(BlockDiagonal, st.integers(2, 64)),
    st.builds(Butterfly, st.integers(1, 64), st.sampled_from([2, 4, 8])),
    st.builds(Channels, shares),
    st.builds(Monarch, st.integers(2, 64)),
    st.builds(LowRank, st.integers(1, 64)),
    st.builds(PlusLowRank, st.builds(Butterfly, st.integers(1, 64), st.sampled_from([2, 4, 8])), st.integers(1, 64)),
    st.just(PlusLowRank(Combined((Block(16, 16, 0.5), NM(2, 4))), 8)),
    st.just(Combined((Channels(0.3), Block(16, 16, 0.5), NM(2, 4)))),
)


@given(patterns)
def test_text_round_trip(pattern):
    assert Pattern.parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text", ["", "2:", "3:6", "4:2", "0:4", "2:64", "block 16 7%", "70%", "fanin 120%", "x", "2:4 +"]
)
def test_unknown_text_is_refused(text):
    with pytest.raises(ModelError, match=r"must be"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "1:2", "2:4", "4:8", "1:4", "2:8", "1:16", "2:32", "block 16x16 75%", "block 4x1 50%", "block 32x8 87.5%",
        "vnm 16:2:8", "vnm 64:2:16", "vnm 8:1:32", "unstructured 90%", "unstructured 50%", "fanin 90.625%", "dense",
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(64, 128), (64, 64, 3, 3)])
def test_imposed_pattern_is_found(text, shape):
    pattern = Pattern.parse(text)
    weight = normal(*shape)
    pruned = weight * pattern.mask(weight)
    found = classify(pruned)
    if isinstance(pattern, FanIn | Unstructured | Block):
        assert type(found) is type(pattern)
        assert found.sparsity == pytest.approx(pattern.sparsity, abs=0.005)
    if isinstance(pattern, Block):
        assert (found.rows, found.cols) == (pattern.rows, pattern.cols)
    if not isinstance(pattern, FanIn | Unstructured | Block):
        assert found == pattern


@pytest.mark.parametrize(
    "text",
    ["blockdiag 4", "blockdiag 16", "butterfly 8 4", "butterfly 8 8", "block 16x16 50% + 2:4", "1:4 transposable"],
)
def test_structured_masks_are_found(text):
    pattern = Pattern.parse(text)
    weight = normal(128, 256)
    assert classify(weight * pattern.mask(weight)) == pattern


def test_taps_are_found():
    weight = normal(64, 32, 3, 3)
    assert classify(weight * Taps(4).mask(weight)) == Taps(4)


def test_transposable_masks_are_nm_both_ways():
    keep = Transposable(2, 8).mask(normal(32, 64))
    assert (keep.reshape(32, 8, 8).sum(axis=2) <= 2).all()
    assert (keep.reshape(4, 8, 64).sum(axis=1) <= 2).all()
    assert keep.mean() > 0.95 * 2 / 8


def test_transposable_keeps_at_least_half_of_the_best():
    """Section 4.2 of Hubara et al.: greedy is a 2-approximation. The best of a 4x4 block, by trying all masks."""
    rows = [r for r in np.ndindex(2, 2, 2, 2) if sum(r) == 2]
    masks = [np.array(m) for m in product(rows, repeat=4) if (np.sum(m, axis=0) == 2).all()]
    assert len(masks) == 90  # as the paper counts them
    for seed in range(20):
        block = np.abs(normal(4, 4, seed=seed)).astype(np.float64)
        best = max((block * mask).sum() for mask in masks)
        kept = (block * Transposable(2, 4).mask(block)).sum()
        assert 0.5 * best <= kept <= best + 1e-6


def test_block_diagonal_by_hand():
    keep = BlockDiagonal(2).mask(normal(4, 6))
    np.testing.assert_array_equal(keep[:, [0, 3]], [[1, 0], [1, 0], [0, 1], [0, 1]])


def test_butterfly_by_hand():
    """Figure 2 of Chen et al.: block row 0 of 8 reads columns 0, 1, 2 and 4 at the largest stride."""
    keep = Butterfly(2, 8).mask(normal(16, 16))
    assert np.flatnonzero(keep[0, ::2]).tolist() == [0, 1, 2, 4]
    assert np.flatnonzero(keep[10, ::2]).tolist() == [1, 4, 5, 7]
    assert (Butterfly(2, 2).mask(normal(16, 16)).sum(axis=1) == 4).all()
    wide = Butterfly(2, 4).mask(normal(8, 16))  # a column of blocks for two
    np.testing.assert_array_equal(wide, np.repeat(Butterfly(2, 4).mask(normal(8, 8)), 2, axis=1))


def test_patterns_after_each_other():
    keep = Pattern.parse("block 16x16 50% + 2:4").mask(normal(64, 64))
    tiles = keep.reshape(4, 16, 4, 16).any(axis=(1, 3))
    assert tiles.sum() == 8
    assert keep.sum() == 64 * 64 / 4
    assert (keep.reshape(64, 16, 4).sum(axis=2) <= 2).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2:4 + channels 50%", "channels 50% must come first"),
        ("dense + 2:4", "dense cannot be combined"),
        ("monarch 4 + 2:4", "monarch 4 cannot be combined"),
        ("lowrank 4 + lowrank 4", "lowrank 4 is no pattern of zeros that a low rank could stand beside"),
        ("channels 50% + lowrank 4", "channels 50% is no pattern of zeros"),
        ("butterfly 4 3", "a STRIDE of 2, 4, 8"),
        ("blockdiag 1", "needs at least 2 blocks"),
        ("channels 100%", "at least one channel must stay"),
        ("3:6 transposable", "M must be 2, 4, 8, 16 or 32"),
        ("taps 0", "at least 1 tap"),
    ],
)
def test_patterns_that_cannot_be(text, message):
    with pytest.raises(ModelError, match=message):
        Pattern.parse(text)


@pytest.mark.parametrize(
    ("text", "shape", "refusal"),
    [
        ("blockdiag 3", (6, 8), "6x8 channels do not divide into 3 blocks each"),
        ("butterfly 8 4", (16, 64), "2 blocks of 8 are fewer than the stride 4"),
        ("butterfly 8 2", (20, 64), "20x64 channels do not divide into blocks of 8"),
        ("2:4 transposable", (6, 8), "6x8 channels are not whole blocks of 4x4"),
        ("taps 9", (6, 8, 3, 3), "kernels have 9 taps, which is no more than 9"),
        ("monarch 4", (8, 8, 3, 3), "only a linear layer or a 1x1 convolution is a matrix"),
        ("monarch 4", (8, 6), "8x6 channels do not divide into 4 blocks each"),
        ("lowrank 8", (8, 16), "8x16 channels have no rank above 8"),
        ("butterfly 4 2 + lowrank 8", (8, 16), "8x16 channels have no rank above 8"),
        ("butterfly 8 4 + lowrank 4", (16, 64), "2 blocks of 8 are fewer than the stride 4"),
        ("2:4 + lowrank 4", (8, 8, 3, 3), "only a linear layer or a 1x1 convolution is a matrix"),
        ("block 2x2 50% + 2:4", (8, 3), "3 input channels are fewer than a group of 4"),
    ],
)
def test_shapes_that_cannot_hold_a_pattern(text, shape, refusal):
    assert Pattern.parse(text).refusal(shape) == refusal


def test_flat_groups_are_found_where_only_they_hold():
    pattern = NM(1, 4, flat=True)
    weight = normal(32, 9, 3, 3)
    assert classify(weight * pattern.mask(weight)) == pattern


def test_quantised_weights_keep_their_pattern():
    weight = normal(64, 64, 3, 3)
    codes = np.rint(weight * NM(2, 8).mask(weight)).astype(np.int8)
    assert (codes != 0).mean() < 0.25
    assert classify(codes) == NM(2, 8)


@pytest.mark.parametrize(("groups", "inputs", "text"), [(8, 1, "depthwise 8"), (4, 2, "grouped 4"), (1, 4, "dense")])
def test_groups_have_names(groups, inputs, text):
    assert str(classify(normal(8, inputs, 3, 3), groups)) == text


def test_nothing_but_zeros():
    assert classify(np.zeros((8, 8), np.float32)) == Unstructured(1.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(3, 40), st.sampled_from([(1, 4), (2, 4), (3, 8)]))
def test_nm_keeps_the_largest(seed, out, inputs, nm):
    pattern = NM(*nm)
    weight = normal(out, inputs, 2, 1, seed=seed)
    keep = pattern.mask(weight)
    for o in range(out):
        for tap in range(2):
            for start in range(0, inputs, pattern.m):
                group = np.abs(weight[o, start : start + pattern.m, tap, 0])
                kept = keep[o, start : start + pattern.m, tap, 0]
                assert kept.sum() == min(pattern.n, len(group))
                assert kept.all() or group[kept].min() >= group[~kept].max()


@given(st.integers(0, 2**32 - 1), shares)
def test_unstructured_keeps_the_largest_share(seed, share):
    weight = normal(16, 10, seed=seed).round(1)  # with ties
    keep = Unstructured(share).mask(weight)
    assert keep.sum() == weight.size - round(weight.size * share)
    assert keep.all() or not keep.any() or np.abs(weight[keep]).min() >= np.abs(weight[~keep]).max()


def test_large_weights_are_classified_quickly():
    weight = normal(2048, 4608)
    weight *= NM(2, 8).mask(weight)
    start = time.process_time()
    assert classify(weight) == NM(2, 8)
    assert time.process_time() - start < 5.0  # 9.4 M weights; about 0.2 s on an idle core


# --- the pass -------------------------------------------------------------------------------------------------------


def network():
    b = Builder(("x", (1, 3, 12, 12)))
    y = b.op("Relu", b.conv("x", 3, 16, pads=[1, 1, 1, 1]), out="stem")
    y = b.op("Relu", b.conv(y, 16, 16, pads=[1, 1, 1, 1]), out="body")
    y = b.conv(y, 16, 16, groups=16)
    y = b.op("Flatten", y)
    return b.model(b.op("Gemm", y, b.weight(8, 1600), transB=1, out="head"))


def found_patterns(sparsity):
    graph = sparsify(graph_until(network(), "legalise"), sparsity)
    return {op.name: op.pattern for op in graph if hasattr(op, "pattern")}, graph.notes


def test_pattern_for_all_layers_with_exceptions_noted():
    patterns, notes = found_patterns("2:8")
    assert list(patterns.values()) == ["dense", "2:8", "depthwise 16", "2:8"]
    assert notes == [
        "n_conv0: left as it is instead of 2:8: 3 input channels are fewer than a group of 8",
        "n_conv4: left as it is instead of 2:8: a depthwise convolution has one weight per channel",
    ]


def test_pattern_per_layer_last_match_counts():
    patterns, notes = found_patterns({"*": "1:4", "n_conv0": "dense", "n_conv4": "dense", "*head": "unstructured 90%"})
    assert list(patterns.values()) == ["dense", "1:4", "depthwise 16", "unstructured 90%"]
    assert notes == []


def test_linear_layer_after_flatten_is_pruned_along_channels():
    graph = sparsify(graph_until(network(), "legalise"), {"n_head": "1:16"})
    weight = graph.op("n_head").weight.reshape(8, 16, 100)
    assert ((weight != 0).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        ({"nobody": "2:8"}, r"^sparsity: 'nobody' matches no layer; the layers are: n_conv0, "),
        ({"*": "2:9"}, r"^pattern 2:9: M must be 2, 4, 8, 16 or 32"),
        ("depthwise 8", r"^sparsity: depthwise 8 is a property of the layer"),
    ],
)
def test_wrong_wishes(sparsity, message):
    with pytest.raises(ModelError, match=message):
        found_patterns(sparsity)
