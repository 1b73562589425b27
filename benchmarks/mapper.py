"""Cycles of every layer of a workload against its lower bound: python benchmarks/mapper.py [--spec server].

The bound is the largest of three: the array's steps (as packed, lanes never idle), the beats read and the beats
written with every operand moved once. Each layer is compiled and simulated by itself, from a cold start to its last
write response.
"""

import argparse
import time

from rich.console import Console
from rich.table import Table
from workloads import layer_network, read

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend import build_program
from gossamer.sim.simulate import simulate


def main() -> None:
    """Print a table for each workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=["resnet50", "bert_base_seq128"])
    parser.add_argument("--spec", default="server")
    parser.add_argument("--pattern", default="dense")
    parser.add_argument("--worst", type=int, default=12, help="layers to show, the worst first")
    args = parser.parse_args()
    spec, console = ArchSpec.load(args.spec), Console(width=150)
    for name in args.workloads:
        total = bound = 0.0
        shown: dict[tuple[str, ...], tuple[float, float, str, int]] = {}
        begin = time.perf_counter()
        for row in read(name):
            key = tuple(v for k, v in row.items() if k != "layer")
            count = int(row["count"] or 1) if row["kind"] == "bmm" else 1
            if key not in shown:
                program = build_program(layer_network(row, args.pattern), spec)
                cycles = simulate(program, values=False).cycles
                note = program.layers[0]
                shown[key] = (cycles, note.bound(spec), note.mapping, len(program.instructions))
            cycles, low, _, _ = shown[key]
            total, bound = total + count * cycles, bound + count * low
        seconds = time.perf_counter() - begin
        table = Table(title=f"{name} on {spec.name}, {args.pattern}: {total:,.0f} cycles, bound {bound:,.0f}, "
                      f"ratio {total / bound:.3f} ({len(shown)} different layers, {seconds:.1f} s)")  # fmt: skip
        for column in ("kind", "shape", "cycles", "bound", "ratio", "instructions", "mapping"):
            table.add_column(column)
        worst = sorted(shown.items(), key=lambda kv: kv[1][1] - kv[1][0])
        for key, (cycles, low, mapping, instructions) in worst[: args.worst]:
            text = "x".join(v for v in key[2:15] if v)
            numbers = (f"{cycles:,.0f}", f"{low:,.0f}", f"{cycles / low:.3f}", str(instructions))
            table.add_row(key[1], text, *numbers, mapping)
        console.print(table)


if __name__ == "__main__":
    main()
