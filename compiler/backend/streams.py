"""Weights of a layer as step streams, one for each column tile.

Packing does not depend on how the map is tiled: it uses a bank in which the taps of a channel block lie side by side.
Placing then moves every window to where the tile's bank has it. With a sliding window (hop < group) a window may
reach into the next pixel, which depends on the tile, so there the packer runs again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.isa import Encoding
from gossamer.arch.packing import pack
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import StepStream, best_encoding, offset_beats, stream_beats
from gossamer.compiler.backend.problem import Problem, Unit
from gossamer.compiler.layers import MaxPool

__all__ = ["TileStream", "UnitStreams", "blocks_stay", "filled", "pack_unit", "place", "unit_records"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TileStream:
    """One column tile: its packed steps and their encoding. output_block and index tell which tile it is."""

    output_block: int
    index: int
    stream: StepStream
    encoding: Encoding
    weights: NDArray[np.int8]
    """int8 [reduction, columns] in order of address, kept for packing again."""
    inputs: NDArray[np.int64] | None
    """Reduction indices of which zeros have slots too; None when only nonzeros have."""

    @property
    def steps(self) -> int:
        """Steps of the tile."""
        return self.stream.steps

    def beats(self, spec: ArchSpec) -> int:
        """Beats of its records in DRAM."""
        return stream_beats(spec, self.encoding, self.steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitStreams:
    """All column tiles of a unit, for a run of its input blocks. filled : see `filled`."""

    unit: Unit
    input_blocks: tuple[int, ...]
    tiles: tuple[TileStream, ...]
    filled: bool = False

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Steps of every tile, int64 [tiles]."""
        return np.array([t.steps for t in self.tiles], dtype=np.int64)


def pack_unit(
    problem: Problem, unit: Unit, input_blocks: tuple[int, ...] | None = None, *, fill: bool = False
) -> UnitStreams:
    """Pack every column tile of a unit (or the part of it that reads only some of the input blocks).

    fill : as `filled` does.
    """
    spec = problem.spec
    blocks = unit.input_blocks if input_blocks is None else input_blocks
    addresses = _tap_addresses(problem, len(blocks), problem.kernel[0], 1, _apart(problem), _tap_row(problem))
    tiles = []
    each = [_block_weights(problem, ob, blocks) for ob in unit.output_blocks]
    rows = [weights.any(axis=1) for weights in each]
    for ob, weights, used in zip(unit.output_blocks, each, rows, strict=True):
        real = np.flatnonzero(np.any(rows, axis=0) if fill else used)
        for j in range(problem.tiles_per_block):
            part = weights[:, j * spec.columns : (j + 1) * spec.columns]
            tiles.append(_pack_tile(addresses, part, real, ob, j, spec, fill))
    return UnitStreams(unit=unit, input_blocks=blocks, tiles=tuple(tiles), filled=fill)


def filled(problem: Problem, streams: tuple[UnitStreams, ...]) -> tuple[UnitStreams, ...] | None:
    """The same with zeros kept, where that takes more steps but fewer beats; None where it cannot.

    Records without selects are shorter, and one list of offsets serves all tiles.
    """
    spec = problem.spec
    beats = least = 0
    for unit in streams:
        inputs = int(np.count_nonzero(np.any([t.weights.any(axis=1) for t in unit.tiles], axis=0)))
        least += len(unit.tiles) * stream_beats(spec, Encoding.DENSE, -(-inputs // spec.macs))
        lists = {t.stream.offsets.tobytes(): offset_beats(spec, t.steps) for t in unit.tiles}
        beats += sum(t.beats(spec) for t in unit.tiles) + sum(lists.values()) - min(lists.values())
    if least >= beats:
        return None
    return tuple(pack_unit(problem, u.unit, u.input_blocks, fill=True) for u in streams)


def blocks_stay(spec: ArchSpec, blocks: Sequence[Sequence[int] | NDArray[np.int64]]) -> bool:
    """Whether weights and offsets of any one output block fit on chip. blocks : steps of the column tiles of each."""
    room = min(spec.weight_steps, spec.offset_steps - max(map(len, blocks)) * spec.axi_bytes // 2)
    return all(sum(steps) <= room for steps in blocks)


def unit_records(streams: UnitStreams) -> tuple[tuple[bytes, bytes, bytes], ...]:
    """What the weight buffer has to hold for a unit: equal for units with the same weights."""
    found = (t.stream for t in streams.tiles)
    return tuple((s.offsets.tobytes(), s.values.tobytes(), s.selects.tobytes()) for s in found)


def _pack_tile(
    addresses: NDArray[np.int64],
    part: NDArray[np.int8],
    real: NDArray[np.int64],
    ob: int,
    j: int,
    spec: ArchSpec,
    fill: bool,
) -> TileStream:
    """Pack one tile, keeping zeros when told to or when that costs hardly a step and lets selects be implied."""
    full = _with_zeros(addresses, part, real, spec) if fill else None
    if full is not None:
        return TileStream(output_block=ob, index=j, stream=full, encoding=Encoding.DENSE, weights=part, inputs=real)
    stream = pack(addresses, part, spec)
    encoding = best_encoding(stream, spec)
    inputs = None
    used = int(np.count_nonzero(part.any(axis=0)))
    if encoding is not Encoding.DENSE and used and np.count_nonzero(part) > 0.75 * real.size * used:
        full = _with_zeros(addresses, part, real, spec)
        if full is not None and full.steps <= 1.01 * stream.steps:
            stream, encoding, inputs = full, Encoding.DENSE, real
    if stream.steps == 0:  # accumulators still have to be set
        stream = StepStream(
            offsets=np.zeros(1, dtype=np.int64),
            values=np.zeros((1, spec.columns, spec.macs), dtype=np.int8),
            selects=np.zeros((1, spec.columns, spec.macs), dtype=np.uint8),
        )
        encoding = Encoding.DENSE
    return TileStream(output_block=ob, index=j, stream=stream, encoding=encoding, weights=part, inputs=inputs)


def _with_zeros(
    addresses: NDArray[np.int64], part: NDArray[np.int8], real: NDArray[np.int64], spec: ArchSpec
) -> StepStream | None:
    """A tile with slots for the zeros of these inputs; None where there are none, or DENSE records do not hold it."""
    full = pack(addresses[real], part[real], spec, keep_zeros=True) if real.size else None
    return full if full is not None and best_encoding(full, spec) is Encoding.DENSE else None


def _apart(problem: Problem) -> int:
    """Bytes between the taps of a row where steps are packed.

    Side by side, for it does not matter what lies between windows; but taps that share a window stay where they are.
    """
    shares = problem.pixel_bytes % problem.spec.group != 0
    return problem.pixel_bytes * (problem.dilation[1] if shares else 1)


def _tap_row(problem: Problem) -> int:
    """Bytes of a row of taps where steps are packed: whole windows."""
    group = problem.spec.group
    return -(-((problem.kernel[1] - 1) * _apart(problem) + problem.pixel_bytes) // group) * group


def _tap_addresses(
    problem: Problem, blocks: int, rows: int, dilation: int, apart: int, row_bytes: int
) -> NDArray[np.int64]:
    """Bank element of every reduction index (input block, tap row, tap column, channel).

    rows, row_bytes : of an input block in the bank.  dilation : rows from a tap to the next;  apart : bytes.
    """
    b = np.arange(blocks)[:, None, None, None] * rows
    y = np.arange(problem.kernel[0])[:, None, None] * dilation
    x = np.arange(problem.kernel[1])[:, None] * apart
    return ((b + y) * row_bytes + x + np.arange(problem.pixel_bytes)).reshape(-1).astype(np.int64)


def _block_weights(problem: Problem, ob: int, blocks: tuple[int, ...]) -> NDArray[np.int8]:
    """Weights of one output block, int8 [input blocks * taps * bytes of a pixel, block]."""
    layer, block, inner = problem.layer, problem.spec.block, problem.pixel_bytes
    rows, cols = problem.kernel
    channels = problem.output.shape[1]
    ks = np.arange(ob * block, min((ob + 1) * block, channels))
    position = np.full(len(problem.input_blocks), -1, dtype=np.int64)
    position[list(blocks)] = np.arange(len(blocks))
    slots = problem.channel_slots
    out = np.zeros((len(blocks), rows, cols, inner, block), dtype=np.int8)
    if isinstance(layer, MaxPool):
        at = slots[ks]
        here = position[at // inner]
        keep = here >= 0
        out[here[keep], :, :, at[keep] % inner, ks[keep] - ob * block] = 1
        return out.reshape(-1, block)
    width = layer.weight.shape[1]
    per_group = channels // layer.groups
    for group in np.unique(ks // per_group):
        mine = ks[ks // per_group == group]
        at = slots[group * width : (group + 1) * width]
        here = position[at // inner]
        keep = here >= 0
        values = layer.weight[mine][:, keep]  # [k, c, y, x]
        out[here[keep][:, None], :, :, (at[keep] % inner)[:, None], (mine - ob * block)[None, :]] = values.transpose(
            1, 0, 2, 3
        )
    return out.reshape(-1, block)


def place(problem: Problem, tile: TileStream, blocks: int, bank: tuple[int, int]) -> StepStream:
    """The tile's steps for a bank of `bank` (rows, bytes of a row) per input block."""
    spec = problem.spec
    if spec.hop < spec.group:
        apart = problem.dilation[1] * problem.pixel_bytes
        addresses = _tap_addresses(problem, blocks, bank[0], problem.dilation[0], apart, bank[1])
        if tile.inputs is not None:
            return pack(addresses[tile.inputs], tile.weights[tile.inputs], spec, keep_zeros=True)
        stream = pack(addresses, tile.weights, spec)
        return stream if stream.steps else tile.stream
    element = tile.stream.offsets * spec.hop
    tap, inside = np.divmod(element, _tap_row(problem))
    b, ky = np.divmod(tap, problem.kernel[0])
    kx, within = np.divmod(inside, _apart(problem))
    if _apart(problem) % spec.group == 0:
        inside = kx * problem.dilation[1] * problem.pixel_bytes + within
    moved = (b * bank[0] + ky * problem.dilation[0]) * bank[1] + inside
    return replace(tile.stream, offsets=moved // spec.hop)
