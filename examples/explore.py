"""Explore accelerators: some thirty specs on one network, in parallel.  python examples/explore.py

Sweeps the shape of the array (lanes, columns, MACs a PE, window) and the size of its buffers around the preset
`sat-2of8`, prints every point, and draws cycles against MACs and against buffer bytes with the Pareto front marked.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import gossamer
from gossamer.compiler.layers import Network
from gossamer.compiler.passes import build_network

sys.path.insert(0, str(Path(__file__).parent / "digits"))
import data

console = Console()


@dataclass(frozen=True, kw_only=True)
class Point:
    """One spec, measured."""

    spec: gossamer.ArchSpec
    cycles: int
    busy: float
    reason: str = ""

    @property
    def buffer_kib(self) -> float:
        """On-chip memory in KiB, accumulators included."""
        return sum(self.spec.buffer_bytes.values()) / 1024


def candidates() -> Iterator[gossamer.ArchSpec]:
    """Variations of sat-2of8: 30 specs."""
    base = gossamer.ArchSpec.load("sat-2of8")
    for lanes, columns in ((2, 16), (4, 16), (8, 16), (16, 16), (8, 32), (16, 32)):
        for group, macs in ((1, 1), (4, 2), (8, 1), (8, 2), (16, 1)):
            kib = 128 if (lanes, columns) != (8, 32) else 32  # one shape with small buffers
            yield base.evolve(
                name=f"{lanes}x{columns} {macs}:{group}" + (" small" if kib == 32 else ""),
                lanes=lanes,
                columns=columns,
                group=group,
                macs=macs,
                hop=group,
                activation_bytes=kib * 1024 // lanes,
                output_bytes=max(1024, kib * 256 // lanes),
                weight_steps=max(256, kib * 512 // (columns * macs)),
                ppu=1,
                broadcast_columns=4,
            )


def measure(network: Network, spec: gossamer.ArchSpec) -> Point:
    """Compile and simulate (time only); a spec the network does not fit becomes a point with a reason."""
    try:
        run = gossamer.simulate(gossamer.compile(network, spec))
    except gossamer.GossamerError as error:
        return Point(spec=spec, cycles=0, busy=0.0, reason=str(error))
    return Point(spec=spec, cycles=run.cycles, busy=run.counters["busy_matmul"] / run.cycles)


def pareto(points: Sequence[Point]) -> set[str]:
    """Names of points that no other beats in cycles, MACs and buffer bytes at once."""
    values = {p.spec.name: np.array([p.cycles, p.spec.peak_macs, p.buffer_kib]) for p in points}
    return {
        name
        for name, mine in values.items()
        if not any(np.all(other <= mine) and np.any(other < mine) for other in values.values())
    }


def show(points: Sequence[Point], front: set[str]) -> None:
    """Every point, fastest first."""
    table = Table(title="The digits network, pruned to 2:8 in training")
    table.add_column("spec (lanes x columns, macs:group)")
    for column in ("MACs", "buffers KiB", "cycles", "array busy", "Pareto"):
        table.add_column(column, justify="right")
    for p in sorted(points, key=lambda p: (p.cycles == 0, p.cycles)):
        mark = "*" if p.spec.name in front else ""
        cells = (f"{p.cycles:,}", f"{p.busy:.0%}", mark) if p.cycles else ("-", "-", "does not fit")
        table.add_row(p.spec.name, str(p.spec.peak_macs), f"{p.buffer_kib:,.0f}", *cells)
    console.print(table)


def draw(points: Sequence[Point], front: set[str], path: Path) -> None:
    """Cycles against MACs and against buffer bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, constrained_layout=True)
    groups = sorted({(p.spec.group, p.spec.macs) for p in points})
    colours = dict(zip(groups, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(groups))), strict=True))
    for axes, label, value in (
        (panels[0], "multiply-accumulate units", lambda p: p.spec.peak_macs),
        (panels[1], "on-chip memory, KiB", lambda p: p.buffer_kib),
    ):
        for key in groups:
            mine = [p for p in points if (p.spec.group, p.spec.macs) == key]
            axes.scatter(
                [value(p) for p in mine],
                [p.cycles for p in mine],
                s=46,
                color=colours[key],
                label=f"{key[1]} of a window of {key[0]}",
            )
        best = [p for p in points if p.spec.name in front]
        axes.scatter(
            [value(p) for p in best],
            [p.cycles for p in best],
            s=130,
            facecolors="none",
            edgecolors="#d1362f",
            linewidths=1.6,
            label="Pareto front (cycles, MACs, memory)",
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("cycles for one image")
    panels[1].legend(frameon=False, fontsize=8)
    figure.suptitle("Thirty accelerators on the 2:8 digits network")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=data.model_path("digits-2of8"), help="an ONNX file")
    parser.add_argument("--limit", type=int, default=1000, help="specs to try at most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--output", type=Path, default=Path("out/explore.png"), help="where the picture goes")
    options = parser.parse_args(arguments)
    images = data.load()[0].images if options.model == data.model_path("digits-2of8") else None
    network = build_network(options.model, calibration={"image": images} if images is not None else None)
    specs = list(candidates())[: options.limit]
    with ProcessPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(measure, network, spec) for spec in specs]
        results = [job.result() for job in track(as_completed(jobs), "simulating", len(jobs), console=console)]
    fitting = [p for p in results if p.cycles]
    front = pareto(fitting)
    show(results, front)
    for p in results:
        if p.reason:
            console.print(f"{p.spec.name}: {p.reason}", style="dim")
    draw(fitting, front, options.output)
    console.print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
