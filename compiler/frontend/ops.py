"""Values of the compiler's graph: what is known of a tensor, and the typed operations.

Operations are immutable. Until the lower pass one means what the model meant by it, in the model's shapes; how the
array sees a tensor is the tensor's Layout.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from gossamer.arch.numerics import code_range
from gossamer.compiler.frontend.functions import Function

__all__ = [
    "Activation",
    "Add",
    "Affine",
    "Array",
    "AveragePool",
    "Compute",
    "Concat",
    "Conv",
    "Dequantise",
    "GlobalAveragePool",
    "Host",
    "Layout",
    "Linear",
    "MaxPool",
    "Op",
    "Product",
    "Quant",
    "Quantise",
    "Reshape",
    "TensorInfo",
    "Transpose",
    "View",
]

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Quant:
    """Affine 8-bit quantisation of a tensor: real = scale * (code - zero_point). The scale is a float32 value."""

    scale: float
    zero_point: int
    signed: bool = False

    @property
    def dtype(self) -> str:
        """numpy's name of the codes' type."""
        return "int8" if self.signed else "uint8"

    def quantise(self, real: ArrayLike) -> NDArray[np.int64]:
        """Real values to codes, rounding half to even and saturating."""
        lo, hi = code_range(self.signed)
        codes = np.rint(np.asarray(real, dtype=np.float64) / self.scale) + self.zero_point
        return np.asarray(np.clip(codes, lo, hi), dtype=np.int64)

    def dequantise(self, codes: ArrayLike) -> NDArray[np.float64]:
        """Codes to real values."""
        return (np.asarray(codes, dtype=np.float64) - self.zero_point) * self.scale

    def __str__(self) -> str:
        return f"{self.dtype} scale={self.scale:.6g} zero={self.zero_point}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the array sees a tensor: shape (N, C, H, W), and in which order the model stores it.

    channels_last False: the model's elements are array.reshape(model_shape).
    channels_last True:  they are array.transpose(0, 2, 3, 1).reshape(model_shape).
    """

    shape: tuple[int, int, int, int]
    channels_last: bool = False

    def same(self, other: "Layout") -> bool:
        """Whether both mean the same order of elements: with one position, or one channel, there is only one."""
        _, c, h, w = self.shape
        return self.shape == other.shape and (self.channels_last == other.channels_last or h * w == 1 or c == 1)

    def to_model(self, array: Array, model_shape: tuple[int, ...]) -> Array:
        """From (N, C, H, W) to the model's order and shape."""
        return (array.transpose(0, 2, 3, 1) if self.channels_last else array).reshape(model_shape)

    def to_array(self, model: Array) -> Array:
        """From the model's order and shape to (N, C, H, W)."""
        n, c, h, w = self.shape
        return model.reshape(n, h, w, c).transpose(0, 3, 1, 2) if self.channels_last else model.reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What is known of a tensor: shape (None until inferred), numpy dtype name, quantisation and array layout."""

    name: str
    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    quant: Quant | None = None
    layout: Layout | None = None

    def __str__(self) -> str:
        shape = "[?]" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"
        return f"{shape} {self.quant or self.dtype}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """One operation. inputs and outputs are tensor names; source names the model's nodes it stands for."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tensor the operation depends on."""
        return tuple(i for i in self.inputs if i)

    @property
    def output(self) -> str:
        """The first (for all but Host: the only) output."""
        return self.outputs[0]

    def attributes(self) -> dict[str, str]:
        """What a print of the graph says besides inputs and outputs."""
        common = {f.name for f in fields(Op)} | {"residual", "activation", "pre"}
        found = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in common and value is not None and (isinstance(value, np.ndarray) or value != f.default):
                found[f.name] = str(list(value.shape)) if isinstance(value, np.ndarray) else str(value)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Compute(Op):
    """An operation that ends in the requantiser, which may also add a residual and apply a function.

    residual : the last input is added before rounding.  activation : clamp or table, after the addition.
    pre : name of the value before a table, which has a quantisation of its own ("" when there is no table).
    """

    residual: bool = False
    activation: Function | None = None
    pre: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Compute):
    """Convolution, one or two spatial axes.

    weight : float32 [out_channels, in_channels / groups, *kernel];  bias : float64 [out_channels] or None
    stride, dilation : one per spatial axis;  pads : all begins, then all ends.
    weight_scale : float32 [out_channels] once quantised;  pattern : what sparsify found.
    fixed : the weights are wiring (a channel shuffle), not to be pruned.
    """

    weight: Array
    bias: Array | None = None
    fixed: bool = False
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1
    weight_scale: Array | None = None
    pattern: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(Compute):
    """y[..., o] = sum over k of x[..., k] * weight[o, k], plus bias.

    weight : float32 [out_features, in_features];  bias : float64 [out_features] or None
    """

    weight: Array
    bias: Array | None = None
    weight_scale: Array | None = None
    pattern: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine(Compute):
    """Per channel x * scale + shift along one axis: batch normalisation, or a product or sum with constants.

    scale, shift : float64 [channels];  weight_scale : float32 [channels] once quantised.
    """

    scale: Array
    shift: Array
    axis: int
    weight_scale: Array | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Compute):
    """Sum of two tensors of the same shape; the second input plays the residual."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool(Compute):
    """Mean over a window; pads count as zeros."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class GlobalAveragePool(Compute):
    """Mean over axes (of the model's shape, non-negative, ascending)."""

    axes: tuple[int, ...]
    keepdims: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Product(Compute):
    """Matrix products of two computed tensors, one for every image and head: inputs (a, b), y = a b * factor.

    Every tensor is tokens: its elements in the model's order are (images, tokens, runs, width), and product i is run
    i % runs of image i // runs.

    products : how many.  size : (rows, reduction, columns) of each.
    runs : of a, b and y.  transposed : b's tokens are y's columns, else they are the reduction.
    mask : bool [rows, columns if transposed else reduction], what is False is left out: y is zero there (transposed),
        or a counts as zero.
    """

    products: int
    size: tuple[int, int, int]
    transposed: bool
    runs: tuple[int, int, int] = (1, 1, 1)
    factor: float = 1.0
    mask: Array | None = None

    @property
    def layouts(self) -> tuple[Layout, Layout, Layout]:
        """How a, b and y lie in the array."""
        rows, reduction, columns = self.size
        second = (columns, reduction) if self.transposed else (reduction, columns)
        sizes = ((rows, reduction), second, (rows, columns))
        a, b, y = (
            Layout(shape=(self.products // runs, runs * width, 1, tokens), channels_last=True)
            for runs, (tokens, width) in zip(self.runs, sizes, strict=True)
        )
        return a, b, y


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Op):
    """Maximum over a window; padding never wins. activation may only be a clamp."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]
    activation: Function | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation(Op):
    """An element-wise function."""

    function: Function


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Op):
    """Concatenation along axis (non-negative)."""

    axis: int


@dataclass(frozen=True, kw_only=True, eq=False)
class View(Op):
    """Reshape or Transpose: free where the array's own order of elements does not change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(View):
    """The same elements in row-major order under another shape; also Flatten, Squeeze and Unsqueeze."""

    shape: tuple[int, ...]

    def apply(self, x: Array) -> Array:
        """The operation itself."""
        return x.reshape(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Transpose(View):
    """Permutation of axes."""

    perm: tuple[int, ...]

    def apply(self, x: Array) -> Array:
        """The operation itself."""
        return x.transpose(self.perm)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantise(Op):
    """QuantizeLinear of a tensor."""

    quant: Quant


@dataclass(frozen=True, kw_only=True, eq=False)
class Dequantise(Op):
    """DequantizeLinear of a tensor."""

    quant: Quant


@dataclass(frozen=True, kw_only=True, eq=False)
class Host(Op):
    """Any other ONNX operation, kept as its node.

    reason : why the array does not run it ("" while nobody has looked).
    captured : outer tensors that the node's subgraphs read.
    """

    node: onnx.NodeProto
    reason: str = ""
    captured: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Inputs and captured tensors."""
        return tuple(i for i in self.inputs if i) + self.captured

    def attributes(self) -> dict[str, str]:
        """Only the reason: ONNX attributes can be long."""
        return {"reason": repr(self.reason)} if self.reason else {}
