"""Hardware cost as a report: what each component of an accelerator takes, its memories, and its longest paths."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

__all__ = ["COMPONENTS", "Component", "Cost", "Memory", "Placement", "Route", "component_of", "tally"]

COMPONENTS: dict[str, tuple[str, ...]] = {
    "select": ("gossamer_pe_select",),
    "multiply and accumulate": ("gossamer_pe",),
    "broadcast registers": ("gossamer_tile_*", "gossamer_core.array"),
    "activation bank and window": ("gossamer_lane.activation",),
    "output buffer": ("gossamer_lane.output",),
    "PPU": ("gossamer_ppu", "gossamer_core.parameters", "gossamer_lane"),
    "step buffers": ("gossamer_core.weights_*", "gossamer_core.offsets"),
    "expander": ("gossamer_load.expander",),
    "LOAD": ("gossamer_load",),
    "STORE": ("gossamer_store",),
    "sequencers": ("gossamer_matmul", "gossamer_drain"),
    "FETCH and queues": ("gossamer_fetch", "gossamer_*_queue"),
    "control": ("gossamer_semaphores", "gossamer_counters", "gossamer_registers", "gossamer_core", "gossamer"),
}
"""Which modules, with everything inside them, make a component; the first name that fits counts."""

_PATTERNS = [
    (component, re.compile(re.escape(name).replace(r"\*", "[a-z0-9x]+") + r"(\..*)?$"))
    for component, names in COMPONENTS.items()
    for name in names
]

MEMORIES = {"gossamer_ram": "ram", "gossamer_regfile": "regfile"}
"""The black boxes of primitives.v."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """What a part of the accelerator takes. `cells` are cells of the target's library, memories left out.

    area : in the unit of the liberty files (None without any).  path : of the longest path that ends here, in ps, or in
    cells where the liberty files have no timing (None without any).  ram_bits, regfile_bits : of memories with and
    without a register at the output.  luts (LUT4, two for each carry cell), dsps (MULT18X18D), block_rams (DP16KD),
    distributed_rams (TRELLIS_DPR16X4) : ECP5 only.
    """

    name: str
    cells: int = 0
    flip_flops: int = 0
    area: float | None = None
    path: float | None = None
    luts: int = 0
    dsps: int = 0
    block_rams: int = 0
    distributed_rams: int = 0
    ram_bits: int = 0
    regfile_bits: int = 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memories of one size: `count` times `depth` words of `width` bits. kind : ram (the output has a register) or
    regfile (it has none), with so many read ports.
    """

    component: str
    kind: str
    width: int
    depth: int
    ports: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Route:
    """The longest path of all. delay : ps, or cells without timing.  through : named nets on it, first to last.
    cells : how many of them are passed.
    """

    delay: float
    timed: bool
    cells: int
    through: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What nextpnr made of it. fmax : MHz.  used, available : of each resource.  too_many : resources that do not fit
    (fmax is None then).
    """

    device: str
    fmax: float | None
    used: dict[str, int]
    available: dict[str, int]
    logic: float | None = None
    routing: float | None = None
    through: tuple[str, ...] = ()

    @property
    def too_many(self) -> dict[str, tuple[int, int]]:
        """Resources of which the device has too few: (used, available)."""
        return {k: (n, self.available[k]) for k, n in self.used.items() if n > self.available[k]}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The hardware cost of a spec. multipliers : $mul cells of the array before they are mapped."""

    spec: str
    target: str
    macs: int
    multipliers: int
    components: tuple[Component, ...]
    memories: tuple[Memory, ...]
    route: Route | None = None
    placement: Placement | None = None

    @cached_property
    def total(self) -> Component:
        """The sum of all components; of paths the longest."""
        found = Counter({f: sum(getattr(c, f) for c in self.components) for f in _COUNTS})
        areas = [c.area for c in self.components if c.area is not None]
        paths = [c.path for c in self.components if c.path is not None]
        area, path = round(sum(areas), 3) if areas else None, max(paths, default=None)
        return Component(name="total", area=area, path=path, **found)

    @property
    def fmax(self) -> float | None:
        """The fastest clock in MHz that the longest path allows; None where nothing was timed."""
        if self.placement:
            return self.placement.fmax
        return 1e6 / self.route.delay if self.route and self.route.timed else None

    def share(self, component: Component) -> float:
        """Of the whole accelerator's area; without an area of its LUTs, or of its cells. Memories do not count."""
        if self.total.area:
            return (component.area or 0.0) / self.total.area
        if self.total.luts:
            return component.luts / self.total.luts
        return component.cells / self.total.cells

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        rows = [{**asdict(c), "share": round(self.share(c), 4)} for c in self.components]
        return {**asdict(self), "components": rows, "total": asdict(self.total), "fmax": self.fmax}

    def lines(self) -> list[str]:
        """Tables for people."""
        columns = {"cells": 0, "flip_flops": 0, "ram_bits": 0, "regfile_bits": 0}
        if self.target == "ecp5":
            columns = {"luts": 0, "flip_flops": 0, "dsps": 0, "block_rams": 0, "distributed_rams": 0}
        if self.total.area is not None:
            columns = {"area": 1, **columns}
        if self.total.path is not None:
            columns = {**columns, "path": 0}
        heads = "".join(f"{name.replace('_', ' '):>17}" for name in columns)
        found = [f"{self.spec}: {self.macs} MACs, {self.target}", f"{'component':<28}{heads}{'share':>8}"]
        for part in (*self.components, self.total):
            cells = ((getattr(part, name), digits) for name, digits in columns.items())
            values = "".join(f"{'-' if v is None else format(v, f',.{d}f'):>17}" for v, d in cells)
            found.append(f"{part.name:<28}{values}{self.share(part):>8.1%}")
        found += ["", f"{'memory':<28}{'kind':>10}{'width':>8}{'depth':>8}{'ports':>8}{'count':>8}{'bits':>14}"]
        for m in self.memories:
            sizes = f"{m.width:>8}{m.depth:>8}{m.ports:>8}{m.count:>8}{m.width * m.depth * m.count:>14,}"
            found.append(f"{m.component:<28}{m.kind:>10}{sizes}")
        return [*found, *self._speed()]

    def _speed(self) -> list[str]:
        """The longest path, and what placement found."""
        found = []
        if self.route:
            unit = "ps" if self.route.timed else "cells (the liberty files have no timing)"
            fmax = f", {self.fmax:,.0f} MHz" if self.route.timed and not self.placement else ""
            found += ["", f"longest path: {self.route.delay:,.0f} {unit}{fmax}, {self.route.cells} cells"]
            found.append("  " + " > ".join(self.route.through))
        if self.placement:
            p = self.placement
            used = ", ".join(f"{n:,} of {p.available[k]:,} {k}" for k, n in p.used.items())
            found += ["", f"{p.device}: {used}"]
            if p.too_many:
                many = ", ".join(f"{n:,} {k} where it has {most:,}" for k, (n, most) in p.too_many.items())
                found.append(f"does not fit: {many}")
            else:
                found.append(
                    f"placed and routed: {p.fmax:.1f} MHz; {p.logic:.1f} ns of logic, {p.routing:.1f} ns of wires"
                )
                found.append("  " + " > ".join(p.through))
        return found


_COUNTS = tuple(n for n, f in Component.__dataclass_fields__.items() if f.type is int)


def component_of(module: str) -> str:
    """The component that a module belongs to.

    >>> component_of("gossamer_load.expander"), component_of("gossamer_load_queue.queue"), component_of("gossamer_core")
    ('expander', 'FETCH and queues', 'control')
    """
    for component, pattern in _PATTERNS:
        if pattern.match(module):
            return component
    raise AssertionError(f"module {module} belongs to no component")


@dataclass
class _Sums:
    """What has been counted so far, by component."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COMPONENTS})
    areas: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, 0.0))
    memories: Counter[tuple[str, str, int, int, int]] = field(default_factory=Counter)


def tally(
    modules: dict[str, Any],
    memories: Mapping[str, tuple[str, int, int, int]],
    registers: frozenset[str],
    paths: Mapping[str, float],
    *,
    top: str,
    with_area: bool,
) -> tuple[tuple[Component, ...], tuple[Memory, ...]]:
    """Sum what each module itself has, as often as it is there, by component.

    modules : as Yosys' `stat -json` has them.  memories : modules that hold one: kind, width, depth and read ports.
    registers : kinds of cells that are flip-flops.  paths : longest path into each module.
    """
    local = {name.removeprefix("\\"): facts for name, facts in modules.items()}
    sums = _Sums()

    def add(module: str, times: int, component: str) -> None:
        facts = local[module]
        area = float(facts.get("area", 0.0))
        for kind, count in facts["num_cells_by_type"].items():
            if kind in local:
                area -= count * float(local[kind].get("area", 0.0))  # stat counts what is inside, too
                add(kind, times * count, component if kind.startswith("$paramod") else component_of(kind))
            elif kind not in MEMORIES:
                sums.counts[component].update(_counts(kind, registers, times * count))
        if module in memories:
            kind, width, depth, ports = memories[module]
            sums.counts[component][f"{kind}_bits"] += times * width * depth
            sums.memories[component, kind, width, depth, ports] += times
        sums.areas[component] += times * area

    add(top, 1, component_of(top))
    longest: dict[str, float] = {}
    for module, path in paths.items():
        longest[component_of(module)] = max(longest.get(component_of(module), 0.0), path)
    components = (
        Component(
            name=name,
            area=round(sums.areas[name], 3) if with_area else None,
            path=round(longest[name], 1) if name in longest else None,
            **sums.counts[name],
        )
        for name in COMPONENTS
    )
    order = list(COMPONENTS)
    sizes = sorted(sums.memories.items(), key=lambda m: (order.index(m[0][0]), *m[0][1:]))
    return tuple(components), tuple(
        Memory(component=component, kind=kind, width=width, depth=depth, ports=ports, count=count)
        for (component, kind, width, depth, ports), count in sizes
    )


_ECP5 = {
    "LUT4": "luts",
    "MULT18X18D": "dsps",
    "DP16KD": "block_rams",
    "TRELLIS_DPR16X4": "distributed_rams",
    "TRELLIS_FF": "flip_flops",
}


def _counts(kind: str, registers: frozenset[str], count: int) -> dict[str, int]:
    """What cells of one kind count for."""
    found = {"cells": count}
    if kind in _ECP5:
        found[_ECP5[kind]] = count
    elif kind == "CCU2C":
        found["luts"] = 2 * count  # a carry cell takes two
    elif kind in registers or re.match(r"\$_\w*(DFF|DLATCH)", kind):
        found["flip_flops"] = count
    return found
