"""What `gossamer verify` runs: many programs for many specs, and one line for each of what was compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError, SimulationError
from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.verification import Verification, example_program, random_inputs, verify

if TYPE_CHECKING:
    from gossamer.compiler.layers import Network
    from gossamer.rtl.model import Memory

__all__ = [
    "STALLS",
    "Case",
    "Tally",
    "campaign",
    "layer_cases",
    "program_cases",
    "random_cases",
    "small_machines",
    "tally",
]

STALLS = (20, 128, 240)
"""Of 256, how often a memory holds something back, in turn: seldom, every other time, nearly always."""

Arrays = Mapping[str, NDArray[np.generic]]


class Case(NamedTuple):
    """A Program with its inputs. name : what it is called when it differs."""

    name: str
    program: Program
    inputs: Arrays


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What was compared for one spec. programs : runs in both;  events : numbers of their logs;  bytes : of memory.

    mismatches : runs that differ;  difference : the first one, in words.
    build_seconds : for the hardware's model;  seconds : for all runs.
    classes : the largest output of every run by who computed it, for a model with one row of outputs.
    """

    spec: str
    what: str
    programs: int
    instructions: int
    cycles: int
    events: int
    bytes: int
    mismatches: int
    build_seconds: float
    seconds: float
    difference: str | None = None
    classes: Mapping[str, list[int]] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def small_machines() -> tuple[ArchSpec, ...]:
    """`tiny`, and machines of its size after the presets for 2:4, 2:8 and 1:32: their models are built in seconds."""
    small = {
        "activation_bytes": 2048,
        "activation_partitions": 2,
        "output_bytes": 512,
        "output_partitions": 2,
        "weight_steps": 64,
        "offset_steps": 128,
        "parameter_channels": 32,
        "tables": 1,
        "depth": 6,
        "axi_bytes": 8,
        "queue_depth": 4,
        "fetch_burst": 4,
        "read_latency": 9,
        "burst_gap": 1,
        "write_latency": 5,
        "outstanding_reads": 3,
        "outstanding_writes": 2,
        "burst_beats": 16,
        "broadcast_columns": 2,
        "broadcast_lanes": 2,
    }
    shapes = {
        "nm-2of4": {"lanes": 4, "columns": 8},
        "sat-2of8": {"lanes": 3, "columns": 4, "beat_interval": 2},
        "s4-1of32": {"lanes": 2, "columns": 4},
    }
    return (
        ArchSpec.load("tiny"),
        *(ArchSpec.load(n).evolve(**small, **shape, name=f"{n}-small") for n, shape in shapes.items()),
    )


def random_cases(spec: ArchSpec, count: int, seed: int) -> Iterator[Case]:
    """The example program, and `count` random ones; in every third, some lanes see garbage."""
    from gossamer.sim.random_programs import random_program

    yield Case("example", example_program(spec), {})
    for k in range(seed, seed + count):
        yield Case(f"random program {k}", random_program(np.random.default_rng(k), spec, 25, ragged=k % 3 == 2), {})


def program_cases(program: Program, arrays: Arrays | None, seed: int = 1) -> Iterator[Case]:
    """A Program with random inputs, or once for each set of inputs that `arrays` hold along their first axes.

    Raises ModelError for arrays that are not whole sets of inputs.
    """
    if arrays is None:
        yield Case(program.name, program, random_inputs(program, seed))
        return
    counts = {name: _sets(program, name, np.asarray(array)) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ModelError(f"inputs must hold equally many sets: {', '.join(f'{n} {c}' for n, c in counts.items())}")
    for k in range(next(iter(counts.values()), 1)):
        inputs = {n: np.split(np.asarray(a), counts[n])[k] if counts[n] > 1 else a for n, a in arrays.items()}
        yield Case(f"{program.name}, input {k}", program, inputs)


def _sets(program: Program, name: str, array: NDArray[np.generic]) -> int:
    """How many inputs of the Program's shape an array holds one after the other."""
    if name in program.tensors:
        shape = program.tensors[name].model_shape
    elif name in program.host_types:
        shape = program.host_types[name][1]
    else:
        raise ModelError(f"there is no input {name!r}; the Program takes {', '.join(program.inputs)}")
    if array.shape == shape or not shape or not array.ndim:
        return 1
    if array.shape[1:] != shape[1:] or array.shape[0] % shape[0]:
        raise ModelError(f"input {name!r} must have shape {shape}, or several along its first axis, not {array.shape}")
    return int(array.shape[0] // shape[0])


def layer_cases(network: Network, wanted: Sequence[str], spec: ArchSpec, seed: int = 1) -> Iterator[Case]:
    """Single layers of a network, by name or glob, each a Program of its own on random codes.

    Raises ModelError when a name fits no layer, and CapacityError when a layer does not fit the spec.
    """
    from gossamer.compiler.backend.build import build_program
    from gossamer.compiler.layers import Network

    for pattern in wanted:
        if not any(fnmatchcase(layer.name, pattern) for layer in network.layers):
            names = ", ".join(layer.name for layer in network.layers)
            raise ModelError(f"no layer is called {pattern!r}; the accelerator runs {names}")
    for layer in network.layers:
        if not any(fnmatchcase(layer.name, pattern) for pattern in wanted):
            continue
        residual = getattr(layer, "residual", None)
        inputs = tuple(dict.fromkeys((*layer.inputs, *((residual,) if residual else ()))))
        alone = Network(
            name=layer.name,
            tensors={name: network.tensors[name] for name in (*inputs, layer.output)},
            stages=(layer,),
            inputs=inputs,
            outputs=(layer.output,),
        )
        program = build_program(alone, spec)
        yield Case(f"layer {layer.name}", program, random_inputs(program, seed))


def tally(
    spec: ArchSpec,
    what: str,
    cases: Iterable[Case],
    *,
    stalls: bool = False,
    seed: int = 1,
    wave: Path | None = None,
    coverage: Path | None = None,
    progress: Callable[[str, int, int], object] | None = None,
    seen: Callable[[Case, Verification, Memory | None], object] | None = None,
) -> Tally:
    """Run all cases in one hardware model of the spec, one after the other without a reset.

    stalls : also with a memory that holds back at random, replayed in the simulator.  seed : of power-on and stalls.
    wave, coverage : files to write (see rtl.Model).  seen : called after every comparison.
    """
    from gossamer.rtl.model import Memory, Model

    begin = time.perf_counter()
    if progress:
        progress(f"{spec.name}: hardware", 0, 0)
    model = Model(spec, seed=seed, wave=wave, coverage=coverage)
    built = time.perf_counter()
    programs = instructions = cycles = events = compared = mismatches = 0
    first: str | None = None
    with model:
        for k, case in enumerate(cases):
            memories = [None, Memory(stall=STALLS[k % len(STALLS)], seed=seed + k)] if stalls else [None]
            for memory in memories:
                if progress:
                    progress(f"{spec.name}: {case.name}", 0, 0)
                programs += 1
                name = case.name if memory is None else f"{case.name}, {memory.stall} of 256 held back"
                try:
                    found = verify(case.program, case.inputs, model=model, memory=memory)
                except SimulationError as error:
                    mismatches += 1
                    first = first or f"{name}: {error}"
                    continue
                instructions += len(case.program.instructions)
                cycles += found.hardware.cycles
                events += found.events
                compared += found.bytes
                if found.difference is not None:
                    mismatches += 1
                    first = first or f"{name}: {found.difference}"
                if seen:
                    seen(case, found, memory)
    return Tally(
        spec=spec.name,
        what=what,
        programs=programs,
        instructions=instructions,
        cycles=cycles,
        events=events,
        bytes=compared,
        mismatches=mismatches,
        build_seconds=built - begin,
        seconds=time.perf_counter() - built,
        difference=first,
    )


def campaign(
    specs: Sequence[ArchSpec],
    *,
    program: Path | None = None,
    model: Path | None = None,
    layers: Sequence[str] | None = None,
    arrays: Arrays | None = None,
    dims: Mapping[str, int] | None = None,
    count: int = 10,
    seed: int = 1,
    stalls: bool = False,
    wave: Path | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> list[Tally]:
    """A Tally for every spec: of a Program file, of a model, of single layers of it, or of `count` random programs.

    arrays : inputs of the Program or model, one set or several (see `program_cases`); random ones without.
    dims : the model's open dimensions by name.
    Raises what loading, compiling and simulating raise.
    """
    if program is not None:
        loaded = Program.load(program)
        cases = program_cases(loaded, arrays, seed)
        return [tally(loaded.spec, loaded.name, cases, stalls=stalls, seed=seed, wave=wave, progress=progress)]
    if model is not None:
        return _model_campaign(
            specs, model, layers, arrays, dims, seed=seed, stalls=stalls, wave=wave, progress=progress
        )
    return [
        tally(
            spec,
            f"example, {count} random",
            random_cases(spec, count, seed),
            stalls=stalls,
            seed=seed,
            wave=wave,
            progress=progress,
        )
        for spec in specs
    ]


def _model_campaign(
    specs: Sequence[ArchSpec],
    model: Path,
    layers: Sequence[str] | None,
    arrays: Arrays | None,
    dims: Mapping[str, int] | None,
    *,
    seed: int,
    **options: Any,
) -> list[Tally]:
    from gossamer.api import compile
    from gossamer.compiler.passes import build_network

    # Two kinds of spec at most: with products of activations and without.
    kinds = {spec.dynamic_operands for spec in specs}
    networks = {kind: build_network(model, calibration=arrays, dims=dims, products=kind) for kind in kinds}
    rows = []
    for spec in specs:
        network = networks[spec.dynamic_operands]
        if layers is not None:
            what = f"layers {','.join(layers)} of {network.name}"
            rows.append(tally(spec, what, layer_cases(network, layers, spec, seed), seed=seed, **options))
            continue
        answers = _Answers(model)
        cases = program_cases(compile(network, spec), arrays, seed)
        # A class means something where the inputs do.
        row = tally(spec, network.name, cases, seed=seed, seen=answers if arrays is not None else None, **options)
        rows.append(replace(row, classes=answers.found))
    return rows


class _Answers:
    """Collects the class that simulator, hardware and onnxruntime give to each input, where a model has classes."""

    def __init__(self, model: Path) -> None:
        import onnxruntime

        self.found: dict[str, list[int]] = {}
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def __call__(self, case: Case, found: Verification, _: Memory | None) -> None:
        feeds = {i.name: np.asarray(case.inputs[i.name]) for i in self._session.get_inputs()}
        reals = {i.name for i in self._session.get_inputs() if i.type == "tensor(float)"}
        feeds = {n: a.astype(np.float32) if n in reals else a for n, a in feeds.items()}
        shapes = {output.shape for output in found.simulated.outputs.values()}
        if len(shapes) != 1:
            return
        (shape,) = shapes
        if len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
            return
        outputs = {
            "simulator": found.simulated.outputs.values(),
            "hardware": found.hardware.outputs.values(),
            "onnxruntime": self._session.run(None, feeds),
        }
        for name, values in outputs.items():
            self.found.setdefault(name, []).append(int(np.argmax(next(iter(values)))))
