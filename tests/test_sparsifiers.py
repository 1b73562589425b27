"""Sparsifiers and allocation: each against its paper's rule on cases whose answer is known."""

from dataclasses import replace
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frontend import Builder, graph_until, run_onnx, windows
from typer.testing import CliRunner

from gossamer.arch.errors import ModelError
from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.cli import app
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.layout import array_weight
from gossamer.compiler.frontend.ops import Conv, Linear
from gossamer.compiler.sparsity.patterns import FanIn, Pattern
from gossamer.compiler.sparsity.patterns.pattern import percent
from gossamer.compiler.sparsity.sparsifiers.allocation import allocate, lamp_scores
from gossamer.compiler.sparsity.sparsifiers.budget import Choice, choose
from gossamer.compiler.sparsity.sparsifiers.cycles import layer_cycles
from gossamer.compiler.sparsity.sparsifiers.inputs import input_moments
from gossamer.compiler.sparsity.sparsifiers.interface import sparsifier
from gossamer.compiler.sparsity.sparsifiers.moments import Moments, reconstruction_error
from gossamer.compiler.sparsity.sparsifiers.schedule import Cubic
from gossamer.compiler.sparsity.sparsifiers.sensitivity import output_errors
from gossamer.compiler.sparsity.sparsifiers.sparsegpt import SparseGPT, inverse_factor
from gossamer.compiler.sparsity.sparsify import prune, sparsify


def correlated(rng, inputs, count=400):
    """Inputs [count, inputs] that lean on each other, some large, some small."""
    mix = rng.standard_normal((inputs, inputs)) * np.geomspace(0.1, 3, inputs)
    return rng.standard_normal((count, inputs)) @ mix


def moments_of(x):
    return Moments(gram=(x.T @ x / len(x))[np.newaxis], count=len(x))


def as_weight(matrix):
    return matrix.astype(np.float64)[:, :, np.newaxis, np.newaxis]


def lost(x, before, after):
    """Squared error of the outputs, spelt out."""
    return float((((before - after)[:, :, 0, 0] @ x.T) ** 2).sum())


# --- Wanda ------------------------------------------------------------------------------------------------------------


def test_wanda_weighs_with_the_norm_of_the_input():
    """Figure 1 of Sun et al.: the smaller weight stays where its input is larger."""
    x = np.array([[1.0, 8.0, 3.0, 2.0]])
    weight = as_weight(np.array([[4.0, 0.5, -1.0, 1.0], [3.0, -2.0, 1.0, 0.0]]))
    kept = sparsifier("wanda")(weight, Pattern.parse("unstructured 50%"), moments_of(x))[:, :, 0, 0]
    np.testing.assert_array_equal(kept, [[4.0, 0.5, 0, 0], [3.0, -2.0, 0, 0]])
    by_size = sparsifier("magnitude")(weight, Pattern.parse("fanin 50%"), None)[:, :, 0, 0]
    np.testing.assert_array_equal(by_size, [[4.0, 0, -1.0, 0], [3.0, -2.0, 0, 0]])


def test_wanda_compares_within_an_output():
    rng = np.random.default_rng(0)
    weight = as_weight(rng.standard_normal((16, 40)) * np.geomspace(0.01, 10, 16)[:, np.newaxis])
    kept = sparsifier("wanda")(weight, Pattern.parse("unstructured 60%"), moments_of(correlated(rng, 40)))
    assert (np.count_nonzero(kept, axis=(1, 2, 3)) == 16).all()


# --- SparseGPT --------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_factor_is_of_the_inverse(seed):
    x = correlated(np.random.default_rng(seed), 12)
    gram = x.T @ x / len(x)
    u = inverse_factor(gram, 0.01)
    h = gram + 0.01 * np.trace(gram) / 12 * np.eye(12)
    np.testing.assert_allclose(u.T @ u @ h, np.eye(12), atol=1e-6)
    np.testing.assert_array_equal(u, np.triu(u))


def test_last_weights_are_what_least_squares_gives():
    """Once the zeros are known, a row whose zeros come first is the best there is: the regression on what is left."""
    rng = np.random.default_rng(1)
    x = correlated(rng, 10)
    row = rng.standard_normal(10)

    class FirstGone(Pattern):
        def mask(self, scores):
            return np.arange(10).reshape(1, 10, 1, 1) >= 4

    after = SparseGPT(damping=1e-12)(as_weight(row[np.newaxis]), FirstGone(), moments_of(x))[0, :, 0, 0]
    best = np.linalg.lstsq(x[:, 4:], x @ row, rcond=None)[0]
    np.testing.assert_array_equal(after[:4], 0)
    np.testing.assert_allclose(after[4:], best, rtol=1e-6)


def test_independent_inputs_leave_nothing_to_make_up_for():
    """With uncorrelated inputs the update is nothing, and the choice is Wanda's."""
    rng = np.random.default_rng(2)
    weight = as_weight(rng.standard_normal((8, 32)))
    moments = Moments(gram=np.diag(rng.uniform(0.1, 4, 32))[np.newaxis], count=1)
    ours = SparseGPT(damping=0.0)(weight, Pattern.parse("2:4"), moments)
    np.testing.assert_allclose(ours, sparsifier("wanda")(weight, Pattern.parse("2:4"), moments))


@pytest.mark.parametrize("text", ["2:4", "4:8", "2:8", "unstructured 50%", "fanin 70%", "block 4x4 50%", "vnm 8:2:8"])
def test_error_is_sparsegpt_then_wanda_then_magnitude(text):
    """The ranking of both papers, by the error of the layer's outputs."""
    rng = np.random.default_rng(3)
    x = correlated(rng, 96, count=600)
    weight = as_weight(rng.standard_normal((64, 96)))
    pattern = Pattern.parse(text)
    errors = []
    for name in ("sparsegpt", "wanda", "magnitude"):
        after = sparsifier(name)(weight, pattern, moments_of(x))
        assert not after[~pattern_of(pattern, after)].any()
        error = reconstruction_error(weight, after, moments_of(x))
        whole = lost(x, weight, np.zeros_like(weight))
        assert error == pytest.approx(lost(x, weight, after) / whole)
        errors.append(error)
    assert errors[0] < errors[1] < errors[2]


def pattern_of(pattern, after):
    """Where the pattern lets a weight be, given those that stayed."""
    return pattern.mask(after) if not isinstance(pattern, FanIn) else after != 0


@pytest.mark.parametrize("text", ["2:4", "fanin 50%", "unstructured 50%", "block 4x4 50%"])
def test_sparsegpt_leaves_the_share_that_was_asked_for(text):
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((32, 20, 3, 3)) if text != "block 4x4 50%" else rng.standard_normal((32, 16, 3, 3))
    k = weight[0].size
    moments = moments_of(correlated(rng, k, count=2 * k))
    after = SparseGPT(block=64)(weight, Pattern.parse(text), moments)
    assert (after == 0).mean() == pytest.approx(0.5, abs=0.01)


def test_blocks_of_updates_change_nothing():
    """Gathering updates is only a matter of speed: N:M decides group by group whatever the block."""
    rng = np.random.default_rng(5)
    weight, moments = rng.standard_normal((16, 24, 3, 1)), moments_of(correlated(rng, 72))
    small, large = (SparseGPT(block=b)(weight, Pattern.parse("2:8"), moments) for b in (8, 1000))
    np.testing.assert_allclose(small, large, atol=1e-9)


def test_an_input_that_is_always_zero_does_no_harm():
    rng = np.random.default_rng(6)
    x = correlated(rng, 16)
    x[:, 5] = 0
    after = SparseGPT()(as_weight(rng.standard_normal((4, 16))), Pattern.parse("2:4"), moments_of(x))
    assert np.isfinite(after).all()


# --- what the layers read ---------------------------------------------------------------------------------------------


def small_network():
    b = Builder(("x", (1, 4, 9, 9)))
    y = b.op("Relu", b.conv("x", 4, 8, pads=[1, 1, 1, 1], strides=[2, 2]), out="a")
    y = b.op("Relu", b.conv(y, 8, 16, groups=2, dilations=[2, 2], pads=[2, 2, 2, 2]), out="b")
    y = b.op("Flatten", y)
    return b.model(b.op("Gemm", y, b.weight(6, 400), transB=1, out="head"))


def test_moments_are_those_of_the_convolutions_windows():
    graph = graph_until(small_network(), "legalise")
    layers = [op for op in graph.order() if isinstance(op, Conv | Linear)]
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 4, 9, 9)).astype(np.float32)} for _ in range(3)]
    found = input_moments(graph, layers, feeds)
    model = export_model(graph)
    del model.graph.output[:]
    model.graph.output.extend(onnx_output(n) for n in ("a", "b"))
    seen = [run_onnx(model, feed) for feed in feeds]
    stem = np.concatenate([windows(f["x"], (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), 0) for f in feeds])
    rows = stem.transpose(0, 2, 3, 4, 5, 1).reshape(-1, 36).astype(np.float64)  # taps, then channels
    np.testing.assert_allclose(found[layers[0].name].gram[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    middle = np.concatenate([windows(a, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2), 0) for a, _ in seen])
    second = middle[:, 4:].transpose(0, 2, 3, 4, 5, 1).reshape(-1, 36).astype(np.float64)
    np.testing.assert_allclose(found[layers[1].name].gram[1], second.T @ second / len(second), rtol=1e-4, atol=1e-5)
    head = np.concatenate([b.transpose(0, 2, 3, 1).reshape(1, -1) for _, b in seen]).astype(np.float64)
    np.testing.assert_allclose(found[layers[2].name].gram[0], head.T @ head / 3, rtol=1e-4, atol=1e-5)
    assert found[layers[2].name].count == 3


def onnx_output(name):
    from onnx import helper

    return helper.make_empty_tensor_value_info(name)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_the_pass_reports_the_error_it_leaves(name):
    graph = graph_until(small_network(), "legalise")
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 4, 9, 9)).astype(np.float32)} for _ in range(8)]
    pruned, report = prune(graph, {"*": "2:4"}, sparsifier=name, calibration=feeds)
    plain = prune(graph, {"*": "2:4"}, calibration=feeds)[1]
    assert [r.layer for r in report] == ["n_conv0", "n_conv2", "n_head"]
    assert sum(r.error for r in report) < sum(r.error for r in plain)
    assert all(op.pattern == "2:4" for op in pruned.order() if isinstance(op, Conv | Linear))
    noted = sparsify(graph, {"*": "2:4"}, sparsifier=name, calibration=feeds).notes
    assert noted[0] == f"n_conv0: 2:4 by {name} leaves an error of {report[0].error:.2%}"


def test_sequential_pruning_measures_what_pruned_layers_give():
    graph = graph_until(small_network(), "legalise")
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 4, 9, 9)).astype(np.float32)} for _ in range(8)]
    once, after = (
        prune(graph, {"*": "1:4"}, sparsifier="sparsegpt", calibration=feeds, sequential=s)[0] for s in (False, True)
    )
    np.testing.assert_array_equal(once.op("n_conv0").weight, after.op("n_conv0").weight)
    first = after.copy()
    for name in ("n_conv2", "n_head"):
        first.replace(name, graph.op(name))
    second = prune(first, {"n_conv2": "1:4"}, sparsifier="sparsegpt", calibration=feeds)[0]
    np.testing.assert_array_equal(second.op("n_conv2").weight, after.op("n_conv2").weight)
    assert not np.array_equal(once.op("n_conv2").weight, after.op("n_conv2").weight)


# --- schedules --------------------------------------------------------------------------------------------------------


def test_cubic_schedule_is_that_of_zhu_and_gupta():
    schedule = Cubic(begin=100, end=500, final=0.9, initial=0.1)
    assert [schedule.share(t) for t in (0, 100, 500, 900)] == pytest.approx([0.1, 0.1, 0.9, 0.9])
    assert schedule.share(300) == pytest.approx(0.9 - 0.8 / 8)


def test_a_schedule_of_nm_goes_down_to_its_n():
    steps = list(Cubic(begin=0, end=100, final=0.75, every=10).patterns(Pattern.parse("2:8")))
    assert [str(p) for _, p in steps] == ["8:8", "6:8", "5:8", "4:8", "3:8", "2:8"]
    assert steps[0][0] == 0
    with pytest.raises(ModelError, match="taps 4 has no share of zeros to choose"):
        list(Cubic(begin=0, end=10, final=0.5).patterns(Pattern.parse("taps 4")))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"begin": 5, "end": 5, "final": 0.5}, "0 <= begin < end .* not begin = 5, end = 5"),
        ({"begin": 0, "end": 5, "final": 1.5}, "final <= 1, not initial = 0.0, final = 1.5"),
    ],
)
def test_wrong_schedules(numbers, message):
    with pytest.raises(ModelError, match=message):
        Cubic(**numbers)


# --- allocation -------------------------------------------------------------------------------------------------------


def test_erk_on_lenet():
    """LeNet-300-100 at 90 %: densities in proportion to (in + out) / (in * out), worked out by hand."""
    rng = np.random.default_rng(0)
    shapes = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}
    shares = allocate("erk", {n: rng.standard_normal(s) for n, s in shapes.items()}, 0.9)
    # c would be denser than dense (0.1100 * 17.3 = 1.9), so 26 620 - 1 000 weights are left for a and b, whose
    # dimensions add up to 1 084 + 400: 17.264 each.
    unit = (0.1 * 266_200 - 1_000) / (1_084 + 400)
    assert shares["c"] == 0.0
    assert shares["a"] == pytest.approx(1 - unit * 1_084 / 235_200)
    assert shares["b"] == pytest.approx(1 - unit * 400 / 30_000)


def test_lamp_scores_by_hand():
    """Equation 3 of Lee et al. for 1, 2, 3: 1/14, 4/13, 9/9."""
    np.testing.assert_allclose(lamp_scores(np.array([[3.0, -1.0, 2.0]])), [1 / 14, 4 / 13, 1.0])


def test_lamp_does_not_care_for_the_scale_of_a_layer_and_global_does():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50, 40))
    assert allocate("lamp", {"a": a, "b": 100 * b}, 0.8)["b"] == allocate("lamp", {"a": a, "b": b}, 0.8)["b"]
    shares = allocate("global", {"a": a, "b": 100 * b}, 0.5)
    assert shares["a"] == pytest.approx(1.0, abs=0.03)
    assert shares["b"] == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("rule", ["uniform", "erk", "lamp", "global"])
@given(seed=st.integers(0, 1000), zeros=st.floats(0.05, 0.95))
@settings(max_examples=15)
def test_allocations_keep_the_whole_share(rule, seed, zeros):
    rng = np.random.default_rng(seed)
    weights = {str(i): rng.standard_normal(rng.integers(2, 40, 2)) * rng.uniform(0.1, 2) for i in range(5)}
    shares = allocate(rule, weights, zeros)
    assert all(-1e-9 <= s <= 1 + 1e-9 for s in shares.values())
    size = sum(w.size for w in weights.values())
    assert sum(shares[n] * w.size for n, w in weights.items()) / size == pytest.approx(zeros, abs=1 / size)


def test_allocation_through_the_pass():
    graph = graph_until(small_network(), "legalise")
    pruned, report = prune(graph, "unstructured 80%", allocation="lamp")
    weights = [op.weight for op in pruned.order() if isinstance(op, Conv | Linear)]
    assert sum((w == 0).sum() for w in weights) == pytest.approx(0.8 * sum(w.size for w in weights), abs=3)
    assert len({round(r.zeros, 3) for r in report}) == 3


@given(seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_choice_under_a_budget_is_the_best(seed):
    rng = np.random.default_rng(seed)
    layers = {
        str(i): [
            Choice(pattern=Pattern.parse("2:4"), cycles=float(c), error=float(e))
            for c, e in zip(rng.integers(1, 100, 3), rng.random(3), strict=True)
        ]
        for i in range(4)
    }
    every = [list(pick) for pick in np.ndindex(3, 3, 3, 3)]
    picks = [[layers[str(i)][k] for i, k in enumerate(pick)] for pick in every]
    least = min(sum(c.cycles for c in p) for p in picks)
    budget = float(least + rng.integers(3, 150))
    found = choose(layers, budget)
    assert sum(c.cycles for c in found.values()) <= budget
    best = min(sum(c.error for c in p) for p in picks if sum(c.cycles for c in p) <= budget * 0.998)
    assert sum(c.error for c in found.values()) <= best + 1e-12  # cycles are counted in 4000ths of the budget


def with_weight(graph, name, weight):
    changed = graph.copy()
    changed.replace(name, replace(changed.op(name), weight=weight))
    return run_onnx(export_model(changed), FEEDS[0])[0]


FEEDS = [{"x": np.random.default_rng(9).standard_normal((1, 4, 9, 9)).astype(np.float32)}]


def test_output_errors_are_those_of_the_changed_network():
    graph = graph_until(small_network(), "legalise")
    layers = [op for op in graph.order() if isinstance(op, Conv | Linear)]
    halves = {op.name: (op.weight * Pattern.parse("2:4").mask(op.weight)) for op in layers}
    as_arrays = {op.name: array_weight(graph, op, halves[op.name]) for op in layers}
    variants = {op.name: [array_weight(graph, op, op.weight), as_arrays[op.name]] for op in layers}
    found = output_errors(graph, variants, FEEDS)
    right = run_onnx(export_model(graph), FEEDS[0])[0]
    for name, (same, pruned) in found.items():
        assert same == 0
        lost = with_weight(graph, name, halves[name]) - right
        assert pruned == pytest.approx((lost**2).sum() / (right**2).sum(), rel=1e-3)


def test_by_cost_spares_the_layer_that_matters():
    """A layer whose output hardly reaches the head is pruned, though its own error is as large as another's."""
    b = Builder(("x", (1, 16, 4, 4)))
    sides = [b.op("Relu", b.conv("x", 16, 16, k=1, bias=False)) for _ in range(2)]
    small = b.op("Mul", sides[1], b.constant(0.01))
    y = b.op("Flatten", b.op("Concat", sides[0], small, axis=1))
    graph = graph_until(b.model(b.op("Gemm", y, b.weight(6, 512), transB=1, out="head")), "legalise")
    feeds = [{"x": np.random.default_rng(1).standard_normal((1, 16, 4, 4)).astype(np.float32)} for _ in range(4)]
    wish = {"n_conv0": "dense | 1:4", "n_conv2": "dense | 1:4"}
    _, report = prune(graph, wish, allocation="cost 95%", calibration=feeds, spec=ArchSpec.load("tiny"))
    assert [r.layer for r in report] == ["n_conv2"]


def test_by_cost_meets_the_budget_and_beats_the_uniform_choice():
    spec = ArchSpec.load("tiny")
    graph = graph_until(small_network(), "legalise")
    wish = "dense | 2:4 | 1:4"
    pruned, report = prune(graph, wish, allocation="cost 70% by layer", spec=spec)
    layers = [op for op in graph.order() if isinstance(op, Conv | Linear)]

    def cycles(g):
        return sum(layer_cycles(graph, op, array_weight(graph, op, g.op(op.name).weight), spec) for op in layers)

    assert cycles(pruned) <= 0.7 * cycles(graph)
    patterns = {r.layer: r.pattern for r in report}
    error = sum(r.error for r in report)
    for count in range(comb(3, 1) + 1):  # no cheaper network of the same patterns is better
        for dense in combinations([op.name for op in layers], count):
            other, told = prune(graph, {"*": "2:4", **dict.fromkeys(dense, "dense")})
            assert cycles(other) > 0.699 * cycles(graph) or sum(r.error for r in told) >= error - 1e-12, patterns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsifier": "optimal"}, "sparsifier must be one of magnitude, wanda, sparsegpt, not 'optimal'"),
        ({"allocation": "fair"}, "allocation must be uniform, erk, lamp, global, or cost with a budget"),
        ({"allocation": "cost"}, "allocation 'cost' must be cost with a budget of cycles"),
        ({"allocation": "cost 60%"}, "needs the spec on which cycles are counted"),
        ({"allocation": "erk", "sparsity": "butterfly 2 2"}, "butterfly 2 2 has no share of zeros to choose"),
        ({"sparsity": "2:4 | 1:4"}, "a choice is made by cost, not 'uniform'"),
        ({"sparsity": "2:4 | channels 50%", "allocation": "cost 90%", "spec": "tiny"}, "channels 50% changes shapes"),
        ({"sparsity": "1:4", "allocation": "cost 1% by layer", "spec": "tiny"}, "with the cheapest of their patterns"),
    ],
)
def test_wrong_wishes(options, message):
    graph = graph_until(small_network(), "legalise")
    options = {"sparsity": "unstructured 50%", **options}
    if "spec" in options:
        options["spec"] = ArchSpec.load(options["spec"])
    with pytest.raises(ModelError, match=message.replace("|", r"\|")):
        prune(graph, **options)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_prunes_with_data(tmp_path):
    digits = Path(__file__).resolve().parents[1] / "examples" / "digits" / "digits-dense.onnx"
    np.savez(tmp_path / "images.npz", image=np.random.default_rng(0).random((8, 1, 8, 8)).astype(np.float32))
    data = ["--calibration", str(tmp_path / "images.npz"), "--spec", "tiny", "--json"]
    sizes = {}
    for name, options in {
        "plain": [],
        "pruned": ["--sparsity", "unstructured 80%", "--sparsifier", "wanda", "--allocation", "erk"],
        "ordered": ["--sparsity", "unstructured 80%", "--sparsifier", "wanda", "--allocation", "erk", "--permute"],
    }.items():
        file = tmp_path / f"{name}.gsm"
        done = CliRunner().invoke(app, ["compile", str(digits), "-o", str(file), *data, *options])
        assert done.exit_code == 0, done.output
        assert ("by wanda leaves an error of" in done.stderr) == (name != "plain")
        sizes[name] = sum(note.mac_cycles for note in Program.load(file).layers)
    assert sizes["ordered"] < sizes["pruned"] < sizes["plain"]
    wrong = CliRunner().invoke(
        app, ["compile", str(digits), "-o", str(tmp_path / "x"), *data, "--sparsity", "2:4", "--sparsifier", "gpt"]
    )
    assert wrong.exit_code == 1
    assert "error: sparsifier must be one of magnitude, wanda, sparsegpt, not 'gpt'" in wrong.stderr


@pytest.mark.parametrize(
    ("share", "text"), [(0.7, "70%"), (0.799913, "79.99%"), (2 / 3, "66.67%"), (0.999991, "99.9991%"), (1.0, "100%")]
)
def test_shares_are_shown_in_four_digits(share, text):
    assert percent(share) == text
    assert str(Pattern.parse(f"unstructured {text}")) == f"unstructured {text}"
