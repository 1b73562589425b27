"""gossamer.compile and gossamer.simulate as a script or a notebook calls them: what they take, and what they refuse."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import gossamer
from gossamer import cli
from gossamer.arch.errors import GossamerError, ModelError
from gossamer.arch.layers import layer_report
from gossamer.arch.program import HostStage, Program
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.passes import build_network
from gossamer.verification import random_inputs
from tests.support.frontend import Builder, run_onnx

PIXELS = np.random.default_rng(0).integers(0, 256, (1, 3, 6, 6))
"""An image as a picture file has it."""


def small() -> onnx.ModelProto:
    """A convolution of floats."""
    b = Builder(("x", (1, 3, 6, 6)))
    return b.model(b.op("Relu", b.conv("x", 3, 4)))


# ---- integers ----


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_integers_are_real_values_to_a_model_of_floats(dtype: type[np.integer], tmp_path: Path) -> None:
    """In calibration and inputs, in Python and on the command line, as in onnxruntime once they are cast."""
    model, integers, floats = small(), PIXELS.astype(dtype), PIXELS.astype(np.float32)
    program = gossamer.compile(model, "tiny", calibration={"x": integers})
    assert program.to_bytes() == gossamer.compile(model, "tiny", calibration={"x": floats}).to_bytes()
    run = gossamer.simulate(program, {"x": integers})
    assert run == gossamer.simulate(program, {"x": floats})
    (ours,), (theirs,) = run.outputs.values(), run_onnx(model, {"x": floats})
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
    np.savez(tmp_path / "x.npz", x=integers)
    program.save(tmp_path / "p.gsm")
    files = {name: str(tmp_path / name) for name in ("p.gsm", "x.npz", "y.npz")}
    done = CliRunner().invoke(cli.app, ["run", files["p.gsm"], "-i", files["x.npz"], "-o", files["y.npz"]])
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "y.npz") as written:
        assert np.array_equal(*written.values(), ours)


def test_codes_are_taken_where_they_are_asked_for() -> None:
    program = gossamer.compile(small(), "tiny", calibration={"x": PIXELS})
    codes = PIXELS[:, ::-1]
    tensor = program.tensors["x"]
    real = tensor.dequantise(tensor.to_nchw(codes))
    assert gossamer.simulate(program, {"x": codes}, codes=True) == gossamer.simulate(program, {"x": real})
    with pytest.raises(ModelError, match=r"^'x' takes codes from 0 to 255, not 1..256$"):
        gossamer.simulate(program, {"x": np.linspace(1, 256, codes.size).astype(int).reshape(codes.shape)}, codes=True)


# ---- what a notebook sees ----


@pytest.fixture(scope="module")
def program() -> Program:
    return gossamer.compile(small(), "tiny", calibration={"x": PIXELS})


def test_run_by_layer(program: Program) -> None:
    """Records with the same keys, which is what a table is made of."""
    run = gossamer.simulate(program)
    assert run.layers == layer_report(run)
    assert [layer["name"] for layer in run.layers] == [note.name for note in program.layers]
    assert sum(layer["cycles"] for layer in run.layers) <= run.cycles
    assert len({tuple(layer) for layer in run.layers}) == 1


def test_short_representations(program: Program) -> None:
    run, network = gossamer.simulate(program, {"x": PIXELS}), build_network(small(), calibration={"x": PIXELS})
    name = program.name
    assert repr(program) == f"<Program {name!r} for tiny: 1 layers, {len(program.instructions)} instructions>"
    assert repr(run) == f"<Run of {name!r} on tiny: {run.cycles:,} cycles, outputs {program.outputs[0]}>"
    assert repr(gossamer.simulate(program)) == f"<Run of {name!r} on tiny: {run.cycles:,} cycles, time only>"
    assert re.fullmatch(r"<StageRun '.+': [\d,]+ cycles, \d+ instructions>", repr(run.stages[0]))
    assert repr(network) == f"<Network {name!r}: 1 layers>"
    assert repr(program.spec).startswith("ArchSpec(name='tiny', purpose=")
    assert eval(repr(program.spec), {"ArchSpec": ArchSpec}) == program.spec
    for thing in (program, run, network, program.spec, *program.segments, *program.layers, *network.layers):
        assert len(repr(thing)) < 600
        assert "\n" not in repr(thing)
    assert "model" not in repr(HostStage(name="h", model=bytes(9), inputs=(), outputs=(), reason="a test"))


def test_equal_programs_are_equal(program: Program) -> None:
    again = gossamer.compile(small(), "tiny", calibration={"x": PIXELS})
    assert program == again
    assert program == Program.from_bytes(program.to_bytes())
    assert program != gossamer.compile(small(), "tiny", calibration={"x": PIXELS + 1})
    assert program != dataclasses.replace(program, name="other")
    assert program != "program"


def test_files_instead_of_what_is_in_them(program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "p.gsm")
    np.savez(tmp_path / "x.npz", x=PIXELS)
    onnx.save(small(), tmp_path / "m.onnx")
    for kind in (str, Path):
        model, path, arrays = (kind(tmp_path / name) for name in ("m.onnx", "p.gsm", "x.npz"))
        assert gossamer.compile(model, "tiny", calibration=arrays) == program
        assert gossamer.simulate(path, arrays) == gossamer.simulate(program, {"x": PIXELS})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p: gossamer.simulate(p, PIXELS), r"inputs must be {name: array}, not ndarray; .* takes 'x' \["),
        (lambda p: gossamer.simulate(p, [PIXELS]), r"inputs must be {name: array}, not list; the Program takes 'x' \["),
        (lambda p: gossamer.simulate(p, {"x": [[1], [1, 2]]}), r"'x' is no array: "),
        (lambda p: gossamer.simulate(None), r"program must be a Program or the path of its file, not NoneType$"),
        (lambda p: gossamer.simulate("no.gsm"), r"cannot read the Program 'no.gsm': No such file or directory$"),
        (lambda p: gossamer.explain(3), r"program must be a Program or the path of its file, not int$"),
        (lambda p: gossamer.compile(small(), None), r"spec must be an ArchSpec, a TOML file or .*, not NoneType$"),
        (lambda p: gossamer.compile(small(), {}), r"spec must be .*, not dict \(ArchSpec.from_dict takes a mapping\)$"),
        (lambda p: gossamer.compile(None, "tiny"), r"model must be an ONNX file \(path, bytes .*\), not NoneType$"),
        (lambda p: gossamer.compile(p, "tiny"), r"model must be an ONNX file \(path, bytes .*\), not Program$"),
        (lambda p: gossamer.compile(small(), "tiny", dims=["n"]), r"dims must be {name: size}, not list$"),
        (lambda p: gossamer.compile(small(), "tiny", calibration="no.npz"), r"cannot read 'no.npz': No such file"),
        (lambda p: gossamer.compile(build_network(small(), calibration=[PIXELS]), "tiny", sparsity="2:4"),
         r"sparsity= needs a model: a Network is pruned and quantised already$"),
    ],
)  # fmt: skip
def test_wrong_arguments(program: Program, wrong: Callable[[Program], object], message: str) -> None:
    with pytest.raises(GossamerError, match=f"^{message}"):
        wrong(program)


# ---- wishes ----


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"allocation": "erk"}, "allocation 'erk' prunes nothing by itself; say to which pattern with sparsity="),
        ({"allocation": "cost 60%"}, "allocation 'cost 60%' prunes nothing by itself"),
        ({"allocation": "erk", "sparsity": {}}, "allocation 'erk' prunes nothing by itself"),
        ({"sparsifier": "wanda"}, "sparsifier 'wanda' prunes nothing by itself"),
        ({"sequential": True}, "sequential True prunes nothing by itself"),
        ({"allocation": "erc"}, "allocation must be uniform, erk, lamp, global, or cost with a budget"),
        ({"allocation": "erc", "sparsity": "dense"}, "allocation must be uniform, erk, lamp, global, or cost"),
        ({"allocation": "cost 0%", "sparsity": "dense"}, "allocation 'cost 0%' must be cost with a budget"),
        ({"allocation": None}, "allocation must be uniform, erk, lamp, global, or cost with a budget"),
        ({"sparsifier": "wonder"}, "sparsifier must be one of magnitude, wanda, sparsegpt, not 'wonder'"),
        ({"sparsity": ["2:4"]}, "sparsity must be a pattern such as '2:8', or {layer or glob: pattern}, not list"),
        ({"sparsity": {"*": 2}}, "sparsity: a layer's pattern must be text such as '2:8', not int"),
        ({"sparsity": {"": "2:4"}}, "sparsity: '' matches no layer"),
    ],
)
def test_wishes_that_would_change_nothing(wishes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=f"^{re.escape(message)}"):
        gossamer.compile(small(), "tiny", calibration={"x": PIXELS}, **wishes)


def test_what_stands_alone() -> None:
    gossamer.compile(small(), "tiny", calibration={"x": PIXELS}, permute=True, sparsifier="magnitude", sparsity={})


def test_random_inputs_cover_the_codes() -> None:
    program = gossamer.compile(small(), "tiny", calibration={"x": PIXELS})
    codes = program.quantise_input("x", random_inputs(program)["x"])
    assert codes.min() < 16
    assert codes.max() > 239
    assert len(np.unique(codes)) > 50
