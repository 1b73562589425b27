"""The command line: what it prints, where, and the exit codes scripts rely on."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

import gossamer
from gossamer import cli, inspection, options, report
from gossamer.arch.errors import CapacityError
from gossamer.arch.isa import Instruction, Op, to_matrix
from gossamer.arch.program import AcceleratorStage, HostStage, LayerNote, Program, Segment
from gossamer.arch.run import COUNTERS, EVENT_FIELDS, Run, StageRun
from gossamer.arch.spec import ArchSpec, preset_names

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits" / "digits-2of8.onnx"


def call(*args: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "200", **(env or {})})


def refused(result: Result) -> str:
    """The one line on stderr with which Gossamer refuses; stdout is empty."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    line = re.fullmatch(r"error: (.+)\n", result.stderr)
    assert line, result.stderr
    return line[1]


def misused(result: Result) -> str:
    """What stderr says when the command line is wrong; stdout is empty."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())


@pytest.fixture
def program() -> Program:
    """One LOAD and END by hand, with a host stage and a note for the report."""
    load = Instruction.make(Op.LOAD, kind=0, beats=1, rows=1, blocks=1, tile_beats=1, tile_rows=1)
    host = HostStage(name="tail", model=b"", inputs=(), outputs=(), reason="Softmax is not a layer", ops=("Softmax",))
    return Program(
        name="by-hand",
        spec=ArchSpec(name="small"),
        instructions=to_matrix([load, Instruction.make(Op.END)]),
        dram_bytes=4096,
        segments=(Segment(address=0, data=np.zeros(512, dtype=np.uint8)),),
        stages=(AcceleratorStage(name="main", first=0, count=2), host),
        layers=(LayerNote(name="fc", kind="conv", pattern="2:8", first=0, count=1, macs=1024, useful_macs=256),),
        host_types={"logits": ("float32", (1, 10))},
        outputs=("logits",),
    )


@pytest.fixture
def program_file(program: Program, tmp_path: Path) -> Path:
    path = tmp_path / "by-hand.gsm"
    program.save(path)
    return path


class Spy:
    """Stands in for a function of the API and remembers what it was called with."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs = args, kwargs
        kwargs["progress"]("working", 1, 2)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def test_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"gossamer {gossamer.__version__}\n")


def test_help_names_every_command() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for name in ("compile", "run", "inspect", "presets", "schema", "--install-completion", "Exit codes"):
        assert name in result.stdout


@pytest.mark.parametrize("name", ["compile", "run", "inspect", "presets", "schema"])
def test_every_command_takes_json_and_debug(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert "--debug" in result.stdout


def test_unknown_command() -> None:
    assert "No such command 'simulate'" in misused(call("simulate"))


# ---- presets, schema ----


def test_presets() -> None:
    result = call("presets")
    assert result.exit_code == 0
    for name in preset_names():
        assert name in result.stdout


def test_presets_json() -> None:
    rows = json.loads(call("presets", "--json").stdout)
    assert [row["name"] for row in rows] == preset_names()
    for row in rows:
        spec = ArchSpec.load(row["name"])
        assert row["peak_macs"] == spec.lanes * spec.columns * spec.macs
        assert row["buffer_bytes"] == sum(spec.buffer_bytes.values())


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_schema_accepts_what_inspect_writes(options: list[str]) -> None:
    schema = json.loads(call("schema", *options).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(ArchSpec().to_toml()), schema)
    with pytest.raises(jsonschema.ValidationError, match="0 is less than the minimum"):
        jsonschema.validate({"array": {"lanes": 0}}, schema)


# ---- inspect ----


def test_inspect_spec(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[array]\ncolumns = 32\n')
    text = call("inspect", path).stdout
    assert "spec mine" in text
    assert re.search(r"array\.columns +32 ", text)
    facts = json.loads(call("inspect", path, "--json").stdout)
    assert facts["kind"] == "spec"
    assert facts["spec"]["array"]["columns"] == 32
    assert facts["derived"]["pes"] == 8 * 32


def test_inspect_writes_toml_to_start_from(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[array]\nlanes = 4\n')
    text = call("inspect", path, "--toml").stdout
    assert ArchSpec.from_toml(text) == ArchSpec(name="mine", lanes=4)


def test_inspect_preset() -> None:
    for name in preset_names():
        assert json.loads(call("inspect", name, "--json").stdout)["spec"]["name"] == ArchSpec.load(name).name


def test_inspect_model() -> None:
    assert re.search(r"block1a\.weight +float32 +32 x 32 x 3 x 3 +2,304 +9,216 +25\.0%", call("inspect", DIGITS).stdout)
    facts = json.loads(call("inspect", DIGITS, "--json").stdout)
    assert facts["kind"] == "model"
    assert facts["inputs"] == [{"name": "image", "dtype": "float", "shape": ["batch", 1, 8, 8]}]
    assert facts["operators"]["Conv"] == 6
    weight = next(w for w in facts["weights"] if w["name"] == "classifier.weight")
    assert weight == {"name": "classifier.weight", "shape": [10, 64], "dtype": "float32", "size": 640, "nonzeros": 160}


def test_inspect_program(program_file: Path) -> None:
    text = call("inspect", program_file).stdout
    assert "program by-hand for spec small" in text
    assert "2 instructions: 1 LOAD, 1 END" in text
    assert "on the host: tail (Softmax), 0.0% of all MACs: Softmax is not a layer" in text
    facts = json.loads(call("inspect", program_file, "--json").stdout)
    assert facts["kind"] == "program"
    assert facts["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [1, 10]}]
    assert facts["image_bytes"] == 512


def test_content_decides_and_not_the_name(program_file: Path, tmp_path: Path) -> None:
    for source, kind in ((DIGITS, "model"), (program_file, "program")):
        path = tmp_path / f"{kind}.bin"
        path.write_bytes(source.read_bytes())
        assert json.loads(call("inspect", path, "--json").stdout)["kind"] == kind
    path = tmp_path / "spec.txt"
    path.write_text("# größer\n[array]\nlanes = 2\n")
    assert json.loads(call("inspect", path, "--json").stdout)["kind"] == "spec"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x08\x07\x12\xff\xff", "is not a spec (TOML), a model (ONNX) or a Program"),
        (b"\x00\x01\x02", "is not a spec (TOML), a model (ONNX) or a Program"),
        (b"GOSSAMER", "truncated: 8 bytes are less than the smallest Program"),
        (b"[array]\ncolums = 3\n", "array.colums is not a field; did you mean 'columns'?"),
        (b"[array]\ncolumns = 0\n", "array.columns must be from 1 to 128 columns, not 0"),
        (b"[array\n", "not TOML"),
    ],
)
def test_inspect_refuses(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    assert message in refused(call("inspect", path))
    assert message in refused(call("inspect", path, "--json"))


@pytest.mark.parametrize("content", [b"", b"[array]\n", b"\x00\x01"])
def test_inspect_and_run_agree_on_what_is_no_program(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "thing.gsm"
    path.write_bytes(content)
    ran = refused(call("run", path))
    assert "not a Program file" in ran
    if content[:1] != b"\x00":
        assert refused(call("inspect", path)) == ran


def test_a_text_called_a_model_is_no_spec(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("[array]\nlanes = 2\n")
    assert "is not a spec (TOML), a model (ONNX) or a Program" in refused(call("inspect", tmp_path / "m.onnx"))


def test_files_that_are_not_there_are_told_once() -> None:
    for line in (
        refused(call("run", "no.gsm")),
        refused(call("inspect", "no.toml", "--toml")),
        refused(call("compile", DIGITS, "-s", "no.toml", "-o", "x.gsm")),
        refused(call("compile", "no.onnx", "-s", "tiny", "-o", "x.gsm")),
        refused(call("run", "no.gsm", "-i", "no.npz")),
        refused(call("explain", "no.gsm")),
    ):
        assert "Errno" not in line
        assert line.lower().count("no such file") == 1


def test_inspect_what_is_not_there(tmp_path: Path) -> None:
    assert "'nosuch' is neither a file nor a preset; presets are" in refused(call("inspect", "nosuch"))
    assert "is a folder" in refused(call("inspect", tmp_path))


def test_inspect_model_without_its_external_weights(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(onnx.load(DIGITS), path, save_as_external_data=True, location="big.data", size_threshold=0)
    (tmp_path / "big.data").unlink()
    assert "its external weights cannot be read" in refused(call("inspect", path))


def test_toml_and_json_exclude_each_other() -> None:
    assert "--toml and --json exclude each other" in misused(call("inspect", DIGITS, "--toml", "--json"))


# ---- errors ----


def test_debug_shows_the_traceback() -> None:
    for result in (call("inspect", "nosuch", "--debug"), call("inspect", "nosuch", env={"GOSSAMER_DEBUG": "1"})):
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: 'nosuch'")


def test_a_bug_is_not_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(inspection, "preset_table", broken)
    result = call("presets")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "error: a bug in Gossamer (ZeroDivisionError: by zero); --debug shows where\n"
    assert "Traceback" in call("presets", "--debug").stderr


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("accuracy will be poor; pass calibration=", "accuracy will be poor; pass --calibration"),
        ("say to which pattern with sparsity=", "say to which pattern with --sparsity"),
        ("open: 'a', 'x.3'; pass dims={'a': size, 'x.3': size}", "open: 'a', 'x.3'; pass --dim a=SIZE --dim x.3=SIZE"),
        ("open sizes come from dims=", "open sizes come from --dim"),
        ("sparsity: 'a' matches\n no layer", "sparsity: 'a' matches no layer"),
    ],
)
def test_messages_name_the_options(ours: str, theirs: str) -> None:
    assert options.as_options(ours) == theirs


def test_a_wish_without_a_pattern_names_the_option(tmp_path: Path) -> None:
    line = refused(call("compile", DIGITS, "-s", "tiny", "-o", tmp_path / "x.gsm", "--allocation", "erk"))
    assert line == "allocation 'erk' prunes nothing by itself; say to which pattern with --sparsity"


# ---- compile ----


def test_compile(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec, calibration, output = tmp_path / "s.toml", tmp_path / "c.npz", tmp_path / "out.gsm"
    ArchSpec(name="mine").save(spec)
    np.savez(calibration, image=np.ones((2, 1, 8, 8), dtype=np.float32))
    spy = Spy(program)
    monkeypatch.setattr(gossamer, "compile", spy, raising=False)
    args = ["compile", DIGITS, "-s", spec, "-o", output, "--sparsity", "2:8", "--dim", "batch=4", "--dim", "n=1"]
    result = call(*args, "--calibration", calibration)
    assert result.exit_code == 0, result.output
    assert "program by-hand" in result.stdout
    assert f"wrote {output}" in result.stdout
    assert Program.load(output).to_bytes() == program.to_bytes()
    assert spy.args == (DIGITS, ArchSpec(name="mine"))
    assert spy.kwargs["sparsity"] == {"*": "2:8"}
    assert spy.kwargs["dims"] == {"batch": 4, "n": 1}
    assert list(spy.kwargs["calibration"]) == ["image"]
    facts = json.loads(call(*args, "--json").stdout)
    assert facts["file"] == str(output)
    assert facts["layers"][0]["useful_macs"] == 256


def test_compile_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: Program) -> None:
    spec, output = tmp_path / "s.toml", tmp_path / "out.gsm"
    ArchSpec().save(spec)
    monkeypatch.setattr(gossamer, "compile", Spy(CapacityError("layer 'fc' needs\n9 KiB")), raising=False)
    assert refused(call("compile", DIGITS, "-s", spec, "-o", output)) == "layer 'fc' needs 9 KiB"
    assert "'nosuch' is neither a TOML file nor a preset" in refused(
        call("compile", DIGITS, "-s", "nosuch", "-o", output)
    )
    assert not output.exists()
    monkeypatch.setattr(gossamer, "compile", Spy(program))
    assert "No such file or directory" in refused(call("compile", DIGITS, "-s", spec, "-o", tmp_path / "no" / "x.gsm"))


@pytest.mark.parametrize("dim", ["batch", "batch=", "=1", "batch=x", "batch=0", "batch=-1", "batch=²"])
def test_dim_must_be_name_and_number(dim: str, tmp_path: Path) -> None:
    message = misused(call("compile", DIGITS, "-s", "x.toml", "-o", tmp_path / "x.gsm", "--dim", dim))
    assert f"{dim!r} must be NAME=VALUE with a positive integer, such as batch=1" in message


def test_compile_needs_spec_and_output() -> None:
    assert "Missing option '--spec'" in misused(call("compile", DIGITS, "-o", "x.gsm"))
    assert "Missing option '--output'" in misused(call("compile", DIGITS, "-s", "tiny"))


@pytest.mark.parametrize(
    ("name", "has"), [("import", "BatchNormalization"), ("fuse", "then relu"), ("sparsify", "2:8")]
)
def test_inspect_after_a_pass(name: str, has: str) -> None:
    sparse = DIGITS.with_name("digits-2of8.onnx")
    result = call("inspect", sparse, "--after", name)
    assert result.exit_code == 0, result.output
    assert has in result.stdout
    assert json.loads(call("inspect", sparse, "--after", name, "--json").stdout)["after"] == name


def test_inspect_after_no_such_pass() -> None:
    message = refused(call("inspect", DIGITS, "--after", "bake"))
    assert "'bake' is not a pass; passes are import, infer_shapes" in message


# ---- files ----


@pytest.mark.parametrize("link", [False, True], ids=["the same name", "a link"])
@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("model", "compile {} -s tiny -o {out}"),
        ("spec", "compile other.onnx -s {} -o {out}"),
        ("calibration", "compile other.onnx -s tiny --calibration {} -o {out}"),
        ("Program", "run {} -i other.npz -o {out}"),
        ("Program", "run {} --picture {out}"),
        ("input", "run other.gsm -i {} -o {out}"),
        ("target", "explain {} --picture {out}"),
        ("spec", "rtl {} -o {out}"),
        ("Program", "verify -p {} --wave {out}"),
        ("spec", "verify {} --wave {out}"),
        ("spec", "coverage {} -o {out}"),
    ],
)
def test_an_output_is_no_input(what: str, command: str, link: bool, tmp_path: Path) -> None:
    path = out = tmp_path / "precious"
    path.write_bytes(b"bytes")
    if link:
        out = tmp_path / "link"
        out.symlink_to(path)
    words = [word.format(path, out=out) for word in command.split()]
    assert refused(call(*words)) == f"{str(out)!r} is the {what} itself and would be overwritten; name another file"
    assert path.read_bytes() == b"bytes"


def test_a_bundle_does_not_replace_its_spec(tmp_path: Path) -> None:
    path = tmp_path / "gossamer.toml"
    ArchSpec(name="mine").save(path)
    assert "is the spec itself and would be overwritten" in refused(call("rtl", path, "-o", tmp_path))


@pytest.mark.parametrize("wish", ["=2:8", " =2:8", "head=", ""])
def test_sparsity_needs_both_of_layer_and_pattern(wish: str, tmp_path: Path) -> None:
    message = misused(call("compile", DIGITS, "-s", "tiny", "-o", tmp_path / "x.gsm", "--sparsity", wish))
    assert f"{wish!r} must be PATTERN, such as 2:8, or LAYER=PATTERN" in message


# ---- run ----


@pytest.fixture
def finished(program: Program) -> Run:
    """A run of the program, by hand: both instructions, and one output with an awkward name."""
    events = np.zeros((2, len(EVENT_FIELDS)), dtype=np.int64)
    events[0] = [1, 3, 5, 40, 41, 45, 50, 0]
    events[1] = [0, 4, 60, -1, -1, 60, 60, 0]
    stage = StageRun(name="main", cycles=60, events=events, counters=dict.fromkeys(COUNTERS, 7))
    return Run(program=program, stages=(stage,), outputs={"file": np.arange(10, dtype=np.float32)})


def test_run(program_file: Path, finished: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spy = Spy(finished)
    monkeypatch.setattr(gossamer, "simulate", spy, raising=False)
    inputs, output = tmp_path / "in.npz", tmp_path / "out"
    np.savez(inputs, image=np.ones(3))
    result = call("run", program_file, "--input", inputs, "-o", output)
    assert result.exit_code == 0, result.output
    assert "program by-hand on spec small: 60 cycles" in result.stdout
    assert re.search(r"fc +2:8 +50 +0 ", result.stdout)
    assert spy.args[0].to_bytes() == finished.program.to_bytes()
    assert spy.kwargs["values"] is True
    with np.load(output) as arrays:
        assert arrays["file"].tolist() == list(range(10))
    facts = json.loads(call("run", program_file, "--json").stdout)
    assert spy.args[1] is None
    assert spy.kwargs["values"] is False
    assert facts["cycles"] == 60
    assert facts["utilisation"] == 256 / (60 * finished.program.spec.peak_macs)
    assert facts["counters"]["steps"] == 7
    assert "events" not in facts


def test_run_trace(program_file: Path, finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossamer, "simulate", Spy(finished), raising=False)
    lines = call("run", program_file, "--trace").stdout.splitlines()
    assert "main\t5\t50\tLOAD\tLOAD beats=1 rows=1 blocks=1 tile_beats=1 tile_rows=1" in lines
    events = json.loads(call("run", program_file, "--trace", "--json").stdout)["events"]
    assert [event["unit"] for event in events] == ["LOAD", "FETCH"]


def damaged(path: Path) -> None:
    """An archive with one wrong byte in its only array."""
    np.savez(path, x=np.arange(1000))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no archive"), "is not an .npz file of numbers"),
        (lambda path: path.write_bytes(b""), "is not an .npz file of numbers"),
        (lambda path: np.savez(path, x=np.array([{}], dtype=object)), "'x' is damaged or holds objects"),
        (lambda path: path.write_text("x, y"), "is not an .npz file of numbers: it is no archive of numpy.savez"),
        (damaged, "'x' is damaged or holds objects"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("x", "text"), "'x' is no array"),
        (
            lambda path: np.save(path.with_suffix(".npy"), np.ones(3)) or path.with_suffix(".npy").rename(path),
            "holds one nameless array",
        ),
    ],
)
def test_run_refuses_inputs(
    write: Callable[[Path], object], message: str, program_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gossamer, "simulate", Spy(None), raising=False)
    path = tmp_path / "in.npz"
    write(path)
    line = refused(call("run", program_file, "--input", path))
    assert message in line
    assert "pickle" not in line


def test_run_refuses_a_file_that_is_no_program() -> None:
    assert "not a Program file" in refused(call("run", DIGITS))


def test_output_needs_input(program_file: Path, tmp_path: Path) -> None:
    assert "--output needs --input" in misused(call("run", program_file, "-o", tmp_path / "out.npz"))


# ---- progress ----


@pytest.mark.parametrize(
    ("patience", "terminal", "seen"), [(0.0, True, True), (0.0, False, False), (60.0, True, False)]
)
def test_progress_shows_long_work_on_a_terminal(
    patience: float, terminal: bool, seen: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "PATIENCE_SECONDS", patience)
    monkeypatch.setenv("FORCE_COLOR", "1") if terminal else monkeypatch.delenv("FORCE_COLOR", raising=False)
    with report.Progress() as progress:
        progress("packing", 1, 3)
        if seen:
            progress._timer.join()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("packing" in captured.err) == seen


def test_completion_offers_presets() -> None:
    assert options.complete_spec("") == preset_names()
    assert options.complete_spec("./") == []


def test_module_is_the_same_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "gossamer", "inspect", "nosuch"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 'nosuch' is neither a file nor a preset")
