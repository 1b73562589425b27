"""What `gossamer rtl` writes: the same text every time, lint-clean, and a bench that passes."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gossamer import cli
from gossamer.arch.run import COUNTERS
from gossamer.arch.spec import ArchSpec, preset_names
from gossamer.rtl import build
from gossamer.rtl.build import verilator_environment
from gossamer.rtl.bundle import bundle, write_bundle
from gossamer.rtl.example import example
from gossamer.rtl.registers_map import REGISTERS
from gossamer.rtl.verilog import verilog
from gossamer.sim import simulate
from gossamer.verification import verify
from tests.support.rtl_specs import SMALL_SPECS, needs_hardware_tools

pytestmark = needs_hardware_tools


def lint(folder: Path) -> str:
    """What Verilator -Wall has to say about a bundle."""
    command = ["verilator", "--lint-only", "-Wall", "--top-module", "gossamer"]
    command += ["gossamer.vlt", "gossamer.v", "gossamer_memories.v"]
    return subprocess.run(command, cwd=folder, env=verilator_environment(), capture_output=True, text=True).stderr


@pytest.mark.parametrize("name", SMALL_SPECS)
def test_lint(name: str, tmp_path: Path) -> None:
    write_bundle(SMALL_SPECS[name], tmp_path)
    assert lint(tmp_path) == ""


def test_lint_finds_what_is_wrong(tmp_path: Path) -> None:
    write_bundle(SMALL_SPECS["tiny"], tmp_path)
    text = (tmp_path / "gossamer.v").read_text()
    (tmp_path / "gossamer.v").write_text(text.replace(".irq(irq)", ".iqr(irq)", 1))
    assert "iqr" in lint(tmp_path)


def test_verilog_is_the_same_every_time() -> None:
    spec = SMALL_SPECS["tiny"]
    text = verilog(spec)
    assert text == verilog(spec)
    assert str(Path.home()) not in text
    assert "initial" not in text  # no register and no memory needs a value before reset
    assert verilog(spec.evolve(name="other", clock_mhz=7)) == text


def test_no_select_logic_without_a_group() -> None:
    """A group of one is the plain dense array: no select anywhere in the hardware, and no encoding but DENSE."""
    text = verilog(SMALL_SPECS["no-select"])
    assert "select" not in text
    assert "rank" not in text
    assert "select" in verilog(SMALL_SPECS["tiny"])


def test_map_names_every_register() -> None:
    files = bundle(SMALL_SPECS["tiny"])
    document = json.loads(files["map.json"])
    names = [r["name"] for r in document["registers"]]
    assert names == [r.name for r in REGISTERS]
    assert {f"counter_{c}" for c in COUNTERS} <= set(names)
    assert len({r["address"] for r in document["registers"]}) == len(names)
    assert all(f"`{name}`" in files["map.md"] for name in names)


@pytest.mark.parametrize("name", [*preset_names(), *SMALL_SPECS])
def test_example_program(name: str) -> None:
    """The example's expected memory, computed here by hand, is what the simulator finds."""
    spec = SMALL_SPECS.get(name) or ArchSpec.load(name)
    program, expected = example(spec)
    memory = simulate(program).memory
    assert memory is not None
    assert np.array_equal(memory, expected)


def test_bench_of_the_bundle(tmp_path: Path) -> None:
    write_bundle(SMALL_SPECS["tiny"], tmp_path)
    command = ["make", "-C", str(tmp_path / "bench"), "run"]
    done = subprocess.run(command, env=verilator_environment(), capture_output=True, text=True)
    assert "PASS" in done.stdout, done.stdout + done.stderr


def test_command_rtl(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["rtl", "tiny", "-o", str(tmp_path / "hardware")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "hardware" / "gossamer.v").is_file()
    assert "gossamer.core" in done.output


def test_models_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second use of a spec builds nothing, nor does the same hardware beside another memory."""
    program, _ = example(SMALL_SPECS["tiny"])
    assert verify(program).difference is None
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
    program, _ = example(SMALL_SPECS["tiny"].evolve(name="again", read_latency=3))
    assert verify(program).difference is None
