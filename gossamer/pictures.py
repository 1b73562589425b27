"""Pictures of a run: units over time, and what each layer's cycles were spent on.

The file's suffix chooses the format (png, svg, pdf, ...). matplotlib is the optional extra `plot`; without it a call
raises GossamerError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import GossamerError
from gossamer.arch.isa import SEMAPHORES, Unit
from gossamer.arch.run import EVENT_FIELDS, Run, StageRun
from gossamer.drawing import HATCH, PARTS, figure, frame, save, short
from gossamer.explanation import INSIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_path", "explanation", "layers", "overview", "timeline"]

Cycles = NDArray[np.int64]

_START, _FIRST, _LAST, _FREE, _END = (
    EVENT_FIELDS.index(name) for name in ("start", "first_beat", "last_beat", "free", "end")
)

_MOST_BARS = 1500
"""A stage with more instructions is drawn as shares of time instead of one bar an instruction."""
_BINS = 900
"""Columns of such a picture."""

_LAYER_COLOURS = ("#3b6fb6", "#c8702a", "#3f8f5a", "#8a5aa8", "#b8455a", "#2f8f9d", "#8a7a2f", "#6b6f7b")
_NO_LAYER = "#9a9da3"
_STALLS = {
    Unit.FETCH: ("an instruction", "#e4e4e4", ""),
    Unit.LOAD: ("LOAD", "#cfe1f5", "////"),
    Unit.MATMUL: ("MATMUL", "#f9e0c7", "\\\\\\\\"),
    Unit.DRAIN: ("DRAIN", "#d5ecd9", "...."),
    Unit.STORE: ("STORE", "#ecdcf3", "xxxx"),
}
_SPENT = (
    ("array works", "#3f5068"),
    ("array waits, bus moves data", "#e0a458"),
    ("both wait", "#d4d6da"),
)
_ROWS = (
    ("LOAD", Unit.LOAD, 5.35, 0.8),
    ("read bus", Unit.LOAD, 4.75, 0.45),
    ("MATMUL", Unit.MATMUL, 3.6, 0.8),
    ("DRAIN", Unit.DRAIN, 2.45, 0.8),
    ("STORE", Unit.STORE, 1.3, 0.8),
    ("write bus", Unit.STORE, 0.7, 0.45),
)
"""Rows of a timeline from the top: name, unit, bottom and height."""
_STRIP = (6.45, 0.5)
"""Bottom and height of the strip with the names of the layers."""
_BOUNDARY: dict[str, Any] = {"color": "#333333", "linewidth": 0.8, "linestyle": (0, (4, 3))}
"""The line between two stages."""
_STRIP_LETTERS = 125
"""Letters that fit on its whole width."""


def check_path(path: str | Path) -> None:
    """Raise GossamerError when matplotlib is missing or the suffix is not one it can write."""
    known = figure(1.0, 1.0).canvas.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in known:
        raise GossamerError(f"a picture's name must end in one of {', '.join(sorted(known))}, not {Path(path).name!r}")


def timeline(run: Run, path: str | Path, *, stage: str | None = None) -> None:
    """Draw the units of a run over time, bars coloured by layer and stalls shaded by cause.

    stage : name of one accelerator stage; None draws all of them, one after the other.

    A LOAD brought ahead has the colour of the layer behind which it hides. Long stages are drawn as shares of time.
    Raises GossamerError when matplotlib is missing, the suffix is unknown or there is no such stage.
    """
    check_path(path)
    _check_stage(run, stage)
    drawn = figure(12.0, 4.8)
    _draw_timeline(drawn.add_subplot(), run, stage)
    save(drawn, path)


def layers(run: Run, path: str | Path) -> None:
    """Draw each layer's cycles against its lower bound, and what the array did with them.

    A layer's cycles are those it added: from the end of the last result of the layers before it to the end of its own.
    They can be less than its bound, when its LOADs were brought ahead. Raises GossamerError when matplotlib is missing,
    the suffix is unknown or the Program tells nothing of its layers.
    """
    check_path(path)
    spans = _spans(run)
    if not spans:
        raise GossamerError(f"Program {run.program.name!r} has no notes on its layers, so there is nothing to draw")
    drawn = figure(12.0, 0.3 + _layers_height(len(spans)))
    drawn.suptitle(_title(run, run.cycles), x=0.01, ha="left", fontsize=11)
    _draw_layers(drawn.add_subplot(), run, spans)
    save(drawn, path)


def overview(run: Run, path: str | Path) -> None:
    """Draw `timeline` and, where the Program has notes on its layers, `layers` below it. Raises as they do."""
    check_path(path)
    _check_stage(run, None)
    spans = _spans(run)
    below = _layers_height(len(spans)) if spans else 0.0
    drawn = figure(12.0, 4.8 + below)
    if not spans:
        _draw_timeline(drawn.add_subplot(), run, None)
    else:
        top, bottom = drawn.subplots(2, 1, height_ratios=[4.8, below])
        _draw_timeline(top, run, None)
        _draw_layers(bottom, run, spans)
    save(drawn, path)


def explanation(facts: dict[str, Any], path: str | Path) -> None:
    """Draw each layer's cycles as its bound and the parts beyond it. facts : of gossamer.explanation.explain.

    Raises GossamerError when matplotlib is missing or the suffix is unknown.
    """
    check_path(path)
    found = facts["layers"]
    # What hides in other layers' time, and a tail shorter than the one before, come off the bound's bar.
    names = [n for n in facts["parts"] if n not in INSIDE and n != "hidden"]
    parts = np.array([[max(0.0, layer["parts"][n]) for n in names] for layer in found])
    left = np.array([layer["cycles"] for layer in found]) - parts.sum(axis=1)
    drawn, y = figure(12.0, 0.3 + _layers_height(len(found))), np.arange(len(found))
    cycles = f"{facts['cycles']:,} cycles" + (f", {facts['ratio']:.3f} × bound" if facts["ratio"] else "")
    drawn.suptitle(f"{facts['program']} on {facts['spec']}: {cycles}", x=0.01, ha="left", fontsize=11)
    axes = drawn.add_subplot()
    axes.barh(y, left, height=0.66, color=_SPENT[0][1], label="bound", linewidth=0)
    for k, name in enumerate(names):
        if parts[:, k].any():
            colour, hatch = PARTS[name]
            axes.barh(
                y, parts[:, k], left=left, height=0.66, facecolor=colour, hatch=hatch, edgecolor="#6b6f7b", label=name,
                linewidth=0,
            )  # fmt: skip
            left = left + parts[:, k]
    for k, layer in enumerate(found):
        ratio = f", {layer['cycles'] / layer['bound']:.2f} × bound" if layer["bound"] else ""
        axes.annotate(
            f"{layer['cycles']:,}{ratio}", (left[k], k), (5, 0), textcoords="offset points", va="center", fontsize=8,
            color="#333333",
        )  # fmt: skip
    frame(axes, 1.16 * float(left.max()))
    axes.set_yticks(y, [short(layer["name"], 36) for layer in found], fontsize=9)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel("cycles that the layer added, and what they went to", fontsize=9)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=9, fontsize=8, frameon=False, borderaxespad=0.2,
        handlelength=1.4,
    )  # fmt: skip
    save(drawn, path)


# ---------------------------------------------------------------------------------------------------------------
# What there is to draw
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bars:
    """Intervals begin <= t < end that do not overlap, each with a label; int64 [count]."""

    begin: Cycles
    end: Cycles
    label: Cycles

    @classmethod
    def make(cls, begin: Cycles, end: Cycles, label: Cycles) -> _Bars:
        """Bars without the empty ones."""
        keep = end > begin
        return cls(begin=begin[keep], end=end[keep], label=label[keep])

    def moved(self, cycles: int) -> _Bars:
        """The same, later."""
        return _Bars(begin=self.begin + cycles, end=self.end + cycles, label=self.label)

    @staticmethod
    def join(parts: list[_Bars]) -> _Bars:
        """All bars of all parts."""
        return _Bars(
            begin=np.concatenate([p.begin for p in parts]),
            end=np.concatenate([p.end for p in parts]),
            label=np.concatenate([p.label for p in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Cycles that a layer added, counted through all stages.

    array : the array works;  bus : it does not, and data moves on a bus.
    """

    note: int
    begin: int
    end: int
    array: int
    bus: int

    @property
    def cycles(self) -> int:
        return self.end - self.begin


def _stages(run: Run) -> Iterator[tuple[StageRun, int, int]]:
    """Every stage with its first cycle on a common time line and its first instruction."""
    first = {s.name: s.first for s in run.program.accelerator_stages}
    at = 0
    for stage in run.stages:
        yield stage, at, first[stage.name]
        at += stage.cycles


def _stalls(waits: Cycles, events: Cycles, unit: Unit) -> _Bars:
    """Cycles in which a unit is free and its next instruction does not start, labelled by the unit it waits for.

    waits : from gossamer.arch.layers.stalls.
    """
    rows = np.flatnonzero(events[:, 0] == unit)
    upto = events[rows, _START, None] - waits[rows].sum(axis=1, keepdims=True) + np.cumsum(waits[rows], axis=1)
    posters = np.array([Unit.FETCH, *(s.poster for s in SEMAPHORES)], dtype=np.int64)
    return _Bars.make((upto - waits[rows]).reshape(-1), upto.reshape(-1), np.tile(posters, rows.size))


def _work(events: Cycles, unit: Unit, layer: Cycles, *, bus: bool) -> _Bars:
    """When a unit takes work (start to free), or when its data is on the bus; labelled by layer."""
    rows = np.flatnonzero(events[:, 0] == unit)
    columns = (_FIRST, _LAST) if bus else (_START, _FREE)
    begin, end = (events[rows, c] for c in columns)
    return _Bars.make(begin, end + 1 if bus else end, layer[rows])


def _layer_of(run: Run, first: int, count: int) -> Cycles:
    """Index of the layer note of each of a stage's instructions, -1 for none."""
    layer = np.full(count, -1, dtype=np.int64)
    for k, note in enumerate(run.program.layers):
        layer[max(0, note.first - first) : max(0, note.first + note.count - first)] = k
    return layer


def _covered(bars: _Bars, edges: Cycles) -> NDArray[np.float64]:
    """Cycles that bars cover between neighbouring edges."""
    inside = np.zeros(edges.size, dtype=np.float64)
    for points, sign in ((bars.begin, 1.0), (bars.end, -1.0)):
        ordered = np.sort(points)
        sums = np.concatenate([[0], np.cumsum(ordered)])
        below = np.searchsorted(ordered, edges)
        inside += sign * (below * edges - sums[below])
    return np.diff(inside)


def _union(parts: list[_Bars]) -> _Bars:
    """Bars that cover what any of the parts covers."""
    bars = _Bars.join(parts)
    order = np.argsort(bars.begin, kind="stable")
    begin, reach = bars.begin[order], np.maximum.accumulate(bars.end[order])
    if not begin.size:
        return bars
    fresh = np.concatenate([[True], begin[1:] > reach[:-1]])
    last = np.concatenate([np.flatnonzero(fresh)[1:] - 1, [begin.size - 1]])
    return _Bars(begin=begin[fresh], end=reach[last], label=np.zeros(last.size, dtype=np.int64))


def _spans(run: Run) -> list[_Span]:
    """The layers that do more than LOAD, in program order, each with the cycles that it added.

    LOADs do not make a layer longer: those that stand among its instructions may have been brought ahead for the next.
    """
    spans: list[_Span] = []
    for stage, at, first in _stages(run):
        events = stage.events
        layer = _layer_of(run, first, len(events))
        ends = np.where(np.isin(events[:, 0], (Unit.FETCH, Unit.LOAD)), 0, events[:, _END])
        found = [(k, int(ends[layer == k].max())) for k in np.unique(layer[(layer >= 0) & (ends > 0)]).tolist()]
        edges = np.maximum.accumulate(np.array([0, *(end for _, end in found)], dtype=np.int64))
        array = _work(events, Unit.MATMUL, layer, bus=False)
        either = _union([array, *(_work(events, u, layer, bus=True) for u in (Unit.LOAD, Unit.STORE))])
        works, moves = _covered(array, edges), _covered(either, edges)
        for i, (k, _) in enumerate(found):
            begin, end = (at + int(edge) for edge in edges[i : i + 2])
            spans.append(_Span(note=k, begin=begin, end=end, array=round(works[i]), bus=round(moves[i] - works[i])))
    return spans


def _check_stage(run: Run, stage: str | None) -> None:
    names = [s.name for s in run.stages]
    if not names:
        raise GossamerError(f"Program {run.program.name!r} has no accelerator stage, so there is nothing to draw")
    if stage is not None and stage not in names:
        raise GossamerError(f"stage must be one of {', '.join(names)}, not {stage!r}")


# ---------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------


def _layer_colour(layer: int) -> str:
    return _LAYER_COLOURS[layer % len(_LAYER_COLOURS)] if layer >= 0 else _NO_LAYER


def _stall_colour(unit: int) -> str:
    return _STALLS[Unit(unit)][1]


def _title(run: Run, cycles: int, stage: str = "") -> str:
    spec = run.program.spec
    time = f"{cycles:,} cycles, {cycles / spec.clock_mhz:,.1f} µs at {spec.clock_mhz:,} MHz"
    return f"{run.program.name} on {spec.name}{stage}: {time}"


def _draw_timeline(axes: Axes, run: Run, only: str | None) -> None:
    from gossamer.arch.layers import stalls

    stages = {s.name: s for s in run.program.accelerator_stages}
    chosen = [(s, at, first) for s, at, first in _stages(run) if only in (None, s.name)]
    begin = chosen[0][1]
    cycles = sum(s.cycles for s, _, _ in chosen)
    busy: dict[str, list[_Bars]] = {name: [] for name, *_ in _ROWS}
    stalled: dict[str, list[_Bars]] = {name: [] for name, *_ in _ROWS}
    count = 0
    for stage, at, first in chosen:
        waits = stalls(run.program, stages[stage.name], stage)
        layer = _layer_of(run, first, len(stage.events))
        count += len(stage.events)
        for name, unit, *_ in _ROWS:
            bus = name.endswith("bus")
            busy[name].append(_work(stage.events, unit, layer, bus=bus).moved(at - begin))
            if not bus:
                stalled[name].append(_stalls(waits, stage.events, unit).moved(at - begin))
    single = count <= _MOST_BARS
    draw = _draw_bars if single else _draw_shares
    ticks = []
    for name, _, low, height in _ROWS:
        bars = _Bars.join(busy[name])
        share = (bars.end - bars.begin).sum() / cycles
        ticks.append((low + height / 2, f"{name}  {share:4.0%}"))
        draw(axes, bars, _Bars.join(stalled[name]) if stalled[name] else None, low, height, cycles)
    _draw_strip(axes, run, [s for s in _spans(run) if begin <= s.begin < begin + cycles], begin, cycles)
    for _, at, _ in chosen[1:]:
        axes.axvline(at - begin, **_BOUNDARY)
    frame(axes, cycles)
    axes.set_ylim(0.55, 7.05)
    axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks], fontsize=9)
    columns = "" if single else f" (each column shows the shares of {max(1, cycles // _BINS):,} cycles)"
    axes.set_xlabel(f"cycles{columns}", fontsize=9)
    axes.set_title(_title(run, cycles, f", stage {only}" if only else ""), loc="left", fontsize=11)
    seen = {int(c) for parts in stalled.values() for p in parts for c in np.unique(p.label)}
    _stall_legend(axes, [Unit(c) for c in sorted(seen)], hatched=single, stages=_boundary(run, len(chosen)))


def _draw_bars(axes: Axes, work: _Bars, stalls: _Bars | None, low: float, height: float, cycles: int) -> None:
    """One bar for every instruction and every stall."""
    if stalls is not None:
        for unit, (_, colour, hatch) in _STALLS.items():
            mine = stalls.label == unit
            widths = np.stack([stalls.begin[mine], (stalls.end - stalls.begin)[mine]], axis=1)
            axes.broken_barh(
                widths.tolist(), (low, height), facecolor=colour, edgecolor=HATCH, hatch=hatch, linewidth=0
            )
    wide = (work.end - work.begin) * 900 > 4 * cycles  # a gap between bars only where it does not hide them
    for gap in (False, True):
        mine = wide == gap
        widths = np.stack([work.begin[mine], (work.end - work.begin)[mine]], axis=1)
        colours = [_layer_colour(k) for k in work.label[mine].tolist()]
        axes.broken_barh(
            widths.tolist(), (low, height), facecolors=colours, edgecolor="white", linewidth=0.4 if gap else 0
        )


def _draw_shares(axes: Axes, work: _Bars, stalls: _Bars | None, low: float, height: float, cycles: int) -> None:
    """Columns of equal width: from the bottom, the share of each layer's work, then of each cause of stalls."""
    edges = np.unique(np.linspace(0, cycles, _BINS + 1).astype(np.int64))
    floor = np.full(edges.size - 1, low)
    kinds: list[tuple[_Bars | None, Callable[[int], str]]] = [(work, _layer_colour), (stalls, _stall_colour)]
    for bars, colour in kinds:
        if bars is None:
            continue
        for label in np.unique(bars.label).tolist():
            mine = bars.label == label
            part = _Bars(begin=bars.begin[mine], end=bars.end[mine], label=bars.label[mine])
            top = floor + height * _covered(part, edges) / np.diff(edges)
            used = np.flatnonzero(top > floor)
            a, b = used[0], used[-1] + 1
            lower, upper = (np.append(line[a:b], line[b - 1]) for line in (floor, top))
            axes.fill_between(edges[a : b + 1], lower, upper, step="post", color=colour(label), linewidth=0)
            floor = top


def _draw_strip(axes: Axes, run: Run, spans: list[_Span], begin: int, cycles: int) -> None:
    """The layers along the top, with their names where there is room."""
    low, height = _STRIP
    for span in spans:
        if not span.cycles:
            continue
        axes.broken_barh(
            [(span.begin - begin, span.cycles)], (low, height),
            facecolor=_layer_colour(span.note), edgecolor="white", linewidth=0.6,
        )  # fmt: skip
        name = run.program.layers[span.note].name
        room = int(span.cycles / cycles * _STRIP_LETTERS)
        if room >= min(5, len(name)):
            text = short(name, room)
            at = span.begin - begin + span.cycles / 2
            axes.text(at, low + height / 2, text, color="white", fontsize=8, ha="center", va="center", clip_on=True)


def _boundary(run: Run, stages: int) -> str:
    """What the line between stages means, if there is one: mostly that the host runs there, in no time."""
    return "" if stages < 2 else "the host runs" if run.program.host_stages else "next stage"


def _stall_legend(axes: Axes, units: list[Unit], *, hatched: bool, stages: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if stages:
        line = Line2D([], [], label=stages, **_BOUNDARY)
        legend = axes.legend(handles=[line], fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        axes.add_artist(legend)
    patches = [
        Patch(facecolor=colour, edgecolor=HATCH, hatch=hatch if hatched else "", linewidth=0, label=name)
        for name, colour, hatch in (_STALLS[u] for u in units)
    ]
    if patches:
        axes.legend(
            handles=patches, title="waits for", title_fontsize=8, fontsize=8, loc="center left",
            bbox_to_anchor=(1.0, 0.5), frameon=False, handleheight=1.4,
        )  # fmt: skip


def _layers_height(count: int) -> float:
    """Inches for so many layers."""
    return 1.2 + 0.3 * count


def _draw_layers(axes: Axes, run: Run, spans: list[_Span]) -> None:
    notes, spec = run.program.layers, run.program.spec
    y = np.arange(len(spans))
    parts = np.array([[s.array, s.bus, s.cycles - s.array - s.bus] for s in spans])
    left = np.zeros(len(spans))
    for (label, colour), part in zip(_SPENT, parts.T, strict=True):
        axes.barh(y, part, left=left, height=0.66, color=colour, label=label, linewidth=0)
        left = left + part
    bounds = np.array([notes[s.note].bound(spec) for s in spans])
    known = bounds > 0
    if known.any():
        axes.vlines(bounds[known], y[known] - 0.42, y[known] + 0.42, color="black", linewidth=1.6, label="lower bound")
    for k, span in enumerate(spans):
        ratio = f", {span.cycles / bounds[k]:.2f} × bound" if known[k] else ""
        end = max(span.cycles, bounds[k])
        axes.annotate(
            f"{span.cycles:,}{ratio}", (end, k), (5, 0), textcoords="offset points", va="center", fontsize=8,
            color="#333333",
        )  # fmt: skip
    frame(axes, 1.16 * max(left.max(), bounds.max()))
    names = [notes[s.note] for s in spans]
    axes.set_yticks(y, [short(n.name, 36) + (f"  ({n.pattern})" if n.pattern else "") for n in names], fontsize=9)
    axes.set_ylim(len(spans) - 0.4, -0.6)
    axes.set_xlabel("cycles that the layer added: from the last result of the layers before it to its own", fontsize=9)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, fontsize=8, frameon=False, borderaxespad=0.2,
        handlelength=1.4,
    )  # fmt: skip
