"""Synthesis: what Yosys makes of a spec, as standard cells, generic gates or ECP5 resources.

The design keeps its hierarchy: every kind of module is synthesised once and counted as often as it is there. That
costs some optimisation across modules (a PE on the edge of the array is as large as any other) and makes the share of
each component well defined. Memories are black boxes, reported by their sizes; only ECP5 maps them, as block RAMs and
distributed RAMs.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gossamer.arch.errors import GossamerError
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.cost import MEMORIES, Cost, Route, tally
from gossamer.rtl.liberty import Library
from gossamer.rtl.place import Nextpnr
from gossamer.rtl.sta import Path as TimedPath
from gossamer.rtl.sta import longest_paths
from gossamer.rtl.verilog import TOP, primitives, rtlil

__all__ = ["TARGETS", "synthesise"]

TARGETS = ("generic", "ecp5", "cells")

_PE = "gossamer_pe"
_SELECT = "select"

_MAP = "strash;&get,-n;&st;&dch,-f;&nf;&put"
"""Mapping by ABC that keeps the depth of adders: its usual `dc2` turns them into ripples."""

_SIZE = "buffer,-c;topo;upsize,-c;dnsize,-c"
"""Buffers, and drive strengths by load; needs timing in the liberty files."""

_SCRIPT = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for command in sys.stdin.read().splitlines():
    libyosys.run_pass(command, design)
"""


def synthesise(
    spec: ArchSpec,
    target: str | None = None,
    liberty: Sequence[str | Path] = (),
    *,
    place: bool = False,
    timeout: float = 3600,
) -> Cost:
    """Synthesise a spec.

    target : one of TARGETS; cells with liberty files and generic without.  place : with ecp5, place and route too.
    timeout : of a tool, in seconds.
    Raises GossamerError when a file or a tool is missing, or the time is over.
    """
    target = target or ("cells" if liberty else "generic")
    if target not in TARGETS:
        raise GossamerError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
    if (target == "cells") != bool(liberty):
        raise GossamerError("target cells needs liberty files, and liberty files go with target cells only")
    if place and target != "ecp5":
        raise GossamerError(f"only target ecp5 can be placed and routed, not {target}")
    nextpnr = Nextpnr.find() if place else None
    library = Library(liberty) if liberty else None
    for module in ("amaranth", "pyosys"):
        if find_spec(module) is None:
            raise GossamerError(f"synthesis needs the Python package {module}; install gossamer[rtl]")
    text = rtlil(spec)
    with tempfile.TemporaryDirectory(prefix="gossamer-") as name:
        folder = Path(name)
        (folder / "design.il").write_text(text, encoding="utf-8")
        (folder / "memories.v").write_text(primitives(), encoding="utf-8")
        _yosys(_commands(spec, target, library, place), folder, timeout)
        before, after = (_modules(folder / f"{state}.json") for state in ("before", "after"))
        paths = longest_paths(_modules(folder / "netlist.json"), TOP, library, MEMORIES) if library else {}
        placement = nextpnr.run(folder / "flat.json", timeout) if nextpnr else None
    components, memories = tally(
        after,
        _memories(text),
        library.registers if library else frozenset(),
        {module: path.delay for module, path in paths.items()},
        top=TOP,
        with_area=target == "cells",
    )
    return Cost(
        spec=spec.name,
        target=target,
        macs=spec.peak_macs,
        multipliers=spec.pes * before[f"\\{_PE}"]["num_cells_by_type"].get("$mul", 0),
        components=components,
        memories=memories,
        route=_route(paths.values(), library.timed) if library else None,
        placement=placement,
    )


def _commands(spec: ArchSpec, target: str, library: Library | None, place: bool) -> list[str]:
    """What Yosys does."""
    commands = ["read_rtlil design.il"]
    commands.append("read_verilog memories.v" if target == "ecp5" else "read_verilog -lib memories.v")
    commands += [f"hierarchy -check -top {TOP}", "proc", "opt_clean"]
    if spec.select_bits:  # the multiplexers in front of the multipliers become a module of their own
        picked = f"{_PE}/w:operand_0" + "".join(f" {_PE}/w:operand_{v} %u" for v in range(1, spec.macs))
        commands += [f'setattr -set submod "{_SELECT}" {picked} %ci* {_PE}/t:* %i', f"submod {_PE}"]
    commands.append("tee -q -o before.json stat -json")
    if target == "ecp5":
        commands += [f"synth_ecp5 -noflatten -top {TOP}", "tee -q -o after.json stat -json"]
        return [*commands, "flatten", "opt_clean -purge", "write_json flat.json"] if place else commands
    if library is None:
        return [*commands, f"synth -booth -top {TOP}", "tee -q -o after.json stat -json"]
    every = "".join(f" -liberty {f}" for f in library.files)
    script = f"{_MAP};{_SIZE}" if library.timed else _MAP
    return [
        *commands,
        f"synth -booth -noabc -top {TOP}",
        f"dfflibmap -liberty {library.flip_flop_file}",
        f"abc{every} -script +{script}",
        "opt_clean",
        f"tee -q -o after.json stat -json{every}",
        "write_json netlist.json",
    ]


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


def _modules(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["modules"]
    return found


def _memories(text: str) -> dict[str, tuple[str, int, int, int]]:
    """Modules of a design in RTLIL that hold a memory: its kind, width, depth and read ports."""
    found: dict[str, tuple[str, int, int, int]] = {}
    for module in re.split(r"^module \\", text, flags=re.MULTILINE)[1:]:
        name = module.split(maxsplit=1)[0]
        kinds = "|".join(MEMORIES)
        for cell in re.finditer(rf"^  cell \\({kinds}) .*?^  end", module, re.MULTILINE | re.DOTALL):
            sizes = dict(re.findall(r"parameter (?:signed )?\\(\w+) (?:32'|)(\w+)", cell[0]))
            width, depth, ports = (_integer(sizes.get(key, "1")) for key in ("WIDTH", "DEPTH", "PORTS"))
            assert name not in found, f"{name} holds two memories"
            found[name] = MEMORIES[cell[1]], width, depth, ports
    return found


def _integer(text: str) -> int:
    """A number of RTLIL: decimal, or 32 binary digits."""
    return int(text, 2) if len(text) == 32 else int(text)


def _route(paths: Iterable[TimedPath], timed: bool) -> Route:
    """The longest path in few words."""
    path = max(paths, key=lambda p: p.delay)
    named = [f"{s.module.removeprefix(f'{TOP}_')}.{s.net}" for s in path.steps if s.net]
    named.append(path.end.removeprefix(f"{TOP}_"))
    return Route(delay=round(path.delay, 1), timed=timed, cells=len(path.steps), through=tuple(dict.fromkeys(named)))
