"""The schedule's items of a product of two activations: product after product, macro tile after macro tile."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import CapacityError, ModelError
from gossamer.arch.isa import Encoding, MatmulMode
from gossamer.arch.layout import Placement
from gossamer.arch.numerics import make_requant
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import encode_offsets
from gossamer.compiler.backend.constants import ConstantPool
from gossamer.compiler.backend.items import Item
from gossamer.compiler.backend.matmul import MatMulProblem, Tile
from gossamer.compiler.backend.matmul_mapping import Macro, MatMulMapping
from gossamer.compiler.backend.rings import Chunk, Load, Region
from gossamer.compiler.backend.tiling import sub_tile

__all__ = ["matmul_items"]

Key = tuple[int, int, int, int]
"""Where weights stand in B (MatMulProblem.operand), and which piece of the reduction they are."""


def matmul_items(index: int, problem: MatMulProblem, mapping: MatMulMapping, pool: ConstantPool) -> list[Item]:
    """The items of one layer, in order; `index` marks them."""
    return list(_Builder(index=index, problem=problem, mapping=mapping, pool=pool).items())


@dataclass
class _Builder:
    index: int
    problem: MatMulProblem
    mapping: MatMulMapping
    pool: ConstantPool
    acts: dict[int, Chunk] = field(default_factory=dict)
    """A of a macro tile, by channel block."""
    weights: dict[Key, Chunk] = field(default_factory=dict)
    """Weights that stay for the products that are computed together."""
    whole: Chunk | None = None
    """Their reservation."""
    offsets: dict[int, Chunk] = field(default_factory=dict)
    """Offsets that stay for the layer, by piece."""

    @property
    def spec(self) -> ArchSpec:
        return self.problem.spec

    def items(self) -> Iterator[Item]:
        """All items in order."""
        problem = self.problem
        drain, parameter, table = self._epilogue()
        for first in range(0, problem.layer.products, problem.together):
            self.weights, self.whole = {}, None
            for macro in self.mapping.macros(problem.out):
                self.acts = {}
                for sharing in self._sharing(first):
                    for block in range(problem.run_blocks(problem.output)):
                        made = list(self._block_items(sharing, macro, block))
                        for item in made:
                            if item.drain is not None:
                                item.drain |= drain
                                item.parameter, item.table = parameter, table
                        if made:
                            made[-1].store, made[-1].writes = self._store(sharing[0], macro, block)
                        yield from made

    def _sharing(self, first: int) -> Iterator[range]:
        """Products from `first` on that are computed together, by output block."""
        step = self.problem.heads_of_block(self.problem.output)
        for begin in range(first, first + self.problem.together, step):
            yield range(begin, begin + step)

    def _block_items(self, products: range, macro: Macro, block: int) -> Iterator[Item]:
        """Items of an output block of a macro tile. The last head comes first: see `packable`."""
        problem = self.problem
        runs = problem.runs(*macro.tokens(problem.out[1]))
        if not runs[block]:
            return
        span = min(r[0][0] for r in runs if r), max(r[-1][1] for r in runs if r)
        out = self._out_chunk(macro)
        for product in reversed(products):
            act = self._act_chunk(product, macro, span)
            for tile in problem.tiles(product, block):
                yield from self._tile_items(product, macro, tile, runs[block], act, out)

    def _tile_items(
        self, product: int, macro: Macro, tile: Tile, runs: tuple[tuple[int, int], ...], act: Chunk, out: Chunk
    ) -> Iterator[Item]:
        """Items of one column tile of one macro tile: sub-tiles outside, runs of steps inside."""
        spec, problem = self.spec, self.problem
        a, windows = problem.a, spec.block // spec.group
        inside = problem.start(a, product)[1] // spec.group  # where this head's windows begin
        skipped = problem.first_step(product)
        ny, nx = sub_tile(macro.tile, spec.depth)
        parts = [
            (piece, max(first, s + skipped), min(last, e + skipped))
            for piece, (first, last) in enumerate(problem.pieces)
            for s, e in runs
            if max(first, s + skipped) < min(last, e + skipped)
        ]
        bank = self.mapping.tile[1]  # a row in the activation bank, the same for all macro tiles
        again: dict[Key, Chunk] = {}  # weights that this tile shares between its sub-tiles
        for y in range(0, macro.tile[0], ny):
            for x in range(0, macro.tile[1], nx):
                rows, pixels = min(ny, macro.tile[0] - y), min(nx, macro.tile[1] - x)
                if len(problem.pieces) > 1:
                    again = {}
                for n, (piece, first, last) in enumerate(parts):
                    weight = self._weight_chunk(product, tile, piece, again)
                    offset, begin = self._offset_chunk(piece, skipped)
                    item = Item(
                        layer=self.index,
                        act=act,
                        weight=weight,
                        offset=offset,
                        matmul={
                            "mode": int(MatmulMode.SUM),
                            "signed": int(a.signed),
                            "zero_point": a.zero_byte,
                            "accumulate": int(n > 0),
                            "steps": last - first,
                            "weight_base": first - problem.pieces[piece][0],
                            "offset_base": first - begin,
                            "act_base": (y * bank + x) * windows + inside,
                            "nx": pixels,
                            "ny": rows,
                            "sx": windows,
                            "sy": bank * windows,
                        },
                    )
                    if n == len(parts) - 1:
                        element = (y * macro.tile[1] + x) * spec.block + tile.index * spec.columns
                        item.out = out
                        item.drain = {
                            "nx": pixels,
                            "ny": rows,
                            "column_groups": tile.groups,
                            "dest": element // spec.ppu,
                            "sx": spec.block // spec.ppu,
                            "sy": macro.tile[1] * spec.block // spec.ppu,
                        }
                    yield item

    # ---- places ----

    def _region(self, p: Placement, block: int, low: int, high: int) -> Region:
        """Pixels low .. high - 1 of a block, counted through all images, as (tensor, image, block, ...)."""
        return p.name, *divmod(block, p.blocks), low, high

    def _beat(self, p: Placement, block: int, pixel: int) -> int:
        """Beat address of a pixel of a block, counted through all images."""
        return p.address // self.spec.axi_bytes + (block * p.rows * p.pixels + pixel) * self.spec.block_beats

    def _first_pixel(self, p: Placement, macro: Macro) -> int:
        return _origin(p) + macro.y * self.problem.out[1] + macro.x

    def _tiled(self, p: Placement, block: int, macro: Macro) -> dict[str, int]:
        """Fields of a LOAD or STORE of a macro tile, from this block on."""
        bb = self.spec.block_beats
        return {
            "address": self._beat(p, block, self._first_pixel(p, macro)),
            "beats": macro.pixels * bb,
            "rows": macro.rows,
            "row_stride": self.problem.out[1] * bb,
            "grid": self.mapping.grid,
            "tile_beats": macro.tile[1] * bb,
            "tile_rows": macro.tile[0],
        }

    def _pixels(self, p: Placement, macro: Macro) -> tuple[int, int]:
        first = self._first_pixel(p, macro)
        return first, first + (macro.rows - 1) * self.problem.out[1] + macro.pixels

    # ---- chunks ----

    def _act_chunk(self, product: int, macro: Macro, span: tuple[int, int]) -> Chunk:
        """A of a macro tile: the channel blocks that steps of this span read."""
        spec, problem, a = self.spec, self.problem, self.problem.a
        start, _ = problem.start(a, product)
        if start in self.acts:
            return self.acts[start]
        first = span[0] * spec.macs // spec.block
        last = min(-(-span[1] * spec.macs // spec.block), problem.run_blocks(a))
        positions = self.mapping.tile[0] * self.mapping.tile[1]
        fields = self._tiled(a, start + first, macro) | {
            "dest": first * positions * spec.block_beats,
            "blocks": last - first,
            "block_stride": a.block_bytes // spec.axi_bytes,
            "tile_beats": self.mapping.tile[1] * spec.block_beats,
            "tile_rows": self.mapping.tile[0],
            "step_beats": macro.tile[1] * spec.block_beats,
            "step_rows": macro.tile[0],
        }
        pixels = self._pixels(a, macro)
        reads = tuple(self._region(a, b, *pixels) for b in range(start + first, start + last))
        self.acts[start] = chunk = Chunk(
            ring="activation",
            size=problem.run_blocks(a) * positions * spec.block,
            align=spec.activation_row_bytes,
            per_unit=spec.axi_bytes,
            loads=[Load(fields=fields, reads=reads)],
        )
        return chunk

    def _weight_chunk(self, product: int, tile: Tile, piece: int, again: dict[Key, Chunk]) -> Chunk:
        problem = self.problem
        where = problem.operand(product, tile)
        kept, key = self.weights if self.mapping.resident else again, (*where, piece)
        if key in kept:
            return kept[key]
        transposed = problem.layer.transposed
        first, last = problem.pieces[piece]
        load = self._transposed if transposed else self._natural
        align = self.spec.weight_banks if transposed else 1
        kept[key] = chunk = Chunk(ring="weight", size=last - first, align=align, loads=[load(where, first, last)])
        if self.mapping.resident:  # all in one place, so that loads ahead cannot break up the buffer
            size = problem.loaded_steps
            self.whole = self.whole or Chunk(ring="weight", size=problem.operands * size, align=align, loads=[])
            at = list(dict.fromkeys(k[:3] for k in kept)).index(where)
            chunk.whole, chunk.within = self.whole, at * size + first
        return chunk

    def _natural(self, where: tuple[int, int, int], first: int, last: int) -> Load:
        """Steps of a column tile from B's tokens: as many rows of its channels."""
        spec, b = self.spec, self.problem.b
        block, channel, _ = where
        low, high = _origin(b) + first * spec.macs, _origin(b) + last * spec.macs
        beat, byte = divmod(channel // spec.columns * spec.columns, spec.axi_bytes)
        beats = max(1, spec.columns // spec.axi_bytes)
        shape = {"beats": beats, "rows": high - low, "row_stride": spec.block_beats}
        if beats == spec.block_beats:
            shape = {"beats": (high - low) * beats, "rows": 1}
        fields = {
            "encoding": int(Encoding.NATURAL),
            "address": self._beat(b, block, low) + beat,
            "blocks": 1,
            "step_beats": byte // spec.columns,
            **shape,
        }
        return Load(fields=fields, reads=(self._region(b, block, low, high),))

    def _transposed(self, where: tuple[int, int, int], first: int, last: int) -> Load:
        """Steps of a column tile from B's channels: a row for every token that is a column of the tile."""
        spec, b, bb = self.spec, self.problem.b, self.spec.block_beats
        start, channel, token = where
        low = _origin(b) + token
        more, inside = divmod(channel + first * spec.macs, spec.block)
        of_token = min((last - first) * spec.macs // spec.axi_bytes, bb)
        blocks = max(1, (last - first) * spec.macs // spec.block)
        shape = {"beats": of_token, "rows": spec.columns, "row_stride": bb}
        if of_token == bb:
            shape = {"beats": spec.columns * bb, "rows": 1}
        fields = {
            "encoding": int(Encoding.TRANSPOSED),
            "address": self._beat(b, start + more, low) + inside // spec.axi_bytes,
            "blocks": blocks,
            "block_stride": b.block_bytes // spec.axi_bytes,
            "tile_beats": of_token,
            **shape,
        }
        whole = range(start + more, start + more + blocks)
        return Load(fields=fields, reads=tuple(self._region(b, k, low, low + spec.columns) for k in whole))

    def _offset_chunk(self, piece: int, skipped: int) -> tuple[Chunk, int]:
        """Offsets of a piece, and the loaded step that the first of them is for.

        Windows come in order, block by block as the activation bank has them. skipped : loaded steps in front of the
        product's own; there are some only where one piece is all.
        """
        spec = self.spec
        first, last = self.problem.pieces[piece]
        if len(self.problem.pieces) == 1:
            first, last = 0, self.problem.steps
        if piece in self.offsets:
            return self.offsets[piece], first + skipped
        window = np.arange(first, last) * spec.macs // spec.group * spec.group
        block, inside = np.divmod(window, spec.block)
        positions = self.mapping.tile[0] * self.mapping.tile[1]
        data = encode_offsets((block * positions * spec.block + inside) // spec.hop, spec)
        load = {"address": self.pool.add(data), "beats": data.size // spec.axi_bytes, "rows": 1, "blocks": 1}
        entries = spec.axi_bytes // 2
        chunk = Chunk(ring="offset", size=data.size // 2, align=entries, per_unit=entries, loads=[Load(fields=load)])
        if len(self.problem.pieces) == 1:
            self.offsets[piece] = chunk
        return chunk, first + skipped

    def _out_chunk(self, macro: Macro) -> Chunk:
        spec = self.spec
        size = macro.tile[0] * macro.tile[1] * spec.block
        return Chunk(ring="output", size=size, align=spec.axi_bytes, per_unit=spec.axi_bytes, loads=[])

    def _store(self, product: int, macro: Macro, block: int) -> tuple[dict[str, int], tuple[Region, ...]]:
        output = self.problem.output
        at = self.problem.start(output, product)[0] + block
        return self._tiled(output, at, macro) | {"blocks": 1}, (self._region(output, at, *self._pixels(output, macro)),)

    # ---- epilogue ----

    def _epilogue(self) -> tuple[dict[str, int], Chunk, Chunk | None]:
        """DRAIN fields of the layer, the parameters of a column tile, which all have, and the table."""
        layer, spec = self.problem.layer, self.spec
        try:
            q = make_requant(np.full(spec.columns, layer.scale), zero_point=layer.zero_point, lo=layer.lo, hi=layer.hi)
        except ValueError as error:
            raise ModelError(f"layer {layer.name!r}: {error}") from error
        words = np.stack([np.zeros_like(q.multiplier), q.multiplier | q.shift << 24], axis=1).astype("<u4")
        size = -(-8 * spec.columns // spec.parameter_row_bytes) * spec.parameter_row_bytes
        data = words.view(np.uint8).reshape(-1)
        parameter = Chunk(
            ring="parameter",
            size=size,
            align=spec.parameter_row_bytes,
            per_unit=spec.axi_bytes,
            loads=[self._constant(data)],
        )
        drain = {
            "param_base": 0,
            "zero_point": layer.zero_point,
            "lo": layer.lo,
            "hi": layer.hi,
            "table_enable": int(layer.table is not None),
        }
        return drain, parameter, None if layer.table is None else self._table(layer.table)

    def _table(self, table: NDArray[np.uint8]) -> Chunk:
        spec = self.spec
        if spec.tables == 0:
            raise CapacityError(
                f"layer {self.problem.layer.name!r} needs a table, and spec {spec.name!r} has buffers.tables = 0; "
                "1 to 4 are legal"
            )
        return Chunk(ring="table", size=1, align=1, loads=[self._constant(table)])

    def _constant(self, data: NDArray[np.uint8]) -> Load:
        beats = -(-data.size // self.spec.axi_bytes)
        return Load(fields={"address": self.pool.add(data), "beats": beats, "rows": 1, "blocks": 1})


def _origin(p: Placement) -> int:
    """The first pixel inside the border."""
    return p.border[0] * p.pixels + p.border[1]
