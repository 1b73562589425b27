"""Semaphores of long programs: counts stay within what the hardware can hold."""

import numpy as np

from gossamer.arch import isa
from gossamer.arch.access import accesses, dependencies, offset_ranges
from gossamer.arch.isa import SEMAPHORE_MAX, Instruction, Op, Unit
from gossamer.arch.spec import ArchSpec
from gossamer.arch.sync import synchronise


def test_many_stores_that_as_many_loads_wait_for():
    """Hundreds of stores come first; every load needs the store of its own beat, and no more than 255 may be due."""
    spec, count = ArchSpec.load("tiny"), 700
    store = {"beats": 1, "rows": 1, "blocks": 1, "tile_beats": 1, "tile_rows": 1}
    program = [Instruction.make(Op.STORE, address=k, **store) for k in range(count)]
    program += [Instruction.make(Op.LOAD, address=k, **store) for k in range(count)]
    matrix = isa.to_matrix([*program, Instruction.make(Op.END)])
    dram = np.zeros(8 * count, dtype=np.uint8)
    synchronise(matrix, spec, dram)
    bit = isa.semaphore(Unit.STORE, Unit.LOAD).index
    posts = np.flatnonzero(matrix[:, 2] >> bit & 1)
    waits = np.flatnonzero(matrix[:, 1] >> bit & 1)
    assert len(posts) == len(waits)
    assert len(waits) > 100, "loads do not all wait for the last store"
    due = np.cumsum((matrix[:, 2] >> bit & 1) - (matrix[:, 1] >> bit & 1))
    assert due.max() <= SEMAPHORE_MAX
    needed = dependencies(matrix, accesses(matrix, spec, offset_ranges(matrix, spec, dram)))
    for load in range(count, 2 * count):
        waited = posts[np.flatnonzero(waits <= load)]
        assert waited.max() >= needed[load, Unit.STORE], "every load still waits for its store"
