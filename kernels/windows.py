"""Where the windows of a convolution lie in a map with channels last: what both kinds of convolution are built on.

A pixel's window is not copied together: its rows lie in the padded map as they are, so a window is where its first
input lies, and an input of it is an offset from there, the same for all windows.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.kernels.checks import check_int, to_int_tuple
from gossamer.kernels.conv import window_count

__all__ = ["Windows", "make_windows"]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows of a convolution. Made by `make_windows`, which says what the fields are."""

    size: tuple[int, int]
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]

    @cached_property
    def out_size(self) -> tuple[int, int]:
        """Windows down and across."""
        down, across = (
            window_count(*axis)
            for axis in zip(
                self.size, self.kernel, self.stride, self.dilation, self.pads[:2], self.pads[2:], strict=True
            )
        )
        return down, across

    @cached_property
    def is_matrix(self) -> bool:
        """Whether windows are pixels: then the map is the matrix of them."""
        return self.kernel == self.stride == (1, 1) and not any(self.pads)

    @cached_property
    def padded_size(self) -> tuple[int, int]:
        """(H, W) of a padded map."""
        top, left, bottom, right = self.pads
        return top + self.size[0] + bottom, left + self.size[1] + right

    @property
    def pieces(self) -> tuple[int, int]:
        """Number and length of the pieces of a window that lie side by side: its rows, or with dilation its pixels."""
        high, wide = self.kernel
        return (high, wide * self.channels) if self.dilation[1] == 1 else (high * wide, self.channels)

    @cached_property
    def piece_starts(self) -> NDArray[np.int64]:
        """Where each piece begins after the first input of a window, int64 [pieces], in elements."""
        row, column = np.divmod(np.arange(self.pieces[0]), self.pieces[0] // self.kernel[0])
        line = self.padded_size[1] * self.channels
        starts: NDArray[np.int64] = row * (self.dilation[0] * line) + column * (self.dilation[1] * self.channels)
        return starts

    @property
    def pitch(self) -> int:
        """Elements from one window of a line to the next."""
        return self.stride[1] * self.channels

    def starts(self, batch: int) -> NDArray[np.int64]:
        """Where each window begins in a batch of padded maps, int64 [batch * out_h * out_w], in elements."""
        tall, wide = self.padded_size
        line = np.arange(batch)[:, None] * tall + np.arange(self.out_size[0]) * self.stride[0]
        first: NDArray[np.int64] = line.reshape(-1, 1) * wide + np.arange(self.out_size[1]) * self.stride[1]
        return first.reshape(-1) * self.channels


def make_windows(
    *,
    size: tuple[int, int],
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Windows:
    """Windows, as neural networks mean them (see `conv2d`), checked.

    size : (H, W) of a map.  stride, dilation : (vertical, horizontal).  pads : (top, left, bottom, right).
    Raises ModelError when an argument is not legal, or when the window is larger than the padded map.
    """
    high, wide = to_int_tuple("kernel", kernel, 2, 1)
    down, across = to_int_tuple("stride", stride, 2, 1)
    apart_h, apart_w = to_int_tuple("dilation", dilation, 2, 1)
    top, left, bottom, right = to_int_tuple("pads", pads, 4, 0)
    height, width = to_int_tuple("size", size, 2, 1)
    windows = Windows(
        size=(height, width),
        channels=check_int("channels", channels, 1),
        kernel=(high, wide),
        stride=(down, across),
        pads=(top, left, bottom, right),
        dilation=(apart_h, apart_w),
    )
    if min(windows.out_size) < 1:
        raise ModelError(f"kernel must fit the padded map, not be {high} x {wide} with dilation {dilation}")
    return windows
