"""`simulate`: a Program from its inputs to its outputs, cycles, events and counters."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossamer.arch.errors import ModelError, SimulationError
from gossamer.arch.layout import Placement
from gossamer.arch.memory import Trace
from gossamer.arch.program import HostStage, Program
from gossamer.arch.run import Run, StageRun
from gossamer.sim.checker import check_fields, check_program
from gossamer.sim.engine import time_stage
from gossamer.sim.host import HostRunner
from gossamer.sim.statistics import statistics
from gossamer.sim.values import run_values

__all__ = ["Simulator", "run_batch", "simulate", "take_inputs"]

Array = NDArray[np.generic]
Progress = Callable[[str, int, int], object]


def simulate(
    program: Program,
    inputs: Mapping[str, ArrayLike] | None = None,
    *,
    values: bool = True,
    memory: NDArray[np.uint8] | None = None,
    trace: Trace | Sequence[Trace] | None = None,
    check: bool = True,
    garbage: int | None = None,
    codes: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Run a Program: outputs to the bit, time to the cycle.

    inputs : arrays by name in the model's shape, real values of any dtype; they are quantised. Integers are codes with
             `codes`, and in a Program that was not made from a model.
    values : False simulates time only: no inputs needed, no outputs, host stages skipped.
    memory : DRAM at the start instead of the Program's own, uint8 [dram_bytes]; not changed.
    trace : what a memory outside of the contract did, one for every accelerator stage, to be replayed.
    check : False leaves out the proof that no instruction reads too early or what nobody wrote; ranges are always
            checked.
    garbage : seed of pseudo-random bits that on-chip memories hold before they are written; zeros if None.
    codes : integers among the inputs are codes of the Program's tensors, whatever the model's own inputs are.
    progress : called as (what, done, total).

    Raises ModelError for inputs that do not fit, ProgramError for illegal instructions, SimulationError for a Program
    that cannot be run (see gossamer.sim.checker). For many inputs use Simulator or run_batch: time does not depend
    on values and is computed once.
    """
    simulator = Simulator(program, check=check, memory=memory, trace=trace, progress=progress)
    return simulator.run(inputs, values=values, garbage=garbage, codes=codes)


def run_batch(
    program: Program,
    batch: Iterable[Mapping[str, ArrayLike]],
    *,
    codes: bool = False,
    progress: Progress | None = None,
) -> Iterator[Run]:
    """One Run for every set of inputs, as they come; check and time are computed once. Arguments as in `simulate`."""
    simulator = Simulator(program, progress=progress)
    for inputs in batch:
        yield simulator.run(inputs, codes=codes)


class Simulator:
    """A Program checked and timed once, to be run on any number of inputs. Arguments as those of `simulate`."""

    def __init__(
        self,
        program: Program,
        *,
        check: bool = True,
        memory: NDArray[np.uint8] | None = None,
        trace: Trace | Sequence[Trace] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.program = program
        self._progress = progress
        self._host = HostRunner()
        self._image = program.memory() if memory is None else _image(program, memory)
        traces = _traces(program, trace)
        if progress is not None:
            progress("checking", 0, 0)
        if check:
            check_program(program, self._image)
        else:
            check_fields(program, self._image)
        stages: list[StageRun] = []
        for stage, tape in zip(program.accelerator_stages, traces, strict=True):
            if progress is not None:
                progress(f"timing of {stage.name}", len(stages), len(traces))
            stages.append(time_stage(program, stage, tape))
        self.stages: tuple[StageRun, ...] = tuple(stages)
        """Time of every accelerator stage; the same for all inputs."""
        self._statistics = statistics(program, self.stages, self._image)

    def run(
        self,
        inputs: Mapping[str, ArrayLike] | None = None,
        *,
        values: bool = True,
        garbage: int | None = None,
        codes: bool = False,
    ) -> Run:
        """Run on one set of inputs. Raises ModelError when they do not fit."""
        if not values:
            return Run(program=self.program, stages=self.stages, statistics=self._statistics)
        dram = self._image.copy()
        held = take_inputs(self.program, {} if inputs is None else inputs, dram, codes)
        for stage in self.program.stages:
            if isinstance(stage, HostStage):
                self._run_host(stage, held, dram)
            else:
                run_values(self.program, stage, dram, garbage=garbage, progress=self._progress)
        outputs: dict[str, Array] = {}
        for name in self.program.outputs:
            if name in self.program.tensors:
                tensor = self.program.tensors[name]
                outputs[name] = tensor.dequantise(_codes(tensor, dram))
            else:
                outputs[name] = _held(held, name, "output")
        return Run(program=self.program, stages=self.stages, outputs=outputs, memory=dram, statistics=self._statistics)

    def _run_host(self, stage: HostStage, held: dict[str, Array], dram: NDArray[np.uint8]) -> None:
        """One host stage: tensors come from DRAM and go back to it as 8-bit codes, all others pass as they are."""
        tensors = self.program.tensors
        if self._progress is not None:
            self._progress(f"host stage {stage.name}", 0, 0)
        feeds: dict[str, Array] = {}
        for name in stage.inputs:
            if name in tensors:
                codes = _codes(tensors[name], dram)
                feeds[name] = tensors[name].to_model(codes.astype(np.int8 if tensors[name].signed else np.uint8))
            else:
                feeds[name] = _held(held, name, f"input of host stage {stage.name!r}")
        for name, value in self._host.run(stage, feeds).items():
            if name in tensors:
                _put(tensors[name], tensors[name].quantise(np.asarray(value), codes=True), dram)
            else:
                held[name] = value


def _image(program: Program, memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A memory that a caller brought, checked."""
    if memory.dtype != np.uint8 or memory.shape != (program.dram_bytes,):
        raise ModelError(f"memory must be uint8 [{program.dram_bytes}], not {memory.dtype} {list(memory.shape)}")
    return np.ascontiguousarray(memory)


def _traces(program: Program, trace: Trace | Sequence[Trace] | None) -> list[Trace | None]:
    """One trace, or None, for every accelerator stage."""
    count = len(program.accelerator_stages)
    if trace is None:
        return [None] * count
    traces = [trace] if isinstance(trace, Trace) else list(trace)
    if len(traces) != count:
        raise SimulationError(f"the Program has {count} accelerator stages; there are {len(traces)} traces")
    return list(traces)


def take_inputs(
    program: Program, inputs: Mapping[str, ArrayLike], dram: NDArray[np.uint8], codes: bool = False
) -> dict[str, Array]:
    """Write the tensors among the inputs into DRAM and return the others, which belong to host stages.

    codes : see Program.quantise_input. Raises ModelError for inputs that are missing, unknown or do not fit.
    """
    if not isinstance(inputs, Mapping):
        raise ModelError(
            f"inputs must be {{name: array}}, not {type(inputs).__name__}; the Program takes {_describe(program)}"
        )
    for name in inputs:
        if name not in program.inputs:
            raise ModelError(f"{name!r} is not an input; the Program takes {_describe(program)}")
    held: dict[str, Array] = {}
    for name in program.inputs:
        if name not in inputs:
            raise ModelError(f"input {name!r} is missing; the Program takes {_describe(program)}")
        try:
            value = np.asarray(inputs[name])
        except ValueError as error:  # lists of different lengths
            raise ModelError(f"{name!r} is no array: {error}") from error
        if name in program.tensors:
            _put(program.tensors[name], program.quantise_input(name, value, codes=codes), dram)
        else:
            held[name] = _host_input(program, name, value)
    return held


def _host_input(program: Program, name: str, value: Array) -> Array:
    """An input that goes straight to a host stage, in its dtype."""
    if name not in program.host_types:
        return value
    dtype, shape = program.host_types[name]
    if value.shape != tuple(shape):
        raise ModelError(f"{name!r} must have shape {tuple(shape)}, not {value.shape}")
    if not np.can_cast(value.dtype, np.dtype(dtype), casting="same_kind"):
        raise ModelError(f"{name!r} must be of {dtype}, not {value.dtype}")
    return value.astype(dtype)


def _describe(program: Program) -> str:
    """The inputs of a Program for a message."""
    parts = []
    for name in program.inputs:
        if name in program.tensors:
            parts.append(f"{name!r} {list(program.tensors[name].model_shape)}")
        else:
            dtype, shape = program.host_types.get(name, ("?", ()))
            parts.append(f"{name!r} {dtype} {list(shape)}")
    return ", ".join(parts) or "no inputs"


def _codes(tensor: Placement, dram: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Codes [N, C, H, W] of a tensor in DRAM."""
    return tensor.from_memory(dram[tensor.address : tensor.address + tensor.size])


def _put(tensor: Placement, codes: NDArray[np.int16], dram: NDArray[np.uint8]) -> None:
    """Write the codes [N, C, H, W] of a tensor into DRAM, its border included."""
    dram[tensor.address : tensor.address + tensor.size] = tensor.to_memory(codes)


def _held(held: Mapping[str, Array], name: str, what: str) -> Array:
    if name not in held:
        raise SimulationError(f"{what}: {name!r} is neither a tensor nor made by an earlier host stage")
    return held[name]
