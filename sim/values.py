"""Values: a Program's instructions one after the other, in program order, exact to the bit.

Order in time plays no part: the checker has proved that every overlap the hardware makes gives the same result.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.isa import Op
from gossamer.arch.jit import jit
from gossamer.arch.program import AcceleratorStage, Program
from gossamer.kernels.steps import Bench, make_bench
from gossamer.sim.array import drain, matmul
from gossamer.sim.machine import Machine, Sizes, make_machine, sizes_of
from gossamer.sim.moves import load, store

__all__ = ["run_values"]

_LOAD, _MATMUL, _DRAIN, _STORE = int(Op.LOAD), int(Op.MATMUL), int(Op.DRAIN), int(Op.STORE)
_CHUNK = 1000
"""Instructions between two reports of progress."""


def run_values(
    program: Program,
    stage: AcceleratorStage,
    dram: NDArray[np.uint8],
    *,
    garbage: int | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Machine:
    """Execute a stage on `dram` (uint8 [dram_bytes], changed in place) and return the machine as it is left.

    The Program must have passed the range checks of gossamer.sim.checker: compiled code trusts it.
    garbage : seed of what unwritten memories hold; zeros if None.  progress : called as (what, done, total).
    """
    machine, sizes = make_machine(program.spec, garbage), sizes_of(program.spec)
    bench = make_bench(sizes.columns, sizes.macs)
    matrix = np.ascontiguousarray(program.instructions[stage.first : stage.first + stage.count])
    for first in range(0, stage.count, _CHUNK):
        if progress is not None:
            progress(f"values of {stage.name}", first, stage.count)
        _execute(matrix[first : first + _CHUNK], sizes, machine, bench, dram)
    return machine


@jit
def _execute(matrix: NDArray[np.int64], sizes: Sizes, machine: Machine, bench: Bench, dram: NDArray[np.uint8]) -> None:
    for i in range(matrix.shape[0]):
        f = matrix[i]
        if f[0] == _LOAD:
            load(f, sizes, machine, dram)
        elif f[0] == _MATMUL:
            matmul(f, sizes, machine, bench)
        elif f[0] == _DRAIN:
            drain(f, sizes, machine)
        elif f[0] == _STORE:
            store(f, sizes, machine, dram)
