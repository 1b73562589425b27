"""What instructions touch, element by element as the text of arch/access.py says it; and the hazards and semaphores
that follow, against oracles that compare every instruction with every earlier one."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.access import Accesses, Space, accesses, capacities, dependencies, offset_ranges
from gossamer.arch.isa import FORMATS, SEMAPHORES, Encoding, Instruction, LoadKind, Op, Unit, to_matrix
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import legal_encodings, operand_encodings, record_bytes
from gossamer.arch.sync import synchronise

TINY = ArchSpec.load("tiny").evolve(
    activation_bytes=128, output_bytes=64, weight_steps=16, offset_steps=16, parameter_channels=16
)
SPECS = [
    TINY,
    TINY.evolve(lanes=3, axi_bytes=4, activation_partitions=4, output_partitions=1),
    TINY.evolve(columns=8, group=8, macs=4, hop=1, ppu=2, output_partitions=4),
    TINY.evolve(columns=2, group=1, macs=1, hop=1, lanes=1),
    TINY.evolve(dynamic_operands=True),
    TINY.evolve(dynamic_operands=True, columns=16, macs=1, output_bytes=128),
]
Touched = dict[tuple[Space, int], set[int]]


# ---- instructions of small numbers, so that they meet ----


@st.composite
def small(draw: st.DrawFn, spec: ArchSpec, op: Op | None = None) -> Instruction:
    op = op or draw(st.sampled_from([Op.LOAD, Op.MATMUL, Op.DRAIN, Op.STORE]))

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    region = {
        "beats": number(1, 4), "rows": number(1, 3), "blocks": number(1, 2), "row_stride": number(0, 5),
        "block_stride": number(0, 12), "address": number(0, 20), "grid": number(0, 2),
        "tile_beats": number(1, 3), "tile_rows": number(1, 2),
    }  # fmt: skip
    if op is Op.LOAD:
        kind = draw(st.sampled_from(LoadKind))
        encodings = (*legal_encodings(spec), *operand_encodings(spec)) if kind is LoadKind.WEIGHT else (Encoding.DENSE,)
        encoding = draw(st.sampled_from(encodings))
        steps = {"step_beats": number(0, 3), "step_rows": number(0, 2)}
        return Instruction.make(op, kind=kind, encoding=encoding, dest=number(0, 6), **region, **steps)
    if op is Op.STORE:
        return Instruction.make(op, source=number(0, 6), **region)
    common = {"bank": number(0, 1), "acc_base": number(0, 4), "nx": number(1, 3), "ny": number(1, 3)}
    if op is Op.MATMUL:
        return Instruction.make(
            op, **common, accumulate=number(0, 1), steps=number(1, 4), weight_base=number(0, 6),
            offset_base=number(0, 6), act_base=number(0, 6), sx=number(0, 3), sy=number(0, 4),
        )  # fmt: skip
    raw = number(0, 1)
    return Instruction.make(
        op, **common, column_groups=number(1, spec.column_groups), param_base=number(0, 4), raw=raw,
        to_activation=number(0, 1), dest=number(0, 8), sx=number(0, 4), sy=number(0, 6),
        residual=0 if raw else number(0, 1), residual_base=number(0, 8), table_enable=number(0, 1),
        table=number(0, 1),
    )  # fmt: skip


@st.composite
def programs(draw: st.DrawFn, most: int = 12) -> tuple[ArchSpec, list[Instruction]]:
    spec = draw(st.sampled_from(SPECS))
    return spec, draw(st.lists(small(spec), min_size=1, max_size=most))


# ---- the oracle: one element after the other ----


def region_beats(f: Instruction) -> Iterator[tuple[int, int, int, int]]:
    """(b, y, x, address in beats) in the order blocks, rows, beats."""
    for b, y, x in product(range(f["blocks"]), range(f["rows"]), range(f["beats"])):
        yield b, y, x, f["address"] + b * f["block_stride"] + y * f["row_stride"] + x


def load_elements(f: Instruction, spec: ArchSpec, out: Touched) -> None:
    size, width, total = spec.axi_bytes, 1 << f["grid"], 0
    kind = LoadKind(f["kind"])
    for b, y, x, at in region_beats(f):
        out[Space.DRAM, 0].update(range(at * size, (at + 1) * size))
        if kind in (LoadKind.ACTIVATION, LoadKind.OUTPUT):
            space = Space.ACTIVATION if kind is LoadKind.ACTIVATION else Space.OUTPUT
            for lane in range(spec.lanes):
                lx, ly = x - lane % width * f["step_beats"], y - lane // width * f["step_rows"]
                if 0 <= lx < f["tile_beats"] and 0 <= ly < f["tile_rows"]:
                    beat = f["dest"] + (b * f["tile_rows"] + ly) * f["tile_beats"] + lx
                    out[space, 1].update(range(beat * size, (beat + 1) * size))
        elif kind is LoadKind.OFFSET:
            out[Space.OFFSET, 1].update(byte // 2 for byte in beat_bytes(f["dest"] + total, size))
        elif kind is LoadKind.PARAMETER:
            out[Space.PARAMETER, 1].update(beat_bytes(f["dest"] + total, size))
        elif kind is LoadKind.TABLE:
            out[Space.TABLE, 1].add(f["dest"] + total * size // 256)
        total += 1
    if kind is LoadKind.WEIGHT:
        whole = total * size // record_bytes(spec, Encoding(f["encoding"]))
        out[Space.WEIGHT, 1].update(f["dest"] + k for k in range(whole))


def beat_bytes(beat: int, size: int) -> range:
    return range(beat * size, (beat + 1) * size)


def matmul_elements(f: Instruction, spec: ArchSpec, held: NDArray[np.int64], out: Touched) -> None:
    for s in range(f["steps"]):
        out[Space.WEIGHT, 0].add(f["weight_base"] + s)
        out[Space.OFFSET, 0].add(f["offset_base"] + s)
        for t in range(f["nx"] * f["ny"]):
            y, x = divmod(t, f["nx"])
            begin = f["act_base"] * spec.group + int(held[f["offset_base"] + s]) * spec.hop
            begin += (x * f["sx"] + y * f["sy"]) * spec.group
            out[Space.ACTIVATION, 0].update(range(begin, begin + spec.group))
            accumulator = f["bank"] * spec.depth + f["acc_base"] + t
            out[Space.ACCUMULATOR, 1].add(accumulator)
            if f["accumulate"]:
                out[Space.ACCUMULATOR, 0].add(accumulator)


def drain_elements(f: Instruction, spec: ArchSpec, out: Touched) -> None:
    p, size = spec.ppu, 4 if f["raw"] else 1
    for t, g, k in product(range(f["nx"] * f["ny"]), range(f["column_groups"]), range(p)):
        y, x = divmod(t, f["nx"])
        out[Space.ACCUMULATOR, 0].add(f["bank"] * spec.depth + f["acc_base"] + t)
        at = (f["dest"] + y * f["sy"] + x * f["sx"] + g) * p + k
        space = Space.ACTIVATION if f["to_activation"] else Space.OUTPUT
        out[space, 1].update(range(at * size, (at + 1) * size))
        if f["residual"]:
            out[Space.OUTPUT, 0].add((f["residual_base"] + y * f["sy"] + x * f["sx"] + g) * p + k)
        if not f["raw"]:
            channel = (f["param_base"] + g) * p + k
            out[Space.PARAMETER, 0].update(range(channel * 8, channel * 8 + 8))
            if f["table_enable"]:
                out[Space.TABLE, 0].add(f["table"])


def store_elements(f: Instruction, spec: ArchSpec, out: Touched) -> None:
    size = spec.axi_bytes
    for b, y, x, at in region_beats(f):
        out[Space.DRAM, 1].update(range(at * size, (at + 1) * size))
        beat = f["source"] + (b * f["tile_rows"] + y % f["tile_rows"]) * f["tile_beats"] + x % f["tile_beats"]
        out[Space.OUTPUT, 0].update(range(beat * size, (beat + 1) * size))


def elements(f: Instruction, spec: ArchSpec, held: NDArray[np.int64]) -> Touched:
    """Everything an instruction touches: a set of addresses for every (space, write)."""
    out: Touched = defaultdict(set)
    if f.op is Op.LOAD:
        load_elements(f, spec, out)
    elif f.op is Op.MATMUL:
        matmul_elements(f, spec, held, out)
    elif f.op is Op.DRAIN:
        drain_elements(f, spec, out)
    else:
        store_elements(f, spec, out)
    act, res = spec.activation_bytes // spec.activation_partitions, spec.output_bytes // spec.output_partitions
    out[Space.ACTIVATION_WRITE_PORT, 1] = {e // act for e in out[Space.ACTIVATION, 1]}
    out[Space.OUTPUT_WRITE_PORT, 1] = {e // res for e in out[Space.OUTPUT, 1]}
    out[Space.OUTPUT_READ_PORT, 1] = {e // res for e in out[Space.OUTPUT, 0]}
    return out


def ranges(touched: Accesses, index: int) -> Touched:
    """The same from `accesses`."""
    out: Touched = defaultdict(set)
    for k in np.flatnonzero(touched.instruction == index):
        out[Space(touched.space[k]), int(touched.write[k])].update(range(touched.low[k], touched.high[k]))
    return out


def hull(cells: set[int]) -> set[int]:
    return set(range(min(cells), max(cells) + 1)) if cells else set()


def is_hull(f: Instruction, space: Space, write: int) -> bool:
    """Where `accesses` gives one range from the first to the last element."""
    if space in (Space.ACTIVATION_WRITE_PORT, Space.OUTPUT_WRITE_PORT, Space.OUTPUT_READ_PORT):
        return True
    return f.op is Op.MATMUL and (space, write) == (Space.ACTIVATION, 0)


def covers_tile(f: Instruction) -> bool:
    """Whether a region fills, or takes, whole tiles; otherwise `accesses` may name what is left out."""
    return f.op not in (Op.LOAD, Op.STORE) or (f["beats"] >= f["tile_beats"] and f["rows"] >= f["tile_rows"])


@settings(max_examples=150)
@given(programs(4), st.integers(0, 2**32 - 1))
def test_accesses_are_what_the_text_says(program: tuple[ArchSpec, list[Instruction]], seed: int) -> None:
    spec, instructions = program
    held = np.random.default_rng(seed).integers(0, 9, 16)
    limits = np.zeros((len(instructions), 2), dtype=np.int64)
    for i, f in enumerate(instructions):
        if f.op is Op.MATMUL:
            used = held[f["offset_base"] : f["offset_base"] + f["steps"]]
            limits[i] = used.min(), used.max()
    touched = accesses(to_matrix(instructions), spec, limits)
    assert np.all(np.diff(touched.instruction) >= 0), "in program order"
    assert np.all(touched.low <= touched.high)
    for i, f in enumerate(instructions):
        expected, found = elements(f, spec, held), ranges(touched, i)
        for key in {*expected, *found}:
            cells = expected[key]
            if covers_tile(f):
                assert found[key] == (hull(cells) if is_hull(f, *key) else cells), (f.op.name, key)
            else:
                assert found[key] >= cells, (f.op.name, key)


def test_what_end_touches() -> None:
    end = to_matrix([Instruction.make(Op.END)])
    assert accesses(end, TINY, np.zeros((1, 2), dtype=np.int64)).instruction.size == 0


def test_capacities_by_hand() -> None:
    assert capacities(ArchSpec.load("tiny"), 5000).tolist() == [5000, 1024, 512, 128, 256, 512, 1, 16, 2, 2, 2]
    assert len(Space) == 11


# ---- offsets ----


@given(st.data())
def test_offset_ranges_follow_the_loads(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(SPECS))
    kinds = st.sampled_from([Op.LOAD, Op.MATMUL])
    instructions = [data.draw(small(spec, data.draw(kinds))) for _ in range(data.draw(st.integers(1, 8)))]
    dram = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, 1024).astype(np.uint8)
    words = [int(dram[k]) | int(dram[k + 1]) << 8 for k in range(0, 1024, 2)]
    held = [0] * spec.offset_steps
    expected = []
    for f in instructions:
        low_high = (0, 0)
        if f.op is Op.LOAD and f["kind"] == LoadKind.OFFSET:
            loaded = [w for *_, at in region_beats(f) for w in words_of_beat(words, at, spec.axi_bytes // 2)]
            begin = f["dest"] * spec.axi_bytes // 2
            for k, word in enumerate(loaded):
                if begin + k < len(held):
                    held[begin + k] = word
        elif f.op is Op.MATMUL:
            used = held[f["offset_base"] : f["offset_base"] + f["steps"]]
            low_high = (min(used), max(used))
        expected.append(low_high)
    assert offset_ranges(to_matrix(instructions), spec, dram).tolist() == [list(e) for e in expected]


def words_of_beat(words: list[int], beat: int, each: int) -> list[int]:
    return words[beat * each : (beat + 1) * each]


def test_offset_ranges_outside_of_buffers_are_cut() -> None:
    load = Instruction.make(Op.LOAD, kind=LoadKind.OFFSET, address=0, dest=3, beats=4, rows=1, blocks=1)
    beyond = Instruction.make(Op.LOAD, kind=LoadKind.OFFSET, address=1, dest=0, beats=2, rows=1, blocks=1)
    matmul = Instruction.make(Op.MATMUL, steps=9, offset_base=12, nx=1, ny=1)
    outside = Instruction.make(Op.MATMUL, steps=1, offset_base=16, nx=1, ny=1)
    dram = np.array([5, 0, 6, 0, 7, 0, 8, 0], dtype=np.uint8)
    matrix = to_matrix([load, beyond, matmul, outside])
    assert offset_ranges(matrix, TINY, dram).tolist() == [[0, 0], [0, 0], [5, 8], [0, 0]]


# ---- hazards ----


def all_dependencies(touched: Accesses, ops: list[Op]) -> list[list[int]]:
    """Every pair, cell by cell."""
    cells = [ranges(touched, i) for i in range(len(ops))]
    out = [[-1] * 5 for _ in ops]
    for i, j in product(range(len(ops)), repeat=2):
        mine, theirs = isa.UNIT_OF[ops[i]], isa.UNIT_OF[ops[j]]
        if j < i and mine is not theirs:
            for space in Space:
                a, b = cells[i], cells[j]
                if a[space, 1] & (b[space, 0] | b[space, 1]) or a[space, 0] & b[space, 1]:
                    out[i][theirs] = max(out[i][theirs], j)
    return out


def touched_by(program: tuple[ArchSpec, list[Instruction]], seed: int) -> Accesses:
    spec, instructions = program
    limits = np.sort(np.random.default_rng(seed).integers(0, 9, (len(instructions), 2)), axis=1)
    return accesses(to_matrix(instructions), spec, limits)


@settings(max_examples=150)
@given(programs(), st.integers(0, 2**32 - 1))
def test_dependencies_are_those_of_every_pair(program: tuple[ArchSpec, list[Instruction]], seed: int) -> None:
    instructions = program[1]
    touched = touched_by(program, seed)
    found = dependencies(to_matrix(instructions), touched)
    assert found.dtype == np.int64
    assert found.tolist() == all_dependencies(touched, [f.op for f in instructions])


def plain(op: Op, **changes: int) -> Instruction:
    return Instruction.make(op, **{**{f.name: f.low for f in FORMATS[op]}, **changes})


def hazards(*program: Instruction, spec: ArchSpec = TINY) -> list[list[int]]:
    matrix = to_matrix(program)
    return dependencies(matrix, accesses(matrix, spec, np.zeros((len(program), 2), dtype=np.int64))).tolist()


def test_a_chain_by_hand() -> None:
    """Load, multiply, drain and store of one tile: each waits for the one before, the next load for the reader."""
    weights = plain(Op.LOAD, kind=LoadKind.WEIGHT, beats=2)
    chain = hazards(weights, plain(Op.MATMUL), plain(Op.DRAIN), plain(Op.STORE, address=99), weights)
    assert chain[0] == [-1, -1, -1, -1, -1]
    assert chain[1] == [-1, 0, -1, -1, -1]
    assert chain[2] == [-1, -1, 1, -1, -1]
    assert chain[3] == [-1, -1, -1, 2, -1]
    assert chain[4] == [-1, -1, 1, -1, -1]


def test_a_load_of_what_a_store_wrote_waits_for_it() -> None:
    load = plain(Op.LOAD, kind=LoadKind.PARAMETER, address=5)
    store = plain(Op.STORE, address=5)
    assert hazards(store, load)[1][Unit.STORE] == 0
    assert hazards(load, store)[1][Unit.LOAD] == 0
    assert hazards(plain(Op.STORE, address=6), load)[1][Unit.STORE] == -1
    assert hazards(load, load)[1] == [-1] * 5, "reads do not conflict, nor does a unit with itself"


@pytest.mark.parametrize(("dest", "half"), [(0, 0), (63, 0), (64, 1), (127, 1)])
def test_a_partition_has_one_write_port(dest: int, half: int) -> None:
    """The bank of 128 bytes is cut in two: a DRAIN into the half that a LOAD fills waits, though the bytes differ."""
    lower = plain(Op.LOAD, kind=LoadKind.ACTIVATION, dest=2, tile_beats=1, tile_rows=1)
    upper = plain(Op.LOAD, kind=LoadKind.ACTIVATION, dest=10, tile_beats=1, tile_rows=1)
    drain = plain(Op.DRAIN, to_activation=1, dest=dest)
    assert hazards(lower, drain)[1][Unit.LOAD] == (0 if half == 0 else -1)
    assert hazards(upper, drain)[1][Unit.LOAD] == (0 if half == 1 else -1)
    assert hazards(drain, upper)[1][Unit.DRAIN] == (0 if half == 1 else -1)


def test_a_partition_has_one_read_port() -> None:
    store = plain(Op.STORE, source=0, address=50)
    drain = plain(Op.DRAIN, dest=63, residual=1, residual_base=31)
    assert hazards(drain, store)[1][Unit.DRAIN] == 0, "the residual is read from the partition that is stored"
    beyond = plain(Op.DRAIN, dest=63, residual=1, residual_base=32)
    assert hazards(beyond, store)[1][Unit.DRAIN] == -1


# ---- semaphores ----


def ended_before(matrix: NDArray[np.int64]) -> list[list[int]]:
    """What the semaphores promise: the latest instruction of each unit that has ended when each one starts.

    The k-th wait on a semaphore takes the k-th post; units start and end in order.
    """
    units = [isa.UNIT_OF[Op(op)] for op in matrix[:, 0].tolist()]
    posts = {s.index: [j for j in range(len(units)) if matrix[j, 2] >> s.index & 1] for s in SEMAPHORES}
    taken = dict.fromkeys(posts, 0)
    last: dict[Unit, list[int]] = {u: [-1] * 5 for u in Unit}
    out = []
    for i, unit in enumerate(units):
        known = list(last[unit])
        for s in SEMAPHORES:
            if matrix[i, 1] >> s.index & 1:
                j = posts[s.index][taken[s.index]]
                taken[s.index] += 1
                assert j < i, "a wait on a later instruction would never end"
                known = [max(a, b) for a, b in zip(known, out[j], strict=True)]
                known[units[j]] = max(known[units[j]], j)
        last[unit] = known
        out.append(known)
    assert all(taken[s] == len(p) for s, p in posts.items()), "every post is taken"
    return out


def satisfied(matrix: NDArray[np.int64], needed: NDArray[np.int64]) -> bool:
    return bool(np.all(np.array(ended_before(matrix)) >= needed))


def waits_and_posts(*program: Instruction) -> list[tuple[str, str]]:
    """The names of the semaphores that each instruction waits on and posts."""
    matrix = to_matrix(program)
    synchronise(matrix, TINY, np.zeros(2048, dtype=np.uint8))
    named = [[",".join(s.name for s in SEMAPHORES if m >> s.index & 1) for m in row] for row in matrix[:, 1:3].tolist()]
    return [(wait, post) for wait, post in named]


def test_each_of_two_loads_is_waited_for() -> None:
    first = plain(Op.LOAD, kind=LoadKind.WEIGHT, beats=2)
    second = plain(Op.LOAD, kind=LoadKind.WEIGHT, beats=2, dest=2)
    matmuls = plain(Op.MATMUL), plain(Op.MATMUL, weight_base=2)
    assert waits_and_posts(first, second, *matmuls) == [
        ("", "load_to_matmul"),
        ("", "load_to_matmul"),
        ("load_to_matmul", ""),
        ("load_to_matmul", ""),
    ]
    assert waits_and_posts(first, second, *reversed(matmuls)) == [
        ("", ""),
        ("", "load_to_matmul"),
        ("load_to_matmul", ""),
        ("", ""),
    ], "the second load ends after the first"


def test_a_wait_that_another_implies_is_left_out() -> None:
    """The store overwrites what the first load read, and the last load what the matmul read: the chain tells both."""
    weights = plain(Op.LOAD, kind=LoadKind.WEIGHT, beats=2, address=40)
    program = weights, plain(Op.MATMUL), plain(Op.DRAIN), plain(Op.STORE, address=40), weights
    assert waits_and_posts(*program) == [
        ("", "load_to_matmul"),
        ("load_to_matmul", "matmul_to_drain"),
        ("matmul_to_drain", "drain_to_store"),
        ("drain_to_store", "store_to_load"),
        ("store_to_load", ""),
    ]


@given(programs(14), st.integers(0, 2**32 - 1))
def test_semaphores_keep_the_order_and_none_is_idle(program: tuple[ArchSpec, list[Instruction]], seed: int) -> None:
    spec, instructions = program
    matrix = to_matrix(instructions)
    matrix[:, 1:3] = 5  # what stood there does not matter
    dram = np.zeros(2048, dtype=np.uint8)
    synchronise(matrix, spec, dram)
    isa.check(matrix)
    assert np.array_equal(matrix[:, 3:], to_matrix(instructions)[:, 3:])
    needed = dependencies(matrix, accesses(matrix, spec, offset_ranges(matrix, spec, dram)))
    assert satisfied(matrix, needed)
    for s in SEMAPHORES:
        waits = np.flatnonzero(matrix[:, 1] >> s.index & 1)
        posts = np.flatnonzero(matrix[:, 2] >> s.index & 1)
        for i, j in zip(waits, posts, strict=True):
            fewer = matrix.copy()
            fewer[i, 1] ^= 1 << s.index
            fewer[j, 2] ^= 1 << s.index
            assert not satisfied(fewer, needed), "each wait is needed"
