"""Rules for single instructions: is every field legal for this spec, and is every range inside its memory?"""

from collections.abc import Callable
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.access import REGION_ROWS, Accesses, Space, accesses, capacities, offset_ranges
from gossamer.arch.errors import GossamerError, ProgramError
from gossamer.arch.isa import Encoding, LoadKind, Op, column, disassemble
from gossamer.arch.numerics import RESIDUAL_SHIFT_MAX, RESIDUAL_SHIFT_MIN
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import legal_encodings, operand_encodings, record_bytes

__all__ = ["check_legal", "refuse", "touched_ranges"]

Rows = NDArray[np.int64]
Get = Callable[[str], Rows]


def refuse(error: type[GossamerError], matrix: Rows, index: int, text: str) -> NoReturn:
    """Raise an error that names an instruction by its index and its disassembly."""
    raise error(f"instruction {index} ({disassemble(matrix[index])}) {text}")


def check_legal(matrix: Rows, spec: ArchSpec) -> None:
    """Refuse (ProgramError) instructions whose fields this spec's hardware does not have or cannot combine."""
    checks = ((Op.LOAD, _load), (Op.MATMUL, _matmul), (Op.DRAIN, _drain), (Op.STORE, _store))
    for op, rules in checks:
        rows = np.flatnonzero(matrix[:, 0] == op)
        if not rows.size:
            continue

        def get(name: str, op: Op = op, rows: Rows = rows) -> Rows:
            values: Rows = matrix[rows, column(op, name)]
            return values

        for wrong, text in rules(get, spec):
            bad = np.flatnonzero(wrong)
            if bad.size:
                refuse(ProgramError, matrix, int(rows[bad[0]]), f"is not legal for spec {spec.name!r}: {text}")
    _check_in_place(matrix)


def _load(get: Get, spec: ArchSpec) -> list[tuple[NDArray[np.bool_], str]]:
    kind, encoding = get("kind"), get("encoding")
    total = get("beats") * get("rows") * get("blocks") * spec.axi_bytes
    weight, tiled = kind == LoadKind.WEIGHT, kind <= LoadKind.OUTPUT
    legal = (*legal_encodings(spec), *operand_encodings(spec))
    record = np.array([record_bytes(spec, e) for e in Encoding], dtype=np.int64)
    return [
        _region(get),
        ((kind == LoadKind.TABLE) & (spec.tables == 0), "it has no tables"),
        (~weight & (encoding != 0), "encoding must be 0, except for weights"),
        (
            weight & ~np.isin(encoding, [int(e) for e in legal]),
            f"its encodings are {', '.join(f'{int(e)} ({e.name})' for e in legal)}",
        ),
        (weight & (total < record[encoding]), "a load of weights must hold at least one record"),
        ((kind == LoadKind.TABLE) & (total % 256 != 0), "a load of tables must be a multiple of 256 bytes"),
        (tiled & ((get("tile_beats") < 1) | (get("tile_rows") < 1)), "tile_beats and tile_rows must be at least 1"),
        _grid(get, spec),
        *_operands(get, spec),
    ]


def _operands(get: Get, spec: ArchSpec) -> list[tuple[NDArray[np.bool_], str]]:
    """Rules for weights that come from activations."""
    weight = get("kind") == LoadKind.WEIGHT
    natural = weight & (get("encoding") == Encoding.NATURAL)
    transposed = weight & (get("encoding") == Encoding.TRANSPOSED)
    step = record_bytes(spec, Encoding.NATURAL) // spec.axi_bytes
    parts = max(1, spec.axi_bytes // spec.columns)
    of_column, beats = get("tile_beats"), get("beats") * get("rows")
    return [
        (natural & (beats * get("blocks") % step != 0), f"a NATURAL load must have a multiple of {step} beats"),
        (natural & (get("step_beats") >= parts), f"step_beats of a NATURAL load must be below {parts}"),
        (
            transposed & ((of_column < 1) | (beats != of_column * spec.columns)),
            f"a block of a TRANSPOSED load must have tile_beats (at least 1) beats for each of {spec.columns} columns",
        ),
        (
            transposed & (of_column * spec.axi_bytes % spec.macs != 0),
            f"tile_beats of a TRANSPOSED load must be a multiple of {max(1, spec.macs // spec.axi_bytes)}",
        ),
        (
            transposed & (get("dest") % spec.weight_banks != 0),
            f"dest of a TRANSPOSED load must be a multiple of {spec.weight_banks}",
        ),
    ]


def _grid(get: Get, spec: ArchSpec) -> tuple[NDArray[np.bool_], str]:
    """A row of lanes wider than the array, rounded up to a power of two, has no meaning."""
    most = max(0, (spec.lanes - 1).bit_length())
    return get("grid") > most, f"grid must be at most {most} ({spec.lanes} lanes)"


def _matmul(get: Get, spec: ArchSpec) -> list[tuple[NDArray[np.bool_], str]]:
    return [_positions(get, spec)]


def _positions(get: Get, spec: ArchSpec) -> tuple[NDArray[np.bool_], str]:
    last = get("acc_base") + get("nx") * get("ny")
    return last > spec.depth, f"acc_base + nx * ny must be at most depth ({spec.depth})"


def _drain(get: Get, spec: ArchSpec) -> list[tuple[NDArray[np.bool_], str]]:
    raw, residual, table = get("raw") == 1, get("residual") == 1, get("table_enable") == 1
    shift = get("residual_shift")
    return [
        _positions(get, spec),
        (get("column_groups") > spec.column_groups, f"column_groups must be at most {spec.column_groups}"),
        (raw & (residual | table), "raw accumulators take neither a residual nor a table"),
        (table & (get("table") >= spec.tables), f"table must be below {spec.tables}"),
        (
            residual & ((shift < RESIDUAL_SHIFT_MIN) | (shift > RESIDUAL_SHIFT_MAX)),
            f"residual_shift must be from {RESIDUAL_SHIFT_MIN} to {RESIDUAL_SHIFT_MAX}",
        ),
        (~residual & (shift != 0), "residual_shift must be 0 without a residual"),
        (~raw & (get("lo") > get("hi")), "lo must be at most hi"),
        (~raw & ((get("lo") < -128) | (get("hi") > 255)), "lo and hi must be 8-bit codes, from -128 to 255"),
    ]


def _region(get: Get) -> tuple[NDArray[np.bool_], str]:
    return get("rows") * get("blocks") > REGION_ROWS, f"rows * blocks must be at most {REGION_ROWS}"


def _store(get: Get, spec: ArchSpec) -> list[tuple[NDArray[np.bool_], str]]:
    across = -(-get("beats") // get("tile_beats"))
    down = -(-get("rows") // get("tile_rows"))
    width = 1 << get("grid")
    last = (down - 1) * width + across
    return [
        _region(get),
        _grid(get, spec),
        (
            (across > width) | (last > spec.lanes),
            f"its region needs more lanes than the grid has ({spec.lanes} in all)",
        ),
    ]


def _check_in_place(matrix: Rows) -> None:
    """A residual may stand where the result goes, but no slot of a DRAIN may read what another slot of it writes."""
    op = Op.DRAIN
    rows = np.flatnonzero(
        (matrix[:, 0] == op) & (matrix[:, column(op, "residual")] == 1) & (matrix[:, column(op, "to_activation")] == 0)
    )
    seen: set[tuple[int, ...]] = set()
    names = ("dest", "residual_base", "nx", "ny", "sx", "sy", "column_groups")
    for i in rows.tolist():
        dest, base, nx, ny, sx, sy, groups = key = tuple(int(matrix[i, column(op, n)]) for n in names)
        if key in seen or abs(dest - base) > (nx - 1) * sx + (ny - 1) * sy + groups:
            continue
        seen.add(key)
        slots = (np.arange(ny)[:, None, None] * sy + np.arange(nx)[:, None] * sx + np.arange(groups)).reshape(-1)
        if dest == base:
            mixed = np.unique(slots).size != slots.size
        else:
            mixed = np.intersect1d(slots + dest, slots + base).size > 0
        if mixed:
            refuse(ProgramError, matrix, i, "reads a residual where another position of it writes")


def touched_ranges(matrix: Rows, spec: ArchSpec, dram: NDArray[np.uint8]) -> Accesses:
    """What the instructions touch. Refuses (ProgramError) a range that is not inside its memory."""
    touched = accesses(matrix, spec, offset_ranges(matrix, spec, dram))
    limit = capacities(spec, dram.size)
    bad = np.flatnonzero((touched.low < 0) | (touched.high > limit[touched.space]))
    if bad.size:
        k = int(bad[0])
        space = Space(int(touched.space[k]))
        verb = "writes" if touched.write[k] else "reads"
        refuse(
            ProgramError,
            matrix,
            int(touched.instruction[k]),
            f"{verb} {space.name} {touched.low[k]}..{touched.high[k] - 1}, which has {limit[space]}",
        )
    return touched
