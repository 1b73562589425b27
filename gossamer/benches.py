"""What the bench of a bundle runs: a Program with its inputs, and the memory and the cycles that the simulator finds.

It stands here and not in rtl/ because it sees compiler, simulator and rtl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.campaign import Arrays, program_cases
from gossamer.verification import memory_with

if TYPE_CHECKING:
    from gossamer.rtl.images import Case

__all__ = ["bench", "bench_case"]


def bench_case(program: Program, inputs: Arrays, progress: Callable[[str, int, int], object] | None = None) -> Case:
    """A Program simulated on its inputs. Raises what the simulator raises."""
    from gossamer.rtl.images import Case
    from gossamer.sim.simulate import simulate

    before, _ = memory_with(program, inputs)
    run = simulate(program, inputs, progress=progress)
    assert run.memory is not None
    return Case(program=program, before=before, after=run.memory, cycles=run.cycles)


def bench(
    spec: ArchSpec | None,
    *,
    program: Path | None = None,
    model: Path | None = None,
    arrays: Arrays | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 1,
    progress: Callable[[str, int, int], object] | None = None,
) -> tuple[ArchSpec, Case | None]:
    """The hardware to write and what its bench runs: a Program file, a compiled model, or None for the example.

    spec : None for the Program's own.  arrays : inputs, of which the first set is taken, and what a model is calibrated
    with; random codes of `seed` without.  dims : the model's open dimensions by name.
    Raises ProgramError if the hardware cannot run the Program in one go, and what loading, compiling and simulating
    raise.
    """
    from gossamer.api import compile
    from gossamer.rtl.images import check

    if program is not None:
        loaded = Program.load(program)
    elif spec is None:
        raise ValueError("a spec or a Program file must say which hardware")
    elif model is not None:
        loaded = compile(model, spec, calibration=arrays, dims=dims, progress=progress)
    else:
        return spec, None
    hardware = spec or loaded.spec
    check(loaded, hardware)  # before the work, not after it
    return hardware, bench_case(loaded, next(program_cases(loaded, arrays, seed)).inputs, progress)
