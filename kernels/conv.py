"""Two-dimensional convolution of 8-bit activations in NCHW, exact in int32.

Padding is filled with the zero point, so it adds nothing to a sum: the operand there is 0.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import jit
from gossamer.kernels.checks import check_array, check_int, check_zero_point, to_int_tuple, to_operand

__all__ = ["conv2d", "window_count"]


def window_count(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Positions of a window along an axis: floor((before + size + after - dilation * (kernel - 1) - 1) / stride) + 1.

    0 when the window is longer than the padded axis. Source: the Conv operator of ONNX.
    """
    return max(0, (before + size + after - dilation * (kernel - 1) - 1) // stride + 1)


def conv2d(
    x: NDArray[np.int8] | NDArray[np.uint8],
    weight: NDArray[np.int8],
    *,
    zero_point: int = 0,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> NDArray[np.int32]:
    """Convolution, as neural networks mean it (a correlation); groups = channels is a depthwise one.

        out[b, n, oh, ow] = sum over c, i, j of weight[n, c, i, j] * (padded[b, first(n) + c,
            oh * stride[0] + i * dilation[0], ow * stride[1] + j * dilation[1]] - zero_point)

    with first(n) = (n // (N / groups)) * C / groups.

    x : uint8 or int8 codes [batch, C, H, W].  zero_point : a code of its dtype, which also fills the padding.
    weight : int8 [N, C / groups, kernel_h, kernel_w].  pads : (top, left, bottom, right).
    stride, dilation : (vertical, horizontal).  Returns int32 [batch, N, out_h, out_w].

    The caller proves that no sum overflows int32 (`max_accumulator`). Raises ModelError when an argument does not
    fit, or when the window is larger than the padded map.
    """
    check_array("x", x, [np.int8, np.uint8], 4)
    check_array("weight", weight, [np.int8], 4)
    zero_point = check_zero_point(zero_point, x.dtype)
    stride_h, stride_w = to_int_tuple("stride", stride, 2, 1)
    dilation_h, dilation_w = to_int_tuple("dilation", dilation, 2, 1)
    top, left, bottom, right = to_int_tuple("pads", pads, 4, 0)
    batch, channels, height, width = x.shape
    out_channels, fan_in, kernel_h, kernel_w = weight.shape
    check_int("groups", groups, 1)
    if weight.size == 0 or channels != fan_in * groups or out_channels % groups:
        raise ModelError(
            f"weight must have shape (multiple of {groups}, {channels} / {groups}, kernel_h, kernel_w) for "
            f"{channels} channels in {groups} groups, not {weight.shape}"
        )
    out_h = window_count(height, kernel_h, stride_h, dilation_h, top, bottom)
    out_w = window_count(width, kernel_w, stride_w, dilation_w, left, right)
    if out_h < 1 or out_w < 1:
        raise ModelError(
            f"weight must have a kernel that fits the padded map of {top + height + bottom} x {left + width + right}, "
            f"not {kernel_h} x {kernel_w} with dilation {dilation}"
        )
    padded = np.zeros((batch, channels, top + height + bottom, left + width + right), dtype=np.int16)
    padded[:, :, top : top + height, left : left + width] = to_operand(x, zero_point)
    out = np.zeros((batch, out_channels, out_h, out_w), dtype=np.int32)
    _conv2d(
        padded, np.ascontiguousarray(weight), stride_h, stride_w, dilation_h, dilation_w, out_channels // groups, out
    )
    return out


@jit
def _conv2d(
    x: NDArray[np.int16],
    weight: NDArray[np.int8],
    stride_h: int,
    stride_w: int,
    dilation_h: int,
    dilation_w: int,
    channels_per_group: int,
    out: NDArray[np.int32],
) -> None:
    """x : padded operands [batch, C, H, W]; out : cleared. The innermost loop runs along a row of outputs."""
    batch, out_channels, out_h, out_w = out.shape
    _, fan_in, kernel_h, kernel_w = weight.shape
    for b in range(batch):
        for n in range(out_channels):
            first = n // channels_per_group * fan_in
            for oh in range(out_h):
                sums = out[b, n, oh]
                for c in range(fan_in):
                    for i in range(kernel_h):
                        line = x[b, first + c, oh * stride_h + i * dilation_h]
                        for j in range(kernel_w):
                            w = np.int32(weight[n, c, i, j])
                            if w != 0:
                                left = j * dilation_w
                                for ow in range(out_w):
                                    sums[ow] += np.int32(w * line[left + ow * stride_w])
