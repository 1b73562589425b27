"""gossamer.compile and gossamer.simulate as a script or a notebook calls them: what they take, and what they refuse."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import gossamer
from gossamer import cli
from gossamer.arch.errors import ModelError
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
