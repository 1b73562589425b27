"""Where the cycles of a run went beyond its bound: disjoint parts of every layer, which sum to the whole.

Two steps. First a staircase of bounds, each of which knows one thing more than the one before:

    ideal      nonzero weights at full rate, or every byte that must move once, whichever takes longest
    columns    + columns without a channel          imbalance  + slots of a step that have no nonzero
    metadata   + selects and padding of records     (this is the bound that reports give)
               A column without a channel and a slot without a nonzero take room in a record, too: that is theirs.
    lanes      + lanes without a position           traffic    + what is loaded and stored beyond that: padding
    ppu        + cycles the PPUs need                            channels, halos, operands read again, offsets

What is left, the time from the highest of these to what the layer took, is time in which the array stood still, by
what it waited for:

    start      before its first MATMUL: loads that could not be brought ahead, the layer before draining
    memory     for data on the bus                  waiting    for a LOAD that itself had to wait
    drain      for accumulators that the PPUs or a full output buffer still held
    fetch      for an instruction
    tail       drain and store after its last MATMUL, less what the layer before took
    hidden     (never above 0) loads that hide in the time of layers before
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.access import (
    D_G,
    D_NX,
    D_NY,
    L_ADDR,
    L_BEATS,
    L_BLOCKS,
    L_DEST,
    L_ENC,
    L_KIND,
    L_ROWS,
    M_NX,
    M_NY,
    M_STEPS,
    M_W,
    S_BEATS,
    S_BLOCKS,
    S_ROWS,
    Accesses,
    Space,
    accesses,
    offset_ranges,
)
from gossamer.arch.errors import GossamerError
from gossamer.arch.isa import Encoding, LoadKind, Op, Unit
from gossamer.arch.layers import CAUSES, stalls
from gossamer.arch.program import AcceleratorStage, LayerNote, Program
from gossamer.arch.run import EVENT_FIELDS, Run, StageRun
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import record_bytes
from gossamer.sim.occupancy import Occupancy, occupancy

__all__ = ["Breakdown", "LayerParts", "Parts", "break_down"]

Cycles = NDArray[np.int64]

_START, _FREE, _END = (EVENT_FIELDS.index(name) for name in ("start", "free", "end"))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Cycles beyond the ideal, by reason; see the module. The first three are inside the bound that reports give."""

    columns: float = 0.0
    imbalance: float = 0.0
    metadata: float = 0.0
    lanes: float = 0.0
    traffic: float = 0.0
    ppu: float = 0.0
    start: float = 0.0
    memory: float = 0.0
    drain: float = 0.0
    waiting: float = 0.0
    fetch: float = 0.0
    tail: float = 0.0
    hidden: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """Parts by name, in order."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def inside(self) -> float:
        """Cycles from the ideal to the bound."""
        return self.columns + self.imbalance + self.metadata

    @property
    def beyond(self) -> dict[str, float]:
        """The parts from the bound to the cycles: they sum to cycles - bound."""
        return {n: v for n, v in self.to_dict().items() if n not in ("columns", "imbalance", "metadata")}


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """One layer: cycles = bound + parts.beyond = ideal + all parts.

    cycles : from the last end of the layers before to its own, as in gossamer.arch.layers.
    limit : what its bound is made of: "array", "read" or "write".
    macs : what the array's MACs did in these cycles.
    """

    name: str
    kind: str
    pattern: str
    mapping: str
    cycles: int
    bound: float
    ideal: float
    limit: str
    parts: Parts
    macs: Occupancy


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """All layers of a run. cycles : of the run;  end : cycles behind the end of each stage's last layer."""

    program: str
    spec: str
    cycles: int
    end: int
    layers: tuple[LayerParts, ...]

    @property
    def bound(self) -> float:
        """Sum of the layers' own bounds."""
        return sum(layer.bound for layer in self.layers)

    @property
    def ideal(self) -> float:
        """Sum of the layers' ideals."""
        return sum(layer.ideal for layer in self.layers)

    @property
    def total(self) -> Parts:
        """The parts of all layers."""
        names = [f.name for f in fields(Parts)]
        return Parts(**{n: sum(getattr(layer.parts, n) for layer in self.layers) for n in names})

    @property
    def macs(self) -> Occupancy:
        """What the MACs did in all cycles."""
        return sum((layer.macs for layer in self.layers), Occupancy(still=float(self.end)))


def break_down(run: Run) -> Breakdown:
    """Break down a run of a Program that has notes on its layers (compiled ones have).

    Raises GossamerError when it has none.
    """
    program = run.program
    if not program.layers and program.stages and not program.accelerator_stages:
        raise GossamerError(f"Program {program.name!r} runs on the host alone: {_host_reasons(program)}")
    if not program.layers:
        raise GossamerError(f"Program {program.name!r} has no notes on its layers, so there is nothing to explain")
    layers: list[LayerParts] = []
    end = 0
    for stage, done in zip(program.accelerator_stages, run.stages, strict=True):
        found = _stage_parts(program, stage, done)
        layers += found
        end += done.cycles - sum(layer.cycles for layer in found)
    return Breakdown(program=program.name, spec=program.spec.name, cycles=run.cycles, end=end, layers=tuple(layers))


def _host_reasons(program: Program) -> str:
    return "; ".join(dict.fromkeys(s.reason for s in program.host_stages))


# ---- one stage ----


def _stage_parts(program: Program, stage: AcceleratorStage, done: StageRun) -> list[LayerParts]:
    spec = program.spec
    notes = [n for n in program.layers if stage.first <= n.first < n.first + n.count <= stage.first + stage.count]
    matrix = program.instructions[stage.first : stage.first + stage.count]
    layer = np.full(len(matrix), -1, dtype=np.int64)
    for k, note in enumerate(notes):
        layer[note.first - stage.first : note.first - stage.first + note.count] = k
    interval = spec.beat_interval
    touched = accesses(matrix, spec, offset_ranges(matrix, spec, program.memory()))
    reads = _read_beats(spec, matrix, touched, layer, len(notes)) * interval
    weights = _weights(program, matrix, touched)
    idle = _idle(program, stage, done)
    events = done.events
    matmuls = events[:, 0] == Unit.MATMUL
    out: list[LayerParts] = []
    tail_before, ended = 0, 0
    for k, note in enumerate(notes):
        rows = np.flatnonzero(matmuls & (layer == k))
        own = np.flatnonzero((layer == k) & (events[:, 0] != Unit.LOAD))
        end = max(int(events[own, _END].max()), ended)
        tail = end - int(events[rows[-1], _FREE])
        m = matrix[rows]
        slots = m[:, M_STEPS] * m[:, M_NX] * m[:, M_NY]
        drains, stores = (matrix[(layer == k) & (matrix[:, 0] == op)] for op in (Op.DRAIN, Op.STORE))
        facts = _Facts(
            note=note,
            slots=int(slots.sum()),
            idle_columns=float((slots * (1 - weights.columns[rows] / spec.columns)).sum() / max(1, slots.sum())),
            **weights.beyond_nonzeros(rows, spec),
            read=float(reads[k]),
            write=float((stores[:, S_BEATS] * stores[:, S_ROWS] * stores[:, S_BLOCKS]).sum() * interval),
            ppu=_drain_cycles(drains),
            idle={cause: float(cycles[rows[1:]].sum()) for cause, cycles in idle.items()},
            start=float(sum(cycles[rows[0]] for cycles in idle.values())),
            tail=tail - tail_before,
        )
        out.append(_parts(facts, spec, end - ended))
        tail_before, ended = tail, end
    return out


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What one layer did. All in cycles; idle_columns is the share of columns without a channel.

    metadata, values, empty : of loading each weight record once, what is not values of slots, these values, and those
    among them that are of slots without a nonzero.
    read, write : its own operands on the buses, whenever they moved.  idle : the array standing still, by cause.
    """

    note: LayerNote
    slots: int
    idle_columns: float
    metadata: float
    values: float
    empty: float
    read: float
    write: float
    ppu: int
    idle: Mapping[str, float]
    start: float
    tail: int


def _parts(f: _Facts, spec: ArchSpec, cycles: int) -> LayerParts:
    note, interval = f.note, spec.beat_interval
    useful = note.useful_macs / spec.peak_macs
    array = note.mac_cycles if note.useful_macs else useful or note.mac_cycles
    if not note.useful_macs:  # a maximum has no products: every slot of its steps counts as useful
        useful = array
    columns = min(array - useful, array * f.idle_columns)
    records, write = note.read_beats * interval, note.write_beats * interval
    held = max(0.0, records - f.metadata)  # records without selects; then without what slots in vain hold
    needed = max(0.0, held - f.empty)
    idle = min(held - needed, f.values * f.idle_columns)
    steps = [
        max(useful, needed, write),
        max(useful + columns, needed + idle, write),
        max(array, held, write),
        max(array, records, write),
        max(f.slots, records, write),
        max(f.slots, records, write, f.read, f.write),
        max(f.slots, records, write, f.read, f.write, f.ppu),
    ]
    rise = np.diff(steps)
    # The array stands still while a slower unit works: that time is already in the staircase.
    known, left = steps[-1] - f.slots, {**f.idle, "start": f.start, "tail": float(f.tail)}
    order = ("drain", "memory") if steps[-1] > steps[-2] else ("memory", "drain")
    for cause in (*order, "start", "tail", "waiting", "fetch"):
        taken = max(0.0, min(known, left[cause]))
        left[cause] -= taken
        known -= taken
    names = ("columns", "imbalance", "metadata", "lanes", "traffic", "ppu")
    limits = {"array": array, "read": records, "write": write}
    return LayerParts(
        name=note.name,
        kind=note.kind,
        pattern=note.pattern,
        mapping=note.mapping,
        cycles=cycles,
        bound=steps[3],
        ideal=steps[0],
        limit=max(limits, key=lambda n: limits[n]),
        parts=Parts(**dict(zip(names, map(float, rise), strict=True)), **left, hidden=-known),
        macs=occupancy(note, spec, cycles, f.slots, f.idle_columns),
    )


# ---- what the instructions moved and held ----


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weights:
    """Weights as the MATMULs of a stage see them.

    columns : int64 [instructions], columns that have a nonzero in the steps of a MATMUL.
    records : per instruction, the loads its steps come from: {beat address: (beats, steps, nonzeros)}.
    """

    columns: Cycles
    records: Mapping[int, Mapping[int, tuple[int, int, int]]]

    def beyond_nonzeros(self, rows: Cycles, spec: ArchSpec) -> dict[str, float]:
        """Cycles of the records of these MATMULs, each load once, that nonzeros by themselves would not take."""
        loads: dict[int, tuple[int, int, int]] = {}
        for row in rows.tolist():
            loads.update(self.records[row])
        beats, steps, nonzeros = (sum(load[k] for load in loads.values()) for k in range(3))
        cycles = spec.beat_interval / spec.axi_bytes  # of a byte
        values = steps * spec.columns * spec.macs
        return {
            "metadata": max(0.0, (beats * spec.axi_bytes - values) * cycles),
            "values": values * cycles,
            "empty": (values - nonzeros) * cycles,
        }


def _weights(program: Program, matrix: NDArray[np.int64], touched: Accesses) -> _Weights:
    spec, image = program.spec, program.memory()
    width = spec.columns * spec.macs
    held = np.zeros((spec.weight_steps, spec.columns), dtype=bool)
    source = np.full(spec.weight_steps, -1, dtype=np.int64)
    columns = np.zeros(len(matrix), dtype=np.int64)
    decoded: dict[tuple[int, int, int], tuple[NDArray[np.bool_], int]] = {}
    records: dict[int, dict[int, tuple[int, int, int]]] = {}
    written = (touched.space == Space.WEIGHT) & (touched.write == 1)
    dynamic = {
        int(i): (int(low), int(high))
        for i, low, high in zip(touched.instruction[written], touched.low[written], touched.high[written], strict=True)
        if matrix[i, L_ENC] not in (Encoding.DENSE, Encoding.INDEX, Encoding.MASK)
    }
    for i in np.flatnonzero(np.isin(matrix[:, 0], (Op.LOAD, Op.MATMUL))).tolist():
        row = matrix[i]
        if i in dynamic:  # weights that are activations: no records, and no column is known to be idle
            held[slice(*dynamic[i])], source[slice(*dynamic[i])] = True, -1
        elif row[0] == Op.LOAD and row[L_KIND] == LoadKind.WEIGHT:
            key = (int(row[L_ADDR]), int(row[L_BEATS] * row[L_ROWS] * row[L_BLOCKS]), int(row[L_ENC]))
            if key not in decoded:
                size = record_bytes(spec, Encoding(key[2]))
                data = image[key[0] * spec.axi_bytes : (key[0] + key[1]) * spec.axi_bytes]
                data = data[: data.size // size * size].reshape(-1, size)[:, :width]
                there = data.reshape(-1, spec.columns, spec.macs) != 0
                decoded[key] = (there.any(axis=2), int(np.count_nonzero(there)))
            used, _ = decoded[key]
            held[row[L_DEST] : row[L_DEST] + len(used)] = used
            source[row[L_DEST] : row[L_DEST] + len(used)] = i
        elif row[0] == Op.MATMUL:
            at = slice(row[M_W], row[M_W] + row[M_STEPS])
            columns[i] = np.count_nonzero(held[at].any(axis=0))
            loads = [matrix[k] for k in np.unique(source[at]).tolist() if k >= 0]
            keys = [(int(f[L_ADDR]), int(f[L_BEATS] * f[L_ROWS] * f[L_BLOCKS]), int(f[L_ENC])) for f in loads]
            records[i] = {key[0]: (key[1], len(decoded[key][0]), decoded[key][1]) for key in keys}
    return _Weights(columns=columns, records=records)


_BUFFERS = {
    LoadKind.ACTIVATION: Space.ACTIVATION,
    LoadKind.OUTPUT: Space.OUTPUT,
    LoadKind.WEIGHT: Space.WEIGHT,
    LoadKind.OFFSET: Space.OFFSET,
    LoadKind.PARAMETER: Space.PARAMETER,
    LoadKind.TABLE: Space.TABLE,
}


def _read_beats(spec: ArchSpec, matrix: NDArray[np.int64], touched: Accesses, layer: Cycles, layers: int) -> Cycles:
    """Beats that each layer's LOADs read, int64 [layers]: a LOAD belongs to the layer that first uses what it read.

    Where it stands among the instructions does not tell: LOADs run ahead.
    """
    grain = {space: spec.axi_bytes if space in (Space.ACTIVATION, Space.OUTPUT) else 1 for space in _BUFFERS.values()}
    writer = {
        space: np.full(-(-int(touched.high[touched.space == space].max(initial=0)) // grain[space]), -1, np.int64)
        for space in _BUFFERS.values()
    }
    owner = np.full(len(matrix), -1, dtype=np.int64)
    loads = matrix[touched.instruction, 0] == Op.LOAD
    keep = np.isin(touched.space, [int(s) for s in _BUFFERS.values()]) & (loads | (touched.write == 0))
    table = np.stack([touched.instruction, touched.space, touched.low, touched.high, loads], axis=1)[keep]
    for i, space, low, high, load in table.tolist():
        cells = writer[Space(space)][low // grain[Space(space)] : -(-high // grain[Space(space)])]
        if load:
            cells[:] = i
        elif matrix[i, 0] != Op.STORE:
            first, last = int(cells[0]), int(cells[-1])
            among = (first,) if first == last and cells.size < 3 else np.unique(cells).tolist()
            for k in among:
                if k >= 0 and owner[k] < 0:
                    owner[k] = layer[i]
    beats = matrix[:, L_BEATS] * matrix[:, L_ROWS] * matrix[:, L_BLOCKS]
    mine = owner >= 0
    return np.bincount(owner[mine], weights=beats[mine], minlength=layers).astype(np.int64)


def _drain_cycles(drains: NDArray[np.int64]) -> int:
    return int((drains[:, D_NX] * drains[:, D_NY] * drains[:, D_G]).sum())


# ---- why the array stood still ----


def _idle(program: Program, stage: AcceleratorStage, done: StageRun) -> dict[str, Cycles]:
    """Cycles before each instruction in which the array stood still, by cause: int64 [instructions], 0 but at MATMULs.

    Waiting for a LOAD is "memory" while some LOAD is under way and "waiting" while LOAD itself stands still. Waiting
    for a DRAIN is "drain" while it works, or waits for room in the output buffer, and "memory" while it waits for its
    own LOADs.
    """
    events = done.events
    waits = stalls(program, stage, done)
    out = {name: np.zeros(len(events), dtype=np.int64) for name in ("memory", "drain", "waiting", "fetch")}
    rows = np.flatnonzero(events[:, 0] == Unit.MATMUL)
    upto = events[rows, _START, None] - waits[rows].sum(axis=1, keepdims=True) + np.cumsum(waits[rows], axis=1)
    begin = upto - waits[rows]
    loading = _covers(events, Unit.LOAD)
    drains = np.flatnonzero(events[:, 0] == Unit.DRAIN)
    for column, cause in enumerate(CAUSES):
        low, high = begin[:, column], upto[:, column]
        if cause == "fetch":
            out["fetch"][rows] += high - low
        elif cause.startswith("load"):
            busy = loading(high) - loading(low)
            out["memory"][rows] += busy
            out["waiting"][rows] += high - low - busy
        elif cause.startswith("drain"):
            held = _waits_for_loads(events, waits, drains)
            starved = held(high) - held(low)
            out["memory"][rows] += starved
            out["drain"][rows] += high - low - starved
        else:
            out["waiting"][rows] += high - low
    return out


def _covers(events: Cycles, unit: Unit) -> "_Covered":
    mine = events[events[:, 0] == unit]
    return _Covered(mine[:, _START], mine[:, _END])


def _waits_for_loads(events: Cycles, waits: Cycles, drains: Cycles) -> "_Covered":
    """When DRAIN stands still for a LOAD: of a residual, of parameters."""
    column = CAUSES.index("load_to_drain")
    upto = events[drains, _START] - waits[drains, column + 1 :].sum(axis=1)
    return _Covered(upto - waits[drains, column], upto)


class _Covered:
    """Called with times: cycles before each that lie in any of the intervals begin <= t < end."""

    def __init__(self, begin: Cycles, end: Cycles) -> None:
        order = np.argsort(begin, kind="stable")
        begin, reach = begin[order], np.maximum.accumulate(end[order]) if end.size else end
        low = np.maximum(begin, np.concatenate([[0], reach[:-1]])) if end.size else begin
        self._low, self._size = low, np.maximum(reach - low, 0)
        self._before = np.concatenate([[0], np.cumsum(self._size)])

    def __call__(self, times: Cycles) -> Cycles:
        k = np.searchsorted(self._low, times, side="right")
        last = np.maximum(k - 1, 0)
        if not self._low.size:
            return np.zeros_like(times)
        inside = np.clip(times - self._low[last], 0, self._size[last])
        return np.where(k > 0, self._before[last] + inside, 0)
