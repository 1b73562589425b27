"""Wide channels: what is rewritten is the same function, and int8 loses less; everything else is left alone."""

import numpy as np
import pytest

from gossamer.compiler.frontend.ops import Host
from tests.support.frontend import Builder, check_same_function, compile_both, run_onnx

CHANNELS, TOKENS = 48, 20
WIDE = 7


def encoder(outlier, given=False):
    """A layer whose output only a normalisation reads, and one that reads only what a normalisation makes."""
    b = Builder(("x", (1, TOKENS, CHANNELS)))
    weight = b.rng.standard_normal((CHANNELS, CHANNELS)) * CHANNELS**-0.5
    weight[:, WIDE] *= outlier
    x = "x"
    if given:
        scale, zero = b.constant(0.05), b.constant(128, np.uint8)
        x = b.op("DequantizeLinear", b.op("QuantizeLinear", x, scale, zero), scale, zero)
    y = b.op("Add", b.op("MatMul", x, b.constant(weight)), b.constant(b.rng.standard_normal(CHANNELS) * 0.1))
    y = b.op("Add", y, b.op("Erf", y))  # the host reads it twice
    gain = np.ones(CHANNELS)
    gain[WIDE] = outlier
    y = b.op("LayerNormalization", y, b.constant(gain), b.constant(np.zeros(CHANNELS)))
    return b.model(b.op("MatMul", y, b.weight(CHANNELS, CHANNELS)))


def feeds(seed):
    return {"x": np.random.default_rng(seed).standard_normal((1, TOKENS, CHANNELS)).astype(np.float32)}


def rewritten(graph):
    return [op.reason for op in graph if isinstance(op, Host) and op.reason.startswith("brings channels")]


def error(model, equalised):
    """Relative error of int8 on new data, with or without the pass."""
    from gossamer.compiler import passes

    kept = passes.PASSES["equalise"]
    if not equalised:
        passes.PASSES["equalise"] = lambda graph, _: graph
    try:
        _, twin, graph = compile_both(model, [feeds(0), feeds(1)])
    finally:
        passes.PASSES["equalise"] = kept
    check_same_function(model, graph, feeds(2))
    (ours,), (theirs,) = run_onnx(twin, feeds(2)), run_onnx(model, feeds(2))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)), graph


def test_a_wide_channel_is_brought_to_the_range_of_the_others():
    model = encoder(300.0)
    before, plain = error(model, equalised=False)
    after, graph = error(model, equalised=True)
    assert rewritten(plain) == []
    assert sorted(rewritten(graph)) == ["brings channels back to their ranges", "brings channels to one range"]
    assert after < before / 2


def test_even_channels_are_left_alone():
    _, graph = error(encoder(1.0), equalised=True)
    assert rewritten(graph) == []


def test_without_data_nothing_is_known_of_ranges():
    with pytest.warns(UserWarning, match="calibration"):
        _, _, graph = compile_both(encoder(60.0), None)
    assert rewritten(graph) == []


def test_few_samples_do_not_make_ranges_of_their_own():
    """A channel that hardly moved on the samples shares the others' range."""
    b = Builder(("x", (1, TOKENS, CHANNELS)))
    weight = np.eye(CHANNELS) * np.where(np.arange(CHANNELS) == WIDE, 50.0, 1.0)
    y = b.op("LayerNormalization", b.op("MatMul", "x", b.constant(weight)), b.constant(np.ones(CHANNELS)))
    x = feeds(0)
    x["x"][..., 0] = 1e-3
    _, twin, graph = compile_both(b.model(y), [x])
    assert rewritten(graph) == ["brings channels back to their ranges"]
    (ours,), (theirs,) = run_onnx(twin, feeds(2)), run_onnx(b.model(y), feeds(2))
    assert np.abs(ours - theirs)[..., 0].max() < 0.1
