"""Networks against systolic arrays with as many multipliers: python benchmarks/systolic.py [--spec server]

First the closed forms of dense systolic arrays, output-, weight- and input-stationary, as SCALE-Sim v3 and STONNE have
them (no DRAM, no metadata, nothing to wait for), against the simulator's cycles of whole networks with everything in
them. Y[M,N] = X[M,K] W[K,N] on R rows by C columns:

    output-stationary   ceil(M/R) ceil(N/C) (K + R + C - 2) - 1
    weight-stationary   ceil(K/R) ceil(N/C) (M + 2R + C - 2) - 1
    input-stationary    ceil(K/R) ceil(M/C) (N + 2R + C - 2) - 1
    STONNE's TPU        ceil(M/R) ceil(N/C) (K + R + C + 2)

Then what patterns of zeros bring: each network on the spec with each pattern, against itself dense on the same spec,
and against the same multipliers as a plain systolic machine (`plain`), compiled and simulated like the others.
"""

import argparse
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from workloads import chain_network, read

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.sim.breakdown import Breakdown, break_down
from gossamer.sim.simulate import simulate

NETWORKS = ("resnet50", "mobilenet_v2", "bert_base_seq128")
PATTERNS = ("dense", "2:4", "2:8", "1:8", "block 16x16 70%", "unstructured 90%")


def up(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


FORMS: dict[str, Callable[[int, int, int, int, int], int]] = {
    "output": lambda m, k, n, r, c: up(m, r) * up(n, c) * (k + r + c - 2) - 1,
    "weight": lambda m, k, n, r, c: up(k, r) * up(n, c) * (m + 2 * r + c - 2) - 1,
    "input": lambda m, k, n, r, c: up(k, r) * up(m, c) * (n + 2 * r + c - 2) - 1,
    "stonne": lambda m, k, n, r, c: up(m, r) * up(n, c) * (k + r + c + 2),
}


def shapes(macs: int) -> Iterator[tuple[int, int]]:
    """Arrays of so many PEs from one as good as square to four times as wide or high."""
    rows = 1
    while rows <= macs:
        if macs % rows == 0 and rows <= 4 * (macs // rows) <= 16 * rows:
            yield rows, macs // rows
        rows *= 2


def closed_form(row: dict[str, str], form: str, rows: int, columns: int) -> int:
    """Cycles of a layer; groups and heads follow each other."""
    m, k, n = (int(row[f]) for f in ("M", "GK", "GN"))
    return FORMS[form](m, k, n, rows, columns) * int(row["count"] or 1)


def plain(spec: ArchSpec) -> ArchSpec:
    """The same multipliers, buffers and bus as a plain systolic machine: one MAC a PE, no selects."""
    v = spec.macs
    return spec.evolve(
        name=f"{spec.name} as a plain array",
        lanes=spec.lanes * v,
        group=1,
        macs=1,
        hop=1,
        activation_bytes=spec.activation_bytes // v,
        output_bytes=max(spec.output_bytes // v, spec.axi_bytes * spec.output_partitions),
        weight_steps=min(spec.weight_steps * v, 1 << 16),
        ppu=max(1, spec.ppu // v),
    )


def measure(name: str, spec: ArchSpec, pattern: str = "dense") -> Breakdown:
    """A network compiled and simulated whole."""
    return break_down(simulate(build_program(chain_network(name, pattern), spec), values=False, check=False))


def against_closed_forms(name: str, spec: ArchSpec, console: Console) -> None:
    """Print the network's cycles beside the best systolic array's, and every layer on which that is faster."""
    found, table = measure(name, spec), read(name)
    best: dict[str, tuple[int, int, int]] = {}
    for form in FORMS:
        best[form] = min((sum(closed_form(row, form, r, c) for row in table), r, c) for r, c in shapes(spec.peak_macs))
    form = min(best, key=lambda f: best[f])
    cycles, rows, columns = best[form]
    texts = ", ".join(f"{f} {n:,} ({r}x{c})" for f, (n, r, c) in best.items())
    console.print(
        f"{name}: {found.cycles:,} cycles on {spec.name}; systolic with {spec.peak_macs} PEs: {texts}; "
        f"[bold]{cycles / found.cycles:.2f} times as fast[/bold] as the best"
    )
    slower = Table("layer", "ours", f"{form} {rows}x{columns}", "ratio", "because of")
    of_layer = {row["layer"]: closed_form(row, form, rows, columns) for row in table}
    for layer in found.layers:  # a chain has the names of all its layers
        theirs = sum(of_layer[part] for part in layer.name.split(" > "))
        if layer.cycles > theirs:
            parts = sorted(layer.parts.to_dict().items(), key=lambda p: -p[1])
            why = ", ".join(f"{n} {v:,.0f}" for n, v in parts[:3] if v >= 0.02 * layer.cycles)
            limit = f"{layer.limit}-bound" if layer.limit != "array" else ""
            slower.add_row(
                layer.name, f"{layer.cycles:,}", f"{theirs:,}", f"{layer.cycles / theirs:.2f}",
                "; ".join(t for t in (limit, why) if t),
            )  # fmt: skip
    if slower.row_count:
        console.print(slower)


def speed_ups(names: list[str], spec: ArchSpec, console: Console) -> None:
    """Print one table: every pattern on every network, against dense on the spec and on the plain array."""
    table = Table(title=f"{spec.name} ({spec.peak_macs} MACs): cycles, speed-up over dense, over {plain(spec).name}")
    table.add_column("pattern")
    base = {name: measure(name, plain(spec)).cycles for name in names}
    own: dict[str, int] = {}
    rows: list[list[str]] = [["dense on the plain array", *(f"{base[name]:,}" for name in names)]]
    for pattern in PATTERNS:
        row = [pattern]
        for name in names:
            found = measure(name, spec, pattern)
            own.setdefault(name, found.cycles)
            ratio = f"{own[name] / found.cycles:.2f}x, {base[name] / found.cycles:.2f}x"
            row.append(f"{found.cycles:,}  {ratio}  ({found.cycles / found.bound:.3f} of bound)")
        rows.append(row)
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", nargs="*", default=["server", "dense"], help="for the closed forms")
    parser.add_argument("--patterns-on", nargs="*", default=["server", "sat-2of8"], help="for the speed-ups")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--sparse-networks", nargs="*", default=["resnet50", "bert_base_seq128"])
    args = parser.parse_args()
    console = Console(width=160, highlight=False)
    for spec in args.spec:
        for name in args.networks:
            against_closed_forms(name, ArchSpec.load(spec), console)
    for spec in args.patterns_on:
        speed_ups(args.sparse_networks, ArchSpec.load(spec), console)


if __name__ == "__main__":
    main()
