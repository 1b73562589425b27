"""A layer as the mapper sees it: output positions, a reduction over taps and channel blocks, column tiles.

Channels of the output come in blocks (as they lie in DRAM) and in column tiles (what the array computes at once). A
grouped or depthwise layer, or a pooling, falls apart into units: sets of input blocks and output blocks that have
nothing to do with each other. A plain convolution is one unit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.layout import Placement
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.stacking import stack
from gossamer.compiler.layers import Conv, MaxPool

__all__ = ["Problem", "Unit", "is_flat", "make_problem"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Output blocks that depend on these input blocks and no others. Input blocks count through all segments."""

    input_blocks: tuple[int, ...]
    output_blocks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """A layer with its tensors placed. All sizes in pixels, all vectors (vertical, horizontal)."""

    layer: Conv | MaxPool
    spec: ArchSpec
    inputs: tuple[Placement, ...]
    output: Placement
    residual: Placement | None
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    origin: tuple[int, int]
    """Where output position (0, 0) begins to read in the padded input."""
    out: tuple[int, int]
    units: tuple[Unit, ...]
    stacked: int = 1
    """Channel blocks that are seen one above another as one (compiler/backend/stacking.py)."""

    @property
    def images(self) -> int:
        """Batch size."""
        return self.output.shape[0]

    @property
    def skips_rows(self) -> bool:
        """Rows between two strides are never read, so they are not loaded either."""
        return self.kernel[0] == 1 and self.stride[0] > 1

    @property
    def bank_stride(self) -> tuple[int, int]:
        """Stride inside the activation bank."""
        return (1 if self.skips_rows else self.stride[0], self.stride[1])

    @property
    def pixel_bytes(self) -> int:
        """Bytes from a pixel of the input to the next: a channel block, or less where a tensor has few channels."""
        return self.inputs[0].block

    @property
    def row_unit(self) -> int:
        """Bytes that a bank row is a multiple of: whole beats and whole windows, which a channel block is anyway."""
        return self.spec.activation_row_bytes if self.pixel_bytes < self.spec.block else 1

    def row_bytes(self, positions: int) -> int:
        """Bytes of a bank row with the inputs of so many neighbouring positions."""
        return -(-(self.extent(positions, 1) * self.pixel_bytes) // self.row_unit) * self.row_unit

    @property
    def tile_step(self) -> int:
        """Positions that neighbouring tiles of a row are a multiple of apart, so that each begins with a beat."""
        step = self.stride[1] * self.pixel_bytes
        return math.lcm(step, self.spec.axi_bytes) // step

    def extent(self, positions: int, axis: int) -> int:
        """Input pixels that consecutive output positions read along an axis, as they lie in the bank."""
        return (positions - 1) * self.bank_stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1

    @property
    def tiles_per_block(self) -> int:
        """Column tiles of an output block."""
        return self.spec.block // self.spec.columns

    @cached_property
    def input_blocks(self) -> tuple[tuple[int, int], ...]:
        """(segment, block within it) of every input block."""
        return tuple((s, b) for s, p in enumerate(self.inputs) for b in range(p.blocks))

    @cached_property
    def channel_slots(self) -> NDArray[np.int64]:
        """Where each input channel of the layer stands: input block * block + channel of it. int64 [in_channels]."""
        slots, first = [], 0
        for p in self.inputs:
            slots.append(first * p.block + np.arange(p.shape[1]))
            first += p.blocks
        return np.concatenate(slots)


def is_flat(layer: Conv | MaxPool, placements: Mapping[str, Placement]) -> bool:
    """Whether a layer may see its map as a row of pixels: each is computed by itself, and no border lies between."""
    kernel = layer.kernel if isinstance(layer, MaxPool) else layer.weight.shape[2:]
    names = (*layer.inputs, layer.output, getattr(layer, "residual", None))
    plain = all(placements[name].border == (0, 0, 0, 0) for name in names if name)
    return tuple(kernel) == (1, 1) and layer.stride == (1, 1) and layer.pads == (0, 0, 0, 0) and plain


def make_problem(
    layer: Conv | MaxPool, placements: Mapping[str, Placement], spec: ArchSpec, *, flat: bool | None = None
) -> Problem:
    """Put a layer and the places of its tensors together.

    flat : see the map as a row of pixels, or not; None: if that is possible, and blocks as a stack where that is.
    """
    inputs = tuple(placements[name] for name in layer.inputs)
    output = placements[layer.output]
    residual = placements[layer.residual] if isinstance(layer, Conv) and layer.residual else None
    kernel = layer.kernel if isinstance(layer, MaxPool) else (layer.weight.shape[2], layer.weight.shape[3])
    if is_flat(layer, placements) if flat is None else flat:
        inputs = tuple(_flat(p, spec) for p in inputs)
        output = _flat(output, spec)
        residual = _flat(residual, spec) if residual else None
    stacked = 1
    if flat is None and (seen := stack(layer, inputs[0], output, spec)):
        stacked = output.blocks
        layer, tall, output = seen
        inputs = (tall,)
    border = inputs[0].border
    problem = Problem(
        layer=layer,
        spec=spec,
        inputs=inputs,
        output=output,
        residual=residual,
        kernel=kernel,
        stride=layer.stride,
        dilation=layer.dilation,
        origin=(border[0] - layer.pads[0], border[1] - layer.pads[1]),
        out=(output.shape[2], output.shape[3]),
        units=(),
        stacked=stacked,
    )
    return replace(problem, units=_units(problem))


def _flat(p: Placement, spec: ArchSpec) -> Placement:
    """The same bytes seen as rows that every row of lanes can share: one row where lanes are a power of two."""
    n, c, h, w = p.shape
    rows = 1
    odd = spec.lanes
    while odd % 2 == 0:
        odd //= 2
    if (h * w) % odd == 0:
        rows = odd
    return replace(p, shape=(n, c, rows, h * w // rows))


def _units(problem: Problem) -> tuple[Unit, ...]:
    """Connected components of input blocks and output blocks."""
    layer, block = problem.layer, problem.spec.block
    outputs = problem.output.blocks
    if isinstance(layer, Conv) and layer.groups == 1:
        every = tuple(range(len(problem.input_blocks)))
        return (Unit(input_blocks=every, output_blocks=tuple(range(outputs))),)
    channels = problem.output.shape[1]
    slots = problem.channel_slots
    units: list[tuple[set[int], set[int]]] = []
    for ob in range(outputs):
        ks = np.arange(ob * block, min((ob + 1) * block, channels))
        if isinstance(layer, MaxPool):
            needed = {int(b) for b in slots[ks] // block}
        else:
            width = layer.weight.shape[1]
            group = ks // (channels // layer.groups)
            first, last = int(group.min()) * width, (int(group.max()) + 1) * width
            needed = {int(b) for b in slots[first:last] // block}
        here = ({ob}, needed)
        apart = []
        for unit in units:
            if unit[1] & here[1]:
                here = (here[0] | unit[0], here[1] | unit[1])
            else:
                apart.append(unit)
        units = [*apart, here]
    return tuple(Unit(input_blocks=tuple(sorted(i)), output_blocks=tuple(sorted(o))) for o, i in units)
