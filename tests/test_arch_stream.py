"""The step stream and its packer: nothing is lost, windows are legal, and the number of steps is what it must be."""

import re
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gossamer.arch.errors import ProgramError
from gossamer.arch.isa import Encoding
from gossamer.arch.packing import pack, unpack
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import (
    StepStream,
    best_encoding,
    decode_offsets,
    decode_steps,
    encode_offsets,
    encode_steps,
    implied_selects,
    legal_encodings,
    record_bytes,
    stream_beats,
)

POWERS = (1, 2, 4, 8, 16, 32)
ARRAYS = [(m, v, h) for m, v, h in product(POWERS, repeat=3) if v <= m and h <= m]
"""Every (group, macs, hop)."""


def machine(group: int, macs: int, hop: int, columns: int = 16, axi_bytes: int = 16) -> ArchSpec:
    """A spec of which only the array matters."""
    return ArchSpec(
        columns=columns, group=group, macs=macs, hop=hop, axi_bytes=axi_bytes, ppu=1, activation_bytes=16384,
        output_bytes=4096,
    )  # fmt: skip


def refused(message: str) -> Any:
    """A ProgramError with exactly this message."""
    return pytest.raises(ProgramError, match=f"^{re.escape(message)}$")


def bank_line(addresses: NDArray[np.int64], weights: NDArray[np.int8], length: int, columns: int) -> NDArray[np.int64]:
    """Dense [length, columns]: the weight that each column has for each element of the bank."""
    line = np.zeros((length, columns), dtype=np.int64)
    line[addresses, : weights.shape[1]] = weights
    return line


def read_stream(stream: StepStream, spec: ArchSpec, length: int) -> NDArray[np.int64]:
    """What the array would multiply each element with, element by element of each window, as stream.py words it."""
    line = np.zeros((length, spec.columns), dtype=np.int64)
    for s in range(stream.steps):
        begin = int(stream.offsets[s]) * spec.hop
        window = {e % spec.group: e for e in range(begin, begin + spec.group)}
        for c in range(spec.columns):
            for v in range(spec.macs):
                if stream.values[s, c, v]:
                    line[window[int(stream.selects[s, c, v])], c] += stream.values[s, c, v]
    return line


@st.composite
def tiles(draw: st.DrawFn) -> tuple[ArchSpec, NDArray[np.int64], NDArray[np.int8]]:
    """A spec of any (M, V, H), ascending addresses with holes, sparse weights in up to `columns` columns."""
    group, macs, hop = draw(st.sampled_from(ARRAYS))
    columns = draw(st.sampled_from([1, 2, 4, 8]))
    addresses = draw(st.lists(st.integers(0, 150), unique=True, max_size=60).map(sorted))
    density = draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (len(addresses), draw(st.integers(0, columns)))
    weights = rng.choice([-128, -7, -1, 1, 3, 127], shape) * (rng.random(shape) < density)
    spec = machine(group, macs, hop, columns, draw(st.sampled_from([4, 16, 32])))
    return spec, np.array(addresses, dtype=np.int64), weights.astype(np.int8)


# ---- pack and unpack ----


@given(tiles())
def test_unpack_is_the_inverse_of_pack(tile: tuple[ArchSpec, NDArray[np.int64], NDArray[np.int8]]) -> None:
    spec, addresses, weights = tile
    stream = pack(addresses, weights, spec)
    used, found = unpack(stream, spec)
    assert np.all(np.diff(used) > 0)
    assert found.shape == (used.size, spec.columns)
    expected = bank_line(addresses, weights, 200, spec.columns)
    assert np.array_equal(used, np.flatnonzero(expected.any(axis=1)))
    assert np.array_equal(found, expected[used])


@given(tiles(), st.booleans())
def test_the_array_reads_every_weight_once(
    tile: tuple[ArchSpec, NDArray[np.int64], NDArray[np.int8]], keep_zeros: bool
) -> None:
    spec, addresses, weights = tile
    stream = pack(addresses, weights, spec, keep_zeros=keep_zeros)
    assert stream.values.shape == stream.selects.shape == (stream.steps, spec.columns, spec.macs)
    assert (stream.values.dtype, stream.selects.dtype, stream.offsets.dtype) == (np.int8, np.uint8, np.int64)
    assert np.all(stream.selects < spec.group)
    assert np.all(stream.offsets >= 0)
    assert np.all(np.diff(stream.offsets) >= 0), "windows only move forward"
    assert stream.useful == np.count_nonzero(weights), "one slot for each nonzero"
    line = read_stream(stream, spec, 200)
    assert np.array_equal(line, bank_line(addresses, weights, 200, spec.columns))


@pytest.mark.parametrize(("group", "macs", "hop"), ARRAYS)
def test_every_array_packs_the_same_tile(group: int, macs: int, hop: int) -> None:
    rng = np.random.default_rng(group * 10000 + macs * 100 + hop)
    spec = machine(group, macs, hop, columns=4)
    addresses = np.sort(rng.choice(300, 120, replace=False))
    weights = (rng.integers(-128, 128, (120, 4)) * (rng.random((120, 4)) < 0.25)).astype(np.int8)
    used, found = unpack(pack(addresses, weights, spec), spec)
    assert np.array_equal(bank_line(used, found.astype(np.int8), 300, 4), bank_line(addresses, weights, 300, 4))


@given(tiles(), st.booleans())
def test_aligned_windows_cost_what_their_fullest_column_needs(
    tile: tuple[ArchSpec, NDArray[np.int64], NDArray[np.int8]], keep_zeros: bool
) -> None:
    spec, addresses, weights = tile
    spec = spec.evolve(hop=spec.group)
    stream = pack(addresses, weights, spec, keep_zeros=keep_zeros)
    steps: dict[int, int] = {}
    for window in sorted(set((addresses // spec.group).tolist())):
        inside = addresses // spec.group == window
        counts = [int(inside.sum() if keep_zeros else np.count_nonzero(column)) for column in weights[inside].T]
        cost = -(-max(counts, default=0) // spec.macs)
        if cost:
            steps[window] = cost
    assert stream.offsets.tolist() == [w for w, cost in steps.items() for _ in range(cost)]


@given(tiles())
def test_a_step_is_never_empty_and_begins_at_the_slowest_column(
    tile: tuple[ArchSpec, NDArray[np.int64], NDArray[np.int8]],
) -> None:
    spec, addresses, weights = tile
    stream = pack(addresses, weights, spec)
    left = {(int(a), c) for a, row in zip(addresses, weights, strict=True) for c, w in enumerate(row) if w}
    for s in range(stream.steps):
        slowest = min(a for a, _ in left)
        begin = int(stream.offsets[s]) * spec.hop
        assert begin == slowest // spec.hop * spec.hop
        for c, v in zip(*np.nonzero(stream.values[s]), strict=True):
            select = int(stream.selects[s, c, v])
            left.remove((begin + (select - begin) % spec.group, int(c)))
        for c in range(spec.columns):  # a column stops at V, or has nothing more in the window
            waiting = [a for a, column in left if column == c and a < begin + spec.group]
            assert not waiting or np.count_nonzero(stream.values[s, c]) == spec.macs
    assert not left


@pytest.mark.parametrize(("n", "m", "macs"), [(2, 4, 1), (2, 4, 2), (2, 8, 2), (4, 8, 2), (4, 8, 4), (1, 32, 1)])
def test_n_of_m_weights_cost_n_over_v_steps_a_group(n: int, m: int, macs: int) -> None:
    rng = np.random.default_rng(m)
    spec, groups = machine(m, macs, m), 12
    weights = np.zeros((groups, m, 16), dtype=np.int8)
    for g, c in product(range(groups), range(16)):
        weights[g, rng.choice(m, n, replace=False), c] = rng.integers(1, 128, n)
    stream = pack(np.arange(groups * m), weights.reshape(-1, 16), spec)
    assert stream.steps == groups * n // macs
    assert stream.useful == stream.values.size, "no column waits for another"


@pytest.mark.parametrize(("group", "macs"), [(1, 1), (4, 2), (8, 2), (8, 8), (32, 4)])
def test_keep_zeros_makes_dense_records(group: int, macs: int) -> None:
    rng = np.random.default_rng(group)
    spec = machine(group, macs, group)
    weights = (rng.integers(1, 128, (4 * group, 16)) * (rng.random((4 * group, 16)) < 0.9)).astype(np.int8)
    stream = pack(np.arange(4 * group), weights, spec, keep_zeros=True)
    assert stream.steps == 4 * group // macs
    assert best_encoding(stream, spec) is Encoding.DENSE
    assert stream.offsets.tolist() == [s * macs // group for s in range(stream.steps)]
    by_address = stream.values.transpose(0, 2, 1).reshape(-1, 16)
    assert np.array_equal(by_address, weights), "values in the order of addresses"


@pytest.mark.parametrize(
    ("group", "hop", "share"),
    [(8, 8, 0.32), (8, 4, 0.39), (8, 1, 0.44), (16, 16, 0.40), (16, 8, 0.51), (16, 1, 0.57), (32, 32, 0.50),
     (32, 16, 0.63), (32, 1, 0.70)],
)  # fmt: skip
def test_share_of_useful_macs_of_unstructured_weights(group: int, hop: int, share: float) -> None:
    """90 % zeros at random, 16 columns, one MAC: the trial numbers that the array was chosen with."""
    rng = np.random.default_rng(7)
    weights = (rng.random((16384, 16)) < 0.1).astype(np.int8)
    stream = pack(np.arange(16384), weights, machine(group, 1, hop))
    assert stream.useful / stream.values.size == pytest.approx(share, abs=0.02)


def test_nothing_to_do_costs_nothing() -> None:
    spec = machine(8, 2, 8)
    for weights in (np.zeros((0, 16)), np.zeros((5, 16)), np.zeros((5, 0))):
        stream = pack(np.arange(len(weights)), weights.astype(np.int8), spec)
        assert stream.steps == stream.useful == 0
        assert unpack(stream, spec)[0].size == 0


def test_pack_refuses_what_does_not_fit() -> None:
    spec, ones = machine(8, 2, 8), np.ones((3, 17), dtype=np.int8)
    with pytest.raises(ValueError, match=r"^weights must have shape \[3, up to 16\], not \(3, 17\)$"):
        pack(np.arange(3), ones, spec)
    with pytest.raises(ValueError, match=r"^weights must have shape \[2, up to 16\], not \(3, 4\)$"):
        pack(np.arange(2), ones[:, :4], spec)
    with pytest.raises(ValueError, match=r"^weights must have shape \[3, up to 16\], not \(3,\)$"):
        pack(np.arange(3), ones[:, 0], spec)
    for addresses in ([0, 2, 1], [0, 0, 1], [-1, 0, 1]):
        with pytest.raises(ValueError, match=r"^addresses must be non-negative and strictly ascending$"):
            pack(np.array(addresses), ones[:, :4], spec)


# ---- records ----


def test_record_bytes_by_hand() -> None:
    spec = machine(8, 4, 8, columns=8, axi_bytes=16)
    assert record_bytes(spec, Encoding.DENSE) == 32
    assert record_bytes(spec, Encoding.INDEX) == 32 + 12  # 32 selects of 3 bits
    assert record_bytes(spec, Encoding.MASK) == 32 + 8
    assert stream_beats(spec, Encoding.INDEX, 3) == 9  # 132 bytes
    small = machine(4, 1, 4, columns=4, axi_bytes=16)
    assert record_bytes(small, Encoding.DENSE) == 16, "padded to a beat"
    assert record_bytes(small, Encoding.INDEX) == 16
    odd = machine(8, 1, 8, columns=1, axi_bytes=4)
    assert record_bytes(odd, Encoding.INDEX) == 4
    assert record_bytes(machine(8, 1, 8, columns=4, axi_bytes=4), Encoding.INDEX) == 6  # 12 bits are two bytes
    assert record_bytes(spec, Encoding.NATURAL) == 64, "a beat brings 8 columns, and their part of it is half"
    assert record_bytes(spec, Encoding.TRANSPOSED) == 32
    assert record_bytes(machine(8, 4, 8, columns=32, axi_bytes=16), Encoding.NATURAL) == 128


@pytest.mark.parametrize(("group", "macs", "hop"), [c for c in ARRAYS if c[0] == c[2]])
def test_mask_is_legal_where_it_is_shorter(group: int, macs: int, hop: int) -> None:
    spec = machine(group, macs, hop)
    legal = legal_encodings(spec)
    bits = group.bit_length() - 1
    assert (Encoding.INDEX in legal) == (group > 1)
    assert (Encoding.MASK in legal) == (macs * bits > group)
    assert legal[0] is Encoding.DENSE
    if Encoding.MASK in legal:
        assert record_bytes(spec, Encoding.MASK) < record_bytes(spec, Encoding.INDEX)


def random_stream(spec: ArchSpec, encoding: Encoding, steps: int, seed: int) -> StepStream:
    """Any stream that the encoding can hold."""
    rng = np.random.default_rng(seed)
    shape = (steps, spec.columns, spec.macs)
    values = rng.integers(-128, 128, shape).astype(np.int8)
    values[rng.random(shape) < 0.3] = 0
    if encoding is Encoding.DENSE:
        selects = np.broadcast_to(implied_selects(spec, steps), shape).copy()
    elif encoding is Encoding.INDEX:
        selects = rng.integers(0, spec.group, shape).astype(np.uint8)
    else:
        order = np.argsort(rng.random((*shape[:2], spec.group)), axis=-1)[..., : spec.macs]
        selects = np.sort(order, axis=-1).astype(np.uint8)
        used = np.arange(spec.macs) < rng.integers(0, spec.macs + 1, shape[:2])[..., None]
        values = np.where(used, np.where(values == 0, 1, values), 0).astype(np.int8)
    return StepStream(offsets=np.arange(steps), values=values, selects=selects)


@given(
    array=st.sampled_from([(m, v, columns, b) for m, v, h in ARRAYS if h == m for columns in (1, 4, 16)
                           for b in (4, 16, 64)]),
    encoding=st.sampled_from([Encoding.DENSE, Encoding.INDEX, Encoding.MASK]),
    steps=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_decode_is_the_inverse_of_encode(
    array: tuple[int, int, int, int], encoding: Encoding, steps: int, seed: int
) -> None:
    group, macs, columns, axi = array
    spec = machine(group, macs, group, columns, axi)
    stream = random_stream(spec, encoding, steps, seed)
    if encoding not in legal_encodings(spec):
        legal = ", ".join(e.name for e in legal_encodings(spec))
        with refused(f"encoding {encoding.name} is not one of this spec's: {legal}"):
            encode_steps(stream, spec, encoding)
        return
    data = encode_steps(stream, spec, encoding)
    assert data.dtype == np.uint8
    assert data.size == stream_beats(spec, encoding, steps) * axi
    size = record_bytes(spec, encoding)
    assert size >= axi, "a beat brings at most one record's end"
    assert stream_beats(spec, encoding, steps) * axi - steps * size in range(axi)
    values, selects = decode_steps(data[: steps * size], spec, encoding)
    used = stream.values != 0
    assert np.array_equal(values, stream.values)
    assert np.array_equal(selects[used], stream.selects[used])
    if encoding is not Encoding.MASK:
        assert np.array_equal(selects, stream.selects)


def test_a_record_bit_by_bit() -> None:
    """Two columns of two values, selects of three bits: values column-major, then bits from the least significant."""
    spec = machine(8, 2, 8, columns=2, axi_bytes=4)
    values = np.array([[[1, -2], [3, 4]], [[5, 6], [7, 0]]], dtype=np.int8)
    selects = np.array([[[1, 6], [0, 7]], [[2, 3], [4, 0]]], dtype=np.uint8)
    stream = StepStream(offsets=np.arange(2), values=values, selects=selects)
    bits = [1 | 6 << 3 | 0 << 6 | 7 << 9, 2 | 3 << 3 | 4 << 6]
    expected = [1, 254, 3, 4, bits[0] & 255, bits[0] >> 8, 5, 6, 7, 0, bits[1] & 255, bits[1] >> 8]
    assert encode_steps(stream, spec, Encoding.INDEX).tolist() == expected
    spec = machine(4, 4, 4, columns=2, axi_bytes=4)
    values = np.array([[[1, 2, 0, 0], [3, 0, 0, 0]]], dtype=np.int8)
    selects = np.array([[[1, 3, 0, 0], [2, 0, 0, 0]]], dtype=np.uint8)
    stream = StepStream(offsets=np.arange(1), values=values, selects=selects)
    data = encode_steps(stream, spec, Encoding.MASK)
    assert data.tolist() == [1, 2, 0, 0, 3, 0, 0, 0, 0b0100_1010, 0, 0, 0], "nine bytes, padded to whole beats"


def test_a_value_beyond_the_mask_gets_select_0() -> None:
    spec = machine(4, 4, 4, columns=1, axi_bytes=4)
    values, selects = decode_steps(np.array([1, 2, 3, 4, 0b1010], dtype=np.uint8), spec, Encoding.MASK)
    assert values.tolist() == [[[1, 2, 3, 4]]]
    assert selects.tolist() == [[[1, 3, 0, 0]]]


def test_what_is_not_a_whole_record_is_dropped() -> None:
    spec = machine(8, 2, 8, columns=2, axi_bytes=4)
    values, selects = decode_steps(np.arange(17, dtype=np.uint8), spec, Encoding.INDEX)
    assert values.shape == selects.shape == (2, 2, 2)


def test_encodings_refuse_what_they_cannot_hold() -> None:
    spec = machine(8, 4, 8, columns=1)
    values = np.ones((1, 1, 4), dtype=np.int8)

    def stream(*selects: int) -> StepStream:
        return StepStream(offsets=np.zeros(1, np.int64), values=values, selects=np.uint8([[selects]]))

    with refused("DENSE needs select = (step mod group/macs) * macs + v; this stream has others"):
        encode_steps(stream(0, 1, 2, 4), spec, Encoding.DENSE)
    with refused("MASK needs the used values of a column first, in ascending order of select"):
        encode_steps(stream(0, 2, 1, 4), spec, Encoding.MASK)
    with refused("MASK needs the used values of a column first, in ascending order of select"):
        encode_steps(stream(0, 1, 1, 4), spec, Encoding.MASK)
    gap = StepStream(
        offsets=np.zeros(1, np.int64), values=np.int8([[[1, 0, 1, 0]]]), selects=np.uint8([[[0, 1, 2, 3]]])
    )
    with refused("MASK needs the used values of a column first, in ascending order of select"):
        encode_steps(gap, spec, Encoding.MASK)
    with refused("values and selects must have shape (1, 2, 4), not (1, 1, 4)"):
        encode_steps(stream(0, 1, 2, 3), machine(8, 4, 8, columns=2), Encoding.DENSE)


@given(tiles())
def test_the_best_encoding_holds_the_stream_and_none_is_shorter(
    tile: tuple[ArchSpec, NDArray[np.int64], NDArray[np.int8]],
) -> None:
    spec, addresses, weights = tile
    stream = pack(addresses, weights, spec)
    best = best_encoding(stream, spec)
    fits = {}
    for encoding in legal_encodings(spec):
        try:
            fits[encoding] = encode_steps(stream, spec, encoding).size
        except ProgramError:
            continue
    assert fits[best] == min(fits.values())
    assert set(legal_encodings(spec)) - set(fits) <= {Encoding.DENSE, Encoding.MASK}, "INDEX holds any stream"


# ---- offsets ----


@given(st.lists(st.integers(0, 65535), max_size=40), st.sampled_from([4, 16, 128]))
def test_offsets_are_16_bit_words_in_whole_beats(offsets: list[int], axi: int) -> None:
    spec = machine(8, 2, 8, axi_bytes=axi)
    data = encode_offsets(np.array(offsets, dtype=np.int64), spec)
    assert data.size % axi == 0
    assert 0 <= data.size - 2 * len(offsets) < axi
    assert data.tobytes()[: 2 * len(offsets)] == b"".join(o.to_bytes(2, "little") for o in offsets)
    assert decode_offsets(data)[: len(offsets)].tolist() == offsets
    assert not decode_offsets(data)[len(offsets) :].any()


@pytest.mark.parametrize(("offsets", "found"), [([0, 65536], "0..65536"), ([-1, 5], "-1..5")])
def test_an_offset_that_does_not_fit(offsets: list[int], found: str) -> None:
    with refused(f"offsets must be from 0 to 65535 hops, not {found}"):
        encode_offsets(np.array(offsets), machine(8, 2, 8))
