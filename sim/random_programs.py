"""Random programs that mean something: LOADs fill memories, MATMULs and DRAINs use what is there, STOREs write it back.

`random_program(rng, spec)` gives a Program that the static checker accepts. It is good for values, time and hardware
alike: there is one stage, no tensor, and every byte of DRAM is in the image. First everything on chip is written
once, then come random instructions in a random order; semaphores keep the hazards, with a few more thrown in.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.access import accesses, dependencies, offset_ranges
from gossamer.arch.errors import GossamerError
from gossamer.arch.isa import (
    SEMAPHORES,
    Encoding,
    Instruction,
    LoadKind,
    MatmulMode,
    Op,
    Unit,
    semaphore,
    to_matrix,
)
from gossamer.arch.program import AcceleratorStage, Program, Segment
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import (
    StepStream,
    encode_offsets,
    encode_steps,
    implied_selects,
    legal_encodings,
    operand_encodings,
    record_bytes,
)
from gossamer.sim.checker import check_program

__all__ = ["random_program", "synchronise"]

DATA_BEATS = 400
"""Beats of DRAM that LOADs read and that no one writes; as many follow that STOREs write and LOADs read."""

LEAST_SHIFT, MOST_SHIFT = 20, 40


def random_program(rng: np.random.Generator, spec: ArchSpec, count: int = 20, *, ragged: bool = False) -> Program:
    """A legal program of about `count` instructions after those that fill every memory.

    ragged : some LOADs of activations give some lanes nothing, so that garbage flows through the machine.
    """
    for _ in range(60):
        writer = _Writer(rng, spec, ragged)
        writer.fill()
        for _ in range(count):
            writer.anything()
        if ragged:
            writer.store()
        program = writer.program()
        try:
            check_program(program, program.memory())
        except GossamerError:
            if not ragged:
                raise
            continue
        return program
    return random_program(rng, spec, count)


def synchronise(
    matrix: NDArray[np.int64],
    spec: ArchSpec,
    dram: NDArray[np.uint8],
    more: dict[int, int],
    rng: np.random.Generator,
) -> None:
    """Waits and posts for every hazard, in place. more : instruction -> an earlier one it also waits for."""
    needed = dependencies(matrix, accesses(matrix, spec, offset_ranges(matrix, spec, dram)))
    units = matrix[:, 0] % 5
    for i, j in more.items():
        needed[i, units[j]] = max(needed[i, units[j]], j)
    known = np.full((5, 5), -1, dtype=np.int64)
    idle = rng.choice([0.0, 0.0, 0.3])
    for i in range(len(matrix)):
        for u in range(1, 5):
            if u == units[i] or units[i] == 0:
                continue
            j = int(needed[i, u])
            if rng.random() < idle:  # a wait that no hazard asks for
                j = max([j, *rng.choice(i, size=min(i, 3)).tolist()] if i else [j], key=lambda k: (units[k] == u, k))
            if j >= 0 and units[j] == u and j > known[units[i], u]:
                bit = 1 << semaphore(Unit(u), Unit(int(units[i]))).index
                matrix[i, 1] |= bit
                matrix[j, 2] |= bit
                known[units[i], u] = j
    for s in SEMAPHORES:  # posts that nobody ever takes
        rest = np.flatnonzero(units == s.poster)
        rest = rest[rest > known[s.waiter, s.poster]]
        if rest.size and rng.random() < idle:
            matrix[rest[-1], 2] |= 1 << s.index


class _Writer:
    """Appends instructions, and remembers what they leave behind as far as later ones depend on it."""

    def __init__(self, rng: np.random.Generator, spec: ArchSpec, ragged: bool) -> None:
        self.rng, self.spec, self.ragged = rng, spec, ragged
        self.rows: list[Instruction] = []
        self.constants: list[NDArray[np.uint8]] = []
        self.constant_beats = 2 * DATA_BEATS
        self.offsets = np.zeros(spec.offset_steps, dtype=np.int64)
        self.sums = [0, 0]  # accumulators 0 .. sums[bank] - 1 have been written
        self.drained = np.full(spec.output_bytes, -1)  # the DRAIN that wrote a byte of the output buffer last
        self.more: dict[int, int] = {}

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def add(self, op: Op, **fields: int) -> int:
        self.rows.append(Instruction.make(op, **fields))
        return len(self.rows) - 1

    def constant(self, data: NDArray[np.uint8]) -> int:
        """Put whole beats into DRAM for good; gives their address in beats."""
        at = self.constant_beats
        self.constants.append(data)
        self.constant_beats += data.size // self.spec.axi_bytes
        return at

    def program(self) -> Program:
        spec = self.spec
        self.add(Op.END)
        matrix = to_matrix(self.rows)
        data = self.rng.integers(0, 256, 2 * DATA_BEATS * spec.axi_bytes, dtype=np.uint8)
        image = np.concatenate([data, *self.constants])
        synchronise(matrix, spec, image, self.more, self.rng)
        return Program(
            spec=spec,
            instructions=matrix,
            dram_bytes=image.size,
            segments=(Segment(address=0, data=image),),
            stages=(AcceleratorStage(name="main", first=0, count=len(matrix)),),
            name="random",
        )

    # ---- the plot ----

    def fill(self) -> None:
        """Write every memory once."""
        spec, beat = self.spec, self.spec.axi_bytes
        for kind, size in ((LoadKind.ACTIVATION, spec.activation_bytes), (LoadKind.OUTPUT, spec.output_bytes)):
            at = 0
            while at < size // beat:
                at += self.tile(kind, at, size // beat - at, whole=not (self.ragged and self.chance(0.3)))
        at = 0
        while at < spec.weight_steps:
            at += self.weights(at, spec.weight_steps - at)
        self.offset(0, spec.offset_steps)
        self.parameters(0, spec.parameter_channels)
        if spec.tables:
            self.table(0, spec.tables)
        self.matmul()

    def anything(self) -> None:
        """One more instruction of any kind."""
        spec, beat = self.spec, self.spec.axi_bytes
        pick = self.number(0, 15)
        if pick < 5:
            self.matmul()
        elif pick < 9:
            self.drain()
        elif pick < 12:
            self.store()
        elif pick == 12:
            sizes = {LoadKind.ACTIVATION: spec.activation_bytes, LoadKind.OUTPUT: spec.output_bytes}
            kind = LoadKind.ACTIVATION if self.chance(0.6) else LoadKind.OUTPUT
            beats = sizes[kind] // beat
            at = self.number(0, beats - 1)
            self.tile(kind, at, beats - at, whole=self.chance(0.5))
        elif pick == 13:
            at = self.number(0, spec.weight_steps - 1)
            self.weights(at, spec.weight_steps - at)
        elif pick == 14:
            at = self.number(0, spec.offset_steps * 2 // beat - 1) * beat // 2
            self.offset(at, spec.offset_steps - at)
        elif spec.tables and self.chance(0.3):
            self.table(self.number(0, spec.tables - 1), 1)
        else:
            step = max(1, beat // 8)
            at = self.number(0, spec.parameter_channels // step - 1) * step
            self.parameters(at, spec.parameter_channels - at)

    # ---- LOAD ----

    def tile(self, kind: LoadKind, dest: int, room: int, *, whole: bool) -> int:
        """A region of DRAM into the banks of all lanes. Returns the beats of a lane it fills."""
        lanes = self.spec.lanes
        while True:
            grid = self.number(0, (lanes - 1).bit_length())
            width = 1 << grid
            tile_beats, tile_rows, blocks = self.number(1, 12), self.number(1, 3), self.number(1, 3)
            if tile_beats * tile_rows * blocks > room:
                tile_beats, tile_rows, blocks = min(tile_beats, room), 1, 1
            step_beats, step_rows = self.number(0, tile_beats + 2), self.number(0, tile_rows + 1)
            beats = (min(width, lanes) - 1) * step_beats + tile_beats
            rows = (lanes - 1) // width * step_rows + tile_rows
            if not whole:
                beats, rows = self.number(1, beats + 2), self.number(1, rows + 1)
            shape = self.region(beats, rows, blocks, 2 * DATA_BEATS)
            if shape is not None:
                break
        tile = {"tile_beats": tile_beats, "tile_rows": tile_rows, "step_beats": step_beats, "step_rows": step_rows}
        self.add(Op.LOAD, kind=kind, dest=dest, grid=grid, **tile, **shape)
        if kind is LoadKind.OUTPUT and whole:
            low = dest * self.spec.axi_bytes
            self.drained[low : low + blocks * tile_rows * tile_beats * self.spec.axi_bytes] = -1
        return blocks * tile_rows * tile_beats

    def region(self, beats: int, rows: int, blocks: int, limit: int, first: int = 0) -> dict[str, int] | None:
        """Address and strides of a region within first .. limit - 1; None if it does not fit."""
        row_stride = beats if self.chance(0.3) else self.number(0, beats + 5)
        block_stride = row_stride * rows if self.chance(0.3) else self.number(0, row_stride * rows + 9)
        extent = (rows - 1) * row_stride + (blocks - 1) * block_stride + beats
        if extent > limit - first:
            return None
        return {
            "address": self.number(first, limit - extent),
            "beats": beats,
            "rows": rows,
            "blocks": blocks,
            "row_stride": row_stride,
            "block_stride": block_stride,
        }

    def string(self, kind: LoadKind, dest: int, data: NDArray[np.uint8], **fields: int) -> None:
        """A LOAD of consecutive beats, written down as one row, or as rows with gaps between them."""
        beat = self.spec.axi_bytes
        beats = data.size // beat
        rows = int(self.rng.choice([n for n in range(1, min(beats, 6) + 1) if beats % n == 0]))
        gap = self.number(0, 2) if rows > 1 else 0
        pieces = np.zeros((rows, beats // rows + gap, beat), dtype=np.uint8)
        pieces[:, : beats // rows] = data.reshape(rows, beats // rows, beat)
        shape = {"beats": beats // rows, "rows": rows, "blocks": 1, "row_stride": beats // rows + gap}
        self.add(Op.LOAD, kind=kind, dest=dest, address=self.constant(pieces.reshape(-1)), **shape, **fields)

    def weights(self, dest: int, room: int) -> int:
        """Random steps. Returns how many."""
        spec, rng = self.spec, self.rng
        if operand_encodings(spec) and self.chance(0.5):
            steps = self.operand(dest, room)
            if steps:
                return steps
        steps = self.number(1, room)
        encodings = legal_encodings(spec)
        encoding = encodings[self.number(0, len(encodings) - 1)]
        shape = (steps, spec.columns, spec.macs)
        values = rng.integers(-128, 128, shape, dtype=np.int8)
        values[rng.random(shape) < rng.choice([0.0, 0.5, 0.95])] = 0
        if encoding is Encoding.DENSE:
            selects = np.broadcast_to(implied_selects(spec, steps), shape).copy()
        elif encoding is Encoding.INDEX:
            selects = rng.integers(0, spec.group, shape, dtype=np.uint8)
        else:
            drawn = rng.random((steps, spec.columns, spec.group)).argsort(axis=-1)[..., : spec.macs]
            selects = np.sort(drawn, axis=-1).astype(np.uint8)
            used = rng.integers(0, spec.macs + 1, shape[:2])
            values[values == 0] = 1
            values[np.arange(spec.macs) >= used[..., None]] = 0
        stream = StepStream(offsets=np.zeros(steps, dtype=np.int64), values=values, selects=selects)
        self.string(LoadKind.WEIGHT, dest, encode_steps(stream, spec, encoding), encoding=int(encoding))
        return steps

    def operand(self, dest: int, room: int) -> int:
        """Steps from activations, as they lie anywhere in DRAM. Returns how many; 0 if they do not fit."""
        spec = self.spec
        encoding = Encoding.NATURAL if self.chance(0.5) else Encoding.TRANSPOSED
        if encoding is Encoding.NATURAL:
            steps = self.number(1, min(room, 12))
            total = steps * record_bytes(spec, encoding) // spec.axi_bytes
            blocks, rows = self.divisor(total), 1
            rows = self.divisor(total // blocks)
            fields = {"step_beats": self.number(0, max(1, spec.axi_bytes // spec.columns) - 1)}
        else:
            least = max(1, spec.macs // spec.axi_bytes)  # beats of a column in whole steps
            per_beats = least * spec.axi_bytes // spec.macs
            if dest % spec.weight_banks or room < per_beats:
                return 0
            of_column = least * self.number(1, min(room // per_beats, 3))
            blocks = self.number(1, min(room * spec.macs // (of_column * spec.axi_bytes), 3))
            rows = self.divisor(of_column * spec.columns)
            total = of_column * spec.columns * blocks
            steps = of_column * spec.axi_bytes // spec.macs * blocks
            fields = {"tile_beats": of_column}
        shape = self.region(total // (rows * blocks), rows, blocks, 2 * DATA_BEATS)
        if shape is None:
            return 0
        self.add(Op.LOAD, kind=LoadKind.WEIGHT, dest=dest, encoding=int(encoding), **fields, **shape)
        return steps

    def divisor(self, n: int) -> int:
        """Any divisor of n."""
        return int(self.rng.choice([k for k in range(1, n + 1) if n % k == 0]))

    def offset(self, first: int, room: int) -> None:
        """Random offsets, a whole number of beats of them, all within the bank."""
        per_beat = self.spec.axi_bytes // 2
        count = self.number(1, room // per_beat) * per_beat if first else room
        windows = self.spec.activation_bytes // self.spec.hop - self.spec.group // self.spec.hop
        most = self.number(0, windows)
        drawn = self.rng.integers(0, most + 1, count)
        if self.chance(0.5):
            drawn.sort()
        self.offsets[first : first + count] = drawn
        self.string(LoadKind.OFFSET, first // per_beat, encode_offsets(drawn, self.spec))

    def parameters(self, first: int, room: int) -> None:
        beat = self.spec.axi_bytes
        step = max(1, beat // 8)
        count = self.number(1, room // step) * step if first else room
        words = np.zeros((count, 8), dtype=np.uint8)
        bias = self.rng.integers(-(1 << self.number(1, 31)), 1 << 20, count).astype("<i4")
        words[:, :4] = bias.view(np.uint8).reshape(count, 4)
        words[:, 4:7] = self.rng.integers(0, 256, (count, 3))
        words[:, 7] = self.rng.integers(LEAST_SHIFT, MOST_SHIFT + 1, count)
        self.string(LoadKind.PARAMETER, first * 8 // beat, words.reshape(-1))

    def table(self, first: int, count: int) -> None:
        self.string(LoadKind.TABLE, first, self.rng.integers(0, 256, 256 * count, dtype=np.uint8))

    # ---- MATMUL, DRAIN, STORE ----

    def positions(self, most: int) -> tuple[int, int]:
        nx = self.number(1, most)
        return nx, self.number(1, most // nx)

    def matmul(self) -> None:
        spec = self.spec
        bank = self.number(0, 1)
        steps = self.number(1, min(8, spec.weight_steps, spec.offset_steps))
        offset_base = self.number(0, spec.offset_steps - steps)
        last = (int(self.offsets[offset_base : offset_base + steps].max()) * spec.hop + spec.group - 1) // spec.group
        room = spec.activation_bytes // spec.group - 1 - last  # windows left for base and positions
        accumulate = self.sums[bank] > 0 and self.chance(0.5)
        most = self.sums[bank] if accumulate else spec.depth
        if self.chance(0.3):  # all accumulators there are
            acc_base, ny = 0, self.divisor(most)
            nx = most // ny
        else:
            acc_base = self.number(0, max(0, min(self.sums[bank], spec.depth - 1) - int(accumulate)))
            nx, ny = self.positions(most - acc_base)
        sx, sy = self.number(0, 2), self.number(0, 3)
        if (nx - 1) * sx + (ny - 1) * sy > room:
            sx = sy = 0
        self.sums[bank] = max(self.sums[bank], acc_base + nx * ny)
        self.add(
            Op.MATMUL,
            mode=int(MatmulMode.MAXIMUM if self.chance(0.25) else MatmulMode.SUM),
            signed=self.number(0, 1),
            zero_point=self.number(0, 255),
            accumulate=int(accumulate),
            bank=bank,
            acc_base=acc_base,
            steps=steps,
            weight_base=self.number(0, spec.weight_steps - steps),
            offset_base=offset_base,
            act_base=self.number(0, room - (nx - 1) * sx - (ny - 1) * sy),
            nx=nx,
            ny=ny,
            sx=sx,
            sy=sy,
        )

    def drain(self) -> None:
        spec, ppu = self.spec, self.spec.ppu
        bank = 0 if self.sums[0] and (not self.sums[1] or self.chance(0.5)) else 1
        acc_base = self.number(0, self.sums[bank] - 1)
        nx, ny = self.positions(self.sums[bank] - acc_base)
        groups = self.number(1, spec.column_groups)
        raw, to_activation = int(self.chance(0.2)), int(self.chance(0.3))
        room = (spec.activation_bytes if to_activation else spec.output_bytes) // (ppu * (4 if raw else 1))
        sx, sy = self.number(0, groups + 1), self.number(0, (groups + 1) * nx)
        if (nx - 1) * sx + (ny - 1) * sy + groups > room:
            nx = ny = 1
            groups = min(groups, room)
        if not groups:
            return
        span = (nx - 1) * sx + (ny - 1) * sy + groups
        dest = self.number(0, room - span)
        low, high = (0, 255) if self.chance(0.5) else (-128, 127)
        lo, hi = sorted((self.number(low, high), self.number(low, high))) if self.chance(0.3) else (low, high)
        fields = {
            "bank": bank, "acc_base": acc_base, "nx": nx, "ny": ny, "column_groups": groups, "raw": raw,
            "param_base": self.number(0, spec.parameter_channels // ppu - groups),
            "to_activation": to_activation, "dest": dest, "sx": sx, "sy": sy,
            "zero_point": self.number(low, high), "lo": lo, "hi": hi,
        }  # fmt: skip
        if not raw and spec.tables and self.chance(0.4):
            fields |= {"table_enable": 1, "table": self.number(0, spec.tables - 1)}
        slots = (np.arange(ny)[:, None, None] * sy + np.arange(nx)[:, None] * sx + np.arange(groups)).reshape(-1)
        if not raw and self.chance(0.5):
            fields |= self.residual(slots, dest, span, to_activation)
        i = self.add(Op.DRAIN, **fields)
        if fields.get("residual"):
            self.after_own_writes(i, (slots + fields["residual_base"])[:, None] * ppu + np.arange(ppu))
        if not to_activation:
            size = ppu * (4 if raw else 1)
            self.drained[((slots + dest)[:, None] * size + np.arange(size)).reshape(-1)] = len(self.rows) - 1

    def residual(self, slots: NDArray[np.int64], dest: int, span: int, to_activation: int) -> dict[str, int]:
        """Fields of a residual, in place or apart from the result; none if it would be neither."""
        room = self.spec.output_bytes // self.spec.ppu - span
        if room < 0:
            return {}
        in_place = not to_activation and self.chance(0.4) and np.unique(slots).size == slots.size
        base = dest if in_place else self.number(0, room)
        if not to_activation and not in_place and np.intersect1d(slots + base, slots + dest).size:
            return {}
        return {
            "residual": 1,
            "residual_base": base,
            "residual_signed": self.number(0, 1),
            "residual_zero": self.number(0, 255),
            "residual_multiplier": self.number(0, 65535),
            "residual_shift": self.number(9, LEAST_SHIFT),
        }

    def after_own_writes(self, i: int, residual: NDArray[np.int64]) -> None:
        """A residual that an earlier DRAIN wrote has to be fenced: a STORE that waits for it comes in between."""
        earlier = int(self.drained[residual.reshape(-1)].max())
        if earlier < 0:
            return
        drain = self.rows.pop()
        fence = self.store()
        self.more[fence] = earlier
        self.rows.append(drain)
        self.more[fence + 1] = fence

    def store(self) -> int:
        spec = self.spec
        total = spec.output_bytes // spec.axi_bytes
        while True:
            grid = self.number(0, (spec.lanes - 1).bit_length())
            width = 1 << grid
            across = self.number(1, min(width, spec.lanes))
            down = self.number(1, (spec.lanes - across) // width + 1)
            tile_beats, tile_rows, blocks = self.number(1, 6), self.number(1, 3), self.number(1, 3)
            if tile_beats * tile_rows * blocks > total:
                tile_beats = tile_rows = blocks = 1
            beats = self.number((across - 1) * tile_beats + 1, across * tile_beats)
            rows = self.number((down - 1) * tile_rows + 1, down * tile_rows)
            shape = self.region(beats, rows, blocks, 2 * DATA_BEATS, DATA_BEATS)
            if shape is not None:
                break
        source = self.number(0, total - tile_beats * tile_rows * blocks)
        return self.add(Op.STORE, source=source, grid=grid, tile_beats=tile_beats, tile_rows=tile_rows, **shape)
