"""The static checker: refuses, before it is run, a Program that could go wrong in any timing.

    fields      every field is legal for the spec, every range inside its memory (gossamer.sim.legal)
    constants   offsets, which the checker reads from the DRAM image, are never overwritten
    deadlock    semaphores, finite queues and in-order dispatch let every instruction start (gossamer.sim.tokens)
    counts      no semaphore can exceed SEMAPHORE_MAX; counts that are never taken are legal, and count
    hazards     whatever an instruction must not overtake, by arch/access.py, has surely ended when it starts
    contents    nothing that reaches DRAM was computed from what nobody wrote (gossamer.sim.contents)

Hazards are proved by the semaphores alone, counts by semaphores and the depth of the queues. On-chip memories start
every stage empty: nothing is handed from stage to stage but DRAM.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.access import Accesses, Space, dependencies
from gossamer.arch.errors import ProgramError, SimulationError
from gossamer.arch.isa import SEMAPHORE_MAX, SEMAPHORES, LoadKind, Op, Unit, column, disassemble
from gossamer.arch.jit import jit
from gossamer.arch.program import AcceleratorStage, Program
from gossamer.arch.spec import ArchSpec
from gossamer.sim.contents import check_contents
from gossamer.sim.legal import check_legal, refuse, touched_ranges
from gossamer.sim.tokens import clocks, explain_deadlock, ranks, start_order

__all__ = ["check_fields", "check_program"]

Rows = NDArray[np.int64]


def check_fields(program: Program, dram: NDArray[np.uint8]) -> list[Accesses]:
    """The rules of fields, ranges and constants alone: what compiled code needs to be safe. Returns what is touched.

    dram : the memory at the start.  Raises ProgramError naming the stage and the instruction.
    """
    touched = []
    for stage in program.accelerator_stages:
        matrix = _instructions(program, stage)
        try:
            check_legal(matrix, program.spec)
            touched.append(touched_ranges(matrix, program.spec, dram))
        except ProgramError as error:
            raise ProgramError(f"stage {stage.name!r}: {error}") from None
    _check_offsets_constant(program, touched)
    return touched


def check_program(program: Program, dram: NDArray[np.uint8]) -> None:
    """Everything the module's text lists. dram : the memory at the start.

    Raises ProgramError for an illegal instruction and SimulationError for instructions that do not go together, both
    naming the stage and the instruction.
    """
    touched = check_fields(program, dram)
    changing = _changing(program, touched)
    for stage, ranges in zip(program.accelerator_stages, touched, strict=True):
        matrix = _instructions(program, stage)
        try:
            _check_order(matrix, program.spec, ranges)
            check_contents(matrix, program.spec, dram, ~_reads_within(matrix, ranges, changing))
        except SimulationError as error:
            raise SimulationError(f"stage {stage.name!r}: {error}") from None
        except ProgramError as error:
            raise ProgramError(f"stage {stage.name!r}: {error}") from None


def _instructions(program: Program, stage: AcceleratorStage) -> Rows:
    return np.ascontiguousarray(program.instructions[stage.first : stage.first + stage.count])


# ---- constants ----


def _changing(program: Program, touched: list[Accesses]) -> Rows:
    """DRAM that may change: what STOREs and the host write. int64 [ranges, 2], ascending, apart from each other."""
    ranges = [np.zeros((0, 2), dtype=np.int64)]
    for t in touched:
        written = (t.space == Space.DRAM) & (t.write == 1)
        ranges.append(np.stack([t.low[written], t.high[written]], axis=1))
    host = {n for s in program.host_stages for n in s.outputs} | set(program.inputs)
    tensors = [program.tensors[n] for n in sorted(host) if n in program.tensors]
    ranges.append(np.array([(t.address, t.address + t.size) for t in tensors], dtype=np.int64).reshape(-1, 2))
    together = np.concatenate(ranges)
    together = together[np.argsort(together[:, 0], kind="stable")]
    if not len(together):
        return together
    reach = np.maximum.accumulate(together[:, 1])
    begins = np.flatnonzero(np.concatenate([[True], together[1:, 0] > reach[:-1]]))
    ends = np.concatenate([begins[1:], [len(together)]]) - 1
    return np.stack([together[begins, 0], reach[ends]], axis=1)


def _reads_within(matrix: Rows, touched: Accesses, changing: Rows) -> NDArray[np.bool_]:
    """Which instructions read DRAM that may change: bool [instructions]."""
    reads = np.flatnonzero((touched.space == Space.DRAM) & (touched.write == 0))
    out = np.zeros(len(matrix), dtype=np.bool_)
    if not len(changing) or not reads.size:
        return out
    following = np.searchsorted(changing[:, 1], touched.low[reads], side="right")
    inside = following < len(changing)
    hit = np.zeros(reads.size, dtype=np.bool_)
    hit[inside] = changing[following[inside], 0] < touched.high[reads][inside]
    out[touched.instruction[reads[hit]]] = True
    return out


def _check_offsets_constant(program: Program, touched: list[Accesses]) -> None:
    changing = _changing(program, touched)
    for stage, ranges in zip(program.accelerator_stages, touched, strict=True):
        matrix = _instructions(program, stage)
        loads = (matrix[:, 0] == Op.LOAD) & (matrix[:, column(Op.LOAD, "kind")] == LoadKind.OFFSET)
        bad = np.flatnonzero(loads & _reads_within(matrix, ranges, changing))
        if bad.size:
            i = int(bad[0])
            text = "loads offsets from DRAM that a STORE or the host writes; offsets must be constants"
            raise ProgramError(f"stage {stage.name!r}: instruction {i} ({disassemble(matrix[i])}) {text}")


# ---- order ----


def _check_order(matrix: Rows, spec: ArchSpec, touched: Accesses) -> None:
    """Deadlock, counts and hazards."""
    order = start_order(matrix, spec)
    if len(order) < 2 * len(matrix) - np.count_nonzero(matrix[:, 0] == Op.END):
        raise SimulationError(explain_deadlock(matrix, spec))
    ended, started = clocks(matrix, spec, order)
    rank = ranks(matrix)
    _check_counts(matrix, rank, started)
    needed = dependencies(matrix, touched)
    _need_own_writes(matrix, touched, needed)
    missing = (needed >= 0) & (ended <= rank[needed])
    bad = np.argwhere(missing)
    if len(bad):
        i, u = bad[0].tolist()
        j = int(needed[i, u])
        why = _conflict(touched, i, j)
        refuse(
            SimulationError,
            matrix,
            i,
            f"may start before instruction {j} ({disassemble(matrix[j])}) has ended, but {why}; "
            f"no chain of semaphores leads from {Unit(u).name} {j} to {Unit(int(matrix[i, 0])).name} {i}",
        )


def _check_counts(matrix: Rows, rank: Rows, started: Rows) -> None:
    """No semaphore can hold more than SEMAPHORE_MAX, however late its counts are taken."""
    units = matrix[:, 0] % 5
    for s in SEMAPHORES:
        posters = np.flatnonzero(matrix[:, 2] >> s.index & 1)
        if posters.size <= SEMAPHORE_MAX:
            continue
        waits = (matrix[units == s.waiter, 1] >> s.index) & 1
        taken = np.concatenate([[0], np.cumsum(waits)])
        count = np.arange(1, posters.size + 1) - taken[started[posters, s.waiter]]
        over = np.flatnonzero(count > SEMAPHORE_MAX)
        if over.size:
            i = int(posters[over[0]])
            text = f"may be the post that takes semaphore {s.name} over {SEMAPHORE_MAX}"
            refuse(SimulationError, matrix, i, f"{text}: nothing makes {s.poster.name} wait for {s.waiter.name}")


def _need_own_writes(matrix: Rows, touched: Accesses, needed: Rows) -> None:
    """A DRAIN that reads a residual which an earlier DRAIN wrote: units start their instructions before the one
    before has ended, so this too needs a way through other units. Adds to `needed`, in the column of DRAIN."""
    drain = matrix[touched.instruction, 0] == Op.DRAIN
    rows = np.flatnonzero(drain & (touched.space == Space.OUTPUT))
    if not rows.size or touched.write[rows].all():
        return
    points = np.unique(np.concatenate([touched.low[rows], touched.high[rows]]))
    first = np.searchsorted(points, touched.low[rows])
    last = np.searchsorted(points, touched.high[rows])
    _latest_writer(touched.instruction[rows], first, last, touched.write[rows], points.size, needed[:, int(Unit.DRAIN)])


@jit
def _latest_writer(instruction: Rows, first: Rows, last: Rows, write: Rows, cells: int, out: Rows) -> None:
    writer = np.full(cells, -1, dtype=np.int64)
    for k in range(instruction.size):
        for cell in range(first[k], last[k]):
            if write[k] == 1:
                writer[cell] = instruction[k]
            elif writer[cell] != instruction[k]:
                out[instruction[k]] = max(out[instruction[k]], writer[cell])


def _conflict(touched: Accesses, i: int, j: int) -> str:
    """What two instructions both touch, in words."""
    mine, theirs = np.flatnonzero(touched.instruction == i), np.flatnonzero(touched.instruction == j)
    for a in mine.tolist():
        for b in theirs.tolist():
            low, high = max(touched.low[a], touched.low[b]), min(touched.high[a], touched.high[b])
            if touched.space[a] == touched.space[b] and low < high and (touched.write[a] or touched.write[b]):
                space = Space(int(touched.space[a])).name
                verbs = [("reads", "writes")[int(touched.write[k])] for k in (a, b)]
                return f"it {verbs[0]} {space} {low}..{high - 1}, which instruction {j} {verbs[1]}"
    raise AssertionError("a dependency without a conflict")
