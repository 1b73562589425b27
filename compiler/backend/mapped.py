"""Layers with their weights packed and their mapping found."""

from dataclasses import dataclass, replace

import numpy as np

from gossamer.arch.layout import Placement
from gossamer.arch.program import LayerNote
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.cache import Cache, problem_key, product_key
from gossamer.compiler.backend.constants import ConstantPool
from gossamer.compiler.backend.heads import spread
from gossamer.compiler.backend.items import Item
from gossamer.compiler.backend.mapping import bound, search
from gossamer.compiler.backend.matmul import MatMulProblem, kept_share, make_matmul
from gossamer.compiler.backend.matmul_items import matmul_items
from gossamer.compiler.backend.matmul_mapping import MatMulMapping, matmul_bound, matmul_mapping
from gossamer.compiler.backend.problem import Problem, make_problem
from gossamer.compiler.backend.refine import Measure, refine
from gossamer.compiler.backend.schedule import layer_items
from gossamer.compiler.backend.streams import UnitStreams, filled, pack_unit
from gossamer.compiler.backend.tiling import Mapping
from gossamer.compiler.layers import Conv, Layer, MatMul, MaxPool

__all__ = ["MappedLayer", "MappedMatMul", "map_layer"]

_KNOWN: Cache[tuple[tuple[UnitStreams, ...], Mapping]] = Cache()
"""Streams and mapping of layers that were compiled before."""

_PRODUCTS: Cache[MatMulMapping] = Cache(1 << 12)
"""Mappings of products that were searched before."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedLayer:
    """A layer with its packed weights and the mapping that was found. key : digest of what both depend on."""

    layer: Conv | MaxPool
    problem: Problem
    streams: tuple[UnitStreams, ...]
    mapping: Mapping
    key: bytes
    kept: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    def relocated(self, placements: dict[str, Placement]) -> "MappedLayer":
        """The same with tensors elsewhere."""
        return replace(self, problem=make_problem(*spread(self.layer, placements), self.problem.spec))

    def items(self, index: int, pool: ConstantPool) -> list[Item]:
        """Its items; `index` marks them."""
        return layer_items(index, self.problem, self.streams, self.mapping, pool)

    def note(self, first: int, count: int) -> LayerNote:
        """What it is; first, count : its instructions."""
        layer, (rows, pixels) = self.layer, self.problem.out
        positions = self.problem.images * rows * pixels // self.problem.stacked
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
    kept: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    def relocated(self, placements: dict[str, Placement]) -> "MappedMatMul":
        """The same with tensors elsewhere."""
        return replace(self, problem=make_matmul(self.layer, placements, self.problem.spec))

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


def map_layer(
    layer: Layer, placements: dict[str, Placement], spec: ArchSpec, measure: Measure | None = None
) -> MappedLayer | MappedMatMul:
    """Pack a layer's weights and search its mapping, by cost or by `measure`. Raises CapacityError if nothing fits."""
    if isinstance(layer, MatMul):
        product = make_matmul(layer, placements, spec)
        found = _PRODUCTS.get(product_key(product), lambda: matmul_mapping(product), lambda _: 1)
        return MappedMatMul(problem=product, mapping=found)
    problem = make_problem(*spread(layer, placements), spec)

    def find() -> tuple[tuple[UnitStreams, ...], Mapping]:
        packed = tuple(pack_unit(problem, unit) for unit in problem.units)
        found = search(problem, packed)
        if full := filled(problem, packed):
            other = search(problem, full)
            if other.cost.cycles < found.cost.cycles:
                packed, found = full, other
        return packed, refine(problem, packed, found, placements, measure) if measure else found

    key = problem_key(problem) + (b"measured" if measure else b"")
    streams, mapping = _KNOWN.get(key, find, lambda found: _held_bytes(found[0]))
    return MappedLayer(layer=layer, problem=problem, streams=streams, mapping=mapping, key=key)


def _held_bytes(streams: tuple[UnitStreams, ...]) -> int:
    """Bytes that a layer's streams keep in memory."""
    tiles = [tile for unit in streams for tile in unit.tiles]
    return sum(t.weights.nbytes + t.stream.values.nbytes + t.stream.selects.nbytes for t in tiles)
