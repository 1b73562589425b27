"""Standard cells as liberty files describe them: area, which cells are registers, and when outputs follow inputs.

Read is what a mapped netlist without placement needs: areas, pin capacitances, and the tables of the nonlinear delay
model (delay and transition over input transition and load). Cells are parsed when they are asked for, since a library
has hundreds and a design uses dozens. Format: Liberty User Guide, volumes 1 and 2.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from gossamer.arch.errors import GossamerError
from gossamer.rtl.tables import Table

__all__ = ["EDGES", "Arc", "Cell", "Library", "Pin"]

EDGES = ("rise", "fall")
"""The two edges of a signal, in the order of every array here."""

_TOKEN = re.compile(r'"[^"]*"|[^\s"(){}:;,\\]+|[(){}:;,]')
_UNITS = {"ns": 1e3, "ps": 1.0, "us": 1e6, "fs": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Arc:
    """How an edge of one pin follows an edge of another.

    source, target : pins.  edges : indices into EDGES at source and target.  delay, transition : in ps, over the
    source's transition in ps and the target's load in the library's unit of capacitance.
    """

    source: str
    target: str
    edges: tuple[int, int]
    delay: Table
    transition: Table


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A pin; capacitance in the library's unit."""

    name: str
    output: bool
    capacitance: float
    function: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell. A register's arcs begin at its clock, and each data pin has a setup time in ps for either edge: tables
    over the data's and the clock's transition.
    """

    name: str
    register: bool
    pins: dict[str, Pin]
    arcs: tuple[Arc, ...]
    setups: dict[str, tuple[tuple[Table, Table], ...]]

    @property
    def is_buffer(self) -> bool:
        """One input, and an output that repeats it."""
        inputs = [p.name for p in self.pins.values() if not p.output]
        outputs = [p.function.strip("() ") for p in self.pins.values() if p.output]
        return not self.register and len(inputs) == 1 and outputs == inputs


@dataclass
class _Group:
    """`kind (names) { attributes, groups }`."""

    kind: str
    names: list[str]
    attributes: dict[str, list[str]] = field(default_factory=dict)
    groups: "list[_Group]" = field(default_factory=list)

    def text(self, name: str, default: str = "") -> str:
        return self.attributes.get(name, [default])[0]

    def of(self, *kinds: str) -> "Iterator[_Group]":
        return (g for g in self.groups if g.kind in kinds)


class Library:
    """The cells of several liberty files together.

    Raises GossamerError when a file cannot be read or is no liberty file, and when no cell is a flip-flop.
    """

    def __init__(self, files: Sequence[str | Path]) -> None:
        self.files = tuple(Path(f).resolve() for f in files)
        self._text: dict[str, str] = {}
        self._home: dict[str, Path] = {}
        self._heads: dict[Path, str] = {}
        for given, path in zip(files, self.files, strict=True):
            self._index(str(given), path)
        self.registers = frozenset(n for n, text in self._text.items() if re.search(r"\bff\s*\(", text))
        if not self.registers:
            raise GossamerError("none of the liberty files has a flip-flop")
        self._cells: dict[str, Cell] = {}

    def _index(self, given: str, path: Path) -> None:
        """Where every cell of a file is."""
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise GossamerError(f"cannot read the liberty file {given!r}: {error.strerror or error}") from error
        if re.search(r"[\s;#\"']", str(path)):
            raise GossamerError(f"the path of a liberty file must have no spaces or quotes: {given!r}")
        starts = [m.start() for m in re.finditer(r"(?<![\w])cell\s*\(", text)]
        if not re.search(r"\blibrary\s*\(", text) or not starts:
            raise GossamerError(f"{given!r} is not a liberty file: it has no library with cells")
        self._heads[path] = text[: starts[0]]
        for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
            name = text[start:stop].split("(", 1)[1].split(")", 1)[0].strip(' "')
            self._text[name], self._home[name] = text[start:stop], path

    @property
    def names(self) -> tuple[str, ...]:
        """All cells."""
        return tuple(self._text)

    def __contains__(self, name: str) -> bool:
        return name in self._text

    @property
    def flip_flop_file(self) -> Path:
        """The first file with a flip-flop."""
        return next(f for f in self.files if any(self._home[name] == f for name in self.registers))

    @cached_property
    def timed(self) -> bool:
        """Whether the files say when outputs follow inputs."""
        return any("timing" in text for text in self._text.values())

    @cached_property
    def buffers(self) -> tuple[Cell, ...]:
        """Cells that repeat their input."""
        maybe = [n for n, text in self._text.items() if len(re.findall(r"\bdirection\s*:", text)) == 2]
        return tuple(cell for cell in map(self.cell, maybe) if cell.is_buffer)

    def cell(self, name: str) -> Cell:
        """A cell by its name. Raises GossamerError when its description cannot be understood."""
        if name not in self._cells:
            try:
                group = _parse(self._text[name])
                self._cells[name] = _cell(group, self._scale(self._home[name]), self._templates(self._home[name]))
            except (ValueError, IndexError, StopIteration) as error:
                raise GossamerError(f"cell {name} of {str(self._home[name])!r} is not as liberty has it") from error
        return self._cells[name]

    def _scale(self, path: Path) -> float:
        """The file's unit of time in ps."""
        found = re.search(r'time_unit\s*:\s*"?\s*([0-9.]+)\s*(ns|ps|us|fs)', self._heads[path])
        return float(found[1]) * _UNITS[found[2]] if found else 1e3

    def _templates(self, path: Path) -> dict[str, _Group]:
        """Templates of tables: tables that have no axes of their own have their template's."""
        head = self._heads[path]
        starts = [m.start() for m in re.finditer(r"\blu_table_template\s*\(", head)]
        groups = [_parse(head[start:]) for start in starts]
        return {g.names[0]: g for g in groups}


def _parse(text: str) -> _Group:
    """The first group of a text; what follows it is left."""
    tokens = _TOKEN.findall(re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL))
    group, _ = _group(tokens, 0)
    return group


def _group(tokens: list[str], at: int) -> tuple[_Group, int]:
    """The group that begins at a token, and where it ends."""
    close = tokens.index(")", at)
    group = _Group(tokens[at], [t.strip('"') for t in tokens[at + 2 : close] if t != ","])
    at = close + 2  # behind the brace
    while tokens[at] != "}":
        name, mark = tokens[at], tokens[at + 1]
        if mark == ":":
            group.attributes[name] = [tokens[at + 2].strip('"')]
            at += 3
        elif mark == "(":
            close = tokens.index(")", at)
            if tokens[close + 1] == "{":
                inner, at = _group(tokens, at)
                group.groups.append(inner)
            else:
                group.attributes[name] = [t.strip('"') for t in tokens[at + 2 : close] if t != ","]
                at = close + 1
        else:
            at += 1  # a semicolon, or one that is too many
    return group, at + 1


def _cell(group: _Group, scale: float, templates: dict[str, _Group]) -> Cell:
    """A cell's pins, arcs and setup times; where nothing is said of time, every output takes one unit."""
    pins, arcs = {}, list[Arc]()
    setups: dict[str, tuple[tuple[Table, Table], ...]] = {}
    timed = any(True for g in group.of("pin") for _ in g.of("timing"))
    for g in group.of("pin"):
        pin = pins[g.names[0]] = Pin(
            name=g.names[0],
            output=g.text("direction") == "output",
            capacitance=float(g.text("capacitance", "0")),
            function=g.text("function"),
        )
        for timing in g.of("timing"):
            kind = timing.text("timing_type", "combinational")
            if pin.output and kind in ("combinational", "rising_edge", "falling_edge"):
                arcs += _arcs(timing, kind, pin.name, scale, templates)
            elif kind in ("setup_rising", "setup_falling"):
                rise, fall = (_table(timing, f"{edge}_constraint", scale, templates) for edge in EDGES)
                setups[pin.name] = (*setups.get(pin.name, ()), (rise, fall))
    clocks = [c for f in group.of("ff") for c in re.findall(r"\w+", f.text("clocked_on"))]
    if not timed:
        unit, inputs = Table.constant(0.0 if clocks else 1.0), [p for p in pins if not pins[p].output]
        nothing = Table.constant(0.0)
        arcs = [
            Arc(source=source, target=target, edges=(edge, edge), delay=unit, transition=nothing)
            for target in pins
            if pins[target].output
            for source in (clocks or inputs)
            for edge in (0, 1)
        ]
        setups = {p: ((nothing, nothing),) for p in inputs if clocks and p not in clocks}
    return Cell(name=group.names[0], register=bool(clocks), pins=pins, arcs=tuple(_merged(arcs)), setups=setups)


def _arcs(timing: _Group, kind: str, target: str, scale: float, templates: dict[str, _Group]) -> Iterator[Arc]:
    """The arcs of a timing group: for each edge of the output, the edges of the input that cause it."""
    sense = timing.text("timing_sense", "non_unate")
    for out, edge in enumerate(EDGES):
        if not any(True for _ in timing.of(f"cell_{edge}")):
            continue
        causes = {"positive_unate": (out,), "negative_unate": (1 - out,)}.get(sense, (0, 1))
        if kind != "combinational":
            causes = (0,) if kind == "rising_edge" else (1,)
        delay = _table(timing, f"cell_{edge}", scale, templates)
        transition = _table(timing, f"{edge}_transition", scale, templates)
        for source in timing.text("related_pin").split():
            for cause in causes:
                yield Arc(source=source, target=target, edges=(cause, out), delay=delay, transition=transition)


def _merged(arcs: Iterable[Arc]) -> Iterator[Arc]:
    """Arcs that differ in their condition only, as one with the larger values."""
    found: dict[tuple[object, ...], list[Arc]] = {}
    for arc in arcs:
        axes = (*arc.delay.first, *arc.delay.second, *arc.transition.first, *arc.transition.second)
        found.setdefault((arc.source, arc.target, arc.edges, axes), []).append(arc)
    for same in found.values():
        delay, transition = (
            Table(tables[0].first, tables[0].second, np.max([t.values for t in tables], axis=0))
            for tables in ([a.delay for a in same], [a.transition for a in same])
        )
        yield replace(same[0], delay=delay, transition=transition)


_SECOND = ("total_output_net_capacitance", "related_pin_transition")
"""What a table is over in its second axis: the load of a delay, the clock's transition of a setup time."""


def _table(timing: _Group, name: str, scale: float, templates: dict[str, _Group]) -> Table:
    """A table of a timing group, in ps and over ps; 0 where there is none."""
    group = next(timing.of(name), None)
    if group is None:
        return Table.constant(0.0)
    template = templates.get(group.names[0] if group.names else "", _Group("", []))
    axes = {False: np.zeros(1), True: np.zeros(1)}
    for k in (1, 2):
        if variable := template.text(f"variable_{k}"):
            unit = 1.0 if "capacitance" in variable else scale
            axes[variable in _SECOND] = (
                np.array(_numbers(group.text(f"index_{k}") or template.text(f"index_{k}"))) * unit
            )
    values = np.array([v for row in group.attributes["values"] for v in _numbers(row)]) * scale
    if template.text("variable_1") in _SECOND:
        values = values.reshape(len(axes[True]), len(axes[False])).T
    else:
        values = values.reshape(len(axes[False]), len(axes[True]))
    for axis in (0, 1):  # constant along an axis that is not there
        if len(axes[bool(axis)]) == 1:
            axes[bool(axis)] = axes[bool(axis)] + np.array([0.0, 1.0])
            values = np.repeat(values, 2, axis=axis)
    return Table(axes[False], axes[True], values)


def _numbers(text: str) -> list[float]:
    return [float(t) for t in text.replace(",", " ").split()]
