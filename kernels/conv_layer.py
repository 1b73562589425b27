"""A convolution made ready once, on activations with channels last: `prepare_conv` and `prepare_float_conv`.

Windows are not copied together (kernels/windows.py): they are rows of the matrix kernel that begin anywhere in the
padded map, and an entry of the packed weight only has another offset there than in a row of a matrix. A kernel of
1 x 1 without stride and padding is a matrix product and reads the map itself.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import jit
from gossamer.kernels.checks import check_array
from gossamer.kernels.choose import Decision
from gossamer.kernels.float_layer import prepare_float
from gossamer.kernels.float_panels import FloatWeight
from gossamer.kernels.formats import BSR, CSR, NM, Dense, Weight
from gossamer.kernels.layer import Layer, prepare
from gossamer.kernels.vectorised import Vectorised
from gossamer.kernels.vectors import aligned_empty, scratch
from gossamer.kernels.windows import Windows, make_windows

__all__ = ["ConvLayer", "prepare_conv", "prepare_float_conv"]

_REACH = 64
"""Bytes an entry of a packed weight reads at most."""
_BATCHES = 8
"""Numbers of maps that a layer remembers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvLayer:
    """A convolution ready to be applied: `layer(x)`. Made by `prepare_conv` and `prepare_float_conv`.

    layer : its matrix product.  windows : its rows.  activation : dtype of x.
    bits : dtype of as many bits, unsigned.  fill : what the map is padded with, as the kernel sees it.
    flip : what turns an element into what the kernel sees, by exclusive or.
    direct : whether windows lie in x itself: there is no padding, and nothing is read beyond a window.
    known : by the number of maps, where each window begins, in bytes.
    """

    layer: Layer
    windows: Windows
    activation: np.dtype[Any]
    bits: np.dtype[Any]
    fill: Any
    flip: Any
    direct: bool
    known: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)

    @property
    def why(self) -> Decision:
        """The kernel, and the reason for it."""
        return self.layer.why

    def __call__(
        self, x: NDArray[Any], *, residual: NDArray[Any] | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """The result [batch, out_h, out_w, N] for x [batch, H, W, channels].

        residual, out : as of `Layer`, of the shape of the result. Raises ModelError when an argument does not fit.
        """
        windows, n = self.windows, self.layer.shape[0]
        check_array("x", x, [self.activation.type], 4)
        batch, height, width, channels = x.shape
        if (height, width) != windows.size or channels != windows.channels:
            raise ModelError(
                f"x must have shape (batch, {windows.size[0]}, {windows.size[1]}, {windows.channels}), not {x.shape}"
            )
        down, across = windows.out_size
        shape = (batch, down, across, n)
        if out is None:
            out = aligned_empty(shape, self.layer.result)
        for name, array in (("out", out), ("residual", residual)):
            if array is not None and (array.shape != shape or not array.flags.c_contiguous):
                raise ModelError(f"{name} must be C-contiguous and of shape {shape}, not {array.shape}")
        rows = batch * down * across
        flat, added = out.reshape(rows, n), None if residual is None else residual.reshape(rows, n)
        if windows.is_matrix:
            self.layer(x.reshape(rows, channels), residual=added, out=flat)
        elif rows:
            line = np.ascontiguousarray(x).reshape(-1) if self.direct else self._padded(x)
            self._on_windows(line, flat, added, batch)
        return out

    def _on_windows(self, line: NDArray[Any], out: NDArray[Any], residual: NDArray[Any] | None, batch: int) -> None:
        """line : the padded maps, one after the other."""
        begins = self.known.get(batch)
        if begins is None:
            if len(self.known) >= _BATCHES:
                self.known.clear()
            begins = self.known[batch] = self.windows.starts(batch) * line.itemsize
        if self.why.kernel != "reference":
            self.layer.check(out.shape[0], out, residual)
            self.layer.run(line, out, residual, begins)
        else:
            inputs = (self.windows.piece_starts[:, None] + np.arange(self.windows.pieces[1])).reshape(-1)
            self.layer(line[begins[:, None] // line.itemsize + inputs], residual=residual, out=out)

    def _padded(self, x: NDArray[Any]) -> NDArray[Any]:
        """The maps with their padding and `_REACH` elements after them, in memory that the calling thread keeps."""
        top, left, _, _ = self.windows.pads
        tall, wide = self.windows.padded_size
        flat: NDArray[Any] = scratch("map", (x.shape[0] * tall * wide * x.shape[3] + _REACH) * x.itemsize).view(
            self.bits
        )
        _pad(np.ascontiguousarray(x).view(self.bits), flat, self.fill, self.flip, top, left, tall, wide)
        return flat if self.activation.kind == "u" or self.flip else flat.view(self.activation)


@jit
def _pad(
    x: NDArray[Any],
    out: NDArray[Any],
    fill: np.unsignedinteger[Any],
    flip: np.unsignedinteger[Any],
    top: int,
    left: int,
    tall: int,
    wide: int,
) -> None:
    """x ^ flip [batch, H, W, channels] in the midst of maps of tall * wide pixels in out, which are fill around it."""
    batch, height, width, channels = x.shape
    for b in range(batch):
        for i in range(tall):
            line = out[(b * tall + i) * wide * channels : (b * tall + i + 1) * wide * channels]
            if i < top or i >= top + height:
                line[:] = fill
                continue
            line[: left * channels] = fill
            line[(left + width) * channels :] = fill
            source, inner = x[b, i - top].reshape(-1), line[left * channels : (left + width) * channels]
            for j in range(source.size):
                inner[j] = source[j] ^ flip


def prepare_conv(
    weight: Weight,
    *,
    size: tuple[int, int],
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str = "uint8",
    zero_point: int = 0,
    result: str | None = None,
    **options: Any,
) -> ConvLayer:
    """Make a convolution, as neural networks mean it (see `conv2d`), of a weight with channels last.

    weight : int8 [N, kernel_h * kernel_w * channels] of any format: the inputs of an output by kernel row, kernel
        column and channel.  size : (H, W) of the maps.  stride, dilation : (vertical, horizontal).
    pads : (top, left, bottom, right), filled with the zero point.
    activation, zero_point, result and options : as of `prepare`; convolutions have one thread.
    Raises ModelError when an argument does not fit, or when the window is larger than the padded map.
    """
    windows = make_windows(
        size=size, channels=channels, kernel=kernel, stride=stride, pads=pads, dilation=dilation
    )  # fmt: skip
    if "threads" in options or "segment" in options:
        raise ModelError("threads and segment must not be given: a convolution has one thread, and segments of its own")
    number, length = windows.pieces
    if weight.shape[1] != number * length:
        raise ModelError(
            f"weight must have {windows.kernel[0]} * {windows.kernel[1]} * {channels} inputs, not {weight.shape[1]}"
        )
    made: dict[str, Any] = {"result": result or activation, **options}
    signed = activation == "int8" and not windows.is_matrix
    flip = 128 if signed else 0
    if windows.is_matrix:
        layer = prepare(weight, activation=activation, zero_point=zero_point, **made)  # type: ignore[arg-type]
        segment = length
    else:
        made |= {"activation": "uint8" if signed else activation, "zero_point": zero_point + flip}
        segment = _segment(weight, length)
        layer = prepare(_spread(weight, (number, length), segment), segment=segment, **made)
        if isinstance(layer.run, Vectorised):
            which, rest = np.divmod(layer.run.places, segment)
            layer = replace(layer, run=layer.run.placed(windows.piece_starts[which] + rest, windows.pitch))
        else:
            layer = prepare(weight, **made)
    return ConvLayer(
        layer=layer,
        windows=windows,
        activation=np.dtype(activation),
        bits=np.dtype(np.uint8),
        fill=np.uint8((zero_point + flip) & 0xFF),
        flip=np.uint8(flip),
        direct=not (flip or any(windows.pads)) and segment == length,
    )


def prepare_float_conv(
    weight: FloatWeight,
    *,
    size: tuple[int, int],
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    **options: Any,
) -> ConvLayer:
    """The same of a float32 weight, padded with 0; its error is that of `prepare_float` for the matrix of windows.

    weight : float32 [N, kernel_h * kernel_w * channels], an array or a sparse array of SciPy.
    options : as of `prepare_float`; convolutions have one thread. Raises ModelError.
    """
    windows = make_windows(
        size=size, channels=channels, kernel=kernel, stride=stride, pads=pads, dilation=dilation
    )  # fmt: skip
    if "threads" in options or "pieces" in options:
        raise ModelError("threads and pieces must not be given: a convolution has one thread, and pieces of its own")
    (number, length), (_, inputs) = windows.pieces, weight.shape
    if inputs != number * length:
        raise ModelError(
            f"weight must have {windows.kernel[0]} * {windows.kernel[1]} * {channels} inputs, not {inputs}"
        )
    pieces = None if windows.is_matrix else (windows.piece_starts, length)
    return ConvLayer(
        layer=prepare_float(weight, pieces=pieces, **options),
        windows=windows,
        activation=np.dtype(np.float32),
        bits=np.dtype(np.uint32),
        fill=np.uint32(0),
        flip=np.uint32(0),
        direct=not any(windows.pads),
    )


def _segment(weight: Weight, length: int) -> int:
    """Inputs that a piece of a window takes in the packed weight: no entry reaches over its end."""
    if isinstance(weight, Dense):
        return length + -length % 4
    if isinstance(weight, BSR) and weight.block[0] % 16 == weight.block[1] % 4 == 0:
        return length + -length % weight.block[1]
    return length + -length % _REACH


def _spread(weight: Weight, pieces: tuple[int, int], segment: int) -> Weight:
    """The weight with zeros after each of its pieces[0] times pieces[1] inputs, up to `segment`, in its own format."""
    if pieces[1] == segment:
        return weight
    dense = weight.to_dense()
    spread = np.zeros((dense.shape[0], pieces[0], segment), np.int8)
    spread[:, :, : pieces[1]] = dense.reshape(-1, *pieces)
    matrix = spread.reshape(dense.shape[0], -1)
    if isinstance(weight, BSR) and segment % weight.block[1] == 0:
        return BSR.from_dense(matrix, block=weight.block)
    if isinstance(weight, NM) and pieces[1] % weight.m == 0 and segment % weight.m == 0:
        return NM.from_dense(matrix, n=weight.n, m=weight.m)
    return Dense.from_dense(matrix) if isinstance(weight, Dense) else CSR.from_dense(matrix)
