"""The schedule: what the array works through, in order, and the chunks that each item needs on chip.

A layer's items stand in the loop order of its mapping. What several of them share is one chunk; how long it stays
follows from its last use (compiler/backend/emit.py). In a chain of layers a tensor between two of them is a chunk as
well: the one fills it by its DRAINs, the other reads it, and DRAM never sees it (compiler/backend/chains.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from gossamer.arch.isa import MatmulMode
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import StepStream, best_encoding, encode_offsets, encode_steps, stream_beats
from gossamer.compiler.backend.constants import ConstantPool
from gossamer.compiler.backend.epilogue import Epilogue, make_epilogue
from gossamer.compiler.backend.items import Item
from gossamer.compiler.backend.problem import Problem, Unit
from gossamer.compiler.backend.rings import Chunk, Load
from gossamer.compiler.backend.streams import TileStream, UnitStreams, blocks_stay, pack_unit, place, unit_records
from gossamer.compiler.backend.tiling import Band, Mapping, sub_tile
from gossamer.compiler.backend.transfers import (
    Macro,
    activation_loads,
    bank,
    macros,
    regions,
    residual_load,
    store_fields,
)
from gossamer.compiler.layers import MaxPool

__all__ = ["Kept", "LayerSchedule", "keep", "layer_items"]

Key = tuple[object, ...]
"""What a chunk is, for the items that share it."""

_Placed = list[list[list[StepStream]]]
"""Steps of a unit in the bank of one band, by run of input blocks, column tile and MATMUL."""


def layer_items(
    index: int, problem: Problem, streams: tuple[UnitStreams, ...], mapping: Mapping, pool: ConstantPool
) -> list[Item]:
    """The items of one layer, in order; `index` marks them."""
    return list(LayerSchedule(index=index, problem=problem, streams=streams, mapping=mapping, pool=pool).items())


@dataclass(eq=False)
class Kept:
    """A tensor that stays in the activation banks between two layers of a chain.

    problem : of the layer that reads it.
    parts : of one reservation, the place of every macro tile; some share theirs, one after the other. They are filled
        by DRAINs, which keep the order of the items, so nobody writes to a place before its last reader is done.
    """

    problem: Problem
    parts: dict[Macro, Chunk]

    def chunk(self, macro: Macro) -> Chunk:
        """Where a macro tile of it stands."""
        return self.parts[macro]


def keep(
    problems: Sequence[Problem], bands: tuple[Band, ...], every: Sequence[Macro], ahead: int
) -> tuple[list[Kept], int]:
    """The tensors that layers of a chain read on chip, in one reservation, and the bytes of a bank that it leaves.

    every : the chain's macro tiles.  ahead : how many of them have places of their own.
    """
    spec = problems[0].spec
    whole = Chunk(ring="activation", size=0, align=spec.activation_row_bytes, loads=[], high=True)
    kept = []
    for problem in problems:
        sizes = [prod(bank(problem, bands[m.band])) * problem.inputs[0].blocks + slack(spec) for m in every]
        places = [-(-max(sizes[k::ahead]) // whole.align) * whole.align for k in range(min(ahead, len(every)))]
        begins = whole.size + np.cumsum([0, *places])
        whole.size = int(begins[-1])
        parts = {
            macro: replace(whole, size=size, whole=whole, within=int(begins[k % ahead]), high=True)
            for k, (macro, size) in enumerate(zip(every, sizes, strict=True))
        }
        kept.append(Kept(problem=problem, parts=parts))
    return kept, (spec.activation_bytes - whole.size) // whole.align * whole.align


def slack(spec: ArchSpec) -> int:
    """Bytes behind a tile that a sliding window may look at."""
    return spec.activation_row_bytes if spec.hop < spec.group else 0


@dataclass
class LayerSchedule:
    """Makes the items of one layer.

    source, target : the tensor that it reads or writes, if that stays on chip.
    share : of a memory, what constants that stay may take, as a fraction 1 / share.
    macros : its macro tiles, if not those that follow from the mapping.
    below : bytes of a bank that its inputs may take.
    positions : of one MATMUL at most.
    """

    index: int
    problem: Problem
    streams: tuple[UnitStreams, ...]
    mapping: Mapping
    pool: ConstantPool
    source: Kept | None = None
    target: Kept | None = None
    share: int = 2
    macros: list[Macro] = field(default_factory=list)
    below: int = 1 << 62
    positions: int = 1 << 62
    constants: dict[Key, Chunk] = field(default_factory=dict)
    """Chunks that all units share."""
    reserved: dict[str, list[Chunk]] = field(default_factory=dict)
    """What was kept together last in every ring."""

    def __post_init__(self) -> None:
        self.epilogue: Epilogue = make_epilogue(self.problem)
        self.table = self._table_chunk()
        self.alike = len(self.streams) > 1 and len({unit_records(s) for s in self.streams}) == 1
        """All units have the same weights, as those of poolings have."""
        self.macros = self.macros or list(macros(self.problem, self.mapping))

    def items(self) -> Iterator[Item]:
        """All items: units outside, macro tiles and column tiles inside in the order of the mapping."""
        for whole in self.streams:
            yield from _UnitSchedule(self, whole).items()

    def units(self) -> list["_UnitSchedule"]:
        """All units at once, for who goes through macro tiles outside (`_UnitSchedule.macro_items`)."""
        return [_UnitSchedule(self, whole) for whole in self.streams]

    def parameter_chunk(self, output_block: int, macro: Macro, kept: dict[Key, Chunk]) -> tuple[Chunk, int]:
        """The chunk with an output block's parameters, and its first PPU-wide group there.

        All blocks of the layer stand together if they take no more than their share, or there is only one.
        """
        spec, data = self.problem.spec, self.epilogue.parameters
        together = len(data) == 1 or data.size <= spec.parameter_channels * 8 // self.share
        part = (data if together else data[output_block]).reshape(-1)
        kept = self.constants if together else kept
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
        return kept[key], output_block * (spec.block // spec.ppu) if together else 0

    def _table_chunk(self) -> Chunk | None:
        if self.epilogue.table is None:
            return None
        beats = 256 // self.problem.spec.axi_bytes
        load = {"address": self.pool.add(self.epilogue.table), "beats": beats, "rows": 1, "blocks": 1}
        return Chunk(ring="table", size=1, align=1, loads=[Load(fields=load)])


class _UnitSchedule:
    """Makes the items of one unit of a layer; keeps the chunks that several items share."""

    def __init__(self, layer: LayerSchedule, whole: UnitStreams) -> None:
        self.layer, self.problem, self.mapping, self.pool = layer, layer.problem, layer.mapping, layer.pool
        self.spec = layer.problem.spec
        self.tiles = len(whole.tiles)
        runs = _runs(whole.unit, self.mapping.chunks)
        self.parts = [whole]
        if len(runs) > 1:
            self.parts = [pack_unit(self.problem, whole.unit, run, fill=whole.filled) for run in runs]
        self.placed = [[self._pieces(part, band) for part in self.parts] for band in self.mapping.bands]
        self.kept: dict[Key, Chunk] = {}
        self.stays = ""
        """Weights that stay on chip while macro tiles change: all of a "unit", those of an output "block", or none."""
        self.offsets_stay = False
        """All lists of offsets of the unit stay on chip."""
        self.pieces_of = {(c, t): len(tile) for c, part in enumerate(self.placed[0]) for t, tile in enumerate(part)}
        """MATMULs of every (run of input blocks, column tile)."""
        self._reserve()

    def items(self) -> Iterator[Item]:
        """All items in the order of the mapping."""
        for macro, t in self._order():
            yield from self._tile_items(macro, t)

    def macro_items(self, macro: Macro) -> Iterator[Item]:
        """The items of one macro tile."""
        for t in range(self.tiles):
            yield from self._tile_items(macro, t)

    def _order(self) -> Iterator[tuple[Macro, int]]:
        """Pairs of macro tile and column tile in loop order."""
        every, per_block = self.layer.macros, self.problem.tiles_per_block
        if self.mapping.order == "map":
            yield from ((macro, t) for macro in every for t in range(self.tiles))
        elif self.mapping.order == "tiles":
            yield from ((macro, t) for t in range(self.tiles) for macro in every)
        else:
            for first in range(0, self.tiles, per_block):
                yield from ((macro, t) for macro in every for t in range(first, first + per_block))

    def _reserve(self) -> None:
        """What several chunks keep on chip together gets one reservation, so that it cannot break up the buffer."""
        spec, placed = self.spec, self.placed[0]
        per_block = self.problem.tiles_per_block
        whole_tiles = max(self.pieces_of.values()) == 1 and len(self.parts) == 1
        groups: list[range] = []
        if self.mapping.order == "tiles" or not (len(self.layer.macros) > 1 or self.layer.alike):
            pass  # every weight is used once: what comes and goes by itself leaves room for loads ahead
        elif self.mapping.resident and sum(p.steps for tile in placed[0] for p in tile) <= spec.weight_steps:
            self.stays = "unit"
            groups = [range(len(placed[0]))]
        elif self.mapping.order == "columns" and whole_tiles:
            groups = [range(a, a + per_block) for a in range(0, len(placed[0]), per_block)]
            if blocks_stay(spec, [[placed[0][t][0].steps for t in group] for group in groups]):
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
        every = (p for band in self.placed for part in band for tile in part for p in tile)
        lists = {encode_offsets(p.offsets, spec).tobytes(): p for p in every}
        self.offsets_stay = sum(len(data) // 2 for data in lists) <= spec.offset_steps // self.layer.share
        if self.offsets_stay:
            self._keep_together("offset", [(("offset", data), self._offset_load(p)) for data, p in lists.items()])
        elif self.stays == "block":
            for group in groups:
                self._keep_together(
                    "offset", [(("offset", (0, t, 0)), self._offset_load(placed[0][t][0])) for t in group]
                )

    def _keep_together(self, ring: str, chunks: list[tuple[Key, Chunk]]) -> None:
        """Parts of one reservation, kept for the unit; the one before goes on when it holds the same."""
        before = self.layer.reserved.get(ring, [])
        if [c.loads for c in before] == [c.loads for _, c in chunks]:
            self.kept |= {key: chunk for (key, _), chunk in zip(chunks, before, strict=True)}
            return
        self.layer.reserved[ring] = [c for _, c in chunks]
        first = chunks[0][1]
        whole = Chunk(ring=ring, size=sum(c.size for _, c in chunks), align=first.align, loads=[], below=first.below)
        at = 0
        for key, chunk in chunks:
            chunk.whole, chunk.within = whole, at
            self.kept[key] = chunk
            at += chunk.size

    def _pieces(self, part: UnitStreams, band: Band) -> list[list[StepStream]]:
        """Every column tile, placed in the bank and cut into MATMULs."""
        phase = self.spec.group // self.spec.macs
        out = []
        for tile in part.tiles:
            stream = place(self.problem, tile, len(part.input_blocks), bank(self.problem, band))
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

    def _tile_items(self, macro: Macro, t: int) -> Iterator[Item]:
        """Items of one column tile of one macro tile: sub-tiles outside, pieces of the reduction inside."""
        spec, problem, parts = self.spec, self.problem, self.parts
        placed, tile = self.placed[macro.band], parts[0].tiles[t]
        out, first_element, out_row = self._out_chunk(macro, tile)
        ny, nx = sub_tile(macro.tile, min(spec.depth, self.layer.positions))
        row = bank(problem, self.mapping.bands[macro.band])[1]
        pixel = problem.pixel_bytes
        stride = problem.bank_stride
        across = min(macro.tile[1], macro.pixels)  # a tile of whole beats may be wider than what is left of the map
        corners = [(y, x) for y in range(0, macro.tile[0], ny) for x in range(0, across, nx)]
        parameter, first = self.layer.parameter_chunk(tile.output_block, macro, self.kept)
        for at, (y, x) in enumerate(corners):
            rows, pixels = min(ny, macro.tile[0] - y), min(nx, across - x)
            matmuls = [(c, p) for c in range(len(parts)) for p in range(len(placed[c][t]))]
            for n, (c, p) in enumerate(matmuls):
                piece = placed[c][t][p]
                item = Item(
                    layer=self.layer.index,
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
                    element = first_element + y * out_row + x * spec.block + tile.index * spec.columns
                    item.drain = {
                        **self.layer.epilogue.drain,
                        "to_activation": int(self.layer.target is not None),
                        "nx": pixels,
                        "ny": rows,
                        "param_base": first + tile.index * spec.column_groups,
                        "dest": element // spec.ppu,
                        "sx": spec.block // spec.ppu,
                        "sy": out_row // spec.ppu,
                    }
                    item.parameter, item.table, item.out = parameter, self.layer.table, out
                    whole = at == len(corners) - 1 and tile.index == problem.tiles_per_block - 1
                    if whole and self.layer.target is None:
                        item.store = store_fields(problem, tile.output_block, macro, self.mapping.bands[macro.band])
                        item.writes = regions(problem, problem.output, tile.output_block, macro)
                yield item

    # ---- chunks ----

    def _keep(self, key: Key, make: Chunk) -> Chunk:
        return self.kept.setdefault(key, make)

    def _act_chunk(self, blocks: tuple[int, ...], c: int, macro: Macro, again: object, t: int) -> Chunk:
        if self.layer.source is not None:
            return self.layer.source.chunk(macro)
        only = self.mapping.order == "columns" and len(self.layer.macros) > 1
        key = ("act", c, macro.image, macro.y, macro.x, again, t // self.problem.tiles_per_block if only else 0)
        if key not in self.kept and self.mapping.order == "tiles":  # all that a column tile needs at once
            every: list[tuple[Key, Chunk]] = [
                (("act", c, m.image, m.y, m.x, again, 0), self._act_chunk_of(blocks, m)) for m in self.layer.macros
            ]
            self._keep_together("activation", every)
        return self.kept.get(key) or self._keep(key, self._act_chunk_of(blocks, macro))

    def _act_chunk_of(self, blocks: tuple[int, ...], macro: Macro) -> Chunk:
        """The inputs of a macro tile, of these input blocks."""
        spec, band = self.spec, self.mapping.bands[macro.band]
        rows, row = bank(self.problem, band)
        return Chunk(
            ring="activation",
            size=len(blocks) * rows * row + slack(spec),
            align=spec.activation_row_bytes,
            per_unit=spec.axi_bytes,
            below=self.layer.below,
            loads=activation_loads(self.problem, blocks, macro, band),
        )

    def _weight_chunk(self, piece: StepStream, which: tuple[int, int, int], macro: Macro, at: int) -> Chunk:
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

    def _offset_chunk(self, piece: StepStream, which: tuple[int, int, int], macro: Macro, at: int) -> Chunk:
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

    def _use(self, which: tuple[int, int, int], macro: Macro, at: int) -> object:
        """Uses with the same mark share one load.

        Pieces of a column tile that takes several MATMULs leave the buffer before the next sub-tile needs them.
        """
        again = self.mapping.chunks > 1 or self.pieces_of[which[:2]] > 1
        return (macro.image, macro.y, macro.x, at if again else 0)

    def _out_chunk(self, macro: Macro, tile: TileStream) -> tuple[Chunk, int, int]:
        """Where a macro tile's outputs go: the chunk, the first element of the output block in it, bytes of a row.

        In the output buffer a block of a macro tile stands by itself, and a residual is loaded into it first.
        """
        spec, problem, band = self.spec, self.problem, self.mapping.bands[macro.band]
        if self.layer.target is not None:
            rows, row = bank(self.layer.target.problem, band)
            return self.layer.target.chunk(macro), tile.output_block * rows * row, row
        key = ("out", macro.image, macro.y, macro.x, tile.output_block)
        row = macro.tile[1] * spec.block
        if key not in self.kept:
            align, size, loads = spec.axi_bytes, macro.tile[0] * row, []
            if problem.residual is not None:
                # Its own partition, if it fits one: then LOAD, DRAIN and STORE work on three tiles at a time.
                align = spec.output_bytes // spec.output_partitions
                size = -(-size // align) * align
                loads = [residual_load(problem, tile.output_block, macro, band)]
            self.kept[key] = Chunk(ring="output", size=size, align=align, per_unit=spec.axi_bytes, loads=loads)
        return self.kept[key], 0, row


def _runs(unit: Unit, chunks: int) -> list[tuple[int, ...]]:
    """Input blocks in runs that are on chip together."""
    size = -(-len(unit.input_blocks) // chunks)
    return [unit.input_blocks[a : a + size] for a in range(0, len(unit.input_blocks), size)]
