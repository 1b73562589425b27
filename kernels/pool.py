"""Pooling of 8-bit activations in NCHW: the maximum, and the sum that an average is requantised from."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import jit
from gossamer.arch.numerics import code_range
from gossamer.kernels.checks import check_array, to_int_tuple
from gossamer.kernels.conv import conv2d, window_count

__all__ = ["max_pool2d", "sum_pool2d"]

Code = TypeVar("Code", np.int8, np.uint8)


def max_pool2d(
    x: NDArray[Code],
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> NDArray[Code]:
    """out[b, c, oh, ow] = max over i, j of x[b, c, oh * stride[0] + i * dilation[0] - pads[0], ow * ... - pads[1]].

    x : uint8 or int8 codes [batch, C, H, W].  kernel, stride, dilation : (vertical, horizontal).
    pads : (top, left, bottom, right). Padding never wins; a window of nothing else gives the smallest code.
    Returns codes [batch, C, out_h, out_w] of x's dtype: a maximum needs no scale and no zero point.
    Raises ModelError when an argument does not fit, or when the window is larger than the padded map.
    """
    check_array("x", x, [np.int8, np.uint8], 4)
    kernel_h, kernel_w = to_int_tuple("kernel", kernel, 2, 1)
    stride_h, stride_w = to_int_tuple("stride", stride, 2, 1)
    dilation_h, dilation_w = to_int_tuple("dilation", dilation, 2, 1)
    top, left, bottom, right = to_int_tuple("pads", pads, 4, 0)
    batch, channels, height, width = x.shape
    out_h = window_count(height, kernel_h, stride_h, dilation_h, top, bottom)
    out_w = window_count(width, kernel_w, stride_w, dilation_w, left, right)
    if out_h < 1 or out_w < 1:
        raise ModelError(
            f"kernel must fit the padded map of {top + height + bottom} x {left + width + right}, "
            f"not {kernel_h} x {kernel_w} with dilation {dilation}"
        )
    smallest, _ = code_range(x.dtype == np.int8)
    shape = (batch, channels, top + height + bottom, left + width + right)
    padded = np.full(shape, smallest, dtype=np.int16)
    padded[:, :, top : top + height, left : left + width] = x
    out = np.full((batch, channels, out_h, out_w), smallest, dtype=np.int16)
    _max_pool2d(padded, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, out)
    return out.astype(x.dtype)


def sum_pool2d(
    x: NDArray[np.int8] | NDArray[np.uint8],
    kernel: tuple[int, int],
    *,
    zero_point: int = 0,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> NDArray[np.int32]:
    """The sum of (x - zero_point) over a window, int32 [batch, C, out_h, out_w]; padding adds nothing.

    An average is this sum requantised with the kernel's area in the scale (padding counted), which is how the
    accelerator computes it too: a depthwise convolution with weights of 1. Arguments and errors as of `conv2d`.
    """
    check_array("x", x, [np.int8, np.uint8], 4)
    kernel_h, kernel_w = to_int_tuple("kernel", kernel, 2, 1)
    channels = x.shape[1]
    ones = np.ones((channels, 1, kernel_h, kernel_w), dtype=np.int8)
    return conv2d(x, ones, zero_point=zero_point, stride=stride, pads=pads, dilation=dilation, groups=channels)


@jit
def _max_pool2d(
    x: NDArray[np.int16],
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    dilation_h: int,
    dilation_w: int,
    out: NDArray[np.int16],
) -> None:
    """x : padded [batch, C, H, W]; out : the smallest code everywhere."""
    batch, channels, out_h, out_w = out.shape
    for b in range(batch):
        for c in range(channels):
            for oh in range(out_h):
                largest = out[b, c, oh]
                for i in range(kernel_h):
                    line = x[b, c, oh * stride_h + i * dilation_h]
                    for j in range(kernel_w):
                        left = j * dilation_w
                        for ow in range(out_w):
                            largest[ow] = max(largest[ow], line[left + ow * stride_w])
