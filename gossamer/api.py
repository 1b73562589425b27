"""The short way: `program = gossamer.compile(model, spec); run = gossamer.simulate(program, inputs)`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.arch.errors import ModelError, ProgramError
from gossamer.arch.spec import ArchSpec
from gossamer.files import load_arrays

if TYPE_CHECKING:
    from gossamer.arch.program import Program
    from gossamer.arch.run import Run

__all__ = ["compile", "simulate"]

Progress = Callable[[str, int, int], object]


def compile(
    model: Any,
    spec: ArchSpec | str | Path,
    *,
    sparsity: str | Mapping[str, str] | None = None,
    sparsifier: Any = "magnitude",
    allocation: str = "uniform",
    sequential: bool = False,
    permute: bool = False,
    calibration: Any = None,
    dims: Mapping[str, int] | None = None,
    method: str = "minmax",
    signed: bool = False,
    refine: bool = False,
    chains: bool = True,
    progress: Progress | None = None,
    notes: Callable[[str], object] | None = None,
) -> Program:
    """Compile a network for an accelerator.

    model : an ONNX file (path, bytes or ModelProto), of floats or int8 (QDQ, QOperator, dynamic); or a Network
            (compiler.layers).
    spec : an ArchSpec, a TOML file or the name of a preset.
    sparsity : a pattern such as "2:8", "block 16x16 70%" or "unstructured 90%" for all layers, or {glob: pattern};
               None keeps the weights, and finds the patterns they have.
    sparsifier : magnitude, wanda or sparsegpt (these need calibration), or a Sparsifier of
               compiler.sparsity.sparsifiers.interface.
    allocation : how the zeros are distributed among layers: uniform, erk, lamp, global, or by cycles under a budget:
                 "cost 60%", with patterns to choose from in sparsity ("dense | 4:8 | 2:8").
    sequential : prune a layer with the inputs that it has after the layers before it were pruned.
    permute : reorder channels inside the network, so that N:M keeps more and other patterns take fewer steps.
    calibration : inputs to measure ranges on: {name: array}, or a list of such, or an .npz file.
    dims : sizes for named dimensions that the model leaves open. A batch is 1 unless given: a dimension called batch,
           or a first one called N or nothing.
    method : minmax, percentile or entropy.  signed : int8 activations instead of uint8.
    refine : choose every layer's mapping by simulating the best few of the search; takes seconds a layer.
    chains : keep tensors between layers on chip where that saves time; they are not in the Program's symbol table.
    progress : called as (what, done, total).
    notes : called with each thing the front end has to tell, such as the error that pruning leaves in a layer.

    Warns of every layer that cannot hold the pattern asked for and is left as it is. What the spec cannot run becomes
    a host stage, with the reason; that all of it does is worth a warning. Raises SpecError or ModelError.
    """
    from gossamer.compiler.backend.build import build_program
    from gossamer.compiler.backend.fallback import fitted
    from gossamer.compiler.layers import Network
    from gossamer.compiler.passes import build_network

    arch = spec if isinstance(spec, ArchSpec) else ArchSpec.load(spec)
    network = model
    if isinstance(model, Network):
        wishes = {"sparsity": sparsity, "permute": permute, "calibration": calibration, "dims": dims}
        for name, given in wishes.items():
            if given:
                raise ModelError(f"{name}= needs a model: a Network is pruned and quantised already")
    else:
        network = build_network(
            model,
            sparsity=sparsity,
            sparsifier=sparsifier,
            allocation=allocation,
            sequential=sequential,
            permute=permute,
            spec=arch,
            calibration=load_arrays(calibration) if isinstance(calibration, str | Path) else calibration,
            dims=dims,
            method=method,
            signed=signed,
            products=arch.dynamic_operands,
            progress=_by_name(progress) if progress else None,
        )
    for note in network.notes:  # wishes that a layer could not hold must not pass in silence
        if "left as it is" in note:
            warnings.warn(note, stacklevel=2)
        elif notes is not None:
            notes(note)
    program = build_program(fitted(network, arch), arch, progress, chains=chains, measure=_cycles if refine else None)
    if not program.accelerator_stages:
        reasons = "; ".join(s.reason for s in program.host_stages) or "it computes nothing"
        warnings.warn(f"nothing of {program.name!r} runs on the accelerator: {reasons}", stacklevel=2)
    return program


def _cycles(program: Program) -> int:
    """What a Program takes, for the mapper."""
    return simulate(program, values=False, check=False).cycles


def _by_name(progress: Progress) -> Callable[[str], None]:
    """The front end says only what it is doing."""

    def tell(name: str) -> None:
        progress(name, 0, 0)

    return tell


def simulate(
    program: Program | str | Path,
    inputs: Mapping[str, Any] | str | Path | None = None,
    *,
    values: bool | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Run:
    """Run a Program on the simulator: outputs to the bit, time to the cycle.

    program : a Program, or the path of its file.
    inputs : arrays by name in the model's shape, or an .npz file of them. They are real values, integers too, as the
             model takes them; with codes=True integers are the tensors' own codes. Without inputs only time is
             simulated.
    values : False leaves values out; True asks for inputs.  options : see `gossamer.sim.simulate.simulate`.

    Raises ModelError for inputs that do not fit, ProgramError and SimulationError for a Program that cannot run.
    """
    from gossamer.arch.program import Program
    from gossamer.sim.simulate import simulate as run

    if isinstance(program, str | Path):
        program = Program.load(program)
    elif not isinstance(program, Program):
        raise ProgramError(f"program must be a Program or the path of its file, not {type(program).__name__}")
    if isinstance(inputs, str | Path):
        inputs = load_arrays(inputs)
    return run(program, inputs, values=inputs is not None if values is None else values, progress=progress, **options)
