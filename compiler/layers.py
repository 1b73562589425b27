"""What the front end hands to the back end: quantised layers in execution order, free of any hardware.

Everything the array computes is one of three kinds of Layer: a convolution (a linear layer is a 1x1 convolution over
tokens, a flattened one has a kernel as large as the map, average pooling, addition and copy are depthwise), a maximum
over a window, or a product of two activations. What the array cannot run is a HostSegment for onnxruntime.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Conv", "HostSegment", "Layer", "MatMul", "MaxPool", "Network", "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An 8-bit activation tensor: real = scale * (code - zero_point).

    shape : (N, C, H, W), as the array sees it; tokens [..., features] appear as (1, features, 1, tokens).
    model_shape : the shape the model gave it; channels_last tells which axis of it holds C. As arrays of codes,
    model = (array.transpose(0, 2, 3, 1) if channels_last else array).reshape(model_shape).
    """

    name: str
    shape: tuple[int, int, int, int]
    scale: float
    zero_point: int
    signed: bool
    model_shape: tuple[int, ...] = ()
    channels_last: bool = False


@dataclass(frozen=True, kw_only=True)
class Conv:
    """Convolution with a fused epilogue: bias, requantise, optional residual addition, clamp, optional table.

    inputs : tensors whose channels are concatenated (one, unless a Concat was absorbed); all share scale and
             zero point.
    weight : int8 [out_channels, in_channels / groups, kernel_h, kernel_w];  bias : int32 [out_channels]
    scale : float64 [out_channels], input scale * weight scale / output scale (of the code before the table).
    stride, dilation : (vertical, horizontal);  pads : (top, left, bottom, right), filled with the zero point.
    residual : tensor added after scaling, with residual_ratio = its scale / output scale.
    zero_point, lo, hi : output code of zero and the clamp, before the table;  signed : the output's code range.
    table : 256 output codes as uint8 bit patterns, indexed by the clamped code & 0xFF, or None.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    weight: NDArray[np.int8] = field(repr=False)
    bias: NDArray[np.int32] = field(repr=False)
    scale: NDArray[np.float64] = field(repr=False)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    residual: str | None = None
    residual_ratio: float = 0.0
    zero_point: int = 0
    lo: int = -128
    hi: int = 127
    signed: bool = True
    table: NDArray[np.uint8] | None = field(default=None, repr=False)
    pattern: str = "dense"
    """What the sparsify pass found or imposed: dense, N:M, block RxC, unstructured, ... (for reports)."""
    source: tuple[str, ...] = ()
    """Names of the model's nodes that this layer computes (for reports)."""


@dataclass(frozen=True, kw_only=True)
class MaxPool:
    """Maximum over a window; padding never wins. Codes pass unchanged (output scale = input scale), then clamp."""

    name: str
    inputs: tuple[str, ...]
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    lo: int = -128
    hi: int = 127
    source: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MatMul:
    """Products of two activations, one for every image and head, with a requantising epilogue: Q K^T and P V.

    Product i is Y[i] = A[i] B[i] with A [rows, reduction] and B [reduction, columns].

    a : tensor of A; its tokens are rows, its channels are the reduction.
    b : tensor of B; int8 with zero point 0. Natural: its tokens are the reduction, its channels are columns (V of
        P V). transposed: its tokens are columns, its channels are the reduction (K of Q K^T).
    output : tensor of Y; its tokens are rows, its channels are columns.
    products : how many. Each tensor has shape (N, C, 1, tokens), where N divides products: the channels fall into
        products / N equal runs, one for each head, so that product i is run i mod (products / N) of image
        i div (products / N). So heads may stand in a tensor as images, (batch * heads, d, 1, tokens), or as runs of
        channels, (batch, heads * d, 1, tokens), as the projection wrote them: each tensor on its own.
    scale : a's scale * b's scale / output's scale, and any constant factor (1 / sqrt(d)).
    zero_point, lo, hi, signed, table : as in Conv.
    mask : bool [row tiles, key tiles] or None, where keys are Y's columns if transposed, else the reduction;
        mask_tile : (rows, keys) of a tile, the last ones may be smaller. What is False need not be computed.
        transposed: nobody may depend on Y there; what is left out holds its zero point. natural: A is zero there.
    """

    name: str
    a: str
    b: str
    output: str
    transposed: bool
    products: int
    scale: float
    zero_point: int = 0
    lo: int = -128
    hi: int = 127
    signed: bool = True
    table: NDArray[np.uint8] | None = field(default=None, repr=False)
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    mask_tile: tuple[int, int] = (1, 1)
    source: tuple[str, ...] = ()
    """Names of the model's nodes that this layer computes (for reports)."""

    @property
    def inputs(self) -> tuple[str, str]:
        """Both operands, as every layer names what it reads."""
        return self.a, self.b


Layer = Conv | MaxPool | MatMul
"""What the accelerator runs."""


@dataclass(frozen=True, kw_only=True)
class HostSegment:
    """Part of the model that onnxruntime runs.

    model : a serialised ONNX model. Its inputs and outputs are named as the tensors they carry: a Tensor of the
    network crosses as 8-bit codes in its model_shape (the segment dequantises and quantises), anything else as is.
    reason : why it is here, for the user.  macs : multiply-accumulates it does, arch.program.UNKNOWN_MACS (negative) if
    they depend on what only a run shows.
    """

    name: str
    model: bytes = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reason: str
    ops: tuple[str, ...] = ()
    macs: int = 0


@dataclass(frozen=True, kw_only=True)
class Network:
    """A quantised network, ready to be mapped.

    stages run in this order. inputs and outputs are the model's, by name; one that is a Tensor is quantised and
    dequantised at the border, any other belongs to a HostSegment.
    """

    name: str
    tensors: Mapping[str, Tensor]
    stages: tuple[Layer | HostSegment, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    host_types: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """dtype and shape of the model's inputs and outputs, and of what host segments exchange; (-1,) is a shape that
    depends on data."""
    notes: tuple[str, ...] = ()
    """What the front end's passes have to tell the user."""

    def __repr__(self) -> str:
        host = len(self.stages) - len(self.layers)
        return f"<Network {self.name!r}: {len(self.layers)} layers{f', {host} host segments' if host else ''}>"

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The stages that the accelerator runs."""
        return tuple(s for s in self.stages if not isinstance(s, HostSegment))
