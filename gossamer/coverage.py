"""Coverage of the generated hardware: lines and toggles as Verilator counts them, and what programs asked for.

The second is a cross. Every instruction that ran counts for one bin of it: operation x encoding x edge x back-pressure
x bank.

    operation       LOAD by memory, MATMUL by mode and accumulate, DRAIN by epilogue and destination, STORE
    encoding        of the steps that a LOAD brings or a MATMUL uses
    edge            whether some lanes, positions or columns of the tile are left out
    back-pressure   whether it waited for a semaphore, and whether the memory held back
    bank            of accumulators
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.isa import Encoding, LoadKind, MatmulMode, Op
from gossamer.arch.run import EVENT_FIELDS, Run
from gossamer.arch.spec import ArchSpec

if TYPE_CHECKING:
    from gossamer.campaign import Case, Tally
    from gossamer.rtl.coverage import ModuleCoverage
    from gossamer.rtl.model import Memory
    from gossamer.verification import Verification

__all__ = ["Bin", "Coverage", "Cross", "legal_bins", "measure"]

PRESSURES = ("none", "semaphore", "memory", "both")
_SEMAPHORES = (1 << len(isa.SEMAPHORES)) - 1


class Bin(NamedTuple):
    """One combination; a dash where a dimension has no meaning for the operation."""

    operation: str
    encoding: str
    edge: str
    pressure: str
    bank: str


def legal_bins(spec: ArchSpec) -> Iterator[Bin]:
    """Every combination that a program for this spec can reach."""
    from gossamer.arch.stream import legal_encodings, operand_encodings

    edges, banks, none = ("whole", "edge"), ("0", "1"), ("-",)
    encodings = tuple(e.name for e in (*legal_encodings(spec), *operand_encodings(spec)))
    rows: list[tuple[tuple[str, ...], ...]] = []
    for kind in LoadKind:
        if kind is LoadKind.TABLE and not spec.tables:
            continue
        tiles = kind in (LoadKind.ACTIVATION, LoadKind.OUTPUT)
        coded = encodings if kind is LoadKind.WEIGHT else none
        rows.append(((f"LOAD {kind.name.lower()}",), coded, edges if tiles else none, none))
    sums = tuple(f"MATMUL {mode.name.lower()}{more}" for mode in MatmulMode for more in ("", ", accumulate"))
    rows.append((sums, encodings, edges if spec.depth > 1 else ("whole",), banks))
    epilogues = ["", ", raw", ", residual"]
    if spec.tables:
        epilogues += [", table", ", residual, table"]
    drains = tuple(f"DRAIN to {place}{e}" for place in ("output", "activation") for e in epilogues)
    rows.append((drains, none, edges if spec.column_groups > 1 else ("whole",), banks))
    rows.append((("STORE",), none, edges, none))
    for operations, coded, tiles_, bank in rows:
        yield from (Bin(*b) for b in product(operations, coded, tiles_, PRESSURES, bank))


class Cross:
    """Counts of bins for one spec. `add` takes runs, `holes` names the legal bins that were never reached."""

    def __init__(self, spec: ArchSpec) -> None:
        self.spec = spec
        self.counts: Counter[Bin] = Counter(dict.fromkeys(legal_bins(spec), 0))

    def __call__(self, case: Case, found: Verification, memory: Memory | None) -> None:
        """As campaign.tally calls it after every comparison."""
        self.add(found.hardware, memory is not None)

    def add(self, run: Run, held_back: bool) -> None:
        """Count every instruction of a run. held_back : the memory was outside of the contract."""
        from gossamer.arch.stream import record_bytes

        spec = self.spec
        coded = np.full(spec.weight_steps, -1)  # the encoding that a row of the weight buffer came in
        waited = EVENT_FIELDS.index("waited")
        for stage, done in zip(run.program.accelerator_stages, run.stages, strict=True):
            matrix = run.program.instructions[stage.first : stage.first + stage.count]
            for row, event in zip(matrix, done.events, strict=True):
                op = Op(int(row[0]))
                if op is Op.END:
                    continue
                f = _fields(op, row)
                pressure = PRESSURES[bool(event[waited] & _SEMAPHORES) + 2 * held_back]
                if op is Op.LOAD and f["kind"] == LoadKind.WEIGHT:
                    beats = f["beats"] * f["rows"] * f["blocks"]
                    steps = beats * spec.axi_bytes // record_bytes(spec, Encoding(f["encoding"]))
                    coded[f["dest"] : f["dest"] + steps] = f["encoding"]
                    self.counts[Bin("LOAD weight", Encoding(f["encoding"]).name, "-", pressure, "-")] += 1
                elif op is Op.LOAD:
                    kind = LoadKind(f["kind"])
                    tiles = kind in (LoadKind.ACTIVATION, LoadKind.OUTPUT)
                    edge = _edge(_some_lane_has_less(f, spec.lanes)) if tiles else "-"
                    self.counts[Bin(f"LOAD {kind.name.lower()}", "-", edge, pressure, "-")] += 1
                elif op is Op.MATMUL:
                    mode = MatmulMode(f["mode"]).name.lower() + (", accumulate" if f["accumulate"] else "")
                    edge = _edge(f["nx"] * f["ny"] < spec.depth)
                    used = np.unique(coded[f["weight_base"] : f["weight_base"] + f["steps"]])
                    for e in used[used >= 0].tolist():
                        self.counts[Bin(f"MATMUL {mode}", Encoding(e).name, edge, pressure, str(f["bank"]))] += 1
                elif op is Op.DRAIN:
                    edge = _edge(f["column_groups"] < spec.column_groups)
                    self.counts[Bin(_drain(f), "-", edge, pressure, str(f["bank"]))] += 1
                else:
                    edge = _edge(bool(f["beats"] % f["tile_beats"] or f["rows"] % f["tile_rows"]))
                    self.counts[Bin("STORE", "-", edge, pressure, "-")] += 1

    def holes(self) -> list[Bin]:
        """Legal bins without a count."""
        return [b for b, count in self.counts.items() if count == 0]

    def facts(self) -> dict[str, Any]:
        """As JSON has it: every bin with its count, and the holes."""
        return {
            "spec": self.spec.name,
            "bins": [{**b._asdict(), "count": count} for b, count in self.counts.items()],
            "reached": sum(count > 0 for count in self.counts.values()),
            "of": len(self.counts),
            "holes": [", ".join(b) for b in self.holes()],
        }


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What was run, what of the hardware it reached, and which kinds of work it was."""

    tally: Tally
    modules: tuple[ModuleCoverage, ...]
    cross: Cross

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "run": self.tally.facts(),
            "modules": [asdict(module) for module in self.modules],
            "cross": self.cross.facts(),
        }


def measure(
    spec: ArchSpec, count: int, seed: int = 1, progress: Callable[[str, int, int], object] | None = None
) -> Coverage:
    """Run `count` random programs, by the memory contract and with a memory that holds back, and count.

    Raises GossamerError when a tool is missing.
    """
    from gossamer.campaign import random_cases, tally
    from gossamer.rtl.coverage import read_coverage

    cross = Cross(spec)
    with tempfile.TemporaryDirectory(prefix="gossamer-") as folder:
        file = Path(folder) / "coverage.dat"
        done = tally(
            spec,
            f"example, {count} random",
            random_cases(spec, count, seed),
            stalls=True,
            seed=seed,
            coverage=file,
            progress=progress,
            seen=cross,
        )
        return Coverage(tally=done, modules=tuple(read_coverage(file)), cross=cross)


def _fields(op: Op, row: NDArray[np.int64]) -> dict[str, int]:
    return {f.name: int(row[isa.column(op, f.name)]) for f in isa.FORMATS[op]}


def _edge(cut: bool) -> str:
    return "edge" if cut else "whole"


def _some_lane_has_less(f: dict[str, int], lanes: int) -> bool:
    """Whether a LOAD's region ends before the tile of its last lanes does."""
    width = 1 << f["grid"]
    across, down = min(width, lanes), (lanes - 1) // width
    least_beats = (across - 1) * f["step_beats"] + f["tile_beats"]
    return f["beats"] < least_beats or f["rows"] < down * f["step_rows"] + f["tile_rows"]


def _drain(f: dict[str, int]) -> str:
    name = f"DRAIN to {'activation' if f['to_activation'] else 'output'}"
    if f["raw"]:
        return f"{name}, raw"
    return name + (", residual" if f["residual"] else "") + (", table" if f["table_enable"] else "")
