"""Hardware cost: what Yosys makes of a spec, as standard cells, generic gates or ECP5 resources, by component.

The design keeps its hierarchy: every kind of module is synthesised once and counted as often as it is there. That
costs some optimisation across modules (a PE on the edge of the array is as large as any other) and makes the share of
each component well defined. Memories are reported apart, by their bits; only ECP5 maps them, as block RAMs and
distributed RAMs.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gossamer.arch.errors import GossamerError
from gossamer.arch.spec import ArchSpec

__all__ = ["COMPONENTS", "TARGETS", "Component", "Synthesis", "component_of", "synthesise"]

TARGETS = ("generic", "ecp5", "cells")

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
_MEMORIES = {"gossamer_ram": "ram_bits", "gossamer_regfile": "regfile_bits"}
_PE = "gossamer_pe"
_SELECT = "select"

_SCRIPT = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for command in sys.stdin.read().splitlines():
    libyosys.run_pass(command, design)
"""


@dataclass(frozen=True, kw_only=True)
class Component:
    """What a part of the accelerator takes. `cells` are cells of the target's library, memories left out.

    area : in the unit of the liberty files (None without any).  ram_bits, regfile_bits : of memories with and without
    a register at the output.  luts (LUT4), dsps (MULT18X18D), block_rams (DP16KD), distributed_rams (TRELLIS_DPR16X4):
    ECP5 only.
    """

    name: str
    cells: int
    flip_flops: int
    area: float | None = None
    luts: int = 0
    dsps: int = 0
    block_rams: int = 0
    distributed_rams: int = 0
    ram_bits: int = 0
    regfile_bits: int = 0


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """The hardware cost of a spec. `multipliers` : $mul cells of the array before they are mapped."""

    spec: str
    target: str
    macs: int
    multipliers: int
    components: tuple[Component, ...]

    @cached_property
    def total(self) -> Component:
        """The sum of all components."""
        return _sum("total", self.components)

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
        return {**asdict(self), "components": rows, "total": asdict(self.total)}

    def lines(self) -> list[str]:
        """A table for people."""
        columns = ["cells", "flip_flops", "ram_bits", "regfile_bits"]
        if self.target == "ecp5":
            columns = ["luts", "flip_flops", "dsps", "block_rams", "distributed_rams"]
        if self.target == "cells":
            columns.insert(0, "area")
        heads = "".join(f"{name.replace('_', ' '):>17}" for name in columns)
        found = [f"{self.spec}: {self.macs} MACs, {self.target}", f"{'component':<28}{heads}{'share':>8}"]
        for part in (*self.components, self.total):
            values = "".join(f"{getattr(part, name):>17,.{1 if name == 'area' else 0}f}" for name in columns)
            found.append(f"{part.name:<28}{values}{self.share(part):>8.1%}")
        return found


def component_of(module: str) -> str:
    """The component that a module belongs to.

    >>> component_of("gossamer_load.expander"), component_of("gossamer_load_queue.queue"), component_of("gossamer_core")
    ('expander', 'FETCH and queues', 'control')
    """
    for component, pattern in _PATTERNS:
        if pattern.match(module):
            return component
    raise AssertionError(f"module {module} belongs to no component")


def synthesise(
    spec: ArchSpec, target: str | None = None, liberty: Sequence[str | Path] = (), *, timeout: float = 3600
) -> Synthesis:
    """Synthesise a spec.

    target : one of TARGETS; cells with liberty files and generic without.  timeout : in seconds.
    Raises GossamerError when a file or a tool is missing, or the time is over.
    """
    target = target or ("cells" if liberty else "generic")
    if target not in TARGETS:
        raise GossamerError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
    if (target == "cells") != bool(liberty):
        raise GossamerError("target cells needs liberty files, and liberty files go with target cells only")
    files = [_Liberty.read(Path(name)) for name in liberty]
    for module in ("amaranth", "pyosys"):
        if find_spec(module) is None:
            raise GossamerError(f"synthesis needs the Python package {module}; install gossamer[rtl]")
    from gossamer.rtl.verilog import primitives, rtlil

    text = rtlil(spec)
    with tempfile.TemporaryDirectory(prefix="gossamer-") as folder:
        place = Path(folder)
        (place / "design.il").write_text(text, encoding="utf-8")
        (place / "memories.v").write_text(primitives(), encoding="utf-8")
        _yosys(_commands(spec, target, files), place, timeout)
        before = json.loads((place / "before.json").read_text(encoding="utf-8"))["modules"]
        after = json.loads((place / "after.json").read_text(encoding="utf-8"))["modules"]
    sequential = frozenset().union(*(f.sequential for f in files))
    return Synthesis(
        spec=spec.name,
        target=target,
        macs=spec.peak_macs,
        multipliers=spec.pes * before[f"\\{_PE}"]["num_cells_by_type"].get("$mul", 0),
        components=_components(after, _memories(text), target, sequential),
    )


@dataclass(frozen=True, kw_only=True)
class _Liberty:
    path: Path
    sequential: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> "_Liberty":
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise GossamerError(f"cannot read the liberty file {str(path)!r}: {error.strerror or error}") from error
        if any(c in str(path) for c in " \t\n;#\"'"):
            raise GossamerError(f"the path of a liberty file must have no spaces or quotes: {str(path)!r}")
        cells = re.split(r"\bcell\s*\(", text)[1:]
        if not re.search(r"\blibrary\s*\(", text) or not cells:
            raise GossamerError(f"{str(path)!r} is not a liberty file: it has no library with cells")
        found = [cell for cell in cells if re.search(r"\b(ff|latch)\s*\(", cell)]
        return cls(path=path.resolve(), sequential=frozenset(c.partition(")")[0].strip(' "') for c in found))


def _commands(spec: ArchSpec, target: str, files: Sequence[_Liberty]) -> list[str]:
    """What Yosys does."""
    commands = ["read_rtlil design.il"]
    commands.append("read_verilog memories.v" if target == "ecp5" else "read_verilog -lib memories.v")
    commands += ["hierarchy -check -top gossamer", "proc", "opt_clean"]
    if spec.select_bits:  # the multiplexers in front of the multipliers become a module of their own
        picked = f"{_PE}/w:operand_0" + "".join(f" {_PE}/w:operand_{v} %u" for v in range(1, spec.macs))
        commands += [f'setattr -set submod "{_SELECT}" {picked} %ci* {_PE}/t:* %i', f"submod {_PE}"]
    commands.append("tee -q -o before.json stat -json")
    if target == "ecp5":
        return [*commands, "synth_ecp5 -noflatten -top gossamer", "tee -q -o after.json stat -json"]
    commands.append("synth -booth -top gossamer")
    every = "".join(f" -liberty {f.path}" for f in files)
    if target == "cells":
        flops = [f for f in files if f.sequential]
        if not flops:
            raise GossamerError("none of the liberty files has a flip-flop")
        commands += [f"dfflibmap -liberty {flops[0].path}", f"abc{every}", "opt_clean"]
    return [*commands, f"tee -q -o after.json stat -json{every}"]


def _yosys(commands: Iterable[str], folder: Path, timeout: float) -> None:
    """Yosys in a process of its own: an abort is only its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            input="\n".join(commands),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise GossamerError(
            f"synthesis took more than {timeout:g} s; a larger limit or a smaller spec helps"
        ) from error
    if done.returncode or not (folder / "after.json").is_file():
        raise GossamerError(f"Yosys failed (exit code {done.returncode}): {(done.stdout + done.stderr)[-1500:]}")


def _memories(text: str) -> dict[str, tuple[str, int]]:
    """Modules that hold a memory instance: (field of Component, bits)."""
    found: dict[str, tuple[str, int]] = {}
    for module in re.split(r"^module \\", text, flags=re.MULTILINE)[1:]:
        name = module.split(maxsplit=1)[0]
        for cell in re.finditer(
            r"^  cell \\(gossamer_ram|gossamer_regfile) .*?^  end", module, re.MULTILINE | re.DOTALL
        ):
            sizes = dict(re.findall(r"parameter (?:signed )?\\(\w+) (?:32'|)(\w+)", cell[0]))
            width, depth = (_integer(sizes[key]) for key in ("WIDTH", "DEPTH"))
            assert name not in found, f"{name} holds two memories"
            found[name] = _MEMORIES[cell[1]], width * depth
    return found


def _integer(text: str) -> int:
    """A number of RTLIL: decimal, or 32 binary digits."""
    return int(text, 2) if len(text) == 32 else int(text)


def _components(
    modules: dict[str, Any], memories: dict[str, tuple[str, int]], target: str, sequential: frozenset[str]
) -> tuple[Component, ...]:
    """Sum what each module itself has, as often as it is there, by component."""
    local = {name.removeprefix("\\"): facts for name, facts in modules.items()}
    sums: dict[str, Counter[str]] = {name: Counter() for name in COMPONENTS}
    areas = dict.fromkeys(COMPONENTS, 0.0)

    def add(module: str, times: int, component: str) -> None:
        facts = local[module]
        area = float(facts.get("area", 0.0))
        for kind, count in facts["num_cells_by_type"].items():
            if kind in local:
                area -= count * float(local[kind].get("area", 0.0))  # stat counts what is inside, too
                inherits = kind.startswith("$paramod")
                add(kind, times * count, component if inherits else component_of(kind))
            elif kind not in _MEMORIES:
                sums[component].update(_counts(kind, target, sequential, times * count))
        if module in memories:
            field, bits = memories[module]
            sums[component][field] += times * bits
        areas[component] += times * area

    add("gossamer", 1, component_of("gossamer"))
    return tuple(
        Component(
            name=name,
            area=round(areas[name], 3) if target == "cells" else None,
            **{"cells": 0, "flip_flops": 0, **sums[name]},
        )
        for name in COMPONENTS
    )


_ECP5 = {"LUT4": "luts", "MULT18X18D": "dsps", "DP16KD": "block_rams", "TRELLIS_DPR16X4": "distributed_rams"}


def _counts(kind: str, target: str, sequential: frozenset[str], count: int) -> dict[str, int]:
    """What cells of one kind count for."""
    found = {"cells": count}
    if target == "ecp5":
        if kind in _ECP5:
            found[_ECP5[kind]] = count
        elif kind == "CCU2C":
            found["luts"] = 2 * count  # a carry cell takes two
    if kind in sequential or kind == "TRELLIS_FF" or re.match(r"\$_\w*(DFF|DLATCH)", kind):
        found["flip_flops"] = count
    return found


def _sum(name: str, parts: Sequence[Component]) -> Component:
    areas = [part.area for part in parts if part.area is not None]
    names = [f for f in Component.__dataclass_fields__ if f not in ("name", "area")]
    counts = {f: sum(getattr(part, f) for part in parts) for f in names}
    return Component(name=name, area=round(sum(areas), 3) if areas else None, **counts)
