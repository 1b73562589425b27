"""Handwritten digits on accelerators: accuracy, cycles and where they went (`make demo`).

Three trained networks (dense, 2:8, 1:8) run in float32 and int8 on onnxruntime, and in int8 on simulated
accelerators: the presets `dense` and `sat-2of8`, and one made here by changing two numbers. Every accelerator has
256 multiply-accumulate units.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import data
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gossamer.arch.program import Program
from gossamer.arch.run import Run
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.lower import lower
from gossamer.compiler.passes import Options, import_model, run_passes
from gossamer.sim.simulate import Simulator

console = Console()


@dataclass(frozen=True, kw_only=True)
class Result:
    """One network on one accelerator."""

    model: str
    spec: ArchSpec
    program: Program
    run: Run
    correct: int
    differ: int
    largest: int


def specs() -> list[ArchSpec]:
    """Two presets, and an accelerator that did not exist before this line."""
    sat = ArchSpec.load("sat-2of8")
    mine = sat.evolve(
        name="mine-1of8",
        purpose="sat-2of8 with one MAC a PE and twice the lanes",
        macs=1,
        lanes=16,
        activation_bytes=sat.activation_bytes // 2,
        output_bytes=sat.output_bytes // 2,
    )
    return [ArchSpec.load("dense"), sat, mine]


def short(name: str) -> str:
    """digits-2of8 as 2:8."""
    return name.removeprefix("digits-").replace("of", ":")


def onnx_logits(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs of an ONNX model under onnxruntime, image by image (its batch is 1)."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


def measure(name: str, machines: Sequence[ArchSpec], count: int) -> tuple[int, int, list[Result]]:
    """Test images correct in float32 and in int8 on onnxruntime, and a Result for every accelerator."""
    train, test = data.load()
    images, labels = test.images[:count], test.labels[:count]
    path = data.model_path(name)
    graph = run_passes(import_model(path), options=Options(calibration={"image": train.images}))
    network = lower(graph)
    real = onnx_logits(path.read_bytes(), images)
    int8 = onnx_logits(export_model(graph, qdq=True).SerializeToString(), images)
    results = []
    for spec in machines:
        program = build_program(network, spec)
        simulator = Simulator(program)
        place = program.tensors[program.outputs[0]]
        logits, quiet = [], not console.is_terminal
        for image in track(images, f"{name} on {spec.name}", console=console, transient=True, disable=quiet):
            run = simulator.run({program.inputs[0]: image[None]})
            logits.append(run.outputs[program.outputs[0]])
        mine = np.concatenate(logits).astype(np.float32)
        apart = np.abs(np.rint((mine - int8) / np.float32(place.scale))).astype(int)
        results.append(
            Result(
                model=name,
                spec=spec,
                program=program,
                run=run,
                correct=int((mine.argmax(axis=1) == labels).sum()),
                differ=int(np.count_nonzero(apart)),
                largest=int(apart.max()),
            )
        )
    return int((real.argmax(axis=1) == labels).sum()), int((int8.argmax(axis=1) == labels).sum()), results


def show_accuracy(rows: dict[str, tuple[int, int, list[Result]]], count: int) -> None:
    """Accuracy in float, in int8 on onnxruntime and in int8 on the accelerators."""
    table = Table(title=f"Test accuracy, {count} images that training never saw")
    table.add_column("network")
    for column in ("float32", "int8 onnxruntime", "int8 accelerator", "logits differ", "by at most"):
        table.add_column(column, justify="right")
    for name, (real, int8, results) in rows.items():
        same = {(r.correct, r.differ, r.largest) for r in results}
        assert len(same) == 1, "every accelerator computes the same codes"
        correct, differ, largest = same.pop()
        share = f"{differ / (count * data.CLASSES):.2%}"
        shares = (f"{real / count:.2%}", f"{int8 / count:.2%}", f"{correct / count:.2%}")
        table.add_row(short(name), *shares, share, f"{largest} LSB")
    console.print(table)
    console.print(
        "Integer requantisation rounds the exact sum once; onnxruntime rounds a float32 one: codes on a tie differ.\n",
        style="dim",
    )


def show_cycles(rows: dict[str, tuple[int, int, list[Result]]]) -> None:
    """Cycles, speed-up and use of the array."""
    base = rows["digits-dense"][2][0].run.cycles
    table = Table(title="One image, 256 MACs each")
    for column in ("network", "accelerator"):
        table.add_column(column)
    for column in ("cycles", "µs", "speed-up", "bound", "busy", "DRAM KiB"):
        table.add_column(column, justify="right")
    for _, _, results in rows.values():
        for r in results:
            counters = r.run.counters
            bytes_moved = sum(v for k, v in counters.items() if k.startswith("beats_read") or k == "beats_written")
            table.add_row(
                short(r.model),
                r.spec.name,
                f"{r.run.cycles:,}",
                f"{r.run.seconds * 1e6:.1f}",
                f"{base / r.run.cycles:.2f}x",
                f"{r.program.bound:,.0f}",
                f"{counters['busy_matmul'] / r.run.cycles:.0%}",
                f"{bytes_moved * r.spec.axi_bytes / 1024:,.0f}",
            )
        table.add_section()
    console.print(table)


def show_layers(result: Result) -> None:
    """Where the cycles of one network went: layer by layer, and what the array waited for."""
    run = result.run
    table = Table(title=f"{short(result.model)} on {result.spec.name}, layer by layer (layers overlap)")
    table.add_column("layer")
    table.add_column("pattern")
    for column in ("cycles", "array", "bound", "MACs", "nonzero"):
        table.add_column(column, justify="right")
    for layer in run.layers:
        table.add_row(
            layer["name"],
            layer["pattern"],
            f"{layer['cycles']:,}",
            f"{layer['busy']['matmul']:,}",
            f"{layer['bound']:,.0f}",
            f"{layer['macs']:,}",
            f"{layer['useful_macs'] / max(1, layer['macs']):.0%}",
        )
    console.print(table)
    stalls = {
        k.removeprefix("stall_matmul_"): v for k, v in run.counters.items() if k.startswith("stall_matmul_") and v
    }
    waits = ", ".join(
        f"{v:,} for {k.removesuffix('_to_matmul')}" for k, v in sorted(stalls.items(), key=lambda item: -item[1])
    )
    console.print(f"Of {run.cycles:,} cycles the array worked {run.counters['busy_matmul']:,} and waited {waits}.\n")


def draw(rows: dict[str, tuple[int, int, list[Result]]], count: int, path: Path) -> None:
    """Cycles of every network on every accelerator, with the accuracy above the bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(rows)
    machines = [r.spec.name for r in rows[names[0]][2]]
    base = rows[names[0]][2][0].run.cycles
    figure, axes = plt.subplots(figsize=(8.5, 4.6), constrained_layout=True)
    width = 0.8 / len(machines)
    for k, machine in enumerate(machines):
        cycles = [rows[n][2][k].run.cycles for n in names]
        at = np.arange(len(names)) + (k - (len(machines) - 1) / 2) * width
        bars = axes.bar(at, cycles, width * 0.94, label=machine, color=["#8a8f98", "#2f6db5", "#e08a2e"][k % 3])
        axes.bar_label(bars, [f"{base / c:.2f}x" for c in cycles], padding=2, fontsize=9)
    labels = [f"{short(n)}\n{rows[n][2][0].correct / count:.2%} correct in int8" for n in names]
    axes.set_xticks(np.arange(len(names)), labels)
    axes.set_ylabel("cycles for one image")
    axes.set_title("Handwritten digits on 256 multiply-accumulate units: what sparsity buys")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="accelerator", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="test images to use at most (596 there are)")
    parser.add_argument("--output", type=Path, default=Path("out/digits.png"), help="where the picture goes")
    options = parser.parse_args(arguments)
    if options.images < 1:
        parser.error(f"--images must be at least 1, not {options.images}")
    begin = time.perf_counter()
    count = min(options.images, len(data.load()[1].labels))
    console.print("Compiling kernels and networks; the first run on a machine takes longer.", style="dim")
    rows = {name: measure(name, specs(), count) for name in data.KEEP}
    show_accuracy(rows, count)
    show_cycles(rows)
    show_layers(rows["digits-2of8"][2][1])
    draw(rows, count, options.output)
    console.print(f"picture: {options.output}   ({time.perf_counter() - begin:.0f} s)")


if __name__ == "__main__":
    main()
