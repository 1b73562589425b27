"""Cycles of networks and of their layers against the lower bound: python benchmarks/mapper.py [--spec server].

The bound is the largest of three: the array's steps (as packed, lanes never idle), the beats read and the beats
written with every operand moved once. Each workload is compiled and simulated whole, so that loads hide behind the
layers before, against the sum of its layers' bounds (a chain's bound knows that tensors stay on chip); then, with
--alone, its layers one by one, each from a cold start to its last
write response. What lies between is named as `gossamer explain` names it.
"""

import argparse
import time

from rich.console import Console
from rich.table import Table
from workloads import chain_network, layer_network, read

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.sim.breakdown import LayerParts, Parts, break_down
from gossamer.sim.simulate import simulate


def main() -> None:
    """Print a table for each workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=["resnet50", "mobilenet_v2", "bert_base_seq128"])
    parser.add_argument("--spec", default="server")
    parser.add_argument("--pattern", nargs="*", default=["dense", "2:8"])
    parser.add_argument("--worst", type=int, default=8, help="layers to show, those that lose most cycles first")
    parser.add_argument("--alone", action="store_true", help="also compile every layer by itself")
    args = parser.parse_args()
    spec, console = ArchSpec.load(args.spec), Console(width=170, highlight=False)
    for name in args.workloads:
        for pattern in args.pattern:
            _whole(name, pattern, spec, console, args.worst)
            if args.alone:
                _alone(name, pattern, spec, console, args.worst)


def _whole(name: str, pattern: str, spec: ArchSpec, console: Console, worst: int) -> None:
    network = chain_network(name, pattern)
    begin = time.process_time()
    program = build_program(network, spec)
    seconds = time.process_time() - begin
    found = break_down(simulate(program, values=False, check=False))
    over = sum(layer.cycles > 1.5 * layer.bound for layer in found.layers)
    apart = sum(note.bound(spec) for note in build_program(network, spec, chains=False).layers)
    title = (
        f"{name} on {spec.name}, {pattern}: {found.cycles:,} cycles, bound {found.bound:,.0f}, ratio "
        f"{found.cycles / found.bound:.3f}, of the bound with every tensor in DRAM {found.cycles / apart:.3f} "
        f"({len(found.layers)} layers and chains, {over} above 1.5, back end {seconds:.1f} s)"
    )
    _table(title, list(found.layers), console, worst)
    console.print(f"beyond the bound: {_reasons(found.total)}\n")


def _alone(name: str, pattern: str, spec: ArchSpec, console: Console, worst: int) -> None:
    total = bound = 0.0
    shown: dict[tuple[str, ...], LayerParts] = {}
    for row in read(name):
        key = tuple(v for k, v in row.items() if k != "layer")
        if key not in shown:
            program = build_program(layer_network(row, pattern), spec)
            shown[key] = break_down(simulate(program, values=False, check=False)).layers[0]
        count = int(row["count"] or 1) if row["kind"] == "bmm" else 1
        total, bound = total + count * shown[key].cycles, bound + count * shown[key].bound
    title = f"{name} on {spec.name}, {pattern}, every layer by itself: {total:,.0f} cycles, ratio {total / bound:.3f}"
    _table(title, list(shown.values()), console, worst)


def _table(title: str, layers: list[LayerParts], console: Console, worst: int) -> None:
    table = Table("layer", "cycles", "bound", "ratio", "beyond the bound", "mapping", title=title)
    for layer in sorted(layers, key=lambda n: n.bound - n.cycles)[:worst]:
        ratio = f"{layer.cycles / layer.bound:.3f}" if layer.bound else ""
        numbers = (f"{layer.cycles:,}", f"{layer.bound:,.0f}", ratio)
        table.add_row(layer.name, *numbers, _reasons(layer.parts), layer.mapping)
    console.print(table)


def _reasons(parts: Parts) -> str:
    found = sorted(parts.beyond.items(), key=lambda item: -abs(item[1]))
    return ", ".join(f"{name} {value:,.0f}" for name, value in found if round(value))


if __name__ == "__main__":
    main()
