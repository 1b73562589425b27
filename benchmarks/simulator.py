"""The simulator's values beside onnxruntime: python benchmarks/simulator.py [--spec server] [NETWORK[=SPARSITY] ...]

A network's instructions as the simulator executes them, without time, checks and host stages, and the same quantised
graph, whole, under onnxruntime. Both on one thread of one core, in turns; seconds are the thread's CPU time and a ratio
is the median of those within a round. Nonzero multiply-accumulates count, each as two operations.
"""

import argparse
import warnings

import numpy as np
import onnxruntime
import sources
from numpy.typing import NDArray
from opponents import Call
from rich.console import Console
from rich.table import Table
from timing import measure, peaks, pin

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.backend.fallback import fitted
from gossamer.compiler.frontend.export import export_model
from gossamer.compiler.frontend.lower import lower
from gossamer.compiler.passes import Options, import_model, run_passes
from gossamer.sim.simulate import Simulator
from gossamer.sim.values import run_values

NETWORKS = ("resnet50", "resnet50=2:8", "mobilenet_v2", "minilm")


def calls_of(source: sources.Source, spec: ArchSpec, sparsity: str | None) -> tuple[dict[str, Call], float]:
    """What to measure, and the operations in it."""
    options = Options(calibration=source.calibration, sparsity=sparsity, products=spec.dynamic_operands, spec=spec)
    graph = run_passes(import_model(source.model, source.dims), options=options)
    program = build_program(fitted(lower(graph), spec), spec)
    feed = source.trial[0]
    run = Simulator(program).run(feed)
    assert run.memory is not None
    dram: NDArray[np.uint8] = run.memory.copy()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    quantised = export_model(graph, qdq=True).SerializeToString()
    session = onnxruntime.InferenceSession(quantised, settings, providers=["CPUExecutionProvider"])

    def values() -> None:
        for stage in program.accelerator_stages:
            run_values(program, stage, dram)

    return {"values": values, "onnxruntime": lambda: session.run(None, dict(feed))}, 2.0 * run.statistics[
        "macs_nonzero"
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK", help=f"({' '.join(NETWORKS)})")
    parser.add_argument("--spec", default="server")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, default=0)
    args = parser.parse_args()
    pin(args.core)
    spec = ArchSpec.load(args.spec)
    loops, operations = peaks()
    console = Console(width=120, highlight=False)
    table = Table(title=f"values of a run on {spec.name}")
    for heading in ("network", "GOP", "seconds", "GOP/s", "of peak", "onnxruntime s", "ratio"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    warnings.simplefilter("ignore")
    for name in args.networks:
        network, _, sparsity = name.partition("=")
        try:
            calls, total = calls_of(sources.load(network), spec, sparsity or None)
        except sources.Missing as error:
            console.print(f"{name}: left out: {error}")
            continue
        seconds = measure(calls | {"dot peak": loops["dot peak"]}, args.rounds, 0.05)
        ours, theirs, peak = seconds["values"], seconds["onnxruntime"], seconds["dot peak"] / operations["dot peak"]
        table.add_row(
            name,
            f"{total / 1e9:.2f}",
            f"{np.median(ours):.3f}",
            f"{total / np.median(ours) / 1e9:.0f}",
            f"{np.median(total * peak / ours):.0%}",
            f"{np.median(theirs):.3f}",
            f"{np.median(theirs / ours):.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
