"""What an accelerator holds while a Program runs, and the numbers of its spec that compiled code needs."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.isa import Encoding
from gossamer.arch.spec import ArchSpec
from gossamer.arch.stream import record_bytes
from gossamer.kernels.steps import SLACK

__all__ = ["Machine", "Sizes", "make_machine", "sizes_of"]


class Sizes(NamedTuple):
    """Numbers of a spec, as compiled code takes them."""

    lanes: int
    columns: int
    group: int
    macs: int
    hop: int
    depth: int
    ppu: int
    beat: int
    select_bits: int
    step_bytes: tuple[int, ...]
    """Bytes of DRAM that a step is made of, for each Encoding."""


class Machine(NamedTuple):
    """Every memory of an accelerator.

    activations : uint8 [lanes, activation_bytes];  outputs : uint8 [lanes, output_bytes].
    values : int8 [weight_steps, columns, macs];  selects : uint8, the same shape.
    offsets : int64 [offset_steps], in hops;  parameters : uint8 [8 * parameter_channels].
    tables : uint8 [tables, 256].
    accumulators : int32 [lanes, 2 * depth, columns], bank 1 after bank 0.
    """

    activations: NDArray[np.uint8]
    outputs: NDArray[np.uint8]
    values: NDArray[np.int8]
    selects: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    parameters: NDArray[np.uint8]
    tables: NDArray[np.uint8]
    accumulators: NDArray[np.int32]


def sizes_of(spec: ArchSpec) -> Sizes:
    """The numbers of a spec that compiled code needs."""
    return Sizes(
        lanes=spec.lanes,
        columns=spec.columns,
        group=spec.group,
        macs=spec.macs,
        hop=spec.hop,
        depth=spec.depth,
        ppu=spec.ppu,
        beat=spec.axi_bytes,
        select_bits=spec.select_bits,
        step_bytes=tuple(record_bytes(spec, e) for e in Encoding),
    )


def make_machine(spec: ArchSpec, garbage: int | None = None) -> Machine:
    """A machine before its start: zeros, or pseudo-random bits from a seed so that reading them shows.

    Offsets are zero in any case: one that leads out of a bank has no meaning.
    """
    rng = np.random.default_rng(garbage)

    def memory(*shape: int, below: int = 256) -> NDArray[np.uint8]:
        size = math.prod(shape)
        held = np.zeros(size + SLACK, dtype=np.uint8)[:size].reshape(shape)
        if garbage is not None:
            held[...] = rng.integers(0, below, shape, dtype=np.uint8)
        return held

    steps = (spec.weight_steps, spec.columns, spec.macs)
    words = memory(spec.lanes, 2 * spec.depth, spec.columns, 4)
    return Machine(
        activations=memory(spec.lanes, spec.activation_bytes),
        outputs=memory(spec.lanes, spec.output_bytes),
        values=memory(*steps).view(np.int8),
        selects=memory(*steps, below=spec.group),
        offsets=np.zeros(spec.offset_steps, dtype=np.int64),
        parameters=memory(spec.parameter_channels * 8),
        tables=memory(spec.tables, 256),
        accumulators=words.view(np.int32)[..., 0].copy(),
    )
