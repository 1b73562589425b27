"""What the command line shows to people: tables on stdout, progress on stderr."""

import os
import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich import progress as rich_progress
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Progress", "show", "show_coverage", "show_presets", "show_verification"]

HOLES = 20
"""Bins without a count that are printed."""

IDLE_LAYERS = 8
"""Layers with idle MACs that are printed."""

PATIENCE_SECONDS = 1.0
"""Work that takes longer than this shows its progress."""

LINE_SECONDS = 10.0
"""Where there is no bar, a line tells how far counted work is, so often at most."""


class Progress:
    """A bar on stderr for work that takes longer than a second. Called as progress(stage, done, total), 0 if unknown.

    Where stderr is not a terminal there is no bar, but one line when numba has to compile, the wait that surprises, and
    one now and then while counted work goes on.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = rich_progress.Progress(
            rich_progress.SpinnerColumn(),
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("{task.fields[count]}"),
            rich_progress.TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, count="")
        self._timer = threading.Timer(PATIENCE_SECONDS, self._bar.start)
        self._timer.daemon = True
        self._wanted = console.is_terminal
        self._compiling = threading.Event()
        self._said = time.monotonic()

    def _compiles(self) -> None:
        """Numba begins to compile a function. Once for all of them: each takes a second or less."""
        if self._compiling.is_set():
            return
        self._compiling.set()
        if self._wanted:
            self._bar.update(self._task, description="compiling the simulator for this machine, once")
        else:
            print("Compiling the simulator for this machine, once; this takes up to half a minute.", file=sys.stderr)

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        count = f"{done} of {total}" if total else ""
        self._bar.update(self._task, description=stage, completed=done, total=total or None, count=count)
        if total and not self._wanted and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            print(f"{stage} ({count} done)", file=sys.stderr)

    def __enter__(self) -> Self:
        from numba.core import event  # not for those who only import this module

        notice = self._compiles

        class Notice(event.Listener):
            def on_start(self, event: object) -> None:
                notice()

            def on_end(self, event: object) -> None:
                pass

        self._kind, self._listener = "numba:compile", Notice()
        event.register(self._kind, self._listener)  # type: ignore[no-untyped-call]
        if self._wanted:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from numba.core import event

        event.unregister(self._kind, self._listener)  # type: ignore[no-untyped-call]
        if self._wanted:
            self._timer.cancel()
            self._timer.join()  # it may be starting the bar just now
            self._bar.stop()


def show(facts: dict[str, Any]) -> None:
    """Print the facts of gossamer.inspection as tables."""
    {
        "spec": _show_spec,
        "model": _show_model,
        "program": _show_program,
        "run": _show_run,
        "explanation": _show_explanation,
    }[facts["kind"]](facts)


def show_presets(rows: list[dict[str, Any]]) -> None:
    """Print the presets, one line each."""
    _table(
        ("preset", "lanes x\ncolumns", "group", "macs", "MACs/\ncycle", "buffers\nKiB", "purpose"),
        (
            (
                r["name"],
                f"{r['lanes']} x {r['columns']}",
                r["group"],
                r["macs"],
                r["peak_macs"],
                round(r["buffer_bytes"] / 1024),
                r["purpose"],
            )
            for r in rows
        ),
    )


def show_verification(rows: list[dict[str, Any]]) -> None:
    """Print what gossamer.campaign compared, a line for every spec, and what differed."""
    numbers = ("programs", "cycles", "events", "bytes", "mismatches")
    _table(
        ("spec", "run", *numbers, "build s", "run s"),
        (
            (r["spec"], r["what"], *(r[n] for n in numbers), f"{r['build_seconds']:.1f}", f"{r['seconds']:.1f}")
            for r in rows
        ),
    )
    for r in rows:
        if r["classes"]:
            same = all(found == r["classes"]["simulator"] for found in r["classes"].values())
            lines = ", ".join(f"{name} {' '.join(map(str, found))}" for name, found in r["classes"].items())
            _line(f"classes on {r['spec']} {'are equal' if same else 'differ'}: {lines}")
    for r in rows:
        if r["difference"]:
            _line(f"{r['spec']} differs: {r['difference']}")
    if not any(r["difference"] for r in rows):
        _line("simulator and hardware agree on every event, every counter and every byte")


def show_coverage(facts: dict[str, Any]) -> None:
    """Print what gossamer.coverage measured: modules, the cross by operation, and the first holes."""
    show_verification([facts["run"]])

    def share(counts: tuple[int, int]) -> str:
        return f"{counts[0]:,} of {counts[1]:,} ({counts[0] / counts[1]:.1%})" if counts[1] else ""

    modules = facts["modules"]
    total = {kind: tuple(sum(m[kind][k] for m in modules) for k in (0, 1)) for kind in ("lines", "toggles")}
    rows = [(m["module"], share(m["lines"]), share(m["toggles"])) for m in modules]
    _table(("module", "lines", "toggles"), [*rows, ("all", share(total["lines"]), share(total["toggles"]))])
    cross = facts["cross"]
    operations: dict[str, list[int]] = {}
    for entry in cross["bins"]:
        operations.setdefault(entry["operation"], []).append(entry["count"])
    _table(
        ("operation", "instructions", "bins reached", "of"),
        ((name, sum(counts), sum(c > 0 for c in counts), len(counts)) for name, counts in operations.items()),
    )
    _line(f"{cross['reached']} of {cross['of']} bins of operation x encoding x edge x back-pressure x bank reached")
    for hole in cross["holes"][:HOLES]:
        _line(f"never: {hole}")
    if len(cross["holes"]) > HOLES:
        _line(f"and {len(cross['holes']) - HOLES} more (--output writes all)")


def _show_spec(facts: dict[str, Any]) -> None:
    from gossamer.arch.spec import json_schema

    sections = json_schema()["properties"]
    spec, derived = facts["spec"], facts["derived"]
    _line(f"spec {spec['name']}" + (f": {spec['purpose']}" if spec["purpose"] else ""))
    _table(
        ("field", "value", "meaning (unit)"),
        (
            (f"{section}.{name}", value, sections[section]["properties"][name]["description"])
            for section, values in spec.items()
            if isinstance(values, dict)
            for name, value in values.items()
        ),
    )
    _line(
        f"{derived['pes']:,} PEs, {derived['peak_macs']:,} MACs per cycle, "
        f"{derived['peak_gmacs_per_second']:,.1f} GMAC/s at {spec['physical']['clock_mhz']:,} MHz"
    )
    sizes = {name: f"{size / 1024:,.1f}" for name, size in derived["buffer_bytes"].items()}
    _table(("on-chip memory", "KiB"), sizes.items())


def _show_model(facts: dict[str, Any]) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts["opsets"].items())
    _line(f"model {facts['name']}, opset {opsets}")
    _show_borders(facts)
    _line("operators: " + ", ".join(f"{count} {name}" for name, count in facts["operators"].items()))
    _table(
        ("weight", "dtype", "shape", "nonzeros", "of", "share"),
        (
            (
                w["name"],
                w["dtype"],
                _shape(w["shape"]),
                w["nonzeros"],
                w["size"],
                f"{w['nonzeros'] / max(1, w['size']):.1%}",
            )
            for w in facts["weights"]
        ),
    )


def _show_program(facts: dict[str, Any]) -> None:
    _line(f"program {facts['name']} for spec {facts['spec']}")
    _show_borders(facts)
    counts = dict(facts["instructions"])
    total = counts.pop("total")
    _line(f"{total:,} instructions: " + ", ".join(f"{n:,} {name}" for name, n in counts.items() if n))
    _line(f"DRAM {facts['dram_bytes'] / 1024:,.1f} KiB, {facts['image_bytes'] / 1024:,.1f} KiB of it loaded at start")
    _show_host(stage for stage in facts["stages"] if stage["on"] == "host")
    if facts["layers"]:
        _table(
            ("layer", "kind", "pattern", "MACs", "of nonzeros", "bound cycles", "mapping"),
            (
                (
                    n["name"],
                    n["kind"],
                    n["pattern"],
                    n["macs"],
                    n["useful_macs"],
                    round(n["bound_cycles"]),
                    n["mapping"],
                )
                for n in facts["layers"]
            ),
        )


def _show_run(facts: dict[str, Any]) -> None:
    time = f"{facts['cycles']:,} cycles, {facts['seconds'] * 1e6:,.1f} µs"
    _line(f"program {facts['program']} on spec {facts['spec']}: {time}")
    if facts["utilisation"] is not None:
        _line(f"{facts['utilisation']:.1%} of all MAC slots did useful work")
    if facts["outputs"]:
        _table(("output", "dtype", "shape"), ((o["name"], o["dtype"], _shape(o["shape"])) for o in facts["outputs"]))
    if facts["layers"]:
        _line(f"lower bound, every operand moved once and no lane idle: {round(facts['bound_cycles']):,} cycles")
        _table(
            ("layer", "pattern", "cycles", "array", "bound", "ratio", "useful MACs", "the array waited for"),
            (
                (
                    n["name"],
                    n["pattern"],
                    n["cycles"],
                    n["busy"]["matmul"],
                    round(n["bound"]),
                    f"{n['ratio']:.2f}",
                    f"{n['utilisation']:.0%}",
                    _causes(n["stalls"].get("matmul", {})),
                )
                for n in facts["layers"]
            ),
        )
    total = max(facts["cycles"], 1)
    _table(
        ("unit", "busy", "share", "waited for"),
        ((u["unit"], u["busy"], f"{u['busy'] / total:.0%}", _causes(u["stalls"])) for u in facts["units"]),
    )
    for host in facts["host"]:
        _line(f"on the host, its time not counted: {host['name']}: {host['reason']}")
    for event in facts.get("events", ()):
        print(f"{event['stage']}\t{event['start']}\t{event['end']}\t{event['unit']}\t{event['instruction']}")


def _show_explanation(facts: dict[str, Any]) -> None:
    from gossamer.explanation import MEANING

    ratio = f"ratio {facts['ratio']:.3f}"
    cycles, bound = f"{facts['cycles']:,} cycles", f"sum of the layers' bounds {round(facts['bound']):,}"
    _line(f"program {facts['program']} on spec {facts['spec']}: {cycles}, {bound}, {ratio}")
    _show_host(facts["host"])
    if facts["host"]:
        shares = [stage["mac_share"] for stage in facts["host"]]
        share = "an unknown share" if None in shares else f"{sum(shares):.1%}"
        _line(f"the host has {share} of all MACs; cycles and bounds are of the rest")
    _table(
        ("layer", "pattern", "cycles", "bound", "ratio", "MACs", "limit", "beyond the bound", "inside it"),
        (
            (
                n["name"],
                n["pattern"],
                n["cycles"],
                round(n["bound"]),
                f"{n['cycles'] / n['bound']:.2f}" if n["bound"] else "",
                f"{n['utilisation']:.0%}",
                n["limit"],
                _largest(n["parts"], inside=False),
                _largest(n["parts"], inside=True),
            )
            for n in facts["layers"]
        ),
    )
    _table(
        ("part", "cycles", "of the bound", "what it is"),
        (
            (name, round(value), f"{value / max(facts['bound'], 1):.1%}", MEANING[name])
            for name, value in facts["parts"].items()
            if round(value)
        ),
    )
    _show_idle(facts)
    _show_trials(facts)


def _show_trials(facts: dict[str, Any]) -> None:
    """Changes that were tried: first those whose cycles compare, then those that move layers to or from the host."""
    tried = [t for t in facts["trials"] if not t["reason"].startswith("not tried")]
    if not facts["trials"]:
        return
    _table(
        ("one change", "of", "cycles", "speed-up", "MACs", "buffers"),
        (
            (t["change"], t["whose"], t["cycles"] if t["cycles"] is not None else "does not fit", *_costs(t))
            for t in tried
            if t["same_work"] and t["cycles"] != facts["cycles"]
        ),
    )
    if alike := [t["change"] for t in tried if t["same_work"] and t["cycles"] == facts["cycles"]]:
        _line(f"these change no cycle: {'; '.join(alike)}")
    moved = [t for t in tried if not t["same_work"]]
    if moved:
        _line("these run other layers on the array, so their cycles do not compare:")
        _table(
            ("one change", "layers", "MACs on the array", "cycles", "MACs", "buffers"),
            ((t["change"], _moved(t), f"x {t['work']:.3g}", t["cycles"], *_costs(t)[1:]) for t in moved),
        )
    left = [t for t in facts["trials"] if t not in tried]
    for reason in dict.fromkeys(t["reason"] for t in left):
        _line(f"{reason}: {'; '.join(t['change'] for t in left if t['reason'] == reason)}")
    helps = f"{facts['best']} helps most" if facts["best"] else "no single change of these helps"
    _line(f"{len(tried)} were compiled and simulated; of changes to accelerator or weights, {helps}")


def _costs(trial: dict[str, Any]) -> tuple[str, str, str]:
    """What a change brings, and what it takes."""
    return f"{trial['speedup']:.3f}", f"x {trial['macs']:.2f}", f"x {trial['buffer_bytes']:.2f}"


def _moved(trial: dict[str, Any]) -> str:
    """How many layers a change moves to or from the host."""
    words = [(len(trial["from_host"]), "+", "from"), (len(trial["to_host"]), "-", "to")]
    return ", ".join(f"{sign}{n} layer{'s' * (n > 1)} {way} the host" for n, sign, way in words if n)


def _largest(parts: dict[str, float], *, inside: bool) -> str:
    """The parts inside or beyond the bound, the largest first, without what rounds to nothing."""
    from gossamer.explanation import INSIDE

    mine = {n: round(v) for n, v in parts.items() if (n in INSIDE) == inside}
    return ", ".join(f"{n} {v:,}" for n, v in sorted(mine.items(), key=lambda item: -abs(item[1])) if v)


def _show_idle(facts: dict[str, Any]) -> None:
    """How busy the MACs are, and the layers that leave most of them idle, whatever their ratio is."""
    from gossamer.explanation import IDLE

    cycles = max(facts["cycles"], 1)
    shares = {name: value / cycles for name, value in facts["macs"].items() if name in IDLE}
    reasons = ", ".join(f"{IDLE[name]} {share:.1%}" for name, share in shares.items() if abs(share) >= 0.001)
    _line(f"{facts['utilisation']:.1%} of all cycles x lanes x columns x macs were products; idle: {reasons}")
    idle = sorted((n for n in facts["layers"] if n["idle"]), key=lambda n: -n["cycles"])
    if idle:
        _table(
            ("layer with idle MACs", "cycles", "MACs", "idle, as a share of its cycles"),
            ((n["name"], n["cycles"], f"{n['utilisation']:.2%}", n["idle"]) for n in idle[:IDLE_LAYERS]),
        )
    if len(idle) > IDLE_LAYERS:
        _line(f"and {len(idle) - IDLE_LAYERS} more with less cycles (--json has all)")


def _show_host(stages: Iterable[dict[str, Any]]) -> None:
    """What runs on the host, why, and how much of the network that is."""
    for stage in stages:
        known = stage["mac_share"] is not None
        share = f"{stage['mac_share']:.1%} of all MACs" if known else "an unknown share of all MACs"
        _line(f"on the host: {stage['name']} ({', '.join(stage['operators'])}), {share}: {stage['reason']}")


def _causes(stalls: dict[str, int]) -> str:
    """Stalls by cause, the longest first: the unit at the other end of a semaphore, or the instruction fetch."""
    longest = sorted(stalls.items(), key=lambda item: -item[1])
    return ", ".join(f"{cause.split('_to_')[0]} {cycles:,}" for cause, cycles in longest)


def _show_borders(facts: dict[str, Any]) -> None:
    """Inputs and outputs of a model or a Program."""
    _table(
        ("", "name", "dtype", "shape"),
        (
            (kind.removesuffix("s"), v["name"], v["dtype"], _shape(v["shape"]))
            for kind in ("inputs", "outputs")
            for v in facts[kind]
        ),
    )


def _shape(shape: Iterable[object]) -> str:
    return " x ".join(str(n) for n in shape) or "scalar"


def _console() -> Console:
    """stdout; a pipe has no width of its own, so lines are not folded for it."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200
    return console


def _line(text: str) -> None:
    _console().print(Text(text), soft_wrap=True)


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Numbers to the right with thousands separated, text to the left and folded where the terminal is narrow."""
    cells = [list(row) for row in rows]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        number = all(isinstance(row[i], int) for row in cells)
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in cells:
        table.add_row(*(Text(_cell(cell)) for cell in row))
    _console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as TOML has it
    return f"{value:,}" if isinstance(value, int) else str(value)
