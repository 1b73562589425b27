"""A Program as files: what a driver puts into memory, what must stand there in the end, and where tensors lie."""

import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.errors import ProgramError
from gossamer.arch.program import AcceleratorStage, Program
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.example import example

__all__ = ["Case", "check", "example_case", "image_files", "stage_words", "tensor_table"]

_SHOWN = 4  # differences that a message names


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A Program of one stage, and DRAM around its run: uint8 [dram_bytes], with the inputs, and with the outputs.

    cycles : what the run takes by the memory contract; None if nobody has simulated it.
    """

    program: Program
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    cycles: int | None = None


def check(program: Program, spec: ArchSpec) -> None:
    """Raises ProgramError if hardware made from `spec` cannot run the whole Program in one go."""
    mine, theirs = spec.hardware, program.spec.hardware
    different = [name for name in mine if mine[name] != theirs[name]]
    if different:
        shown = [f"{name} {theirs[name]}, not {mine[name]}" for name in different[:_SHOWN]]
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        raise ProgramError(
            f"Program {program.name!r} was compiled for spec {program.spec.name!r}, which is other hardware than "
            f"{spec.name!r}: {'; '.join(shown)}{more}. Compile it for {spec.name!r}, or leave SPEC out"
        )
    for stage in program.host_stages:
        raise ProgramError(
            f"Program {program.name!r} leaves {stage.name!r} to the host ({stage.reason}), which a bench does not "
            f"have; `gossamer verify --program` runs both in turn"
        )
    if len(program.stages) != 1:
        raise ProgramError(f"Program {program.name!r} has {len(program.stages)} stages; the bench starts one")


def example_case(spec: ArchSpec) -> Case:
    """The example of a bundle that was given no Program."""
    program, after = example(spec)
    return Case(program=program, before=program.memory(), after=after)


def stage_words(program: Program) -> NDArray[np.uint8]:
    """The instructions of the only stage: uint8 [count, WORD_BYTES]."""
    (stage,) = program.stages
    assert isinstance(stage, AcceleratorStage)
    return isa.encode(program.instructions[stage.first : stage.first + stage.count])


def image_files(case: Case) -> dict[str, bytes]:
    """Binary images by file name, byte 0 first."""
    return {
        "program.bin": stage_words(case.program).tobytes(),
        "memory.bin": case.before.tobytes(),
        "expected.bin": case.after.tobytes(),
    }


def tensor_table(program: Program) -> str:
    """The Program's symbol table as JSON: every tensor with what `arch.layout.Placement` says of it."""
    tensors = [
        {**asdict(t), "rows": t.rows, "pixels": t.pixels, "blocks": t.blocks, "bytes": t.size}
        for t in program.tensors.values()
    ]
    document = {
        "program": program.name,
        "instructions": len(stage_words(program)),
        "dram_bytes": program.dram_bytes,
        "inputs": program.inputs,
        "outputs": program.outputs,
        "tensors": tensors,
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
