"""Whole networks end to end: python benchmarks/networks.py [--spec server] [--sparsity 2:8] [NAME ...]

For each: seconds to compile, layers, share of the multiply-accumulates on the accelerator, cycles against the bound,
and three comparisons.

- layers: each layer is given the codes that onnxruntime has at its inputs when it runs the same quantised graph, and
  its output codes are compared with onnxruntime's. So rounding is seen where it happens and does not pile up.
- network: the last tensor on the accelerator after the whole Program has been simulated. In a deep network codes that
  were rounded the other way once grow, here and in onnxruntime alike.
- float: cosine of the network's output to that of the model as it came, or, where a softmax is last, of what is before
  it to that of the graph in floating point.
"""

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
import sources
from comparison import Twin, layer_differences
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gossamer.arch.errors import GossamerError
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.backend.fallback import fitted
from gossamer.compiler.frontend.lower import lower
from gossamer.compiler.layers import HostSegment
from gossamer.compiler.passes import Options, import_model, run_passes
from gossamer.sim.simulate import Simulator


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is said of one network. Differences are (share of codes that differ, largest difference in codes)."""

    name: str
    data: str
    seconds: float
    layers: int
    gmacs: float
    share: float
    cycles: int
    bound: float
    layer_codes: tuple[float, int]
    network_codes: tuple[float, int]
    cosine: float
    agree: str
    hosts: Counter[str]
    reasons: Counter[str]


def measure(source: sources.Source, spec: ArchSpec, sparsity: str | None, trials: int) -> Report:
    """Compile a network, simulate it and compare."""
    start = time.process_time()
    options = Options(calibration=source.calibration, sparsity=sparsity, products=spec.dynamic_operands, spec=spec)
    graph = run_passes(import_model(source.model, source.dims), options=options)
    network = fitted(lower(graph), spec)
    program = build_program(network, spec)
    seconds = time.process_time() - start
    simulator = Simulator(program)
    run = simulator.run(None, values=False)
    twin = Twin(graph, network)
    reference = _reference(source, twin)
    layers, last, cosines, votes = [], [], [], 0
    for feed in source.trial[:trials]:
        theirs = twin.codes(feed)
        layers.append(layer_differences(network, theirs))
        full = simulator.run(feed)
        assert full.memory is not None
        place = program.tensors[twin.last]
        mine = place.from_memory(full.memory[place.address : place.address + place.size])
        off = np.abs(mine.astype(np.int64) - theirs[twin.last])
        last.append((int((off > 0).sum()), off.size, int(off.max())))
        real = reference(feed)
        ours = place.dequantise(mine) if twin.answer == twin.last else np.asarray(full.outputs[twin.answer])
        cosines.append(_cosine(ours, real))
        votes += int(np.argmax(ours) == np.argmax(real))
    macs = sum(note.macs for note in program.layers)
    hosts = [stage for stage in network.stages if isinstance(stage, HostSegment)]
    everything = macs + sum(stage.macs for stage in hosts)
    return Report(
        name=source.name,
        data=source.data,
        seconds=seconds,
        layers=len(program.layers),
        gmacs=everything / 1e9,
        share=macs / max(1, everything),
        cycles=run.cycles,
        bound=program.bound,
        layer_codes=_summed(layers),
        network_codes=_summed(last),
        cosine=float(np.mean(cosines)),
        agree=f"{votes}/{len(cosines)}",
        hosts=Counter(op for stage in hosts for op in stage.ops if op not in ("Reshape", "Transpose", "Identity")),
        reasons=Counter(reason for stage in hosts for reason in stage.reason.split("; ")),
    )


def _reference(source: sources.Source, twin: Twin) -> Callable[[sources.Feed], NDArray[np.generic]]:
    """What to compare answers with: a quantised model's own outputs are not those of its graph without points."""
    if twin.answer not in {output.name for output in source.model.graph.output}:
        return twin.floats
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    model = source.model.SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: np.asarray(session.run([twin.answer], feed)[0])


def _summed(counts: list[tuple[int, int, int]]) -> tuple[float, int]:
    """Share of codes that differ, and the largest difference."""
    different, compared, largest = (np.array(c) for c in zip(*counts, strict=True))
    return float(different.sum() / max(1, compared.sum())), int(largest.max())


def _cosine(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    x, y = np.asarray(a, np.float64).reshape(-1), np.asarray(b, np.float64).reshape(-1)
    return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))


def _table(reports: list[Report], title: str) -> Table:
    table = Table(title=title)
    for heading in ("network", "compile s", "layers", "GMAC", "on array", "cycles", "/ bound", "layer codes off",
                    "network codes off", "cosine", "same class", "on the host"):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("network", "on the host") else "right")
    for r in reports:
        table.add_row(
            r.name,
            f"{r.seconds:.1f}",
            str(r.layers),
            f"{r.gmacs:.3f}",
            f"{r.share:.2%}",
            f"{r.cycles:,}",
            f"{r.cycles / r.bound:.3f}",
            f"{r.layer_codes[0] * 1e6:.0f} ppm, {r.layer_codes[1]}",
            f"{r.network_codes[0]:.1%}, {r.network_codes[1]}",
            f"{r.cosine:.4f}",
            r.agree,
            ", ".join(f"{n} {op}" for op, n in r.hosts.most_common()) or "-",
        )
    return table


def main() -> None:
    """Print the table, and why what is on the host is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(sources.NAMES)} (all)")
    parser.add_argument("--spec", default="server")
    parser.add_argument("--sparsity")
    parser.add_argument("--trials", type=int, default=4, help="inputs to compare on")
    args = parser.parse_args()
    console = Console(width=170, highlight=False)
    unknown = [name for name in args.names if name not in sources.NAMES]
    if unknown:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(sources.NAMES)}")
    spec = ArchSpec.load(args.spec)
    warnings.simplefilter("ignore")
    measure(sources.load("squeezenet"), spec, None, 1)  # so that nothing is compiled by numba below
    reports: list[Report] = []
    for name in args.names or sources.NAMES:
        try:
            reports.append(measure(sources.load(name), spec, args.sparsity, args.trials))
        except sources.Missing as error:
            console.print(f"{name}: left out: {error}")
        except GossamerError as error:
            console.print(f"{name}: {error}")
    console.print(_table(reports, f"{spec.name}, {args.sparsity or 'weights as they are'}"))
    for report in reports:
        console.print(f"{report.name}: {report.data}", highlight=False)
        for reason, count in report.reasons.most_common():
            console.print(f"    {count} x {reason}", highlight=False)


if __name__ == "__main__":
    main()
