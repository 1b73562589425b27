"""A convolution made ready once, on activations with channels last: `prepare_conv(weight, ...)`.

A pixel's window is not copied together: the rows of a window lie in the padded map as they are, so an entry of the
packed weight only has another offset there than in a row of a matrix. All pixels of an output line are one call of
the matrix kernel, whose rows are then `stride * channels` codes apart. A kernel of 1 x 1 without stride and padding is
a matrix product and reads the map itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.kernels.checks import check_array, check_int, to_int_tuple
from gossamer.kernels.choose import Decision
from gossamer.kernels.conv import window_count
from gossamer.kernels.formats import BSR, CSR, NM, Dense, Weight
from gossamer.kernels.layer import Codes, Layer, Vectorised, prepare

__all__ = ["ConvLayer", "prepare_conv"]

_WINDOW = 64
"""Codes an entry of a packed weight reads at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvLayer:
    """A convolution ready to be applied: `layer(x)`. Made by `prepare_conv`.

    layer : its matrix product.  size : (H, W) of a map, channels, and (out_h, out_w) of the result.
    stride : (vertical, horizontal).  pads : (top, left, bottom, right).
    offsets : of the weight's entries in the padded map; None: the map is the matrix.
    """

    layer: Layer
    activation: np.dtype[Any]
    zero_point: int
    size: tuple[int, int]
    channels: int
    out_size: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    offsets: NDArray[np.int64] | None

    @property
    def why(self) -> Decision:
        """The kernel, and the reason for it."""
        return self.layer.why

    def __call__(self, x: Codes, *, residual: Codes | None = None, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The result [batch, out_h, out_w, N] for codes x [batch, H, W, channels].

        residual, out : as of `Layer`, of the shape of the result. Raises ModelError when an argument does not fit.
        """
        check_array("x", x, [self.activation.type], 4)
        if x.shape[1:] != (*self.size, self.channels):
            raise ModelError(
                f"x must have shape (batch, {self.size[0]}, {self.size[1]}, {self.channels}), not {x.shape}"
            )
        shape = (x.shape[0], *self.out_size, self.layer.shape[0])
        if out is None:
            out = np.empty(shape, self.layer.result)
        for name, array in (("out", out), ("residual", residual)):
            if array is not None and (array.shape != shape or not array.flags.c_contiguous):
                raise ModelError(f"{name} must be C-contiguous and of shape {shape}, not {array.shape}")
        rows = (shape[0] * shape[1] * shape[2], shape[3])
        flat, added = out.reshape(rows), None if residual is None else residual.reshape(rows)
        if self.offsets is None:
            self.layer(x.reshape(rows[0], self.channels), residual=added, out=flat)
        elif rows[0]:
            self._on_lines(x, added, flat)
        return out

    def _on_lines(self, x: Codes, residual: Codes | None, out: NDArray[Any]) -> None:
        assert self.offsets is not None
        assert isinstance(self.layer.run, Vectorised)
        top, left, bottom, right = self.pads
        batch, height, width, channels = x.shape
        tall, wide = top + height + bottom, left + width + right
        out_h, out_w = self.out_size
        first = np.arange(batch)[:, None] * tall + np.arange(out_h) * self.stride[0]
        begins = first.ravel() * (wide * channels)
        pitch = self.stride[1] * channels
        used = batch * tall * wide * channels
        flip = 128 if x.dtype == np.int8 else 0
        reach = int(begins[-1]) + out_w * pitch + int(self.offsets.max(initial=0)) + _WINDOW
        padded = np.full(max(used, reach), self.zero_point + flip, dtype=np.uint8)
        map_ = padded[:used].reshape(batch, tall, wide, channels)
        np.bitwise_xor(x.view(np.uint8), np.uint8(flip), out=map_[:, top : top + height, left : left + width])
        self.layer.run.on_lines(padded, out, residual, begins, out_w, pitch, self.offsets)


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
    high, wide = to_int_tuple("kernel", kernel, 2, 1)
    down, across = to_int_tuple("stride", stride, 2, 1)
    apart_h, apart_w = to_int_tuple("dilation", dilation, 2, 1)
    top, left, bottom, right = to_int_tuple("pads", pads, 4, 0)
    height, width = to_int_tuple("size", size, 2, 1)
    check_int("channels", channels, 1)
    if "threads" in options or "segment" in options:
        raise ModelError("threads and segment must not be given: a convolution has one thread, and segments of its own")
    if weight.shape[1] != high * wide * channels:
        raise ModelError(f"weight must have {high} * {wide} * {channels} inputs, not {weight.shape[1]}")
    out_size = (
        window_count(height, high, down, apart_h, top, bottom),
        window_count(width, wide, across, apart_w, left, right),
    )
    if min(out_size) < 1:
        raise ModelError(f"kernel must fit the padded map, not be {high} x {wide} with dilation {dilation}")
    result = result or activation
    if (high, wide) == (down, across) == (1, 1) and not any((top, left, bottom, right)):
        made: dict[str, Any] = {"activation": activation, "zero_point": zero_point}
        offsets, layer = None, prepare(weight, result=result, **made, **options)  # type: ignore[arg-type]
    else:
        # Codes lie side by side along a kernel row, or with dilation only within a pixel.
        taps = (high, wide * channels) if apart_w == 1 else (high * wide, channels)
        segment = -(-taps[1] // _WINDOW) * _WINDOW
        made = {"activation": "uint8", "zero_point": zero_point + (128 if activation == "int8" else 0)}
        layer = prepare(_spread(weight, taps, segment), result=result, segment=segment, **made, **options)  # type: ignore[arg-type]
        if not isinstance(layer.run, Vectorised):
            raise ModelError("a convolution of packed weights needs compiled code, and NUMBA_DISABLE_JIT is set")
        pixel = channels * (left + width + right)
        which, rest = np.divmod(layer.run.places, segment)
        row, column = (which, 0 * which) if apart_w == 1 else np.divmod(which, wide)
        offsets = row * (apart_h * pixel) + column * (apart_w * channels) + rest
    return ConvLayer(
        layer=layer,
        activation=np.dtype(activation),
        zero_point=zero_point,
        size=(height, width),
        channels=channels,
        out_size=out_size,
        stride=(down, across),
        pads=(top, left, bottom, right),
        offsets=offsets,
    )


def _spread(weight: Weight, taps: tuple[int, int], segment: int) -> Weight:
    """The weight with zeros after each of its taps[0] times taps[1] inputs, up to `segment`, in its own format."""
    dense = weight.to_dense()
    spread = np.zeros((dense.shape[0], taps[0], segment), np.int8)
    spread[:, :, : taps[1]] = dense.reshape(-1, *taps)
    matrix = spread.reshape(dense.shape[0], -1)
    if isinstance(weight, BSR) and segment % weight.block[1] == 0:
        return BSR.from_dense(matrix, block=weight.block)
    if isinstance(weight, NM) and taps[1] % weight.m == 0 and segment % weight.m == 0:
        return NM.from_dense(matrix, n=weight.n, m=weight.m)
    return Dense.from_dense(matrix) if isinstance(weight, Dense) else CSR.from_dense(matrix)
