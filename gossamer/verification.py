"""Verification: one Program through the simulator and through the generated hardware, compared on everything.

It stands here and not in rtl/ because it sees both rooms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.layout import Placement
from gossamer.arch.numerics import code_range
from gossamer.arch.program import AcceleratorStage, HostStage, Program
from gossamer.arch.run import Run, StageRun
from gossamer.arch.spec import ArchSpec

if TYPE_CHECKING:
    from gossamer.arch.memory import Trace
    from gossamer.rtl.cosim import CocotbModel
    from gossamer.rtl.model import Memory, Model

__all__ = ["Verification", "example_program", "facts", "memory_with", "random_inputs", "run_hardware", "verify"]


class Verification(NamedTuple):
    """Both runs, and the first thing in which they differ (None if nothing)."""

    simulated: Run
    hardware: Run
    difference: str | None

    @property
    def events(self) -> int:
        """Numbers of the event logs that were compared."""
        return sum(stage.events.size for stage in self.simulated.stages)

    @property
    def bytes(self) -> int:
        """Bytes of memory that were compared."""
        return 0 if self.simulated.memory is None else self.simulated.memory.size


def verify(
    program: Program,
    inputs: Mapping[str, Any] | None = None,
    *,
    model: Model | CocotbModel | None = None,
    memory: Memory | None = None,
    wave: Path | None = None,
) -> Verification:
    """Run a Program in the simulator and in the Verilated hardware made from its spec.

    inputs : model inputs by name.
    model : a model of the spec that is there already, or a CocotbModel; else one is built and closed.
    memory : a memory outside of the contract; its times are recorded and replayed in the simulator.
    wave : a .vcd or .fst file to write (ignored with `model`).

    Raises GossamerError when a tool is missing, and what the simulator raises; an error code of the hardware is a
    SimulationError.
    """
    from gossamer.rtl.model import Model
    from gossamer.sim.simulate import simulate

    given = {} if inputs is None else dict(inputs)
    own = model or Model(program.spec, wave=wave)
    try:
        traces: list[Trace] = []
        done = run_hardware(program, given, own, memory=memory, traces=traces if memory else None)
    finally:
        if model is None:
            own.close()
    simulated = simulate(program, given, values=True, trace=traces if memory else None)
    return Verification(simulated, done, simulated.difference(done))


def example_program(spec: ArchSpec) -> Program:
    """A small Program made by hand for any spec: one window times a dense matrix in every lane."""
    from gossamer.rtl.example import example

    return example(spec)[0]


def random_inputs(program: Program, seed: int = 1) -> dict[str, NDArray[np.generic]]:
    """Values that mean random codes for every input that is a tensor: real ones where the model takes real ones.

    Raises ModelError when the Program has other inputs.
    """
    rng = np.random.default_rng(seed)
    made: dict[str, NDArray[np.generic]] = {}
    for name in program.inputs:
        if name not in program.tensors:
            raise ModelError(f"input {name!r} belongs to a host stage: random values may mean nothing to it")
        tensor = program.tensors[name]
        low, high = code_range(tensor.signed)
        codes = rng.integers(low, high + 1, tensor.model_shape, dtype=np.int16)
        made[name] = tensor.dequantise(tensor.to_nchw(codes)) if name in program.host_types else codes
    return made


def facts(found: Verification) -> dict[str, int | str]:
    """What was compared, for people and for JSON."""
    return {
        "program": found.simulated.program.name,
        "spec": found.simulated.program.spec.name,
        "instructions": len(found.simulated.program.instructions),
        "cycles": found.hardware.cycles,
        "numbers_of_events": found.events,
        "bytes": found.bytes,
        "difference": found.difference or "none",
    }


def run_hardware(
    program: Program,
    inputs: Mapping[str, Any],
    model: Model | CocotbModel,
    *,
    memory: Memory | None = None,
    traces: list[Trace] | None = None,
) -> Run:
    """A Program's stages in order, those of the accelerator in hardware, those of the host in onnxruntime.

    traces : collects what the memory did, one for every accelerator stage. Raises as Model.run_stage does, and
    ModelError for an input that is missing or does not fit.
    """
    from gossamer.sim.host import HostRunner

    tensors, host = program.tensors, HostRunner()
    dram, held = memory_with(program, inputs)
    stages: list[StageRun] = []
    for stage in program.stages:
        if isinstance(stage, AcceleratorStage):
            stages.append(model.run_stage(program, stage, dram, memory))
            if traces is not None:
                traces.append(model.trace())
        else:
            _host_stage(stage, host, tensors, held, dram)
    outputs = {
        name: tensors[name].dequantise(_read(tensors[name], dram)) if name in tensors else held[name]
        for name in program.outputs
    }
    return Run(program=program, stages=tuple(stages), outputs=outputs, memory=dram)


def memory_with(
    program: Program, inputs: Mapping[str, Any]
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.generic]]]:
    """DRAM before the first stage, inputs included: uint8 [dram_bytes]; and the inputs of host stages.

    Raises ModelError for an input that is missing, unknown or does not fit.
    """
    from gossamer.sim.simulate import take_inputs

    dram = program.memory()
    return dram, take_inputs(program, inputs, dram)


def _host_stage(
    stage: HostStage,
    host: Any,
    tensors: Mapping[str, Placement],
    held: dict[str, NDArray[np.generic]],
    dram: NDArray[np.uint8],
) -> None:
    feeds = dict(held)
    for name in stage.inputs:
        if name in tensors:
            codes = _read(tensors[name], dram).astype(np.int8 if tensors[name].signed else np.uint8)
            feeds[name] = tensors[name].to_model(codes)
    for name, value in host.run(stage, {n: feeds[n] for n in stage.inputs}).items():
        if name in tensors:
            _write(tensors[name], tensors[name].quantise(np.asarray(value), codes=True), dram)
        else:
            held[name] = value


def _read(tensor: Placement, dram: NDArray[np.uint8]) -> NDArray[np.int16]:
    return tensor.from_memory(dram[tensor.address : tensor.address + tensor.size])


def _write(tensor: Placement, codes: NDArray[np.int16], dram: NDArray[np.uint8]) -> None:
    dram[tensor.address : tensor.address + tensor.size] = tensor.to_memory(codes)
