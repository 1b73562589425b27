"""A product of two activations as the mapper sees it: positions, and column tiles whose weights are B.

Every tensor's images and heads are one line of channel blocks, in which each product has its run of channels: product i
reads run i of A, takes its weights from run i of B (NATURAL or TRANSPOSED loads, arch/stream.py), and writes run i of
Y. All products have the same shape, so one mapping and one list of offsets serve all. A run begins a block of its own,
or several heads are packed into a block, where loads and tiles can tell them apart (`packable`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import CapacityError, ModelError
from gossamer.arch.layout import Placement
from gossamer.arch.numerics import code_range
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.layers import MatMul

__all__ = ["MatMulProblem", "Tile", "Work", "kept_share", "make_matmul", "packable", "padded_tokens"]

Runs = tuple[tuple[int, int], ...]
"""Steps [first, last) of a column tile that have to be done."""


def padded_tokens(layer: MatMul, tokens: int, spec: ArchSpec) -> int:
    """Tokens that loads of b take: whole blocks of columns if transposed, else whole steps."""
    unit = spec.block if layer.transposed else spec.macs
    return -(-tokens // unit) * unit


def packable(layer: MatMul, name: str, channels: int, runs: int, spec: ArchSpec) -> bool:
    """Whether heads of so many channels may share the channel blocks of one of the layer's tensors.

    Heads fill their blocks. A's windows and B's selects begin at multiples of the group; a beat of a transposed operand
    holds whole heads, or a head whole beats. A column tile may hold several heads: each drains the tile up to its own
    last column, the last head first, so that the others overwrite what is not theirs.
    """
    columns, beat = spec.columns, spec.axi_bytes
    if spec.block % channels or runs * channels % spec.block:
        return False
    aligned = channels % spec.group == 0
    whole_tiles = channels % columns == 0 or (columns % channels == 0 and channels % spec.ppu == 0)
    rules = []
    if name == layer.a:
        rules.append(aligned)
    if name == layer.b:
        rules.append(aligned and (beat % channels == 0 or channels % beat == 0) if layer.transposed else whole_tiles)
    if name == layer.output:
        rules.append(channels % columns == 0 if layer.transposed else whole_tiles)
    return all(rules)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A column tile of an output block. index : which one.  first : column of Y in its column 0; below 0 where heads
    before this one stand in it.  groups : PPU-wide groups of columns up to the last one of this product.
    """

    index: int
    first: int
    groups: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """What has to be done for some tokens of a product. steps : cycles of the array for each position of a lane.

    tiles, blocks : column tiles and output blocks that are not all masked.  runs : of steps, one after the other.
    """

    steps: int
    tiles: int
    blocks: int
    runs: int


@dataclass(frozen=True, kw_only=True, eq=False)
class MatMulProblem:
    """A MatMul with its tensors placed. out : positions of a product as (rows, pixels)."""

    layer: MatMul
    spec: ArchSpec
    a: Placement
    b: Placement
    output: Placement
    out: tuple[int, int]

    # ---- where runs stand ----

    def _channels(self, p: Placement) -> int:
        """Channels of a run."""
        return p.shape[0] * p.shape[1] // self.layer.products

    def run_blocks(self, p: Placement) -> int:
        """Channel blocks that a run stands in."""
        return -(-self._channels(p) // p.block)

    def heads_of_block(self, p: Placement) -> int:
        """Products whose runs share a channel block."""
        if p.heads > 1 or p.shape[0] == self.layer.products or self._channels(p) % p.block == 0:
            return 1
        return p.block // self._channels(p)

    def start(self, p: Placement, product: int) -> tuple[int, int]:
        """Channel block, counted through all images, and channel in it where a product's run begins."""
        image, head = divmod(product, self.layer.products // p.shape[0])
        stride = p.head_blocks * p.block if p.heads > 1 else self._channels(p)
        block, inside = divmod(head * stride, p.block)
        return image * p.blocks + block, inside

    @cached_property
    def together(self) -> int:
        """Products in a row that are computed together because they share blocks."""
        return math.lcm(*(self.heads_of_block(p) for p in (self.a, self.b, self.output)))

    # ---- sizes ----

    @property
    def tokens(self) -> int:
        """Rows of Y."""
        return self.a.shape[3]

    @property
    def reduction(self) -> int:
        """Columns of A."""
        return self._channels(self.a)

    @property
    def columns(self) -> int:
        """Columns of Y."""
        return self._channels(self.output)

    @property
    def steps(self) -> int:
        """Steps of a column tile without a mask."""
        return -(-self.reduction // self.spec.macs)

    @cached_property
    def loaded_steps(self) -> int:
        """Steps that the loads of a column tile fill: of TRANSPOSED, whole beats of the run's channel blocks."""
        if not self.layer.transposed:
            return self.steps
        channels = self.run_blocks(self.b) * self.spec.block
        if self.heads_of_block(self.b) > 1:
            channels = max(self.reduction, self.spec.axi_bytes)
        return channels // self.spec.macs

    def first_step(self, product: int) -> int:
        """Where the product's steps begin among the loaded ones: behind those of other heads in the same beats."""
        if not self.layer.transposed:
            return 0
        return self.start(self.b, product)[1] % self.spec.axi_bytes // self.spec.macs

    @cached_property
    def pieces(self) -> Runs:
        """Loaded steps of a column tile that are on chip at once; most often all."""
        spec = self.spec
        most = min(spec.weight_steps // 2, spec.offset_steps)
        unit = max(spec.weight_banks if self.layer.transposed else 1, spec.group // spec.macs)
        whole = min(spec.block // spec.macs, self.loaded_steps)  # TRANSPOSED: whole channel blocks, or part of one
        if not self.layer.transposed:
            # rows and beats of an instruction
            most = min(most, 4095 // spec.macs, 65535 // (spec.macs * max(1, spec.columns // spec.axi_bytes)))
            whole = self.loaded_steps
        elif most >= whole:
            unit = whole
        size = max(unit, most // unit * unit)
        out = []
        for begin in range(0, self.loaded_steps, max(size, whole)):
            end = min(begin + max(size, whole), self.loaded_steps)
            out += [(s, min(s + size, end)) for s in range(begin, end, size)]
        return tuple(out)

    # ---- what has to be done ----

    def tiles(self, product: int, block: int) -> tuple[Tile, ...]:
        """Column tiles of a product in one of its output blocks: all of a block of its own, or where its run is."""
        spec = self.spec
        inside, end = -block * spec.block, spec.block
        if self.heads_of_block(self.output) > 1:
            inside = self.start(self.output, product)[1]
            end = inside + self.columns
        first = max(0, inside) // spec.columns
        return tuple(
            Tile(
                index=j,
                first=j * spec.columns - inside,
                groups=min(spec.columns, end - j * spec.columns) // spec.ppu,
            )
            for j in range(first, -(-end // spec.columns))
        )

    @cached_property
    def tile_count(self) -> int:
        """Column tiles of a product."""
        return sum(len(self.tiles(0, block)) for block in range(self.run_blocks(self.output)))

    def operand(self, product: int, tile: Tile) -> tuple[int, int, int]:
        """Where a tile's weights stand in B: channel block, channel in it, token. Tiles with the same share loads."""
        block, inside = self.start(self.b, product)
        if self.layer.transposed:
            return block, inside // self.spec.axi_bytes * self.spec.axi_bytes, tile.first
        more, inside = divmod(inside + tile.first, self.spec.block)
        return block + more, inside, 0

    @cached_property
    def operands(self) -> int:
        """Different weights of column tiles in the products that are computed together."""
        blocks = range(self.run_blocks(self.output))
        return len({self.operand(i, t) for i in range(self.together) for block in blocks for t in self.tiles(i, block)})

    @cached_property
    def _known(self) -> dict[tuple[int, int], tuple[tuple[Runs, ...], Work]]:
        """Runs and work of tokens that have been asked for, by their tiles of the mask."""
        return {}

    def _asked(self, low: int, high: int) -> tuple[tuple[Runs, ...], Work]:
        rows = self.layer.mask_tile[0]
        key = (0, 1) if self.layer.mask is None else (low // rows, -(-high // rows))
        if key not in self._known:
            runs = self._runs(*key)
            least = self.spec.column_groups
            needed = [(len(self.tiles(0, b)), found) for b, found in enumerate(runs) if found]
            work = Work(
                steps=sum(tiles * max(sum(e - s for s, e in found), least) for tiles, found in needed),
                tiles=sum(tiles for tiles, _ in needed),
                blocks=len(needed),
                runs=sum(tiles * len(found) for tiles, found in needed),
            )
            self._known[key] = runs, work
        return self._known[key]

    def runs(self, low: int, high: int) -> tuple[Runs, ...]:
        """What positions low .. high - 1 need of each output block's tiles; nothing where all is masked."""
        return self._asked(low, high)[0]

    def work(self, low: int, high: int) -> Work:
        """What positions low .. high - 1 cost, in all output blocks. The PPU takes column_groups cycles for a tile."""
        return self._asked(low, high)[1]

    def _runs(self, first: int, last: int) -> tuple[Runs, ...]:
        """Runs of the steps that rows first .. last - 1 of the mask's tiles need."""
        mask, keys = self.layer.mask, self.layer.mask_tile[1]
        blocks = self.run_blocks(self.output)
        if mask is None:
            return (((0, self.steps),),) * blocks
        kept: NDArray[np.bool_] = np.any(mask[first:last], axis=0)
        if self.layer.transposed:
            size = self.spec.block
            some = [kept[b * size // keys : -(-((b + 1) * size) // keys)].any() for b in range(blocks)]
            return tuple(((0, self.steps),) if found else () for found in some)
        need = np.zeros(self.steps, dtype=bool)
        for tile in np.flatnonzero(kept):
            need[int(tile) * keys // self.spec.macs : -(-((int(tile) + 1) * keys) // self.spec.macs)] = True
        need[0] |= not need.any()  # Y is written in any case
        edges = np.flatnonzero(np.diff(need, prepend=False, append=False)).reshape(-1, 2)
        return (tuple((int(s), int(e)) for s, e in edges),) * blocks


def make_matmul(layer: MatMul, placements: Mapping[str, Placement], spec: ArchSpec) -> MatMulProblem:
    """Put a layer and the places of its tensors together.

    Raises CapacityError when the spec has no dynamic operands or sums could overflow, ModelError when b is not int8
    with zero point 0.
    """
    if not spec.dynamic_operands:
        raise CapacityError(
            f"layer {layer.name!r} multiplies two activations, and spec {spec.name!r} has array.dynamic_operands = "
            "false; set it to true"
        )
    a, b, output = placements[layer.a], placements[layer.b], placements[layer.output]
    if not b.signed or b.zero_point != 0:
        raise ModelError(f"layer {layer.name!r}: {b.name!r} must be int8 with zero point 0 to be an operand of weights")
    flat = layer.mask is None and a.border == output.border == (0, 0, 0, 0)
    rows = _rows(spec.lanes, a.shape[3]) if flat else 1
    problem = MatMulProblem(layer=layer, spec=spec, a=a, b=b, output=output, out=(rows, a.shape[3] // rows))
    low, high = code_range(a.signed)
    largest = 128 * max(a.zero_point - low, high - a.zero_point) * problem.reduction
    if largest >= 1 << 31:
        raise CapacityError(f"layer {layer.name!r}: sums of {problem.reduction} products may not fit 32 bits")
    return problem


def _rows(lanes: int, tokens: int) -> int:
    """Rows that tokens are seen as, so that lanes which are no power of two have work: their odd part, or one."""
    odd = lanes // (lanes & -lanes)
    return odd if tokens % odd == 0 else 1


def kept_share(problem: MatMulProblem) -> float:
    """Share of the positions times keys that the mask keeps."""
    mask, (rows, keys) = problem.layer.mask, problem.layer.mask_tile
    if mask is None:
        return 1.0
    of_keys = problem.columns if problem.layer.transposed else problem.reduction
    height = np.diff(np.minimum(np.arange(mask.shape[0] + 1) * rows, problem.tokens))
    width = np.diff(np.minimum(np.arange(mask.shape[1] + 1) * keys, of_keys))
    return float((mask * height[:, None] * width).sum() / (problem.tokens * of_keys))
