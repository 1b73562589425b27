"""From items to instructions: where chunks stand, and in which order everything is issued.

MATMULs, DRAINs and STOREs follow the order of the items. LOADs run ahead of it as far as the buffers and the LOAD
queue have room, also into the next layer, constants first. Semaphores come last (arch/sync.py), so nothing here need
think of them.
"""

from gossamer.arch import isa
from gossamer.arch.errors import CapacityError
from gossamer.arch.isa import LoadKind, Op
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.items import Item
from gossamer.compiler.backend.rings import Chunk, Load, Ring
from gossamer.compiler.backend.tiling import burst_cost

__all__ = ["Emitter"]

_LOAD_KIND = {
    "activation": LoadKind.ACTIVATION,
    "output": LoadKind.OUTPUT,
    "weight": LoadKind.WEIGHT,
    "offset": LoadKind.OFFSET,
    "parameter": LoadKind.PARAMETER,
    "table": LoadKind.TABLE,
}


def _find_producers(items: list[Item]) -> None:
    """Fill in which item has to be stored before each LOAD: of those before the first that uses what it loads."""
    stores: dict[tuple[str, int, int], list[tuple[int, int, int]]] = {}
    for k, item in enumerate(items):
        for tensor, image, block, low, high in item.writes:
            stores.setdefault((tensor, image, block), []).append((low, high, k))
    seen: set[int] = set()
    for first, item in enumerate(items):
        for chunk in item.chunks():
            if id(chunk) in seen:
                continue
            seen.add(id(chunk))
            for load in chunk.loads:
                for tensor, image, block, low, high in load.reads:
                    for begin, end, k in stores.get((tensor, image, block), ()):
                        if begin < high and end > low and k < first:
                            load.after = max(load.after, k)


def _work_until_end_of_layer(items: list[Item]) -> list[int]:
    """Slots from the beginning of every item to the end of its layer."""
    out = [0] * len(items)
    for k in range(len(items) - 1, -1, -1):
        after = out[k + 1] if k + 1 < len(items) and items[k + 1].layer == items[k].layer else 0
        out[k] = after + items[k].slots
    return out


class _Clock:
    """Roughly when array and read bus will be where the emitted instructions end. It only decides what to prefetch."""

    def __init__(self, spec: ArchSpec) -> None:
        self.spec = spec
        self.array = 0.0
        self.bus = 0.0

    def beats(self, chunk: Chunk) -> float:
        """Cycles of the LOADs that a chunk still needs."""
        return float(sum(self._cycles(load) for load in chunk.loads[chunk.issued :]))

    def load(self, load: Load) -> None:
        """A LOAD is emitted: it was not before, so what it waited for has just happened."""
        self.bus = max(self.bus, self.array) + self._cycles(load)

    def compute(self, item: Item) -> None:
        """A MATMUL is emitted."""
        ready = max(chunk.ready for chunk in item.chunks())
        self.array = max(self.array, ready + self.spec.read_latency if ready > self.array else 0.0) + item.slots

    def _cycles(self, load: Load) -> float:
        f, spec = load.fields, self.spec
        return float(f["rows"] * f["blocks"] * f["beats"] * burst_cost(spec, f["beats"], write=False))


class Emitter:
    """Turns items into instructions in matrix form, without semaphores."""

    def __init__(self, spec: ArchSpec) -> None:
        self.spec = spec
        self.rows: list[list[int]] = []
        self.first_row: dict[int, int] = {}
        """Row of the first MATMUL of every layer."""
        self._rings = {
            "activation": Ring(spec.activation_bytes, spec.activation_bytes // spec.activation_partitions),
            "output": Ring(spec.output_bytes),
            "weight": Ring(spec.weight_steps, to_end=True),
            "offset": Ring(spec.offset_steps),
            "parameter": Ring(spec.parameter_channels * 8),
            "table": Ring(spec.tables),
        }
        self._ahead: dict[int, int] = {}
        self._bank = 0
        self._clock = _Clock(spec)

    def run(self, items: list[Item]) -> None:
        """Emit all items of a stage and its END."""
        for k, item in enumerate(items):
            for chunk in item.chunks():
                chunk.last_use = k
                if chunk.whole is not None:
                    chunk.whole.last_use = k
        _find_producers(items)
        ends = _work_until_end_of_layer(items)
        fresh = 1  # first item whose chunks may not all be placed
        for k, item in enumerate(items):
            for chunk in item.chunks():
                if not self._load(chunk, k, k, _NO_LIMIT):
                    raise CapacityError(
                        f"a tile needs {chunk.size} units of the {chunk.ring} buffer, which has "
                        f"{self._rings[chunk.ring].capacity} and no room left"
                    )
            self._ahead.pop(k, None)
            fresh = max(fresh, k + 1)
            fresh = self._prefetch(items, fresh, k, ends[k])
            self._compute(item)
            for ring in self._rings.values():
                ring.release(k)
        self._put(Op.END, {})

    def _prefetch(self, items: list[Item], m: int, k: int, work: int) -> int:
        """Before item k: load ahead for items from m on while there is room and their inputs have been stored.

        work : slots to the end of item k's layer. Returns the first item that is not complete.
        """
        limit = self.spec.queue_depth
        while m < len(items) and sum(self._ahead.values()) < limit:
            if items[m].layer != items[m - 1].layer:
                self._prefetch_constants(items, m, limit // 2, self._clock.array + work)
            if not all([self._load(chunk, m, k, limit) for chunk in items[m].chunks()]):  # noqa: C419 - tries all
                return m
            m += 1
        return m

    def _prefetch_constants(self, items: list[Item], m: int, limit: int, end: float) -> None:
        """A new layer: its activations may not exist yet, but its first weights do.

        Only what the bus can bring before cycle `end`, when the activations come: LOADs keep their order, and it is
        for the activations that all of the layer waits.
        """
        layer = items[m].layer
        while m < len(items) and items[m].layer == layer and sum(self._ahead.values()) < limit:
            for chunk in items[m].chunks():
                if not chunk.constant or chunk.complete or chunk.high:
                    continue
                if self._clock.bus + self._clock.beats(chunk) > end or not self._load(chunk, m, 0, limit):
                    return
            m += 1

    def _load(self, chunk: Chunk, item: int, now: int, limit: int) -> bool:
        """Place a chunk and emit the LOADs that need no STORE of item `now` or a later one; True when it is complete.

        limit : most LOADs to have ahead of their items.
        """
        if chunk.complete:
            return True
        ready = not chunk.loads or chunk.loads[chunk.issued].after < now
        if not ready or (not chunk.placed and not self._rings[chunk.ring].place(chunk)):
            return False
        kind = int(_LOAD_KIND[chunk.ring])
        for load in chunk.loads[chunk.issued :]:
            if load.after >= now or sum(self._ahead.values()) >= limit:
                return False
            dest = load.fields.get("dest", 0) + chunk.base // chunk.per_unit
            self._put(Op.LOAD, {**load.fields, "kind": kind, "dest": dest})
            self._clock.load(load)
            self._ahead[item] = self._ahead.get(item, 0) + 1
            chunk.issued += 1
        chunk.ready = self._clock.bus
        return True

    def _compute(self, item: Item) -> None:
        spec = self.spec
        self.first_row.setdefault(item.layer, len(self.rows))
        self._clock.compute(item)
        self._put(
            Op.MATMUL,
            {
                **item.matmul,
                "act_base": item.matmul["act_base"] + item.act.base // spec.group,
                "weight_base": item.matmul.get("weight_base", 0) + item.weight.base,
                "offset_base": item.matmul.get("offset_base", 0) + item.offset.base,
                "bank": self._bank,
            },
        )
        if item.drain is None:
            return
        assert item.out is not None
        assert item.parameter is not None
        drain = dict(item.drain)
        drain["bank"] = self._bank
        drain["param_base"] += item.parameter.base // (8 * spec.ppu)
        drain["dest"] += item.out.base // spec.ppu
        if drain.get("residual"):
            drain["residual_base"] = drain["dest"]
        if item.table is not None:
            drain["table"] = item.table.base
        self._put(Op.DRAIN, drain)
        self._bank ^= 1
        if item.store is not None:
            self._put(Op.STORE, {**item.store, "source": item.out.base // spec.axi_bytes})

    def _put(self, op: Op, values: dict[str, int]) -> None:
        row = [0] * isa.MATRIX_COLUMNS
        row[0] = int(op)
        columns = _COLUMNS[op]
        for name, value in values.items():
            row[columns[name]] = int(value)
        self.rows.append(row)


_NO_LIMIT = 1 << 62

_COLUMNS = {op: {f.name: isa.column(op, f.name) for f in isa.FORMATS[op]} for op in Op}
