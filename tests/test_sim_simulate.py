"""simulate from end to end: inputs, host stages, outputs, statistics and time by layer, on a program made by hand."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from gossamer.arch.errors import ModelError, SimulationError
from gossamer.arch.isa import SEMAPHORES, Encoding, Instruction, LoadKind, Op, Unit, semaphore, to_matrix
from gossamer.arch.layers import stalls
from gossamer.arch.layout import Placement
from gossamer.arch.program import AcceleratorStage, HostStage, LayerNote, Program, Segment
from gossamer.arch.run import COUNTERS
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import StepStream, encode_steps
from gossamer.arch.sync import synchronise
from gossamer.sim import Simulator, layer_report, run_batch, simulate
from gossamer.sim.random_programs import random_program
from tests.support.specs import random_spec
from tests.support.stepper import step_program

SPEC = ArchSpec(
    name="copy", lanes=2, columns=4, group=4, macs=4, hop=4, depth=4, axi_bytes=4, ppu=1, tables=0,
    activation_bytes=64, output_bytes=64, weight_steps=4, offset_steps=4, parameter_channels=4,
)  # fmt: skip
X, Y, WEIGHTS, OFFSETS, PARAMETERS = 0, 32, 64, 96, 128
"""Bytes."""


def placement(name: str, address: int) -> Placement:
    """Six pixels of four channels, uint8 with zero point 10 and scale 0.5."""
    return Placement(
        name=name, address=address, shape=(1, 4, 1, 6), block=4, border=(0, 0, 0, 0), scale=0.5, zero_point=10,
        signed=False, model_shape=(4, 6),
    )  # fmt: skip


def double_program(**more) -> Program:
    """y = 2 * x: one identity step, with a multiplier of 2; each of the two lanes has three pixels."""
    one = {"rows": 1, "blocks": 1}
    tile = {"grid": 1, "tile_beats": 3, "tile_rows": 1}
    rows = [
        Instruction.make(Op.LOAD, kind=LoadKind.WEIGHT, address=WEIGHTS // 4, beats=4, **one),
        Instruction.make(Op.LOAD, kind=LoadKind.OFFSET, address=OFFSETS // 4, beats=1, **one),
        Instruction.make(Op.LOAD, kind=LoadKind.PARAMETER, address=PARAMETERS // 4, beats=8, **one),
        Instruction.make(Op.LOAD, kind=LoadKind.ACTIVATION, address=X // 4, beats=6, step_beats=3, **one, **tile),
        Instruction.make(Op.MATMUL, steps=1, nx=3, ny=1, sx=1, zero_point=10),
        Instruction.make(Op.DRAIN, nx=3, ny=1, column_groups=4, sx=4, zero_point=10, hi=255),
        Instruction.make(Op.STORE, address=Y // 4, beats=6, **one, **tile),
        Instruction.make(Op.END),
    ]
    dram = np.zeros(256, dtype=np.uint8)
    values = np.eye(4, dtype=np.int8)[None]
    selects = np.broadcast_to(np.arange(4, dtype=np.uint8), (1, 4, 4)).copy()
    stream = StepStream(offsets=np.zeros(1, np.int64), values=values, selects=selects)
    dram[WEIGHTS : WEIGHTS + 16] = encode_steps(stream, SPEC, Encoding.DENSE)
    words = np.zeros((4, 8), dtype=np.uint8)
    words[:, 6], words[:, 7] = 128, 22  # 2**23 / 2**22
    dram[PARAMETERS : PARAMETERS + 32] = words.reshape(-1)
    matrix = to_matrix(rows)
    synchronise(matrix, SPEC, dram)
    fields = {
        "stages": (AcceleratorStage(name="array", first=0, count=len(matrix)),),
        "tensors": {"x": placement("x", X), "y": placement("y", Y)},
        "inputs": ("x",),
        "outputs": ("y",),
        "layers": (
            LayerNote(name="load", kind="none", pattern="dense", first=0, count=3),
            LayerNote(name="double", kind="conv", pattern="dense", first=3, count=4, macs=96, useful_macs=24,
                      mac_cycles=3.0, read_beats=6, write_beats=6),
        ),
    }  # fmt: skip
    segments = (Segment(address=0, data=dram),)
    return Program(
        spec=SPEC, instructions=matrix, dram_bytes=dram.size, segments=segments, name="double", **{**fields, **more}
    )


def softmax_stage() -> HostStage:
    """z = float(y) + w, where y crosses as codes and w is the model's own input."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["y"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "w"], ["z"]),
    ]
    inputs = [info("y", TensorProto.UINT8, [4, 6]), info("w", TensorProto.FLOAT, [4, 6])]
    graph = helper.make_graph(nodes, "tail", inputs, [info("z", TensorProto.FLOAT, [4, 6])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return HostStage(
        name="tail", model=model.SerializeToString(), inputs=("y", "w"), outputs=("z",), reason="a test", ops=("Add",)
    )


def with_host() -> Program:
    plain = double_program()
    types = {"w": ("float32", (4, 6)), "z": ("float32", (4, 6))}
    return double_program(
        stages=(*plain.stages, softmax_stage()), inputs=("x", "w"), outputs=("y", "z"), host_types=types
    )


CODES = np.arange(24).reshape(4, 6) * 5
REAL = np.linspace(-5, 100, 24).reshape(4, 6).astype(np.float32)


def test_codes_in_real_values_out() -> None:
    run = simulate(double_program(), {"x": CODES})
    expected = np.clip(2 * (CODES - 10) + 10, 0, 255)
    assert np.array_equal(run.outputs["y"], (expected - 10) * np.float32(0.5))
    assert run.outputs["y"].dtype == np.float32
    assert run.outputs["y"].shape == (4, 6)
    assert run.memory is not None


def test_real_values_are_quantised() -> None:
    run = simulate(double_program(), {"x": REAL})
    codes = np.clip(np.rint(REAL / 0.5) + 10, 0, 255)
    assert np.array_equal(run.outputs["y"], (np.clip(2 * (codes - 10) + 10, 0, 255) - 10) / 2)


def test_second_run_equals_first() -> None:
    program = double_program()
    assert simulate(program, {"x": CODES}) == simulate(program, {"x": CODES}, garbage=5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_integers_are_what_the_model_takes(dtype: type[np.integer]) -> None:
    """Real values to a model of floats; codes to an input of integers, and where a program is told so."""
    integers = CODES.astype(dtype)
    floats, bytes_ = (double_program(host_types={"x": (t, (4, 6))}) for t in ("float32", "uint8"))
    real = simulate(floats, {"x": CODES.astype(np.float32)})
    assert simulate(floats, {"x": integers}) == real
    assert next(run_batch(floats, [{"x": integers}])) == real
    codes = simulate(double_program(), {"x": CODES}).outputs["y"]
    assert not np.array_equal(codes, real.outputs["y"])
    for program, told in ((floats, True), (bytes_, False), (bytes_, True)):
        assert np.array_equal(simulate(program, {"x": integers}, codes=told).outputs["y"], codes)
        assert np.array_equal(next(run_batch(program, [{"x": integers}], codes=told)).outputs["y"], codes)


def test_time_needs_no_inputs() -> None:
    run = simulate(with_host(), values=False)
    assert run.cycles == simulate(double_program(), {"x": CODES}).cycles
    assert run.memory is None
    assert run.outputs == {}


def test_host_stage() -> None:
    run = simulate(with_host(), {"x": CODES, "w": np.ones((4, 6))})
    assert np.array_equal(run.outputs["z"], np.clip(2 * (CODES - 10) + 10, 0, 255) + 1)
    assert run.outputs["z"].dtype == np.float32


def test_host_stage_before_the_array() -> None:
    """Codes that a host stage makes are written into DRAM."""
    info = helper.make_tensor_value_info
    node = helper.make_node("Cast", ["r"], ["x"], to=TensorProto.UINT8)
    graph = helper.make_graph(
        [node], "head", [info("r", TensorProto.INT32, [4, 6])], [info("x", TensorProto.UINT8, [4, 6])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    head = HostStage(name="head", model=model, inputs=("r",), outputs=("x",), reason="a test")
    plain = double_program()
    program = double_program(stages=(head, *plain.stages), inputs=("r",), host_types={"r": ("int32", (4, 6))})
    expected = simulate(plain, {"x": CODES}).outputs["y"]
    assert np.array_equal(simulate(program, {"r": CODES.astype(np.int32)}).outputs["y"], expected)


def test_broken_host_model() -> None:
    stage = HostStage(name="tail", model=b"no model", inputs=("y",), outputs=("z",), reason="a test")
    program = double_program(stages=(*double_program().stages, stage))
    with pytest.raises(SimulationError, match=r"^host stage 'tail': onnxruntime: "):
        simulate(program, {"x": CODES})


def test_output_nobody_makes() -> None:
    with pytest.raises(SimulationError, match=r"^output: 'q' is neither a tensor nor made by an earlier host stage$"):
        simulate(double_program(outputs=("q",)), {"x": CODES})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, r"^input 'x' is missing; the Program takes 'x' \[4, 6\], 'w' float32 \[4, 6\]$"),
        ({"x": CODES}, r"^input 'w' is missing; the Program takes"),
        ({"v": CODES}, r"^'v' is not an input; the Program takes 'x' \[4, 6\]"),
        ({"x": CODES[:3], "w": REAL}, r"^'x' must have shape \(4, 6\), not \(3, 6\)$"),
        ({"x": REAL * np.nan, "w": REAL}, r"^'x' has values that are not finite$"),
        ({"x": CODES + 250, "w": REAL}, r"^'x' takes codes from 0 to 255, not 250..365$"),
        ({"x": CODES > 3, "w": REAL}, r"^'x' takes real values or codes, not bool$"),
        ({"x": CODES, "w": REAL[:3]}, r"^'w' must have shape \(4, 6\), not \(3, 6\)$"),
        ({"x": CODES, "w": REAL + 1j}, r"^'w' must be of float32, not complex64$"),
    ],
)
def test_wrong_inputs(inputs, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        simulate(with_host(), inputs)


def test_memory_brought_along() -> None:
    program = double_program()
    memory = program.memory()
    memory[PARAMETERS + 7 :: 8] = 23  # multiplier 2**23 / 2**23
    before = memory.copy()
    run = simulate(program, {"x": CODES}, memory=memory)
    assert np.array_equal(run.outputs["y"], (CODES - 10) * np.float32(0.5))
    assert np.array_equal(memory, before)
    with pytest.raises(ModelError, match=r"^memory must be uint8 \[256\], not uint8 \[255\]$"):
        simulate(program, {"x": CODES}, memory=memory[1:])


def test_recorded_memory_is_replayed() -> None:
    program = double_program()
    events, cycles, _, trace = step_program(program.instructions, SPEC, 3)
    run = simulate(program, values=False, trace=trace)
    assert np.array_equal(run.stages[0].events, events)
    assert run.cycles == cycles
    with pytest.raises(SimulationError, match=r"^the Program has 1 accelerator stages; there are 2 traces$"):
        simulate(program, values=False, trace=[trace, trace])


def test_many_inputs() -> None:
    program = double_program()
    rng = np.random.default_rng(0)
    batch = [{"x": rng.integers(0, 256, (4, 6))} for _ in range(5)]
    runs = list(run_batch(program, batch))
    assert [simulate(program, inputs) for inputs in batch] == runs
    simulator = Simulator(program)
    assert simulator.run(batch[0]) == runs[0]
    assert simulator.stages[0].cycles == runs[0].cycles


def test_progress_is_told() -> None:
    told = []
    simulate(with_host(), {"x": CODES, "w": REAL}, progress=lambda what, done, total: told.append(what))
    assert told == ["checking", "timing of array", "values of array", "host stage tail"]


def test_stages_start_with_empty_memories() -> None:
    """What one stage has loaded is not there in the next: only DRAM is."""
    plain = double_program()
    rows = plain.instructions
    again = np.concatenate([rows, rows[4:]])
    again[len(rows) :, 1:3] = 0
    again[len(rows) + 1, 1] = 1 << semaphore(Unit.MATMUL, Unit.DRAIN).index
    again[len(rows), 2] = 1 << semaphore(Unit.MATMUL, Unit.DRAIN).index
    again[len(rows) + 1, 2] = 1 << semaphore(Unit.DRAIN, Unit.STORE).index
    again[len(rows) + 2, 1] = 1 << semaphore(Unit.DRAIN, Unit.STORE).index
    stages = (*plain.stages, AcceleratorStage(name="more", first=len(rows), count=4))
    program = Program(
        spec=SPEC, instructions=again, dram_bytes=plain.dram_bytes, segments=plain.segments, stages=stages
    )
    with pytest.raises(SimulationError, match=r"^stage 'more': instruction 0 \(MATMUL .*\) reads row 0 of the weight"):
        simulate(program)


def test_statistics_of_the_hand_made_program() -> None:
    run = simulate(double_program(), {"x": CODES})
    s = run.statistics
    assert s["macs_peak"] == run.cycles * 32
    assert s["macs_issued"] == 3 * 32
    assert s["macs_useful"] == 4 * 3 * 2
    assert s["macs_dense"] == 96
    assert s["macs_nonzero"] == 24
    assert s["utilisation_array"] == 24 / s["macs_peak"]
    assert s["utilisation_drain"] == 12 / run.cycles
    assert s["activations_written_bytes"] == 24
    assert s["activations_read_bytes"] == 3 * 4 * 2
    assert s["outputs_written_bytes"] == 24
    assert s["outputs_read_bytes"] == 24
    assert s["weights_written_bytes"] == s["weights_read_bytes"] == 16 * 10 / 8
    assert s["parameters_read_bytes"] == 12 * 8
    assert s["accumulators_written_bytes"] == s["accumulators_read_bytes"] == 3 * 8 * 4
    assert s["dram_read_activation_bytes"] == s["dram_written_bytes"] == 24
    assert s["dram_fetched_bytes"] == 8 * 32


def test_layers_share_out_all_time() -> None:
    run = simulate(double_program(), values=False)
    first, second = layer_report(run)
    assert first["cycles"] + second["cycles"] == second["end"] == run.stages[0].events[6, 6]
    assert second["busy"] == {"load": 2, "matmul": 3, "drain": 12, "store": 1} | {"load": second["busy"]["load"]}
    assert second["bound"] == 6
    assert second["ratio"] == second["cycles"] / 6
    assert second["utilisation"] == 24 / (second["cycles"] * 32)
    assert second["stalls"]["drain"]["matmul_to_drain"] == run.counters["stall_drain_matmul_to_drain"]


def test_stalls_of_instructions_sum_to_the_counters() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        program = random_program(rng, random_spec(rng), 20)
        run = simulate(program, values=False)
        held = stalls(program, program.accelerator_stages[0], run.stages[0])
        for unit in (Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE):
            total = held[run.stages[0].events[:, 0] == unit].sum(axis=0)
            name = unit.name.lower()
            assert total[0] == run.counters[f"stall_{name}_fetch"]
            for s in SEMAPHORES:
                if s.waiter is unit:
                    assert total[1 + s.index] == run.counters[f"stall_{name}_{s.name}"]
    assert any(n.startswith("stall") for n in COUNTERS)
