"""Chains: layers whose tensors between them stay in the activation banks and never see DRAM.

A bank belongs to a lane, and a DRAIN writes its own lane's bank. So a layer can read what the layer before left there
if each of its positions needs only that position: a pointwise convolution (1 x 1, stride 1). The layer in front may be
anything: a 3 x 3 and the 1 x 1 behind it, a depthwise and its projection, the two products of a feed-forward block. A
3 x 3 behind a 1 x 1 needs its neighbours' positions, which other lanes hold, and goes through DRAM.

All layers of a chain are cut alike. With one macro tile they follow each other. With several, each layer works one tile
behind the layer before it, and their MATMULs are mixed: none waits for the DRAIN of another, and a layer that keeps the
PPUs busy runs beside one that keeps the array busy. If all tiles fit at once ("tiles"), layers follow each other, so
that weights pass once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from gossamer.arch.errors import CapacityError
from gossamer.arch.layout import Placement
from gossamer.arch.program import LayerNote
from gossamer.arch.timing import drain_latency, matmul_latency
from gossamer.compiler.backend.cache import Cache
from gossamer.compiler.backend.chain_mapping import search_chain
from gossamer.compiler.backend.constants import ConstantPool
from gossamer.compiler.backend.emit import Emitter
from gossamer.compiler.backend.items import Item
from gossamer.compiler.backend.mapped import MappedLayer, MappedMatMul
from gossamer.compiler.backend.mapping import bound
from gossamer.compiler.backend.problem import is_flat, make_problem
from gossamer.compiler.backend.refine import Measure, measured_program
from gossamer.compiler.backend.schedule import Kept, LayerSchedule, keep
from gossamer.compiler.backend.tiling import Mapping as Tiling
from gossamer.compiler.backend.transfers import Macro, macros
from gossamer.compiler.layers import Conv, MaxPool, Network

__all__ = ["MappedChain", "find_chains"]

_LONGEST = 4
"""Layers of a chain."""
_WORTH = 0.98
"""A chain is made if it takes at most this part of what its layers take apart: the cost is not surer than that."""

_HEAVY = 4
"""Times as long as the PPUs that the array must be busy with a layer for the layer to be cut."""

_KNOWN: Cache[Tiling | None] = Cache()
"""Mappings of chains that were searched before."""

Mapped = MappedLayer | MappedMatMul


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedChain:
    """Layers that follow each other on chip, each with the same mapping. apart : the same each with its own."""

    members: tuple[MappedLayer, ...]
    apart: tuple[MappedLayer, ...]

    @property
    def name(self) -> str:
        """Names of its layers."""
        return " > ".join(m.layer.name for m in self.members)

    @property
    def kept(self) -> tuple[str, ...]:
        """Tensors that stay on chip."""
        return tuple(m.layer.output for m in self.members[:-1])

    def relocated(self, placements: Mapping[str, Placement]) -> "MappedChain":
        """The same with tensors elsewhere."""
        layers = [m.layer for m in self.members]
        flat = _flat(layers, placements)
        problems = (make_problem(layer, placements, self.members[0].problem.spec, flat=flat) for layer in layers)
        return replace(self, members=tuple(replace(m, problem=p) for m, p in zip(self.members, problems, strict=True)))

    def fits(self) -> bool:
        """Whether all buffers have room for it, by itself."""
        spec = self.members[0].problem.spec
        try:
            Emitter(spec).run(self.items(0, ConstantPool(base=0, beat=spec.axi_bytes)))
        except CapacityError:
            return False
        return True

    def items(self, index: int, pool: ConstantPool) -> list[Item]:
        """Its items in order; `index` marks them."""
        tiling = self.members[0].mapping
        every = list(macros(self.members[0].problem, tiling))  # its rows of input decide where lanes begin
        ahead = len(every) if tiling.order == "tiles" else 2
        between, below = keep([m.problem for m in self.members[1:]], tiling.bands, every, ahead)
        kept: list[Kept | None] = [None, *between, None]
        schedules = [
            LayerSchedule(
                index=index,
                problem=m.problem,
                streams=m.streams,
                mapping=m.mapping,
                pool=pool,
                source=kept[k],
                target=kept[k + 1],
                share=2 * len(self.members),
                macros=every,
                below=below,
                positions=self._positions(k, every),
            )
            for k, m in enumerate(self.members)
        ]
        if tiling.order == "tiles":
            return [item for schedule in schedules for item in schedule.items()]
        units = [schedule.units() for schedule in schedules]
        out: list[Item] = []
        for turn in range(len(every) + len(units) - 1):
            working = [(every[turn - k], of_layer) for k, of_layer in enumerate(units) if 0 <= turn - k < len(every)]
            out += _woven([[i for unit in of_layer for i in unit.macro_items(macro)] for macro, of_layer in working])
        return out

    def _positions(self, which: int, every: Sequence[Macro]) -> int:
        """Most positions of a MATMUL: a layer that keeps the array busy is cut, to mix with those that keep the PPUs.

        Not into bits, between which the array would wait for its own pipeline.
        """
        spec, positions = self.members[0].problem.spec, every[0].tile[0] * every[0].tile[1]
        tiles = [sum(len(s.tiles) for s in m.streams) for m in self.members]
        steps = sum(int(s.steps.sum()) for s in self.members[which].streams) / tiles[which]
        if self.members[0].mapping.order == "tiles" or len(every) == 1 or steps < _HEAVY * spec.column_groups:
            return positions
        pieces = -(-(sum(tiles) - tiles[which]) // tiles[which])
        least = -(-2 * (matmul_latency(spec) + drain_latency(spec)) // steps)
        return max(int(least), -(-positions // pieces))

    def note(self, first: int, count: int) -> LayerNote:
        """What it is; first, count : its instructions."""
        notes = [m.note(first, count) for m in self.members]
        last = len(notes) - 1
        bounds = [
            bound(m.problem, m.streams, kept_input=k > 0, kept_output=k < last) for k, m in enumerate(self.members)
        ]
        patterns = dict.fromkeys(n.pattern for n in notes if n.pattern)
        return LayerNote(
            name=self.name,
            kind="chain",
            pattern=" > ".join(patterns),
            first=first,
            count=count,
            macs=sum(n.macs for n in notes),
            useful_macs=sum(n.useful_macs for n in notes),
            mac_cycles=float(sum(b[0] for b in bounds)),
            read_beats=sum(b[1] for b in bounds),
            write_beats=sum(b[2] for b in bounds),
            mapping=f"{notes[0].mapping}, {len(notes)} layers on chip",
        )


def _woven(layers: Sequence[Sequence[Item]]) -> Iterator[Item]:
    """Items of layers that do not wait for each other, evenly mixed: one keeps the PPUs busy, another the array."""
    marked: list[tuple[float, int, Sequence[Item]]] = []
    for k, items in enumerate(layers):
        sums, begin = [], 0
        for i, item in enumerate(items):
            if item.drain is not None:  # what adds to the same accumulators stays together
                sums.append(items[begin : i + 1])
                begin = i + 1
        marked += [((i + 0.5) / len(sums), k, part) for i, part in enumerate(sums)]
    for _, _, part in sorted(marked, key=lambda m: m[:2]):
        yield from part


def find_chains(
    mapped: Sequence[Mapped],
    network: Network,
    placements: Mapping[str, Placement],
    measure: Measure | None = None,
) -> list[Mapped | MappedChain]:
    """The layers of a stage with those joined that take less time together, by cost or by `measure`.

    A chain stands where its last layer stood: nobody but the chain reads what the others write.
    """
    after = _links(mapped, network, placements)
    joined: dict[int, MappedChain] = {}
    gone: set[int] = set()
    for first in range(len(mapped)):
        if first in gone or first not in after:
            continue
        run = [first]
        while run[-1] in after:
            run.append(after[run[-1]])
        if any(after.get(k) == first for k in range(first)):
            continue  # a run begins where no link ends
        members = [m for m in (mapped[k] for k in run) if isinstance(m, MappedLayer)]
        for chain, places in _best_cuts(members, run, placements, measure):
            joined[places[-1]] = chain
            gone |= set(places[:-1])
    return [joined.get(k, m) for k, m in enumerate(mapped) if k not in gone]


def _links(mapped: Sequence[Mapped], network: Network, placements: Mapping[str, Placement]) -> dict[int, int]:
    """Which layer may take over the outputs of which on chip, by index."""
    readers: dict[str, int] = {}
    for stage in network.stages:
        for name in (*stage.inputs, getattr(stage, "residual", None)):
            if name is not None:
                readers[name] = readers.get(name, 0) + 1
    makers = {m.layer.output: k for k, m in enumerate(mapped) if isinstance(m, MappedLayer)}
    links = {}
    for k, m in enumerate(mapped):
        if not isinstance(m, MappedLayer) or not _pointwise(m.layer):
            continue
        name = m.layer.inputs[0]
        maker, p = makers.get(name), placements[name]
        if maker is None or readers[name] != 1 or name in network.outputs:
            continue
        front = mapped[maker]
        assert isinstance(front, MappedLayer)
        plain = p.heads == placements[m.layer.output].heads == 1 and p.border == (0, 0, 0, 0)
        straight = all(placements[i].heads == 1 for i in front.layer.inputs)
        simple = front.problem.residual is None and front.problem.stacked == 1
        if plain and straight and simple and front.mapping.chunks == m.mapping.chunks == 1:
            links[maker] = k
    return links


def _pointwise(layer: object) -> bool:
    """Whether each output position needs one input position, of one tensor, all channels in one piece."""
    return (
        isinstance(layer, Conv)
        and layer.weight.shape[2:] == (1, 1)
        and layer.stride == (1, 1)
        and not any(layer.pads)
        and layer.groups == 1
        and len(layer.inputs) == 1
    )


def _flat(layers: Sequence[Conv | MaxPool], placements: Mapping[str, Placement]) -> bool:
    """Whether all layers of a chain may see the map as a row of pixels."""
    return all(is_flat(layer, placements) for layer in layers)


def _best_cuts(
    members: Sequence[MappedLayer],
    places: Sequence[int],
    placements: Mapping[str, Placement],
    measure: Measure | None,
) -> Iterator[tuple[MappedChain, list[int]]]:
    """Cut a run of linked layers where it takes least: best[k] is the least for the first k layers."""
    best: list[tuple[float, int, MappedChain | None]] = [(0.0, 0, None)]
    for end in range(1, len(members) + 1):
        single = best[end - 1][0] + _taken(members[end - 1 : end], placements, measure)
        options: list[tuple[float, int, MappedChain | None]] = [(single, end - 1, None)]
        for begin in range(max(0, end - _LONGEST), end - 1):
            part = members[begin:end]
            chain = _make_chain(part, placements)
            if chain is None:
                continue
            together = _taken([chain], placements, measure)
            if together <= (_WORTH if measure is None else 1.0) * _taken(part, placements, measure):
                options.append((best[begin][0] + together, begin, chain))
        best.append(min(options, key=lambda o: o[0]))
    end = len(members)
    while end:
        _, begin, chain = best[end]
        if chain is not None:
            yield chain, list(places[begin:end])
        end = begin


def _taken(
    parts: Sequence[MappedLayer | MappedChain], placements: Mapping[str, Placement], measure: Measure | None
) -> float:
    """Cycles of layers one after the other in the middle of a network; what does not fit takes for ever."""
    first = parts[0] if isinstance(parts[0], MappedLayer) else parts[0].members[0]
    spec = first.problem.spec
    if measure is not None:
        try:
            return measure(measured_program([p.items for p in parts], spec, placements)) / 2
        except CapacityError:
            return inf
    costs = [(p if isinstance(p, MappedLayer) else p.members[0]).mapping.cost for p in parts]
    flowing = sum(c.flowing for c in costs) + spec.read_latency * (len(parts) - 1)
    if len(parts) == 1:
        return flowing
    # What one layer stores or loads also hides behind the other: how far is between not at all and as far as can be.
    least = max(sum(max(c.array, c.ppu) for c in costs), sum(c.read for c in costs), sum(c.write for c in costs))
    return (flowing + least) / 2


def _make_chain(part: Sequence[MappedLayer], placements: Mapping[str, Placement]) -> MappedChain | None:
    """The chain of some layers with its best mapping, or None if nothing fits."""
    layers = [m.layer for m in part]
    spec = part[0].problem.spec
    if sum(getattr(layer, "table", None) is not None for layer in layers) > spec.tables:
        return None
    flat = _flat(layers, placements)
    members = [replace(m, problem=make_problem(m.layer, placements, spec, flat=flat)) for m in part]
    key = b"".join([bytes([flat]), *(m.key for m in members)])
    tiling = _KNOWN.get(key, lambda: search_chain(members), lambda _: len(key))
    if tiling is None:
        return None
    return MappedChain(members=tuple(replace(m, mapping=tiling) for m in members), apart=tuple(part))
