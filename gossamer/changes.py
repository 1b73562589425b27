"""Changes of one thing in a spec, each with the parts of a run (gossamer.explanation) that it is a remedy for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from math import log2
from typing import Any

from gossamer.arch.errors import GossamerError
from gossamer.arch.spec import ArchSpec

__all__ = ["LARGE", "Change", "changes", "nearest"]

LARGE = 0.05
"""Where the part that a field is the remedy for takes a larger share of all cycles, eight times of it is tried too."""

_SEARCH = 128
"""How far from its target a legal value is looked for, one by one."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A neighbour of a spec.

    parts : what it can reduce; "array" and "bus" are the bounds of layers that these limit, "host" what the host runs.
    whose : "accelerator" for what its designer chooses, "memory" for what is given with the memory it is put to.
    only : it can reduce nothing else.
    reason : why it cannot be made, if it cannot; spec is the given one then.
    """

    text: str
    spec: ArchSpec
    parts: tuple[str, ...]
    whose: str = "accelerator"
    only: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Remedy:
    """A field to double, for `parts`, and `only` these.

    steep : the part that, where it is large, calls for eight times the value.
    along : a field that grows with it, because the smaller of both counts.
    """

    field: str
    parts: tuple[str, ...]
    steep: str = ""
    only: bool = False
    along: str = ""


_REMEDIES = (
    _Remedy(field="axi_bytes", parts=("bus", "traffic", "start", "memory", "waiting", "tail")),
    _Remedy(field="ppu", parts=("ppu", "drain", "start", "tail")),
    _Remedy(field="depth", parts=("lanes", "traffic", "ppu", "start", "memory", "drain", "waiting")),
    _Remedy(
        field="activation_bytes",
        parts=("lanes", "traffic", "start", "memory", "drain", "waiting", "host"),
        steep="host",
    ),
    _Remedy(field="output_bytes", parts=("lanes", "traffic", "start", "drain", "waiting", "tail", "host")),
    _Remedy(
        field="weight_steps", along="offset_steps", parts=("lanes", "traffic", "start", "memory", "waiting", "host")
    ),
    _Remedy(field="queue_depth", parts=("start", "memory", "drain", "waiting", "fetch"), steep="fetch"),
    _Remedy(field="fetch_burst", parts=("fetch",), steep="fetch", only=True),
    _Remedy(field="outstanding_reads", parts=("start", "memory", "waiting"), steep="memory"),
    _Remedy(field="outstanding_writes", parts=("start", "drain", "waiting", "tail"), steep="drain", only=True),
    _Remedy(field="burst_beats", parts=("start", "memory", "drain", "waiting", "tail"), steep="memory"),
    _Remedy(field="macs", parts=("array", "lanes")),
)

_GRID = ("array", "columns", "imbalance", "lanes", "traffic", "ppu", "start", "drain", "host")
"""What the shape of the array may reduce."""

_MEMORY = (
    ("read_latency", 1, ("start", "memory", "drain", "waiting", "fetch", "tail")),
    ("write_latency", 1, ("start", "drain", "waiting", "tail")),
    ("beat_interval", 1, ("bus", "traffic", "start", "memory", "drain", "waiting", "tail")),
    ("burst_gap", 0, ("start", "memory", "drain", "waiting", "tail")),
)
"""The memory's own properties and the best they can be."""


def changes(spec: ArchSpec, shares: Mapping[str, float] | None = None) -> Iterator[Change]:
    """Neighbours of a spec with one thing changed each; where no legal value is near, a change that says so.

    shares : of a run's cycles, by part; where one is large, its remedy is tried in a larger dose, too.
    """
    large = {part for part, share in (shares or {}).items() if share >= LARGE}
    for r in _REMEDIES:
        doses = (2, 8) if r.steep in large else (2,)
        for value in dict.fromkeys(nearest(spec, r.field, dose * getattr(spec, r.field)) for dose in doses):
            if value is None:
                text, why = f"{r.field} {getattr(spec, r.field)}", "no larger value is legal"
                yield Change(text=text, spec=spec, parts=r.parts, reason=why)
            else:
                yield from _changed(spec, {r.field: value} | _along(spec, r, value), r.parts, only=r.only)
    if "fetch" in large:  # a queue that is empty and one that is full hold each other up
        both = {name: nearest(spec, name, 8 * getattr(spec, name)) for name in ("queue_depth", "fetch_burst")}
        yield from _changed(spec, {name: v for name, v in both.items() if v is not None}, ("fetch",), only=True)
    for finer in (True, False):
        yield from _changed(spec, _grid(spec, finer=finer), _GRID)
    yield from _changed(spec, {"group": 2 * spec.group, "hop": 2 * spec.hop}, ("imbalance",))
    if spec.hop > 1:
        yield from _changed(spec, {"hop": spec.hop // 2}, ("imbalance",))
    for name, best, parts in _MEMORY:
        if getattr(spec, name) != best:
            yield from _changed(spec, {name: best}, parts, whose="memory")


def nearest(spec: ArchSpec, field: str, target: int) -> int | None:
    """The legal value above a field's own that is nearest to the target, of equals the smaller; None without one."""
    now = getattr(spec, field)
    meta = next(f.metadata for f in fields(spec) if f.name == field)
    top = int(meta["high"])
    if meta["power_of_two"]:
        found = {1 << k for k in range(top.bit_length())}
    else:
        # Buffers come in rows x partitions: a multiple of what they are, or of a quarter of it, is one again.
        found = {now * k // 4 for k in range(5, 4 * target // now + 5)}
        found |= {min(target, top), *range(max(now, target - _SEARCH), min(top, target + _SEARCH) + 1)}
    for value in sorted((v for v in found if now < v <= top), key=lambda v: (abs(log2(v / target)), v)):
        if _legal(spec, {field: value}):
            return value
    return None


def _along(spec: ArchSpec, remedy: _Remedy, value: int) -> dict[str, int]:
    """The field that grows with a remedy's, where it can and is not larger already."""
    if not remedy.along or getattr(spec, remedy.along) >= value:
        return {}
    other = nearest(spec, remedy.along, value)
    return {} if other is None else {remedy.along: other}


def _grid(spec: ArchSpec, *, finer: bool) -> dict[str, int]:
    """Twice the lanes and half the columns, or the other way round: of legal grids with hardly more PEs the nearest."""
    target = spec.columns / 2 if finer else spec.columns * 2
    best: tuple[float, dict[str, int]] | None = None
    columns = range(1, spec.columns) if finer else range(spec.columns + 1, 129)
    for c in columns:
        lanes = min(128, spec.pes // c)
        if lanes < 1 or (lanes > spec.lanes) != finer or lanes == spec.lanes:
            continue
        # A lost PE weighs more than a grid that is not quite the one looked for.
        far = abs(log2(c / target)) + 4 * log2(spec.pes / (lanes * c))
        if (best is None or far < best[0]) and _legal(spec, {"lanes": lanes, "columns": c}):
            best = far, {"lanes": lanes, "columns": c}
    return best[1] if best else {}


def _changed(spec: ArchSpec, values: dict[str, int], parts: tuple[str, ...], **more: Any) -> Iterator[Change]:
    """The change to these values, if there are any and they are legal."""
    if values and _legal(spec, values):
        yield Change(text=_text(spec, values), spec=spec.evolve(**values), parts=parts, **more)


def _text(spec: ArchSpec, values: dict[str, int]) -> str:
    if "lanes" in values:
        return f"lanes x columns -> {values['lanes']} x {values['columns']}"
    return ", ".join(f"{name} {getattr(spec, name)} -> {value}" for name, value in values.items())


def _legal(spec: ArchSpec, values: dict[str, Any]) -> bool:
    try:
        spec.evolve(**values)
    except GossamerError:
        return False
    return True
