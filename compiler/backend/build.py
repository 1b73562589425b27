"""The back end: a quantised Network and a spec to a Program.

place tensors -> pack weights -> map every layer -> schedule -> allocate constants -> synchronise -> Program
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.isa import MATRIX_COLUMNS
from gossamer.arch.layout import Placement
from gossamer.arch.program import AcceleratorStage, Fill, HostStage, LayerNote, Program
from gossamer.arch.spec import ArchSpec
from gossamer.arch.sync import synchronise
from gossamer.compiler.backend.cache import Cache, problem_key
from gossamer.compiler.backend.constants import ConstantPool
from gossamer.compiler.backend.emit import Emitter
from gossamer.compiler.backend.heads import check_padding, place_heads, spread
from gossamer.compiler.backend.items import Item
from gossamer.compiler.backend.mapping import bound, search
from gossamer.compiler.backend.matmul import MatMulProblem, kept_share, make_matmul, padded_tokens
from gossamer.compiler.backend.matmul_items import matmul_items
from gossamer.compiler.backend.matmul_mapping import MatMulMapping, matmul_bound, matmul_mapping
from gossamer.compiler.backend.narrow import narrow_blocks
from gossamer.compiler.backend.problem import Problem, make_problem
from gossamer.compiler.backend.refine import Measure, refine
from gossamer.compiler.backend.schedule import layer_items
from gossamer.compiler.backend.streams import UnitStreams, pack_unit
from gossamer.compiler.backend.tiling import Mapping
from gossamer.compiler.layers import Conv, HostSegment, Layer, MatMul, MaxPool, Network

__all__ = ["MappedLayer", "build_program", "map_layer", "place_tensors"]

_PAGE = 4096
"""Tensors begin at multiples of a page, so that their bursts are not cut more often than need be."""

_KNOWN: Cache[tuple[tuple[UnitStreams, ...], Mapping]] = Cache()
"""Streams and mapping of layers that were compiled before."""

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedLayer:
    """A layer with its packed weights and the mapping that was found."""

    layer: Conv | MaxPool
    problem: Problem
    streams: tuple[UnitStreams, ...]
    mapping: Mapping

    def items(self, index: int, pool: ConstantPool) -> list[Item]:
        """Its items; `index` marks them."""
        return layer_items(index, self.problem, self.streams, self.mapping, pool)

    def note(self, first: int, count: int) -> LayerNote:
        """What it is; first, count : its instructions."""
        layer, positions = self.layer, self.problem.images * self.problem.out[0] * self.problem.out[1]
        array, read, write = bound(self.problem, self.streams)
        macs = useful = 0
        if isinstance(layer, Conv):
            macs, useful = layer.weight.size * positions, int(np.count_nonzero(layer.weight)) * positions
        return LayerNote(
            name=layer.name,
            kind="conv" if isinstance(layer, Conv) else "maxpool",
            pattern=layer.pattern if isinstance(layer, Conv) else "",
            first=first,
            count=count,
            macs=macs,
            useful_macs=useful,
            mac_cycles=float(array),
            read_beats=read,
            write_beats=write,
            mapping=self.mapping.describe(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedMatMul:
    """A product of two activations and the mapping that was found."""

    problem: MatMulProblem
    mapping: MatMulMapping

    @property
    def layer(self) -> MatMul:
        """The layer itself."""
        return self.problem.layer

    def items(self, index: int, pool: ConstantPool) -> list[Item]:
        """Its items; `index` marks them."""
        return matmul_items(index, self.problem, self.mapping, pool)

    def note(self, first: int, count: int) -> LayerNote:
        """What it is; first, count : its instructions."""
        array, read, write = matmul_bound(self.problem)
        macs = self.layer.products * self.problem.tokens * self.problem.reduction * self.problem.columns
        return LayerNote(
            name=self.layer.name,
            kind="matmul",
            pattern="dense" if self.layer.mask is None else "masked",
            first=first,
            count=count,
            macs=macs,
            useful_macs=round(macs * kept_share(self.problem)),
            mac_cycles=array,
            read_beats=read,
            write_beats=write,
            mapping=self.mapping.describe(),
        )


def place_tensors(network: Network, spec: ArchSpec) -> dict[str, Placement]:
    """Give every tensor its place in DRAM, with the border that its hungriest consumer needs."""
    border = {name: np.zeros(4, dtype=np.int64) for name in network.tensors}
    windows = [layer for layer in network.layers if not isinstance(layer, MatMul)]
    for layer in windows:
        for name in layer.inputs:
            border[name] = np.maximum(border[name], layer.pads)
    for product in (layer for layer in network.layers if isinstance(layer, MatMul)):
        tokens = network.tensors[product.b].shape[3]  # loads of an operand take more, to fill columns or steps
        border[product.b][3] = max(border[product.b][3], padded_tokens(product, tokens, spec) - tokens)
    for layer in windows:  # concatenated inputs are read with one set of strides
        shared = np.max([border[name] for name in layer.inputs], axis=0)
        for name in layer.inputs:
            border[name] = np.maximum(border[name], shared)
    narrow, heads = narrow_blocks(network, spec), place_heads(network, spec)
    check_padding(network, spec)
    placements, address = {}, 0
    for name, tensor in network.tensors.items():
        top, left, bottom, right = (int(b) for b in border[name])
        block = narrow.get(name, spec.block)
        row = math.lcm(block, spec.axi_bytes) // block  # pixels in whole beats
        right += -(left + tensor.shape[3] + right) % row
        placements[name] = Placement(
            name=name,
            address=address,
            shape=tensor.shape,
            block=block,
            border=(top, left, bottom, right),
            scale=tensor.scale,
            zero_point=tensor.zero_point,
            signed=tensor.signed,
            model_shape=tensor.model_shape or tensor.shape,
            channels_last=tensor.channels_last,
            heads=heads.get(name, 1),
        )
        address = _up(address + placements[name].size)
    return placements


def map_layer(
    layer: Layer, placements: dict[str, Placement], spec: ArchSpec, measure: Measure | None = None
) -> MappedLayer | MappedMatMul:
    """Pack a layer's weights and search its mapping, by cost or by `measure`. Raises CapacityError if nothing fits."""
    if isinstance(layer, MatMul):
        product = make_matmul(layer, placements, spec)
        return MappedMatMul(problem=product, mapping=matmul_mapping(product))
    problem = make_problem(*spread(layer, placements), spec)

    def find() -> tuple[tuple[UnitStreams, ...], Mapping]:
        packed = tuple(pack_unit(problem, unit) for unit in problem.units)
        found = search(problem, packed)
        return packed, refine(problem, packed, found, placements, measure) if measure else found

    key = problem_key(problem) + (b"measured" if measure else b"")
    streams, mapping = _KNOWN.get(key, find, lambda found: _held_bytes(found[0]))
    return MappedLayer(layer=layer, problem=problem, streams=streams, mapping=mapping)


def _held_bytes(streams: tuple[UnitStreams, ...]) -> int:
    """Bytes that a layer's streams keep in memory."""
    tiles = [tile for unit in streams for tile in unit.tiles]
    return sum(t.weights.nbytes + t.stream.values.nbytes + t.stream.selects.nbytes for t in tiles)


def build_program(
    network: Network, spec: ArchSpec, progress: Progress | None = None, *, measure: Measure | None = None
) -> Program:
    """Compile a quantised network for a spec.

    progress : called with (what is being done, done, total).
    measure : cycles of a Program, to choose mappings by (compiler/backend/refine.py); without it, by cost alone.
    Raises CapacityError when a layer cannot fit.
    """
    placements = place_tensors(network, spec)
    base = _up(max((p.address + p.size for p in placements.values()), default=0))
    pool = ConstantPool(base=base, beat=spec.axi_bytes)
    stages: list[AcceleratorStage | HostStage] = []
    matrices: list[NDArray[np.int64]] = []
    notes: list[LayerNote] = []
    first, done, total = 0, 0, len(network.layers)
    for on_host, group in groupby(network.stages, key=lambda s: isinstance(s, HostSegment)):
        if on_host:
            stages += [_host_stage(s) for s in group if isinstance(s, HostSegment)]
            continue
        emitter = Emitter(spec)
        items: list[Item] = []
        mapped: list[MappedLayer | MappedMatMul] = []
        for layer in group:
            assert not isinstance(layer, HostSegment)
            found = map_layer(layer, placements, spec, measure)
            items += found.items(len(mapped), pool)
            mapped.append(found)
            done += 1
            if progress:
                progress(f"map {layer.name}", done, total)
        emitter.run(items)
        matrix = np.array(emitter.rows, dtype=np.int64)
        notes += _notes(mapped, emitter.first_row, first, len(matrix))
        stages.append(AcceleratorStage(name=mapped[0].layer.name, first=first, count=len(matrix)))
        matrices.append(matrix)
        first += len(matrix)
    dram_bytes = _up(pool.end)
    image = np.zeros(dram_bytes, dtype=np.uint8)
    constants = pool.segment()
    image[constants.address : constants.address + constants.data.size] = constants.data
    for matrix in matrices:
        synchronise(matrix, spec, image)
    return Program(
        name=network.name,
        spec=spec,
        instructions=np.concatenate(matrices) if matrices else np.zeros((0, MATRIX_COLUMNS), dtype=np.int64),
        dram_bytes=dram_bytes,
        segments=(constants,) if constants.data.size else (),
        fills=tuple(Fill(address=p.address, size=p.size, value=p.zero_byte) for p in placements.values()),
        tensors=placements,
        stages=tuple(stages),
        inputs=network.inputs,
        outputs=network.outputs,
        layers=tuple(notes),
        host_types=dict(network.host_types),
    )


def _up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


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


def _notes(
    mapped: list[MappedLayer | MappedMatMul], first_row: dict[int, int], offset: int, count: int
) -> list[LayerNote]:
    """What each layer of a stage is; its instructions run from its first MATMUL to the next layer's.

    LOADs that were moved ahead count with the layer behind which they hide.
    """
    starts = [0, *(first_row[i] for i in range(1, len(mapped))), count]
    return [m.note(offset + starts[i], starts[i + 1] - starts[i]) for i, m in enumerate(mapped)]
