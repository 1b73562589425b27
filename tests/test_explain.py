"""Explanations: parts that sum to the whole, and known causes for known cases."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import random_conv, random_network, random_tensor
from support.products import attention
from support.specs import random_spec
from typer.testing import CliRunner

import gossamer
from gossamer import cli, report
from gossamer.arch.errors import CapacityError, GossamerError
from gossamer.arch.layers import layer_report
from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.changes import changes, nearest
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.layers import MaxPool, Network
from gossamer.explanation import MEANING, explain
from gossamer.sim.breakdown import LayerParts, break_down
from gossamer.sim.simulate import simulate
from gossamer.trials import Trial, best, ranked, try_changes

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits" / "digits-2of8.onnx"


def check_sums(program: Program) -> None:
    """Exactly: every layer's cycles are its bound and its parts, and all layers are the run."""
    run = simulate(program, values=False)
    found = break_down(run)
    for layer, reported in zip(found.layers, layer_report(run), strict=True):
        assert layer.cycles == reported["cycles"]
        assert layer.bound == pytest.approx(reported["bound"], rel=1e-12)
        assert layer.cycles == pytest.approx(layer.bound + sum(layer.parts.beyond.values()), abs=1e-6)
        assert layer.cycles == pytest.approx(layer.ideal + sum(layer.parts.to_dict().values()), abs=1e-6)
        for name, value in layer.parts.to_dict().items():
            assert value >= -1e-9 or name in ("tail", "hidden"), (name, layer)
        assert layer.parts.hidden <= 0
        assert sum(layer.macs.to_dict().values()) == pytest.approx(layer.cycles, abs=1e-6)
        assert all(value >= 0 for name, value in layer.macs.to_dict().items() if name != "still"), layer
        if layer.cycles:
            assert layer.macs.useful / layer.cycles == pytest.approx(reported["utilisation"])
    assert found.end + sum(layer.cycles for layer in found.layers) == run.cycles
    assert list(found.total.to_dict()) == list(MEANING)
    assert sum(found.macs.to_dict().values()) == pytest.approx(run.cycles)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_parts_sum_to_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = random_spec(rng) if seed % 2 else ArchSpec.load("edge")
    try:
        program = build_program(random_network(rng, largest=40, side=9), spec)
    except CapacityError:
        return
    check_sums(program)


def one(
    spec: ArchSpec, shape: tuple[int, int, int, int], channels: int, kernel: int = 1, density: float = 1.0,
    groups: int = 1,
) -> LayerParts:  # fmt: skip
    """The parts of a single layer."""
    rng = np.random.default_rng(0)
    x = random_tensor(rng, "x", shape)
    conv, y = random_conv(rng, "conv", x, channels, (kernel, kernel), density=density, groups=groups)
    weight = np.where(conv.weight == 0, density == 1.0, conv.weight).astype(np.int8)
    conv = type(conv)(**{**conv.__dict__, "weight": weight})
    network = Network(name="one", tensors={"x": x, y.name: y}, stages=(conv,), inputs=("x",), outputs=(y.name,))
    return break_down(simulate(build_program(network, spec), values=False)).layers[0]


EDGE = ArchSpec.load("edge")


def test_parts_of_products_of_two_activations() -> None:
    check_sums(build_program(attention(np.random.default_rng(0), 1, 2, 40, 33, 24, merged=True), EDGE))


def test_one_output_channel_leaves_columns_idle() -> None:
    found = one(EDGE, (1, 64, 18, 18), 1, kernel=3)
    assert found.limit == "array"
    # fifteen of sixteen columns have nothing to do, and the bus would be the limit if they had
    assert found.parts.columns == pytest.approx(found.bound - found.ideal)
    assert found.bound > 3 * found.ideal
    assert one(EDGE, (1, 64, 18, 18), 16, kernel=3).parts.columns == 0


def test_a_narrow_bus_is_what_a_layer_waits_for() -> None:
    narrow = EDGE.evolve(name="narrow", axi_bytes=4, ppu=1)
    found = one(narrow, (1, 64, 1, 64), 256)
    assert found.limit == "read"
    assert found.bound > 2 * one(EDGE.evolve(axi_bytes=64), (1, 64, 1, 64), 256).bound


def test_a_slow_memory_shows_as_start() -> None:
    slow = EDGE.evolve(name="slow", read_latency=4000)
    assert one(slow, (1, 64, 16, 16), 64).parts.start > 4000 > one(EDGE, (1, 64, 16, 16), 64).parts.start


def test_sixty_five_positions_on_sixteen_lanes() -> None:
    fast = EDGE.evolve(name="fast", axi_bytes=128)
    found = one(fast, (1, 256, 1, 65), 128)
    assert found.limit == "array"
    assert found.parts.lanes == pytest.approx(found.bound * (80 / 65 - 1))
    assert one(fast, (1, 256, 1, 64), 128).parts.lanes == 0


def test_a_pooling_of_one_position_keeps_hardly_a_mac_busy() -> None:
    """Its bound is as inefficient as it is: what idles has to be told beside the ratio."""
    server = ArchSpec.load("server")
    found = one(server, (1, 256, 7, 7), 256, kernel=7, groups=256)
    steps = 256 // 8 * 49  # each window of eight channels meets one nonzero in eight of 64 columns
    assert found.limit == "read"
    assert found.macs.lanes == pytest.approx(steps * (1 - 1 / 16))
    assert found.macs.empty == pytest.approx(steps / 16 * (1 - 1 / 16))
    assert found.macs.useful < 0.005 * found.cycles
    # fifteen of sixteen values of its records are zero, three select bits a value are metadata: 3 / 11 of a record
    assert found.parts.imbalance == pytest.approx(steps * 2 * 15 / 16, rel=0.01)
    assert found.parts.metadata == pytest.approx(steps * 2 * 3 / 8, rel=0.01)


def test_columns_without_a_channel_take_room_in_records_too() -> None:
    found = one(EDGE, (1, 256, 1, 1), 1)
    assert found.limit == "read"
    assert found.parts.columns > 10 * found.parts.metadata
    assert found.parts.imbalance == pytest.approx(0, abs=1)


def test_columns_that_wait_for_each_other() -> None:
    dense, sparse = (one(EDGE, (1, 64, 18, 18), 16, kernel=3, density=d) for d in (1.0, 0.2))
    assert dense.parts.imbalance == 0
    assert sparse.parts.imbalance > 0.2 * sparse.bound


def test_a_narrow_ppu_is_the_limit_of_a_short_reduction() -> None:
    narrow, wide = EDGE.evolve(axi_bytes=64, ppu=1), EDGE.evolve(axi_bytes=64, ppu=16)
    assert one(narrow, (1, 8, 16, 16), 64).parts.ppu > 0 == one(wide, (1, 8, 16, 16), 64).parts.ppu


def test_few_channels_in_a_wide_block_are_traffic() -> None:
    wide = ArchSpec.load("server")
    assert one(wide, (1, 65, 28, 28), 64).parts.traffic > one(wide, (1, 128, 28, 28), 64).parts.traffic


SMALL = ArchSpec(name="small", activation_bytes=128, activation_partitions=1)
"""Its banks hold one position of a 1x1 convolution and not of a 3x3 one."""


def two_layers() -> Network:
    """3x3, then 1x1."""
    rng = np.random.default_rng(2)
    x = random_tensor(rng, "x", (1, 16, 6, 6))
    first, middle = random_conv(rng, "first", x, 16, (3, 3))
    second, out = random_conv(rng, "second", middle, 16, (1, 1))
    tensors = {t.name: t for t in (x, middle, out)}
    return Network(name="two", tensors=tensors, stages=(first, second), inputs=("x",), outputs=(out.name,))


def test_what_runs_on_the_host_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    facts = explain(simulate(gossamer.compile(two_layers(), SMALL), values=False))
    (host,) = facts["host"]
    assert (host["name"], host["operators"]) == ("first/host", ["Conv"])
    assert host["mac_share"] == 0.9  # nine taps, and one behind them
    assert "one output position reads 144 bytes" in host["reason"]
    report.show(facts)
    text = " ".join(capsys.readouterr().out.split())
    assert "on the host: first/host (Conv), 90.0% of all MACs: layer 'first' does not fit" in text
    assert "the host has 90.0% of all MACs; cycles and bounds are of the rest" in text
    assert explain(simulate(gossamer.compile(two_layers(), EDGE), values=False))["host"] == []


def test_a_program_of_the_host_alone_says_why() -> None:
    network = two_layers()
    alone = replace(network, stages=network.stages[:1], outputs=("first.out",))
    with pytest.warns(UserWarning, match="nothing of 'two' runs on the accelerator"):
        program = gossamer.compile(alone, SMALL)
    run = simulate(program, values=False)
    with pytest.raises(GossamerError, match=r"'two' runs on the host alone: layer 'first' does not fit spec 'small'"):
        explain(run)


def test_layers_that_leave_macs_idle_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever their ratio: a pooling of one position on 16 lanes, each column with a channel of its own."""
    rng = np.random.default_rng(0)
    x = random_tensor(rng, "x", (1, 256, 7, 7))
    conv, y = random_conv(rng, "average", x, 256, (7, 7), groups=256)
    conv = replace(conv, weight=np.ones_like(conv.weight), pattern="depthwise 256")
    network = Network(name="one", tensors={"x": x, y.name: y}, stages=(conv,), inputs=("x",), outputs=(y.name,))
    facts = explain(simulate(build_program(network, ArchSpec.load("server")), values=False))
    (layer,) = facts["layers"]
    assert layer["utilisation"] == layer["macs"]["useful"] / layer["cycles"] < 0.005
    assert facts["utilisation"] == layer["macs"]["useful"] / facts["cycles"]
    assert "lanes without a position" in layer["idle"]
    assert "(fewer positions than lanes)" in layer["idle"]
    assert "(each column reads a channel of its own)" in layer["idle"]
    report.show(facts)
    assert "layer with idle MACs" in capsys.readouterr().out
    pool = MaxPool(name="pool", inputs=("x",), output="y", kernel=(2, 2), lo=-128, hi=127)
    x = replace(random_tensor(rng, "x", (1, 64, 18, 18)), signed=True)
    tensors = {"x": x, "y": replace(x, name="y", shape=(1, 64, 17, 17))}
    network = Network(name="one", tensors=tensors, stages=(pool,), inputs=("x",), outputs=("y",))
    (layer,) = explain(simulate(build_program(network, EDGE), values=False))["layers"]
    assert "slots without a nonzero" in layer["idle"]
    assert "(a maximum has no products)" in layer["idle"]
    x = random_tensor(rng, "x", (1, 64, 18, 18))
    conv, y = random_conv(rng, "busy", x, 64, (3, 3))
    network = Network(name="one", tensors={"x": x, y.name: y}, stages=(conv,), inputs=("x",), outputs=(y.name,))
    assert explain(simulate(build_program(network, EDGE), values=False))["layers"][0]["idle"] == ""


def test_trials_are_measured() -> None:
    rng = np.random.default_rng(1)
    x = random_tensor(rng, "x", (1, 64, 1, 64))
    conv, y = random_conv(rng, "conv", x, 256, (1, 1))
    network = Network(name="one", tensors={"x": x, y.name: y}, stages=(conv,), inputs=("x",), outputs=(y.name,))
    narrow = EDGE.evolve(name="narrow", axi_bytes=4)
    run = simulate(build_program(network, narrow), values=False)
    tried = try_changes(network, run)
    assert tried[0].change == "axi_bytes 4 -> 8"
    assert best(tried) is tried[0]
    assert [t.speedup for t in tried] == sorted((t.speedup for t in tried), reverse=True)
    by_name = {change.text: change.spec for change in changes(narrow)}
    for trial in tried[:3]:
        if trial.change in by_name:
            again = simulate(build_program(network, by_name[trial.change]), values=False).cycles
            assert (trial.cycles, trial.speedup) == (again, run.cycles / again)
    assert any(t.change == "pattern 2:8" and t.speedup > 1 and t.whose == "weights" for t in tried)
    assert {t.whose for t in tried} == {"accelerator", "memory", "weights"}
    assert explain(run, tried)["best"] == "axi_bytes 4 -> 8"


def test_only_what_can_help_is_tried_and_no_more_than_asked_for() -> None:
    run = simulate(build_program(two_layers(), EDGE), values=False)
    fetch = break_down(run).total.fetch
    assert round(fetch) == 0
    tried = try_changes(two_layers(), run, limit=2)
    assert sum(t.cycles is not None for t in tried) == 2
    left = {t.change: t.reason for t in tried if t.cycles is None}
    assert left.pop("fetch_burst 8 -> 16") == "not tried: no cycles of fetch"
    assert all(why.startswith("not tried: ") for why in left.values())
    assert "not tried: only 2 were to be" in left.values()
    least = min(t.room for t in tried if t.cycles is not None)
    assert all(t.room <= least for t in tried if t.reason == "not tried: only 2 were to be")
    # and it would have been in vain
    wider = simulate(build_program(two_layers(), EDGE.evolve(fetch_burst=16)), values=False)
    assert wider.cycles >= 0.995 * run.cycles


def test_a_large_wait_for_instructions_calls_for_more_than_twice_the_queue() -> None:
    spec = EDGE.evolve(name="starved", queue_depth=1, fetch_burst=1)
    plain = {c.text for c in changes(spec)}
    assert {"queue_depth 1 -> 2", "fetch_burst 1 -> 2"} < plain
    assert not any(text.endswith("-> 8") for text in plain)
    starved = {c.text for c in changes(spec, {"fetch": 0.05})}
    assert starved - plain == {"queue_depth 1 -> 8", "fetch_burst 1 -> 8", "queue_depth 1 -> 8, fetch_burst 1 -> 8"}
    for field in ("outstanding_reads", "outstanding_writes", "burst_beats"):
        assert any(text.startswith(f"{field} ") for text in plain)


def test_where_twice_is_not_legal_the_nearest_value_is_tried() -> None:
    odd = ArchSpec(name="odd", lanes=3, columns=40, axi_bytes=8, outstanding_reads=40, activation_bytes=24 * 2**14,
                   activation_partitions=3)  # fmt: skip
    found = {c.text: c for c in changes(odd)}
    assert found["lanes x columns -> 5 x 24"].spec.pes == odd.pes
    assert found["lanes x columns -> 1 x 120"].spec.pes == odd.pes
    assert "outstanding_reads 40 -> 64" in found
    assert nearest(odd, "activation_bytes", 2 * odd.activation_bytes) == 5 * odd.activation_bytes // 4
    assert found["axi_bytes 8"].reason == "no larger value is legal"  # 40 columns are no multiple of 16
    assert nearest(odd.evolve(outstanding_reads=64), "outstanding_reads", 128) is None
    assert "weight_steps 2048 -> 4096, offset_steps 2048 -> 4096" in found  # the smaller of both is what counts
    assert "weight_steps 2048 -> 4096" in {c.text for c in changes(odd.evolve(offset_steps=4096))}
    assert all(c.spec != odd or c.reason for c in found.values())


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_changes_of_any_spec_are_specs(seed: int) -> None:
    spec = random_spec(np.random.default_rng(seed))
    for change in changes(spec, dict.fromkeys([*MEANING, "host"], 1.0)):
        assert bool(change.reason) == (change.spec == spec), change
        assert set(change.parts) <= {*MEANING, "array", "bus", "host"}
        if "lanes x columns" in change.text:
            assert change.spec.pes <= spec.pes


def test_trials_that_move_layers_to_or_from_the_host_are_kept_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    network = two_layers()
    run = simulate(gossamer.compile(network, SMALL), values=False)
    tried = try_changes(network, run)
    by_name = {t.change: t for t in tried}
    moved = by_name["activation_bytes 128 -> 256"]
    assert (moved.from_host, moved.to_host, moved.same_work) == (("first/host",), (), False)
    assert moved.work == 10  # nine taps and one
    assert moved.speedup < 1  # more work takes longer: that is no slow-down
    assert "activation_bytes 128 -> 1024" in by_name  # the host has more than a small share
    flags = [t.same_work for t in tried]
    assert flags == sorted(flags, reverse=True)
    assert by_name["depth 16 -> 32"].same_work
    facts = explain(run, tried)
    report.show(facts)
    text = " ".join(capsys.readouterr().out.split())
    _, _, apart = text.partition("these run other layers on the array, so their cycles do not compare:")
    assert "activation_bytes 128 -> 256 +1 layer from the host x 10" in apart
    assert "not tried: no cycles of fetch: fetch_burst 8 -> 16" in apart


def test_the_best_change_is_one_that_a_designer_can_make() -> None:
    def trial(change: str, speedup: float, **more: Any) -> Trial:
        return Trial(change=change, cycles=100, speedup=speedup, macs=1.0, buffer_bytes=1.0, **more)

    fast = trial("read_latency 40 -> 1", 3.0, whose="memory")
    less = trial("activation_bytes 32 -> 16", 2.0, to_host=("conv/host",), work=0.5)
    more = trial("activation_bytes 32 -> 64", 0.5, from_host=("conv/host",), work=2.0)
    none = trial("depth 16 -> 32", 1.0)
    wide = trial("axi_bytes 4 -> 8", 1.5)
    given_ = [less, none, fast, more, wide]
    assert ranked(given_) == [fast, wide, none, more, less]
    assert best(given_) is wide
    assert best([fast, less, more, none]) is None


def test_a_program_without_notes_has_nothing_to_explain() -> None:
    program = build_program(random_network(np.random.default_rng(0)), EDGE)
    run = simulate(Program(**{**program.__dict__, "layers": ()}), values=False)
    with pytest.raises(GossamerError, match="has no notes on its layers"):
        break_down(run)


def test_the_command(tmp_path: Path) -> None:
    def call(*args: object) -> object:
        return CliRunner().invoke(cli.app, [str(a) for a in args], env={"COLUMNS": "200"})

    np.savez(tmp_path / "c.npz", image=np.random.default_rng(0).random((4, 1, 8, 8)).astype(np.float32))
    options = ("--calibration", tmp_path / "c.npz", "--no-trials")
    picture = tmp_path / "parts.svg"
    text = call("explain", DIGITS, "edge", *options, "--picture", picture)
    assert text.exit_code == 0, text.output
    assert "sum of the layers' bounds" in text.stdout
    assert "classifier" in text.stdout
    assert "classifier" in picture.read_text()
    found = json.loads(call("explain", DIGITS, "edge", *options, "--json").stdout)
    assert found["cycles"] == found["end"] + round(found["ideal"] + sum(found["parts"].values()))
    assert found["best"] is None
    options = (*options[:2], "--at-most", 1, "--json")
    tried = json.loads(call("explain", DIGITS, "edge", *options).stdout)["trials"]
    assert [t["change"] for t in tried if t["cycles"]] == [max(tried, key=lambda t: t["room"])["change"]]
    program = build_program(random_network(np.random.default_rng(0)), EDGE)
    program.save(tmp_path / "p.gsm")
    assert json.loads(call("explain", tmp_path / "p.gsm", "--json").stdout) == explain(simulate(program, values=False))
    assert gossamer.explain(tmp_path / "p.gsm") == gossamer.explain(program) == explain(simulate(program, values=False))
    for option in (["edge"], ["--permute"], ["--allocation", "erk"], ["--signed"], ["--no-chains"]):
        assert call("explain", tmp_path / "p.gsm", *option).exit_code == 2
    assert call("explain", DIGITS).exit_code == 2


def test_the_command_compiles_as_compile_does(tmp_path: Path) -> None:
    """Every option that decides what is compiled is the same on both sides."""

    def call(*args: object) -> object:
        return CliRunner().invoke(cli.app, [str(a) for a in args], env={"COLUMNS": "200"})

    np.savez(tmp_path / "c.npz", image=np.random.default_rng(0).random((4, 1, 8, 8)).astype(np.float32))
    sparse = DIGITS.with_name("digits-dense.onnx")
    for options in (
        ["--sparsity", "unstructured 80%", "--permute"],
        ["--sparsity", "dense | 4:8 | 2:8", "--allocation", "cost 70% by layer"],
        ["--sparsity", "2:8", "--sparsifier", "wanda", "--no-chains"],
        ["--refine"],
        ["--signed", "--method", "percentile", "--sparsity", "2:8", "--sparsifier", "wanda", "--sequential"],
    ):
        options += ["--calibration", tmp_path / "c.npz"]
        options += ["--sparsity", "*stem*=dense"] if "--sparsity" in options else []
        made = call("compile", sparse, "-s", "sat-2of8", "-o", tmp_path / "p.gsm", *options)
        assert made.exit_code == 0, made.output
        cycles = simulate(Program.load(tmp_path / "p.gsm"), values=False).cycles
        found = call("explain", sparse, "sat-2of8", "--no-trials", "--json", *options)
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout)["cycles"] == cycles
    refused = call("explain", sparse, "sat-2of8", "--no-trials", "--sparsity", "2:8", "--sparsifier", "nonsense")
    assert refused.exit_code == 1
    assert "nonsense" in refused.output
