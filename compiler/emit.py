"""From items to instructions: where chunks stand, and in which order everything is issued.

MATMULs, DRAINs and STOREs follow the order of the items. LOADs run ahead of it as far as the buffers and the LOAD
queue have room, also into the next layer, constants first. Semaphores come last (arch/sync.py), so nothing here need
think of them.
"""

from gossamer.arch import isa
from gossamer.arch.errors import CapacityError
from gossamer.arch.isa import LoadKind, Op
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.rings import Chunk, Ring
from gossamer.compiler.schedule import Item

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
    """Fill in which item has to be stored before a chunk can be loaded."""
    stores: dict[tuple[str, int, int], list[tuple[int, int, int]]] = {}
    for k, item in enumerate(items):
        if item.writes is not None:
            tensor, image, block, low, high = item.writes
            stores.setdefault((tensor, image, block), []).append((low, high, k))
    for chunk in {id(c): c for item in items for c in item.chunks()}.values():
        for tensor, image, block, low, high in chunk.reads:
            for begin, end, k in stores.get((tensor, image, block), ()):
                if begin < high and end > low:
                    chunk.after = max(chunk.after, k)


class Emitter:
    """Turns items into instructions in matrix form, without semaphores."""

    def __init__(self, spec: ArchSpec) -> None:
        self.spec = spec
        self.rows: list[list[int]] = []
        self.first_row: dict[int, int] = {}
        """Row of the first MATMUL of every layer."""
        self._rings = {
            "activation": Ring(spec.activation_bytes),
            "output": Ring(spec.output_bytes),
            "weight": Ring(spec.weight_steps),
            "offset": Ring(spec.offset_steps),
            "parameter": Ring(spec.parameter_channels * 8),
            "table": Ring(spec.tables),
        }
        self._ahead: dict[int, int] = {}
        self._bank = 0

    def run(self, items: list[Item]) -> None:
        """Emit all items of a stage and its END."""
        for k, item in enumerate(items):
            for chunk in item.chunks():
                chunk.last_use = k
                if chunk.whole is not None:
                    chunk.whole.last_use = k
        _find_producers(items)
        fresh = 1  # first item whose chunks may not all be placed
        for k, item in enumerate(items):
            for chunk in item.chunks():
                if not chunk.placed and not self._load(chunk, k):
                    raise CapacityError(
                        f"a tile needs {chunk.size} units of the {chunk.ring} buffer, which has "
                        f"{self._rings[chunk.ring].capacity} and no room left"
                    )
            self._ahead.pop(k, None)
            fresh = max(fresh, k + 1)
            fresh = self._prefetch(items, fresh, k)
            self._compute(item)
            for ring in self._rings.values():
                ring.release(k)
        self._put(Op.END, {})

    def _prefetch(self, items: list[Item], m: int, k: int) -> int:
        """Before item k: load ahead for items from m on while there is room and their inputs have been stored.

        Returns the first item that is not complete.
        """
        limit = self.spec.queue_depth
        while m < len(items) and sum(self._ahead.values()) < limit:
            if items[m].layer != items[m - 1].layer:
                self._prefetch_constants(items, m, limit // 2)
            for chunk in items[m].chunks():
                if chunk.placed:
                    continue
                if chunk.after >= k or sum(self._ahead.values()) >= limit or not self._load(chunk, m):
                    return m
            m += 1
        return m

    def _prefetch_constants(self, items: list[Item], m: int, limit: int) -> None:
        """A new layer: its activations may not exist yet, but its first weights do."""
        layer = items[m].layer
        full: set[str] = set()
        while m < len(items) and items[m].layer == layer and sum(self._ahead.values()) < limit:
            for chunk in items[m].chunks():
                if not chunk.reads and not chunk.placed and chunk.ring not in full and not self._load(chunk, m):
                    full.add(chunk.ring)
            if full:
                return
            m += 1

    def _load(self, chunk: Chunk, item: int) -> bool:
        """Place a chunk and emit its LOADs; False when there is no room yet."""
        if not self._rings[chunk.ring].place(chunk):
            return False
        kind = int(_LOAD_KIND[chunk.ring])
        for load in chunk.loads:
            dest = load.get("dest", 0) + chunk.base // chunk.per_unit
            self._put(Op.LOAD, {**load, "kind": kind, "dest": dest})
            self._ahead[item] = self._ahead.get(item, 0) + 1
        return True

    def _compute(self, item: Item) -> None:
        spec = self.spec
        self.first_row.setdefault(item.layer, len(self.rows))
        self._put(
            Op.MATMUL,
            {
                **item.matmul,
                "act_base": item.matmul["act_base"] + item.act.base // spec.group,
                "weight_base": item.weight.base,
                "offset_base": item.offset.base,
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


_COLUMNS = {op: {f.name: isa.column(op, f.name) for f in isa.FORMATS[op]} for op in Op}
