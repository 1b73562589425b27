"""Explanations: parts that sum to the whole, and known causes for known cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import random_conv, random_network, random_tensor
from support.products import attention
from support.specs import random_spec
from typer.testing import CliRunner

import gossamer
from gossamer import cli
from gossamer.arch.errors import CapacityError, GossamerError
from gossamer.arch.layers import layer_report
from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.layers import Network
from gossamer.explanation import MEANING, explain
from gossamer.sim.breakdown import LayerParts, break_down
from gossamer.sim.simulate import simulate
from gossamer.trials import changed_specs, try_changes

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
    assert found.end + sum(layer.cycles for layer in found.layers) == run.cycles
    assert list(found.total.to_dict()) == list(MEANING)


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
    spec: ArchSpec, shape: tuple[int, int, int, int], channels: int, kernel: int = 1, density: float = 1.0
) -> LayerParts:
    """The parts of a single layer."""
    rng = np.random.default_rng(0)
    x = random_tensor(rng, "x", shape)
    conv, y = random_conv(rng, "conv", x, channels, (kernel, kernel), density=density)
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


def test_trials_are_measured() -> None:
    rng = np.random.default_rng(1)
    x = random_tensor(rng, "x", (1, 64, 1, 64))
    conv, y = random_conv(rng, "conv", x, 256, (1, 1))
    network = Network(name="one", tensors={"x": x, y.name: y}, stages=(conv,), inputs=("x",), outputs=(y.name,))
    narrow = EDGE.evolve(name="narrow", axi_bytes=4)
    cycles = simulate(build_program(network, narrow), values=False).cycles
    tried = try_changes(network, narrow, cycles)
    assert tried[0].change == "axi_bytes 4 -> 8"
    assert [t.speedup for t in tried] == sorted((t.speedup for t in tried), reverse=True)
    by_name = dict(changed_specs(narrow))
    for trial in tried[:3]:
        if trial.change in by_name:
            again = simulate(build_program(network, by_name[trial.change]), values=False).cycles
            assert (trial.cycles, trial.speedup) == (again, cycles / again)
    assert any(t.change == "pattern 2:8" and t.speedup > 1 for t in tried)


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
