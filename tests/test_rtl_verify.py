"""`gossamer verify`: what it runs, what it prints, and that a difference is named and ends in exit code 1."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

import gossamer
from gossamer import campaign, cli, verification
from gossamer.arch.errors import ModelError
from gossamer.arch.isa import ErrorCode
from gossamer.arch.program import HostStage
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.passes import Options, import_model, run_passes
from gossamer.rtl import build
from gossamer.rtl.model import HardwareError, Model
from gossamer.sim.random_programs import random_program
from tests.support.rtl_specs import SMALL_SPECS, needs_hardware_tools
from tests.test_digits_models import data

pytestmark = needs_hardware_tools

TINY = ArchSpec.load("tiny")
NETWORK = data.model_path("digits-2of8")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["verify", *map(str, arguments)])


def rows(*arguments: object) -> list[dict[str, Any]]:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_without_arguments_small_machines() -> None:
    """A dense-friendly, a 2:4, a 2:8 and a 1:32 machine, by contract and under stalls."""
    found = rows("--random", 4, "--stalls")
    assert [r["spec"] for r in found] == ["tiny", "nm-2of4-small", "sat-2of8-small", "s4-1of32-small"]
    assert [(s.macs, s.group) for s in campaign.small_machines()[1:]] == [(2, 4), (2, 8), (1, 32)]
    for row in found:
        assert row["programs"] == 10
        assert row["mismatches"] == 0
        assert row["difference"] is None
        assert row["events"] == 8 * row["instructions"] > 0
        assert row["bytes"] > 0


def test_a_model_with_its_dimensions_chosen(tmp_path: Path) -> None:
    """Four images are four inputs of a batch of one, and two of a batch of two."""
    np.savez(tmp_path / "x.npz", image=data.load()[1].images[:4])
    for batch, programs in ((1, 4), (2, 2)):
        (row,) = rows("tiny", "--model", NETWORK, "--dim", f"batch={batch}", "-i", tmp_path / "x.npz")
        assert row["mismatches"] == 0
        assert row["programs"] == programs
    done = call("tiny", "--dim", "batch=2")
    assert done.exit_code == 2
    assert "--dim needs --model" in done.stderr


def test_what_was_compared_is_printed() -> None:
    done = call("tiny", "--random", 2, "--seed", 5)
    assert done.exit_code == 0, done.output
    assert "mismatches" in done.stdout
    assert "agree on every event" in done.stdout


def test_a_program_brings_its_spec(tmp_path: Path) -> None:
    random_program(np.random.default_rng(1), TINY, 5).save(tmp_path / "random.gossamer")
    assert rows("--program", tmp_path / "random.gossamer")[0]["spec"] == "tiny"


def test_a_difference_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardware in which a queue is a place shorter than the simulator thinks."""
    text = build.verilog_of(TINY.evolve(queue_depth=TINY.queue_depth - 1))
    monkeypatch.setattr(build, "verilog_of", lambda spec: text)
    done = call("tiny", "--random", 6)
    assert done.exit_code == 1
    assert "tiny differs: random program" in done.stdout
    assert "the first is instruction" in done.stdout
    assert "agree" not in done.stdout


def test_an_error_of_the_hardware_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise HardwareError(ErrorCode.DEADLOCK, 7)

    monkeypatch.setattr(Model, "run_stage", stopped)
    found = campaign.tally(TINY, "wrong", campaign.random_cases(TINY, 2, 1))
    assert (found.programs, found.mismatches, found.events) == (3, 3, 0)
    assert found.difference == "example: the hardware stopped with DEADLOCK at instruction 7"


def test_digits_network_whole(tmp_path: Path) -> None:
    """Real test images: simulator, hardware and onnxruntime give every image the same class."""
    train, test = data.load()
    images = test.images[:5]
    np.savez(tmp_path / "images.npz", image=images)
    (row,) = rows("tiny", "--model", NETWORK, "--input", tmp_path / "images.npz")
    assert row["programs"] == 5
    assert row["mismatches"] == 0
    expected = onnx_classes(NETWORK.read_bytes(), images)
    assert row["classes"] == {"simulator": expected, "hardware": expected, "onnxruntime": expected}
    # With the scales of the training images, against onnxruntime's own integers.
    calibration = {"image": train.images}
    graph = run_passes(import_model(NETWORK), options=Options(calibration=calibration))
    program = gossamer.compile(NETWORK, TINY, calibration=calibration)
    with Model(TINY) as model:
        runs = [verification.verify(program, {"image": image[None]}, model=model) for image in images]
    assert [found.difference for found in runs] == [None] * 5
    classes = [int(found.hardware.outputs["logits"].argmax()) for found in runs]
    assert classes == onnx_classes(export_model(graph, qdq=True).SerializeToString(), images)
    assert classes == test.labels[:5].tolist()


def onnx_classes(model: bytes, images: Any) -> list[int]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return [int(session.run(None, {"image": image[None]})[0].argmax()) for image in images]


@pytest.mark.filterwarnings("ignore:no calibration data")
def test_single_layers() -> None:
    (row,) = rows("tiny", "--model", NETWORK, "--layers", "block1*,classifier")
    assert row["programs"] == 3
    done = call("tiny", "--model", NETWORK, "--layers", "block9")
    assert done.exit_code == 1
    assert "no layer is called 'block9'; the accelerator runs stem" in done.stderr


def test_host_stages_between_accelerator_stages() -> None:
    """A softmax in the middle runs on the host, in both."""
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=(8, 8, 1, 1)).astype(np.float32) for _ in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"], axis=1),
        helper.make_node("Conv", ["b", "w1"], ["y"]),
    ]
    shape = [1, 8, 4, 4]
    graph = helper.make_graph(
        nodes,
        "between",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    x = rng.normal(size=shape).astype(np.float32)
    program = gossamer.compile(model, TINY, calibration={"x": x})
    kinds = [isinstance(stage, HostStage) for stage in program.stages]
    assert kinds == [False, True, False]
    found = verification.verify(program, {"x": x})
    assert found.difference is None
    assert len(found.hardware.stages) == 2
    assert np.array_equal(found.hardware.outputs["y"], found.simulated.outputs["y"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["tiny", "--program", "x"],
        ["--model", "x"],
        ["tiny", "--layers", "x"],
        ["tiny", "--input", "x"],
        ["--wave", "x.vcd"],
        ["tiny", "--model", "x", "--random", "3"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


def test_inputs_that_are_no_sets() -> None:
    program = gossamer.compile(NETWORK, TINY, calibration={"image": data.load()[0].images[:8]})
    with pytest.raises(ModelError, match=r"must have shape \(1, 1, 8, 8\), or several along its first axis"):
        list(campaign.program_cases(program, {"image": np.zeros((3, 1, 8, 7))}))
    with pytest.raises(ModelError, match="there is no input 'picture'; the Program takes image"):
        list(campaign.program_cases(program, {"picture": np.zeros((3, 1, 8, 8))}))


def test_waves(tmp_path: Path) -> None:
    """VCD needs nothing; FST says what is missing where its libraries are not there."""
    spec, vcd, fst = tmp_path / "small.toml", tmp_path / "a.vcd", tmp_path / "a.fst"
    spec.write_text(SMALL_SPECS["2x2"].to_toml())
    assert call(spec, "--random", 0, "--wave", vcd).exit_code == 0
    assert "$enddefinitions" in vcd.read_text()
    missing = build.missing_headers("zlib.h", "lz4.h")
    done = call(spec, "--random", 0, "--wave", fst)
    assert done.exit_code == (1 if missing else 0)
    assert fst.exists() is not bool(missing)
    assert all(name in done.stderr for name in missing)
    assert "must end in .vcd or .fst" in call(spec, "--wave", tmp_path / "a.png").stderr
    assert build.missing_headers("stdio.h", "no_such_header.h") == ["no_such_header.h"]


def test_models_keep_their_products_of_activations(tmp_path, monkeypatch):
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, w]) for n, w in (("x", 16), ("y", 8)))
    graph = helper.make_graph(nodes, "product", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "p.onnx")
    made, cases = [], campaign.program_cases
    monkeypatch.setattr(campaign, "program_cases", lambda program, *rest: made.append(program) or cases(program, *rest))
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(1, 8, 16)).astype(np.float32))
    (row,) = rows("tiny", "--model", tmp_path / "p.onnx", "--input", tmp_path / "x.npz")
    assert row["mismatches"] == 0
    assert "matmul" in [note.kind for note in made[0].layers]
