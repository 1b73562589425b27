"""ResNet-50 whole: python benchmarks/resnet50.py [--spec server] [--sparsity 2:8]

Times compiling and simulating the topology that ships with the onnx package, with random weights, and compares the
outputs with the same quantised network under onnxruntime.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from rich.console import Console

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.lower import lower
from gossamer.compiler.passes import Options, import_model, run_passes
from gossamer.sim.simulate import Simulator

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def random_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """A light model of the onnx package, its constant weights replaced by random ones that keep activations sane."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    rng = np.random.default_rng(seed)
    shapes = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    nodes, weights = [], []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            nodes.append(node)
            continue
        shape = tuple(int(n) for n in shapes[node.input[0]])
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        value = rng.normal(0, np.sqrt(2 / fan_in), shape) if len(shape) > 1 else rng.uniform(0.5, 1.0, shape)
        weights.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
    kept = {n for node in nodes for n in node.input}
    inputs = [i for i in model.graph.input if i.name not in shapes]
    graph = helper.make_graph(nodes, model.graph.name, inputs, model.graph.output, weights)
    graph.initializer.extend(i for i in model.graph.initializer if i.name in kept)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def main() -> None:
    """Print seconds, cycles, the ratio to the bound, and how outputs differ from onnxruntime's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--spec", default="server")
    parser.add_argument("--sparsity", default=None)
    args = parser.parse_args()
    spec, console = ArchSpec.load(args.spec), Console()
    model = random_model(args.network)
    graph = import_model(model)
    name = graph.inputs[0]
    shape = graph.info(name).shape
    rng = np.random.default_rng(1)
    images = rng.random((4, *shape)).astype(np.float32)
    clock = [time.perf_counter()]

    def lap(what: str) -> None:
        clock.append(time.perf_counter())
        console.print(f"{what:<44}{clock[-1] - clock[-2]:8.2f} s")

    graph = import_model(model)
    lap("import")
    options = Options(calibration=[{name: image} for image in images], sparsity=args.sparsity)
    graph = run_passes(graph, options=options)
    network = lower(graph)
    lap("passes, with calibration by onnxruntime")
    program = build_program(network, spec)
    lap("map, schedule, allocate, synchronise")
    simulator = Simulator(program)
    run = simulator.run(None, values=False)
    lap("simulate, values off (with the static check)")
    full = simulator.run({name: images[0]})
    lap("simulate, values on")
    full = simulator.run({name: images[1]})
    lap("simulate, values on, second image")
    bound = program.bound
    apart = sum(note.bound(spec) for note in program.layers)
    macs = sum(note.macs for note in program.layers)
    console.print(
        f"{args.network} on {spec.name}, {args.sparsity or 'as it is'}: {len(program.layers)} layers, "
        f"{macs / 1e9:.2f} GMAC, {len(program.instructions):,} instructions, {run.cycles:,} cycles "
        f"({run.seconds * 1e3:.2f} ms), "
        f"bound {bound:,.0f}, ratio {run.cycles / bound:.3f}; sum of the layers' own bounds {apart:,.0f}, "
        f"ratio {run.cycles / apart:.3f}"
    )
    for stage in program.stages:
        if hasattr(stage, "reason"):
            console.print(f"on the host: {stage.name}: {stage.reason}")
    # The last tensor on the array: after a softmax everything looks alike.
    last = program.tensors[network.layers[-1].output]
    exported = export_model(graph, qdq=True)
    if last.name not in {o.name for o in exported.graph.output}:
        exported.graph.output.append(helper.make_tensor_value_info(last.name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run([last.name], {name: images[1]})[0]
    assert full.memory is not None
    mine = last.dequantise(last.from_memory(full.memory[last.address : last.address + last.size]))
    off = np.abs(np.rint((mine.reshape(-1) - expected.reshape(-1)) / last.scale))
    console.print(
        f"{last.name} against onnxruntime int8: {np.mean(off > 0):.2%} of {off.size} codes differ, "
        f"by {off.max():.0f} LSB at most, {off.mean():.3f} on average"
    )


if __name__ == "__main__":
    main()
