"""Patterns: text round trip, imposing by magnitude, and finding what was imposed."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arch.errors import ModelError
from gossamer.compiler.classify import classify
from gossamer.compiler.patterns import NM, VNM, Block, Dense, FanIn, Grouped, Pattern, Unstructured
from gossamer.compiler.sparsify import sparsify
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
)


@given(patterns)
def test_text_round_trip(pattern):
    assert Pattern.parse(str(pattern)) == pattern


@pytest.mark.parametrize("text", ["", "2:", "3:6", "4:2", "0:4", "2:64", "block 16 7%", "70%", "fanin 120%", "x"])
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
