"""How cycles follow sparsity: python benchmarks/scaling.py

1. N:M patterns on one 512x512x512 layer: speed-up over dense on the same spec against the ideal min(M/N, group/macs).
2. A depthwise layer with group >= columns: share of MAC slots that do useful work.
3. Block-sparse and unstructured layers: steps against the nonzeros that need them.
"""

import numpy as np
from rich.console import Console
from rich.table import Table
from workloads import layer_network

from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.sim.simulate import simulate

console = Console(width=120)
GEMM = {"layer": "gemm512", "kind": "gemm", "M": "512", "GK": "512", "GN": "512"}


def conv_row(channels: int, side: int, kernel: int, groups: int) -> dict[str, str]:
    """A padded convolution that keeps its map's size, as a row of a workload."""
    names = ("N", "C", "H", "W", "K", "R", "S", "stride", "pad", "groups", "P", "Q")
    values = (1, channels, side, side, channels, kernel, kernel, 1, kernel // 2, groups, side, side)
    return {"layer": "conv", "kind": "conv", **{n: str(v) for n, v in zip(names, values, strict=True)}}


def steps_of(program: Program) -> tuple[int, int, int]:
    """(cycles, slots of the array, multiply-accumulates of nonzero weights)."""
    run = simulate(program, values=False)
    return run.cycles, run.counters["slots"], program.layers[0].useful_macs


def scaling() -> None:
    """N:M on the GEMM."""
    table = Table(title="512x512x512, cycles (speed-up over dense on the same spec / ideal)")
    patterns = ("dense", "4:8", "2:8", "1:8", "2:4", "1:4", "1:16", "1:32")
    for column in ("spec", *patterns):
        table.add_column(column, justify="right")
    for name in ("dense", "nm-2of4", "dbb-4of8", "sat-2of8", "s4-1of32", "server"):
        spec = ArchSpec.load(name)
        cells, base = [], 0
        for pattern in patterns:
            cycles, _, _ = steps_of(build_program(layer_network(GEMM, pattern), spec))
            base = base or cycles
            n, m = (1, 1) if pattern == "dense" else map(int, pattern.split(":"))
            ideal = min(m / n, spec.group / spec.macs)
            cells.append(f"{cycles:,}\n{base / cycles:.2f} / {ideal:g}")
        table.add_row(name, *cells)
    console.print(table)


def use() -> None:
    """Depthwise, block-sparse and unstructured layers."""
    table = Table(title="Steps against the useful: MACs of nonzero weights / MAC slots taken by steps")
    for column in ("layer", "spec", "cycles", "useful share", "over dense"):
        table.add_column(column, justify="right")
    wide = ArchSpec.load("s4-1of32")
    depthwise = conv_row(64, 32, 3, 64)
    cases = [
        ("depthwise 3x3, 64 channels, M >= C", depthwise, wide, "dense"),
        ("depthwise 3x3, 64 channels, M >= C, V = 2", depthwise, wide.evolve(name="M=32 V=2", macs=2), "dense"),
        ("depthwise 3x3, 64 channels, M < C", depthwise, ArchSpec.load("sat-2of8"), "dense"),
    ]
    for spec in (ArchSpec.load("sat-2of8"), wide, wide.evolve(name="s4, aligned", hop=32)):
        cases.append(("512x512x512, blocks 16x16, 70 %", GEMM, spec, "block 16x16 70%"))
        cases += [(f"512x512x512, unstructured, {p} %", GEMM, spec, f"unstructured {p}%") for p in (80, 90, 95)]
    for title, row, spec, pattern in cases:
        program = build_program(layer_network(row, pattern), spec)
        cycles, slots, useful = steps_of(program)
        base, _, _ = steps_of(build_program(layer_network(row, "dense"), spec))
        share = useful / (slots * spec.peak_macs)
        table.add_row(title, spec.name, f"{cycles:,}", f"{share:.1%}", f"{base / cycles:.2f}x")
    console.print(table)


if __name__ == "__main__":
    np.seterr(all="raise")
    scaling()
    use()
