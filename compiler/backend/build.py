"""The back end: a quantised Network and a spec to a Program.

place tensors -> pack weights -> map every layer -> schedule -> allocate constants -> synchronise -> Program
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import CapacityError
from gossamer.arch.isa import MATRIX_COLUMNS
from gossamer.arch.program import AcceleratorStage, Fill, HostStage, LayerNote, Program
from gossamer.arch.spec import ArchSpec
from gossamer.arch.sync import synchronise
from gossamer.compiler.backend.chains import MappedChain, find_chains
from gossamer.compiler.backend.constants import ConstantPool
from gossamer.compiler.backend.emit import Emitter
from gossamer.compiler.backend.mapped import MappedLayer, MappedMatMul, map_layer
from gossamer.compiler.backend.placing import page_up, place_tensors
from gossamer.compiler.backend.refine import Measure
from gossamer.compiler.layers import HostSegment, Network

__all__ = ["build_program"]

Progress = Callable[[str, int, int], object]

Mapped = MappedLayer | MappedMatMul | MappedChain


def build_program(
    network: Network,
    spec: ArchSpec,
    progress: Progress | None = None,
    *,
    chains: bool = True,
    measure: Measure | None = None,
) -> Program:
    """Compile a quantised network for a spec.

    progress : called with (what is being done, done, total).
    chains : keep tensors between layers on chip where that saves time; they are not in the Program's symbol table.
    measure : cycles of a Program, to choose mappings by (compiler/backend/refine.py); without it, by cost alone. Layers
    are measured by themselves, so the whole is then measured against the one by cost.
    Raises CapacityError when a layer cannot fit.
    """
    by_cost = _build(network, spec, progress, chains, None)
    if measure is None:
        return by_cost
    return min(_build(network, spec, progress, chains, measure), by_cost, key=measure)


def _build(
    network: Network, spec: ArchSpec, progress: Progress | None, chains: bool, measure: Measure | None
) -> Program:
    placements = place_tensors(network, spec)
    groups: list[list[Mapped] | HostSegment] = []
    done, total = 0, len(network.layers)
    for on_host, group in groupby(network.stages, key=lambda s: isinstance(s, HostSegment)):
        if on_host:
            groups += [s for s in group if isinstance(s, HostSegment)]
            continue
        mapped: list[MappedLayer | MappedMatMul] = []
        for layer in group:
            assert not isinstance(layer, HostSegment)
            mapped.append(map_layer(layer, placements, spec, measure))
            done += 1
            if progress:
                progress(f"map {layer.name}", done, total)
        groups.append(find_chains(mapped, network, placements, measure) if chains else list(mapped))
    # Chains were chosen by the banks they need. Where other buffers are too small for one, or broken into pieces, its
    # layers go through memory; what is next to it may be what stands in its way, and then all of them do.
    for without in (lambda _: False, lambda chain: not chain.fits(), lambda _: True):
        parted = [g if isinstance(g, HostSegment) else _parted(g, without) for g in groups]
        try:
            return _assemble(network, spec, parted)
        except CapacityError:
            if not any(isinstance(m, MappedChain) for g in parted if isinstance(g, list) for m in g):
                raise
    raise AssertionError("without chains there is nothing left to part")


def _parted(group: Sequence[Mapped], without: Callable[[MappedChain], bool]) -> list[Mapped]:
    """The layers of a stage with some chains taken apart."""
    out: list[Mapped] = []
    for m in group:
        out += list(m.apart) if isinstance(m, MappedChain) and without(m) else [m]
    return out


def _assemble(network: Network, spec: ArchSpec, groups: Sequence[list[Mapped] | HostSegment]) -> Program:
    """Instructions and memory of a network whose layers are mapped."""
    kept = {name for group in groups if isinstance(group, list) for m in group for name in m.kept}
    placements = place_tensors(network, spec, kept)
    pool = ConstantPool(
        base=page_up(max((p.address + p.size for p in placements.values() if p.name not in kept), default=0)),
        beat=spec.axi_bytes,
    )
    stages: list[AcceleratorStage | HostStage] = []
    matrices: list[NDArray[np.int64]] = []
    notes: list[LayerNote] = []
    first = 0
    for group in groups:
        if isinstance(group, HostSegment):
            stages.append(_host_stage(group))
            continue
        mapped = [m.relocated(placements) for m in group] if kept else group
        emitter = Emitter(spec)
        emitter.run([item for index, m in enumerate(mapped) for item in m.items(index, pool)])
        matrix = np.array(emitter.rows, dtype=np.int64)
        notes += _notes(mapped, emitter.first_row, first, len(matrix))
        stages.append(AcceleratorStage(name=mapped[0].name, first=first, count=len(matrix)))
        matrices.append(matrix)
        first += len(matrix)
    dram_bytes = page_up(pool.end)
    image = np.zeros(dram_bytes, dtype=np.uint8)
    constants = pool.segment()
    image[constants.address : constants.address + constants.data.size] = constants.data
    for matrix in matrices:
        synchronise(matrix, spec, image)
    tensors = {name: p for name, p in placements.items() if name not in kept}
    return Program(
        name=network.name,
        spec=spec,
        instructions=np.concatenate(matrices) if matrices else np.zeros((0, MATRIX_COLUMNS), dtype=np.int64),
        dram_bytes=dram_bytes,
        segments=(constants,) if constants.data.size else (),
        fills=tuple(Fill(address=p.address, size=p.size, value=p.zero_byte) for p in tensors.values()),
        tensors=tensors,
        stages=tuple(stages),
        inputs=network.inputs,
        outputs=network.outputs,
        layers=tuple(notes),
        host_types=dict(network.host_types),
    )


def _host_stage(segment: HostSegment) -> HostStage:
    return HostStage(
        name=segment.name,
        model=segment.model,
        inputs=segment.inputs,
        outputs=segment.outputs,
        reason=segment.reason,
        ops=segment.ops,
        macs=segment.macs,
    )


def _notes(mapped: list[Mapped], first_row: dict[int, int], offset: int, count: int) -> list[LayerNote]:
    """What each layer of a stage is; its instructions run from its first MATMUL to the next layer's.

    LOADs that were moved ahead count with the layer behind which they hide.
    """
    starts = [0, *(first_row[i] for i in range(1, len(mapped))), count]
    return [m.note(offset + starts[i], starts[i + 1] - starts[i]) for i, m in enumerate(mapped)]
