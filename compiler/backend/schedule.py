"""The schedule's items: what the array works through, one MATMUL each, and the chunks that each needs on chip.

A layer's items stand in the loop order of its mapping. What several of them share is one chunk; how long it stays
follows from its last use (compiler/backend/emit.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import CapacityError, ModelError
from gossamer.arch.isa import MatmulMode
from gossamer.arch.layout import Placement
from gossamer.arch.numerics import SHIFT_MIN, make_requant
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import StepStream, best_encoding, encode_offsets, encode_steps, stream_beats
from gossamer.compiler.backend.constants import ConstantPool
from gossamer.compiler.backend.problem import Problem, Unit
from gossamer.compiler.backend.rings import Chunk, Load, Region
from gossamer.compiler.backend.streams import TileStream, UnitStreams, pack_unit, place, unit_records
from gossamer.compiler.backend.tiling import Band, Mapping, sub_tile
from gossamer.compiler.layers import MaxPool

__all__ = ["Item", "layer_items"]

Key = tuple[object, ...]
"""What a chunk is, for the items that share it."""

_Placed = list[list[list[StepStream]]]
"""Steps of a unit in the bank of one band, by run of input blocks, column tile and MATMUL."""


@dataclass(eq=False)
class Item:
    """One MATMUL, with the DRAIN and STORE that follow it, if any; base addresses come from the chunks."""

    layer: int
    act: Chunk
    weight: Chunk
    offset: Chunk
    matmul: dict[str, int]
    parameter: Chunk | None = None
    table: Chunk | None = None
    out: Chunk | None = None
    drain: dict[str, int] | None = None
    store: dict[str, int] | None = None
    writes: Region | None = None
    """What the STORE writes."""

    @property
    def slots(self) -> int:
        """Cycles of its MATMUL."""
        return self.matmul["steps"] * self.matmul["nx"] * self.matmul["ny"]

    def chunks(self) -> Iterator[Chunk]:
        """Everything it needs, constants first."""
        for chunk in (self.parameter, self.table, self.offset, self.weight, self.act, self.out):
            if chunk is not None:
                yield chunk


@dataclass(frozen=True, kw_only=True)
class _Macro:
    """A macro tile: where it begins in the output, and its positions per lane. band : index of its band."""

    band: int
    image: int
    y: int
    x: int
    rows: int
    pixels: int
    tile: tuple[int, int]


@dataclass
class _Builder:
    """Makes the items of one layer; keeps the chunks that several items share."""

    index: int
    problem: Problem
    mapping: Mapping
    pool: ConstantPool
    kept: dict[Key, Chunk] = field(default_factory=dict)
    for_layer: dict[Key, Chunk] = field(default_factory=dict)
    """Chunks that all units share."""
    pieces_of: dict[tuple[int, int], int] = field(default_factory=dict)
    """MATMULs of every (run of input blocks, column tile)."""
    stays: str = ""
    """Weights that stay on chip while macro tiles change: all of a "unit", those of an output "block", or none."""
    offsets_stay: bool = False
    """All lists of offsets of the unit stay on chip."""
    alike: bool = False
    """All units have the same weights, as those of poolings have."""
    reserved: dict[str, list[Chunk]] = field(default_factory=dict)
    """What was kept together last in every ring."""

    @property
    def spec(self) -> ArchSpec:
        return self.problem.spec

    def items(self, streams: tuple[UnitStreams, ...]) -> Iterator[Item]:
        """All items in order."""
        drain, parameters, table = self._epilogue()
        self.alike = len(streams) > 1 and len({unit_records(s) for s in streams}) == 1
        for whole in streams:
            runs = _runs(whole.unit, self.mapping.chunks)
            parts = [whole] if len(runs) == 1 else [pack_unit(self.problem, whole.unit, run) for run in runs]
            placed = [[self._pieces(part, band) for part in parts] for band in self.mapping.bands]
            self.kept = {}
            self._reserve(parts, placed)
            for macro, tile in self._order(whole):
                pieces = placed[macro.band]
                yield from self._tile_items(macro, tile, parts, pieces, drain, parameters, table)

    def _reserve(self, parts: list[UnitStreams], bands: list[_Placed]) -> None:
        """What several chunks keep on chip together gets one reservation, so that it cannot break up the buffer."""
        spec, placed = self.spec, bands[0]
        self.pieces_of = {(c, t): len(tile) for c, part in enumerate(placed) for t, tile in enumerate(part)}
        self.stays = ""
        per_block = self.problem.tiles_per_block
        whole_tiles = max(self.pieces_of.values()) == 1 and len(parts) == 1
        if self.mapping.order == "tiles" or not (self._several_macros() or self.alike):
            groups = []  # every weight is used once: what comes and goes by itself leaves room for loads ahead
        elif self.mapping.resident and sum(p.steps for tile in placed[0] for p in tile) <= spec.weight_steps:
            self.stays = "unit"
            groups = [range(len(placed[0]))]
        elif self.mapping.order == "columns" and whole_tiles:
            groups = [range(a, a + per_block) for a in range(0, len(placed[0]), per_block)]
            room = min(spec.weight_steps, spec.offset_steps - per_block * spec.axi_bytes // 2)
            if all(sum(placed[0][t][0].steps for t in group) <= room for group in groups):
                self.stays = "block"
        if self.stays:
            for group in groups:
                self._keep_together(
                    "weight",
                    [
                        (("weight", (0, t, p)), self._weight_load(piece))
                        for t in group
                        for p, piece in enumerate(placed[0][t])
                    ],
                )
        every = (p for placed in bands for part in placed for tile in part for p in tile)
        lists = {encode_offsets(p.offsets, spec).tobytes(): p for p in every}
        self.offsets_stay = sum(len(data) // 2 for data in lists) <= spec.offset_steps // 2
        if self.offsets_stay:
            self._keep_together("offset", [(("offset", data), self._offset_load(p)) for data, p in lists.items()])
        elif self.stays == "block":
            for group in groups:
                self._keep_together(
                    "offset", [(("offset", (0, t, 0)), self._offset_load(placed[0][t][0])) for t in group]
                )

    def _keep_together(self, ring: str, chunks: list[tuple[Key, Chunk]]) -> None:
        """Parts of one reservation, kept for the unit; the one before goes on when it holds the same."""
        before = self.reserved.get(ring, [])
        if [c.loads for c in before] == [c.loads for _, c in chunks]:
            self.kept |= {key: chunk for (key, _), chunk in zip(chunks, before, strict=True)}
            return
        self.reserved[ring] = [c for _, c in chunks]
        whole = Chunk(ring=ring, size=sum(c.size for _, c in chunks), align=chunks[0][1].align, loads=[])
        at = 0
        for key, chunk in chunks:
            chunk.whole, chunk.within = whole, at
            self.kept[key] = chunk
            at += chunk.size

    def _order(self, whole: UnitStreams) -> Iterator[tuple[_Macro, int]]:
        """Pairs of macro tile and column tile in loop order."""
        per_block = self.problem.tiles_per_block
        if self.mapping.order == "map":
            for macro in self._macros():
                for t in range(len(whole.tiles)):
                    yield macro, t
        elif self.mapping.order == "tiles":
            for t in range(len(whole.tiles)):
                for macro in self._macros():
                    yield macro, t
        else:
            for first in range(0, len(whole.tiles), per_block):
                for macro in self._macros():
                    for t in range(first, first + per_block):
                        yield macro, t

    def _macros(self) -> Iterator[_Macro]:
        for image in range(self.problem.images):
            for k, band in enumerate(self.mapping.bands):
                down, across = band.lane_rows * band.tile[0], band.lane_columns * band.tile[1]
                for y in range(0, band.rows, down):
                    for x in range(0, band.pixels, across):
                        rows, pixels = min(band.rows - y, down), min(band.pixels - x, across)
                        step = self.problem.tile_step if band.lane_columns > 1 else 1
                        tile = (-(-rows // band.lane_rows), -(-pixels // (band.lane_columns * step)) * step)
                        where = {"image": image, "y": band.y + y, "x": band.x + x}
                        yield _Macro(band=k, **where, rows=rows, pixels=pixels, tile=tile)

    def _bank(self, band: Band) -> tuple[int, int]:
        """Rows of an input block in the bank, and their bytes; one for all macro tiles, so that offsets are too."""
        return self.problem.extent(band.tile[0], 0), self.problem.row_bytes(band.tile[1])

    def _pieces(self, part: UnitStreams, band: Band) -> list[list[StepStream]]:
        """Every column tile, placed in the bank and cut into MATMULs."""
        phase = self.spec.group // self.spec.macs
        out = []
        for tile in part.tiles:
            stream = place(self.problem, tile, len(part.input_blocks), self._bank(band))
            # Even pieces: beside a large one and a small one there would be no room for the next.
            count = -(-stream.steps // self.mapping.steps_at_once)
            at_once = -(-stream.steps // count)
            if count > 1 and self.mapping.steps_at_once >= phase:
                at_once += -at_once % phase  # DENSE records count from the beginning of a load
                if at_once > self.mapping.steps_at_once:
                    at_once -= phase
            out.append(
                [
                    StepStream(
                        offsets=stream.offsets[a : a + at_once],
                        values=stream.values[a : a + at_once],
                        selects=stream.selects[a : a + at_once],
                    )
                    for a in range(0, stream.steps, at_once)
                ]
            )
        return out

    def _tile_items(
        self,
        macro: _Macro,
        t: int,
        parts: list[UnitStreams],
        placed: _Placed,
        drain: dict[str, int],
        parameters: NDArray[np.uint8],
        table: Chunk | None,
    ) -> Iterator[Item]:
        """Items of one column tile of one macro tile: sub-tiles outside, pieces of the reduction inside."""
        spec, problem = self.spec, self.problem
        tile = parts[0].tiles[t]
        out = self._out_chunk(macro, tile)
        ny, nx = sub_tile(macro.tile, spec.depth)
        row = self._bank(self.mapping.bands[macro.band])[1]
        pixel = problem.pixel_bytes
        stride = problem.bank_stride
        corners = [(y, x) for y in range(0, macro.tile[0], ny) for x in range(0, macro.tile[1], nx)]
        parameter, first = self._parameter_chunk(parameters, tile.output_block, macro)
        for at, (y, x) in enumerate(corners):
            rows, pixels = min(ny, macro.tile[0] - y), min(nx, macro.tile[1] - x)
            matmuls = [(c, p) for c in range(len(parts)) for p in range(len(placed[c][t]))]
            for n, (c, p) in enumerate(matmuls):
                piece = placed[c][t][p]
                item = Item(
                    layer=self.index,
                    act=self._act_chunk(parts[c].input_blocks, c, macro, (t, at) if len(parts) > 1 else None, t),
                    weight=self._weight_chunk(piece, (c, t, p), macro, at),
                    offset=self._offset_chunk(piece, (c, t, p), macro, at),
                    matmul={
                        "mode": int(MatmulMode.MAXIMUM if isinstance(problem.layer, MaxPool) else MatmulMode.SUM),
                        "signed": int(problem.inputs[0].signed),
                        "zero_point": problem.inputs[0].zero_byte,
                        "accumulate": int(n > 0),
                        "steps": piece.steps,
                        "act_base": (y * stride[0] * row + x * stride[1] * pixel) // spec.group,
                        "nx": pixels,
                        "ny": rows,
                        "sx": stride[1] * pixel // spec.group,
                        "sy": stride[0] * row // spec.group,
                    },
                )
                if n == len(matmuls) - 1:
                    element = (y * macro.tile[1] + x) * spec.block + tile.index * spec.columns
                    item.drain = {
                        **drain,
                        "nx": pixels,
                        "ny": rows,
                        "param_base": first + tile.index * spec.column_groups,
                        "dest": element // spec.ppu,
                        "sx": spec.block // spec.ppu,
                        "sy": macro.tile[1] * spec.block // spec.ppu,
                    }
                    item.parameter, item.table, item.out = parameter, table, out
                    if at == len(corners) - 1 and tile.index == problem.tiles_per_block - 1:
                        item.store = self._store(macro, tile)
                        item.writes = _region(problem.output, macro.image, tile.output_block, macro)
                yield item

    # ---- chunks ----

    def _keep(self, key: Key, make: Chunk) -> Chunk:
        return self.kept.setdefault(key, make)

    def _act_chunk(self, blocks: tuple[int, ...], c: int, macro: _Macro, again: object, t: int) -> Chunk:
        only = self.mapping.order == "columns" and self._several_macros()
        key = ("act", c, macro.image, macro.y, macro.x, again, t // self.problem.tiles_per_block if only else 0)
        if key not in self.kept and self.mapping.order == "tiles":  # all that a column tile needs at once
            every: list[tuple[Key, Chunk]] = [
                (("act", c, m.image, m.y, m.x, again, 0), self._act_chunk_of(blocks, m)) for m in self._macros()
            ]
            self._keep_together("activation", every)
        return self.kept.get(key) or self._keep(key, self._act_chunk_of(blocks, macro))

    def _act_chunk_of(self, blocks: tuple[int, ...], macro: _Macro) -> Chunk:
        """The inputs of a macro tile, of these input blocks."""
        spec = self.spec
        bank = self._bank(self.mapping.bands[macro.band])
        size = len(blocks) * bank[0] * bank[1]
        slack = spec.activation_row_bytes if spec.hop < spec.group else 0
        return Chunk(
            ring="activation",
            size=size + slack,
            align=spec.activation_row_bytes,
            per_unit=spec.axi_bytes,
            loads=self._act_loads(blocks, macro, bank),
        )

    def _several_macros(self) -> bool:
        return self.problem.images * sum(band.macros for band in self.mapping.bands) > 1

    def _act_loads(self, blocks: tuple[int, ...], macro: _Macro, bank: tuple[int, int]) -> list[Load]:
        """A LOAD for every run of neighbouring blocks of one input tensor, a long one in ever shorter pieces.

        The last blocks of the tensor may just be being computed: the fewer of them a LOAD reads, the earlier all
        others can start.
        """
        problem, beat = self.problem, self.spec.axi_bytes
        where = [problem.input_blocks[b] for b in blocks]
        loads, start = [], 0
        skip = problem.stride[0] if problem.skips_rows else 1
        rows, pixels = problem.extent(macro.rows, 0), problem.extent(macro.pixels, 1)
        beats = -(-pixels * problem.pixel_bytes // beat)
        short = max(1, self.spec.read_latency // (rows * beats))
        while start < len(where):
            end = start + 1
            while end < len(where) and where[end] == (where[start][0], where[end - 1][1] + 1):
                end += 1
            if end - start > short:
                end -= max(short, (end - start) // 2)
            segment, first = where[start]
            p = problem.inputs[segment]
            row, plane = p.row_bytes // beat, p.block_bytes // beat
            y = problem.origin[0] + macro.y * problem.stride[0]
            x = problem.origin[1] + macro.x * problem.stride[1]
            fields = {
                "address": p.address // beat + (macro.image * p.blocks + first) * plane + y * row + x * p.block // beat,
                "dest": start * bank[0] * bank[1] // beat,
                "beats": beats,
                "rows": rows,
                "blocks": end - start,
                "row_stride": skip * row,
                "block_stride": plane,
                "grid": self.mapping.bands[macro.band].grid,
                "tile_beats": bank[1] // beat,
                "tile_rows": bank[0],
                "step_beats": macro.tile[1] * problem.bank_stride[1] * p.block // beat,
                "step_rows": macro.tile[0] * problem.bank_stride[0],
            }
            low = y * p.pixels + x
            high = low + (rows - 1) * skip * p.pixels + pixels
            reads = tuple((p.name, macro.image, b, low, high) for b in range(first, first + end - start))
            loads.append(Load(fields=fields, reads=reads))
            start = end
        return loads

    def _weight_chunk(self, piece: StepStream, which: tuple[int, int, int], macro: _Macro, at: int) -> Chunk:
        key = (
            ("weight", which)
            if self.stays or self.mapping.order == "tiles"
            else ("weight", which, self._use(which, macro, at))
        )
        return self.kept.get(key) or self._keep(key, self._weight_load(piece))

    def _weight_load(self, piece: StepStream) -> Chunk:
        encoding = best_encoding(piece, self.spec)
        load = {
            "encoding": int(encoding),
            "address": self.pool.add(encode_steps(piece, self.spec, encoding)),
            "beats": stream_beats(self.spec, encoding, piece.steps),
            "rows": 1,
            "blocks": 1,
        }
        return Chunk(ring="weight", size=piece.steps, align=1, loads=[Load(fields=load)])

    def _offset_chunk(self, piece: StepStream, which: tuple[int, int, int], macro: _Macro, at: int) -> Chunk:
        if self.offsets_stay:
            return self.kept["offset", encode_offsets(piece.offsets, self.spec).tobytes()]
        key = ("offset", which) if self.stays == "block" else ("offset", which, self._use(which, macro, at))
        return self.kept.get(key) or self._keep(key, self._offset_load(piece))

    def _offset_load(self, piece: StepStream) -> Chunk:
        spec = self.spec
        data = encode_offsets(piece.offsets, spec)
        load = {"address": self.pool.add(data), "beats": data.size // spec.axi_bytes, "rows": 1, "blocks": 1}
        entries = spec.axi_bytes // 2
        return Chunk(ring="offset", size=data.size // 2, align=entries, per_unit=entries, loads=[Load(fields=load)])

    def _use(self, which: tuple[int, int, int], macro: _Macro, at: int) -> object:
        """Uses with the same mark share one load.

        Pieces of a column tile that takes several MATMULs leave the buffer before the next sub-tile needs them.
        """
        again = self.mapping.chunks > 1 or self.pieces_of[which[:2]] > 1
        return (macro.image, macro.y, macro.x, at if again else 0)

    def _out_chunk(self, macro: _Macro, tile: TileStream) -> Chunk:
        """The output region of a macro tile and output block; a residual is loaded into it first."""
        key = ("out", macro.image, macro.y, macro.x, tile.output_block)
        if key in self.kept:
            return self.kept[key]
        spec, problem = self.spec, self.problem
        size = macro.tile[0] * macro.tile[1] * spec.block
        align = spec.axi_bytes
        loads: list[Load] = []
        if problem.residual is not None:
            # Its own partition, if it fits one: then LOAD, DRAIN and STORE work on three tiles at a time.
            part = spec.output_bytes // spec.output_partitions
            align, size = part, -(-size // part) * part
            store = self._store(macro, tile)
            r, bb = problem.residual, spec.block_beats
            row = r.pixels * bb
            reads = (_region(r, macro.image, tile.output_block, macro),)
            fields = {
                "address": r.address // spec.axi_bytes
                + (macro.image * r.blocks + tile.output_block) * r.rows * row
                + (r.border[0] + macro.y) * row
                + (r.border[1] + macro.x) * bb,
                "dest": 0,
                "beats": store["beats"],
                "rows": store["rows"],
                "blocks": 1,
                "row_stride": row,
                "grid": store["grid"],
                "tile_beats": store["tile_beats"],
                "tile_rows": store["tile_rows"],
                "step_beats": store["tile_beats"],
                "step_rows": store["tile_rows"],
            }
            loads = [Load(fields=fields, reads=reads)]
        chunk = Chunk(ring="output", size=size, align=align, per_unit=spec.axi_bytes, loads=loads)
        return self._keep(key, chunk)

    def _store(self, macro: _Macro, tile: TileStream) -> dict[str, int]:
        o, bb = self.problem.output, self.spec.block_beats
        row = o.pixels * bb
        return {
            "address": o.address // self.spec.axi_bytes
            + (macro.image * o.blocks + tile.output_block) * o.rows * row
            + (o.border[0] + macro.y) * row
            + (o.border[1] + macro.x) * bb,
            "beats": macro.pixels * bb,
            "rows": macro.rows,
            "blocks": 1,
            "row_stride": row,
            "grid": self.mapping.bands[macro.band].grid,
            "tile_beats": macro.tile[1] * bb,
            "tile_rows": macro.tile[0],
        }

    # ---- epilogue ----

    def _epilogue(self) -> tuple[dict[str, int], NDArray[np.uint8], Chunk | None]:
        """DRAIN fields of the layer, parameters uint8 [output blocks, 8 * block], and the table."""
        layer, spec = self.problem.layer, self.spec
        channels, residual = self.problem.output.shape[1], self.problem.residual
        if isinstance(layer, MaxPool):  # codes pass unchanged
            scale, bias = np.ones(channels), np.zeros(channels, dtype=np.int64)
            zero_point, ratio, table = self.problem.inputs[0].zero_point, None, None
        else:
            scale, bias, zero_point = layer.scale, layer.bias.astype(np.int64), layer.zero_point
            ratio = layer.residual_ratio if residual else None
            table = self._table_chunk(layer.table) if layer.table is not None else None
        try:
            q = make_requant(scale, zero_point=zero_point, lo=layer.lo, hi=layer.hi, residual_ratio=ratio)
        except ValueError as error:
            raise ModelError(f"layer {layer.name!r}: {error}") from error
        drain = {
            "column_groups": spec.column_groups,
            "zero_point": zero_point,
            "lo": layer.lo,
            "hi": layer.hi,
            "table_enable": int(table is not None),
        }
        if residual is not None:
            drain |= {
                "residual": 1,
                "residual_signed": int(residual.signed),
                "residual_zero": residual.zero_byte,
                "residual_multiplier": q.residual_multiplier,
                "residual_shift": q.residual_shift,
            }
        padded = self.problem.output.blocks * spec.block
        multiplier_of = np.zeros(padded, dtype=np.int64)
        shift_of = np.full(padded, max(q.residual_shift, SHIFT_MIN), dtype=np.int64)
        bias_of = np.zeros(padded, dtype=np.int64)
        multiplier_of[:channels], shift_of[:channels], bias_of[:channels] = q.multiplier, q.shift, bias
        words = np.stack([bias_of & 0xFFFFFFFF, multiplier_of | shift_of << 24], axis=1).astype("<u4")
        return drain, words.view(np.uint8).reshape(-1, spec.block * 8), table

    def _parameter_chunk(self, data: NDArray[np.uint8], output_block: int, macro: _Macro) -> tuple[Chunk, int]:
        """The chunk with an output block's parameters, and its first PPU-wide group there.

        All blocks of the layer stand together if they take half of the memory at most, or there is only one.
        """
        spec = self.spec
        together = len(data) == 1 or data.size <= spec.parameter_channels * 8 // 2
        part = (data if together else data[output_block]).reshape(-1)
        kept = self.for_layer if together else self.kept
        key = ("parameter", () if together else (output_block, macro.image, macro.y, macro.x))
        if key not in kept:
            load = {"address": self.pool.add(part), "beats": part.size // spec.axi_bytes, "rows": 1, "blocks": 1}
            kept[key] = Chunk(
                ring="parameter",
                size=part.size,
                align=spec.parameter_row_bytes,
                per_unit=spec.axi_bytes,
                loads=[Load(fields=load)],
            )
        chunk = kept[key]
        return chunk, output_block * (spec.block // spec.ppu) if together else 0

    def _table_chunk(self, table: NDArray[np.uint8]) -> Chunk:
        spec = self.spec
        if spec.tables == 0:
            raise CapacityError(
                f"layer {self.problem.layer.name!r} needs a table, and spec {spec.name!r} has buffers.tables = 0; "
                f"1 to 4 are legal"
            )
        load = {"address": self.pool.add(table), "beats": 256 // spec.axi_bytes, "rows": 1, "blocks": 1}
        return Chunk(ring="table", size=1, align=1, loads=[Load(fields=load)])


def _region(p: Placement, image: int, block: int, macro: _Macro) -> Region:
    """A macro tile of one output block in a tensor of the output's shape."""
    low = (p.border[0] + macro.y) * p.pixels + p.border[1] + macro.x
    return p.name, image, block, low, low + (macro.rows - 1) * p.pixels + macro.pixels


def _runs(unit: Unit, chunks: int) -> list[tuple[int, ...]]:
    """Input blocks in runs that are on chip together."""
    size = -(-len(unit.input_blocks) // chunks)
    return [unit.input_blocks[a : a + size] for a in range(0, len(unit.input_blocks), size)]


def layer_items(
    index: int, problem: Problem, streams: tuple[UnitStreams, ...], mapping: Mapping, pool: ConstantPool
) -> list[Item]:
    """The items of one layer, in order; `index` marks them."""
    return list(_Builder(index=index, problem=problem, mapping=mapping, pool=pool).items(streams))
