"""Line and toggle coverage as Verilator counts it, merged over the instances of each module."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gossamer.arch.errors import GossamerError

__all__ = ["ModuleCoverage", "read_coverage"]

_POINT = re.compile(r"^C '(.*)' (\d+)$")


@dataclass(frozen=True, kw_only=True)
class ModuleCoverage:
    """What of a module was reached, in any of its instances.

    lines, toggles : (reached, of how many);  a toggle is one direction of one bit.
    missing : what was not reached, as `line 12 (if)` and `signal[3]:0->1`.
    """

    module: str
    lines: tuple[int, int]
    toggles: tuple[int, int]
    missing: tuple[str, ...]


def read_coverage(path: Path) -> list[ModuleCoverage]:
    """A file that Model(coverage=...) wrote, module by module. Raises GossamerError when it is none."""
    counts: dict[str, dict[tuple[str, str], int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        found = _POINT.match(line)
        if found:
            fields = dict(pair.split("\2", 1) for pair in found[1].split("\1") if pair)
            kind, _, module = fields["page"].partition("/")
            what = "toggles" if kind == "v_toggle" else "lines"
            name = fields["o"] if what == "toggles" else f"line {fields['l']}.{fields['n']} ({fields['o']})"
            # Versions of a module with other parameters (a memory's width) are one module.
            points = counts.setdefault(module.partition("__")[0], {})
            points[what, name] = points.get((what, name), 0) + int(found[2])
    if not counts:
        raise GossamerError(f"{str(path)!r} holds no coverage")
    return [_module(name, points) for name, points in sorted(counts.items())]


def _module(name: str, points: Mapping[tuple[str, str], int]) -> ModuleCoverage:
    def share(what: str) -> tuple[int, int]:
        mine = [count for (kind, _), count in points.items() if kind == what]
        return sum(count > 0 for count in mine), len(mine)

    missing = tuple(point for (_, point), count in points.items() if count == 0)
    return ModuleCoverage(module=name, lines=share("lines"), toggles=share("toggles"), missing=missing)
