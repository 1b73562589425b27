"""The step stream: how a sparse weight tensor becomes work for the array.

A step is one row of the weight buffer, values and selects for every column and MAC, and one entry of the offset
buffer. It is one slot of work for the whole array, so sparsity is simply fewer steps.

Reading. An activation bank is a line of elements (bytes). A step with offset o, at a base address b and a position
p (both multiples of the group M), shows every PE of a lane the window of M elements that begins at element
b + p + o * H. MAC v of column c takes the element e of that window with e mod M == select[c, v]: since b and p are
multiples of M, a select is the weight's own address modulo M, and a window that begins between two multiples of M
needs no rotator. A value of zero takes no part (in a sum it adds nothing; in a maximum it is skipped).

Rows of weights and entries of offsets are addressed apart, because structured tensors share one list of offsets
between all their column tiles.

In DRAM. A record is what one step costs: C * V value bytes (column-major: all MACs of column 0, then of column 1),
then the selects, padded to whole bytes, and to a whole beat if it would be less than one beat. Records follow each
other without gaps; a beat brings at most one record's end, so the expander keeps up with the bus.

    DENSE   no selects: step s of a load takes select = (s mod M/V) * V + v
    INDEX   log2(M) bits for each value, least significant bit first, in the order of the values
    MASK    M bits for each column; the v-th value of the column belongs to its v-th set bit. Legal only where it is
            shorter than INDEX.

Offsets are 16-bit little-endian words.

Dynamic operands. With `dynamic_operands` a load of weights may also take int8 activations (zero point 0) as they lie
in DRAM. No records: every byte is a value, and its place follows from the load. B = axi_bytes; I counts the beats of
the load, i those of a block. Reduction index k and column c stand in step k div V, at MAC k mod V; its select is
implied, k mod M.

    NATURAL     rows of DRAM are the reduction: with t = max(1, C div B), beat I brings reduction index k = I div t.
                C >= B: columns (I mod t) * B and on, B of them. C < B: all columns, from bytes step_beats * C and on.
                Beats: whole steps.
    TRANSPOSED  rows of DRAM are columns: with t = tile_beats, beat i of block b brings, of column i div t, reduction
                indices (b * t + i mod t) * B and on, B of them. A block: all columns, whole steps.

A beat of TRANSPOSED fills max(1, B div V) steps of one column at once: the weight buffer is cut into so many banks
(`weight_banks`), step s in bank s mod weight_banks, and such a load begins in bank 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ProgramError
from gossamer.arch.isa import Encoding
from gossamer.arch.spec import ArchSpec

__all__ = [
    "StepStream",
    "best_encoding",
    "decode_offsets",
    "decode_steps",
    "encode_offsets",
    "encode_steps",
    "legal_encodings",
    "offset_beats",
    "operand_encodings",
    "record_bytes",
    "stream_beats",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class StepStream:
    """Steps of one column tile.

    offsets : int64 [S], in hops;  values : int8 [S, C, V];  selects : uint8 [S, C, V], below the group.
    """

    offsets: NDArray[np.int64]
    values: NDArray[np.int8]
    selects: NDArray[np.uint8]

    @property
    def steps(self) -> int:
        """Number of steps S."""
        return len(self.offsets)

    @property
    def useful(self) -> int:
        """Values that are not zero."""
        return int(np.count_nonzero(self.values))


def legal_encodings(spec: ArchSpec) -> tuple[Encoding, ...]:
    """Encodings of records that this spec's expander has, cheapest to build first."""
    out = [Encoding.DENSE]
    if spec.group > 1:
        out.append(Encoding.INDEX)
    if spec.macs * spec.select_bits > spec.group:
        out.append(Encoding.MASK)
    return tuple(out)


def operand_encodings(spec: ArchSpec) -> tuple[Encoding, ...]:
    """Encodings of dynamic operands that this spec has."""
    return (Encoding.NATURAL, Encoding.TRANSPOSED) if spec.dynamic_operands else ()


def record_bytes(spec: ArchSpec, encoding: Encoding) -> int:
    """Bytes of DRAM that one step is made of."""
    values = spec.columns * spec.macs
    if encoding is Encoding.NATURAL:
        return max(values, spec.axi_bytes * spec.macs)
    if encoding is Encoding.TRANSPOSED:
        return values
    if encoding is Encoding.DENSE:
        bits = 0
    elif encoding is Encoding.INDEX:
        bits = values * spec.select_bits
    else:
        bits = spec.columns * spec.group
    return max(values + -(-bits // 8), spec.axi_bytes)


def stream_beats(spec: ArchSpec, encoding: Encoding, steps: int) -> int:
    """Beats that `steps` records take in DRAM."""
    return -(-steps * record_bytes(spec, encoding) // spec.axi_bytes)


def offset_beats(spec: ArchSpec, steps: int) -> int:
    """Beats that the offsets of `steps` steps take in DRAM."""
    return -(-steps * 2 // spec.axi_bytes)


def implied_selects(spec: ArchSpec, steps: int) -> NDArray[np.uint8]:
    """Selects of DENSE records, uint8 [S, 1, V]."""
    phase = np.arange(steps) % (spec.group // spec.macs)
    return (phase[:, None, None] * spec.macs + np.arange(spec.macs)).astype(np.uint8)


def best_encoding(stream: StepStream, spec: ArchSpec) -> Encoding:
    """The shortest legal encoding that holds this stream."""
    used = stream.values != 0
    if bool(np.all(~used | (stream.selects == implied_selects(spec, stream.steps)))):
        return Encoding.DENSE
    if Encoding.MASK in legal_encodings(spec) and _ascending(stream):
        return Encoding.MASK
    return Encoding.INDEX


def _ascending(stream: StepStream) -> bool:
    """Used values of every column come first and in ascending order of select, as MASK needs."""
    used = stream.values != 0
    key = np.where(used, stream.selects.astype(np.int64), 255)
    return bool(np.all((key[..., 1:] > key[..., :-1]) | (key[..., 1:] == 255)))


def encode_steps(stream: StepStream, spec: ArchSpec, encoding: Encoding) -> NDArray[np.uint8]:
    """Values and selects as they lie in DRAM, uint8 [whole beats].

    Raises ProgramError when the encoding cannot hold the stream or the spec does not have it.
    """
    if encoding not in legal_encodings(spec):
        names = ", ".join(e.name for e in legal_encodings(spec))
        raise ProgramError(f"encoding {encoding.name} is not one of this spec's: {names}")
    steps, size = stream.steps, record_bytes(spec, encoding)
    expected = (steps, spec.columns, spec.macs)
    if stream.values.shape != expected or stream.selects.shape != expected:
        raise ProgramError(f"values and selects must have shape {expected}, not {stream.values.shape}")
    records = np.zeros((steps, size), dtype=np.uint8)
    width = spec.columns * spec.macs
    records[:, :width] = stream.values.reshape(steps, width).view(np.uint8)
    used = stream.values != 0
    if encoding is Encoding.DENSE:
        if not np.all(~used | (stream.selects == implied_selects(spec, steps))):
            raise ProgramError("DENSE needs select = (step mod group/macs) * macs + v; this stream has others")
    elif encoding is Encoding.INDEX:
        selects = stream.selects.reshape(steps, width, 1)
        bits = (selects >> np.arange(spec.select_bits, dtype=np.uint8)) & 1
        packed = np.packbits(bits.reshape(steps, width * spec.select_bits), axis=1, bitorder="little")
        records[:, width : width + packed.shape[1]] = packed
    else:
        if not _ascending(stream):
            raise ProgramError("MASK needs the used values of a column first, in ascending order of select")
        mask = np.zeros((steps, spec.columns, spec.group), dtype=np.uint8)
        s, c, v = np.nonzero(used)
        mask[s, c, stream.selects[s, c, v]] = 1
        packed = np.packbits(mask.reshape(steps, spec.columns * spec.group), axis=1, bitorder="little")
        records[:, width : width + packed.shape[1]] = packed
    flat = records.reshape(-1)
    return np.pad(flat, (0, stream_beats(spec, encoding, steps) * spec.axi_bytes - flat.size))


def decode_steps(
    data: NDArray[np.uint8], spec: ArchSpec, encoding: Encoding
) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """What the expander writes: values int8 [S, C, V] and selects uint8 [S, C, V], S = whole records in `data`.

    Under MASK, a value beyond the set bits of its column gets select 0 (its value is zero in a legal stream).
    """
    size, width = record_bytes(spec, encoding), spec.columns * spec.macs
    steps = data.size // size
    records = data[: steps * size].reshape(steps, size)
    shape = (steps, spec.columns, spec.macs)
    values = records[:, :width].copy().view(np.int8).reshape(shape)
    if encoding is Encoding.DENSE:
        return values, np.broadcast_to(implied_selects(spec, steps), shape).copy()
    bits = np.unpackbits(np.ascontiguousarray(records[:, width:]), axis=1, bitorder="little")
    if encoding is Encoding.INDEX:
        used = bits[:, : width * spec.select_bits].reshape(*shape, spec.select_bits).astype(np.int64)
        return values, (used << np.arange(spec.select_bits)).sum(axis=-1).astype(np.uint8)
    mask = bits[:, : spec.columns * spec.group].reshape(steps, spec.columns, spec.group).astype(bool)
    rank = np.cumsum(mask, axis=-1) - 1
    selects = np.zeros(shape, dtype=np.uint8)
    s, c, m = np.nonzero(mask & (rank < spec.macs))
    selects[s, c, rank[s, c, m]] = m
    return values, selects


def encode_offsets(offsets: NDArray[np.int64], spec: ArchSpec) -> NDArray[np.uint8]:
    """Offsets as 16-bit words, uint8 [whole beats]. Raises ProgramError when one does not fit."""
    if offsets.size and (offsets.min() < 0 or offsets.max() >= 1 << 16):
        raise ProgramError(f"offsets must be from 0 to 65535 hops, not {offsets.min()}..{offsets.max()}")
    flat = offsets.astype("<u2").view(np.uint8)
    return np.pad(flat, (0, -flat.size % spec.axi_bytes))


def decode_offsets(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """16-bit words to offsets, int64."""
    return np.ascontiguousarray(data).view("<u2").astype(np.int64)
