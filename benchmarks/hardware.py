"""What sparsity costs in hardware and what it buys: python benchmarks/hardware.py --liberty FILE... [--ecp5]

Synthesises `dense` and three sparse presets of the same MAC count, simulates a layer on each, and prints the tables of
docs/hardware.md: area and longest path by component, then cycles, clock, speed, and speed for the area. With --ecp5 it
places and routes machines of 32 MACs with the same PEs. Results are kept in out/hardware, by the hardware's text.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workloads import layer_network

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.rtl.cost import COMPONENTS
from gossamer.rtl.synth import synthesise
from gossamer.rtl.verilog import rtlil
from gossamer.sim.simulate import simulate

KEPT = Path(__file__).resolve().parents[1] / "out" / "hardware"
GEMM = {"layer": "gemm512", "kind": "gemm", "M": "512", "GK": "512", "GN": "512"}
PATTERNS = ("dense", "2:4", "4:8", "2:8")

Found = dict[str, Any]


def presets() -> list[ArchSpec]:
    """256 MACs each; `dense-b4` is dense with as many PEs to a broadcast register as the sparse ones have."""
    dense = ArchSpec.load("dense")
    same = dense.evolve(name="dense-b4", broadcast_columns=4, broadcast_lanes=4)
    return [dense, same, *(ArchSpec.load(name) for name in ("nm-2of4", "dbb-4of8", "sat-2of8"))]


def small() -> list[ArchSpec]:
    """32 MACs each, four PPUs, small memories: what an ECP5 holds with room to route."""
    common = {
        "depth": 8,
        "activation_partitions": 1,
        "output_partitions": 1,
        "weight_steps": 512,
        "offset_steps": 256,
        "parameter_channels": 64,
        "tables": 0,
        "axi_bytes": 8,
        "queue_depth": 4,
        "outstanding_reads": 4,
        "outstanding_writes": 4,
    }
    shapes = {"dense": (4, 8, 1), "nm-2of4": (4, 4, 1), "dbb-4of8": (2, 4, 2), "sat-2of8": (4, 4, 1)}
    found = []
    for name, (lanes, columns, ppu) in shapes.items():
        memories = {"activation_bytes": 8192 // lanes, "output_bytes": 4096 // lanes}
        shape = {"lanes": lanes, "columns": columns, "ppu": ppu}
        found.append(ArchSpec.load(name).evolve(name=f"{name}-32", **shape, **memories, **common))
    return found


def cost(spec: ArchSpec, liberty: Sequence[str]) -> Found:
    """The cost of a spec as JSON has it: of standard cells, or placed on an ECP5 if there are no liberty files."""
    digest = hashlib.sha256(rtlil(spec).encode())
    for name in liberty:
        digest.update(Path(name).read_bytes())
    kept = KEPT / f"{spec.name}-{digest.hexdigest()[:16]}.json"
    if not kept.exists():
        found = synthesise(spec, None if liberty else "ecp5", liberty, place=not liberty, timeout=6 * 3600)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found.to_dict()), encoding="utf-8")
    loaded: Found = json.loads(kept.read_text(encoding="utf-8"))
    return loaded


def cycles(spec: ArchSpec, pattern: str) -> int:
    """Of the layer on a spec, by the simulator."""
    return simulate(build_program(layer_network(GEMM, pattern), spec), values=False).cycles


def row(*cells: object) -> None:
    """A row of a Markdown table."""
    print("|", " | ".join(str(c) for c in cells), "|")


def heads(first: str, names: Sequence[str]) -> None:
    """The head of a table whose columns but the first hold numbers."""
    row(first, *names)
    row("---", *("---:" for _ in names))


def component(found: Found, name: str) -> Found:
    """A component, or the total."""
    if name == "total":
        return {**found["total"], "share": 1.0}
    part: Found = next(c for c in found["components"] if c["name"] == name)
    return part


def show_cells(specs: Sequence[ArchSpec], costs: Sequence[Found]) -> None:
    """Area and longest path by component."""
    heads("area", [spec.name for spec in specs])
    row("lanes x columns x MACs", *(f"{s.lanes}x{s.columns}x{s.macs}" for s in specs))
    for name in (*COMPONENTS, "total"):
        parts = [component(c, name) for c in costs]
        row(name, *(f"{p['area']:,.0f} ({p['share']:.1%})" for p in parts))
    for name in ("cells", "flip_flops", "ram_bits", "regfile_bits"):
        row(name.replace("_", " "), *(f"{c['total'][name]:,}" for c in costs))
    print()
    heads("longest path into, ps", [spec.name for spec in specs])
    for name in (*COMPONENTS, "total"):
        paths = [component(c, name)["path"] for c in costs]
        if any(paths):
            row(name, *("-" if p is None else f"{p:,.0f}" for p in paths))
    row("MHz", *("-" if c["fmax"] is None else f"{c['fmax']:,.0f}" for c in costs))
    for spec, found in zip(specs, costs, strict=True):
        print(f"\n{spec.name}: {' > '.join(found['route']['through'])}, {found['route']['cells']} cells")


def show_ecp5(specs: Sequence[ArchSpec], costs: Sequence[Found]) -> None:
    """What a placed machine takes of the device."""
    heads("LFE5U-85F", [spec.name for spec in specs])
    row("lanes x columns x MACs", *(f"{s.lanes}x{s.columns}x{s.macs}" for s in specs))
    places = [c["placement"] for c in costs]
    for name in places[0]["used"]:
        row(name, *(f"{p['used'][name]:,} of {p['available'][name]:,}" for p in places))
    for name in COMPONENTS:
        row(f"LUT4: {name}", *(f"{component(c, name)['luts']:,} ({component(c, name)['share']:.1%})" for c in costs))
    row("MHz", *(p["fmax"] for p in places))
    row("logic + wires, ns", *(f"{p['logic']} + {p['routing']}" for p in places))
    for spec, place in zip(specs, places, strict=True):
        print(f"\n{spec.name}: {' > '.join(place['through'])}")


def show_speed(specs: Sequence[ArchSpec], costs: Sequence[Found], size: Callable[[Found], float], unit: str) -> None:
    """Cycles times clock, and that for the size, against the first spec."""
    columns = (
        "cycles",
        "MHz",
        "time, us",
        "speed in cycles",
        "speed",
        f"{unit}, of {specs[0].name}",
        f"speed / {unit}",
    )
    heads("weights, spec", columns)
    for pattern in PATTERNS:
        first: tuple[int, float] | None = None
        for spec, found in zip(specs, costs, strict=True):
            n, fmax = cycles(spec, pattern), found["fmax"] or spec.clock_mhz
            first = first or (n, n / fmax)
            faster, relative = first[1] / (n / fmax), size(found) / size(costs[0])
            values = (f"{n:,}", f"{fmax:,.1f}", f"{n / fmax:,.0f}", f"{first[0] / n:.2f}", f"{faster:.2f}")
            row(f"{pattern}, {spec.name}", *values, f"{relative:.2f}", f"{faster / relative:.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--liberty", nargs="+", default=[], metavar="FILE", help="standard cells of one process")
    parser.add_argument("--ecp5", action="store_true", help="place and route on an ECP5: an hour or so")
    args = parser.parse_args()
    if args.liberty:
        specs = presets()
        costs = [cost(spec, args.liberty) for spec in specs]
        show_cells(specs, costs)
        print()
        show_speed(specs, costs, lambda found: found["total"]["area"], "area")
    if args.ecp5:
        specs = small()
        costs = [cost(spec, ()) for spec in specs]
        show_ecp5(specs, costs)
        print()
        show_speed(specs, costs, lambda found: found["placement"]["used"]["LUTs"], "LUTs")


if __name__ == "__main__":
    main()
