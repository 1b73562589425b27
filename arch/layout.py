"""How an activation tensor lies in DRAM: channel-blocked (NCHWc), with its padding around it.

Element (n, channel, y, x) stands at
    address + (((n * blocks + slot // block) * rows + top + y) * pixels + left + x) * block + slot % block
with rows = top + H + bottom and pixels = left + W + right. A channel's slot is the channel itself, unless the channels
fall into heads: equal runs, each of which begins a block of its own. The border and the channels that fill up a block
hold the zero point, so that they count as real zeros. A pixel of a block is a whole number of beats; only in inputs
with few channels several pixels share a beat, and a row of a block is a whole number of them.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.numerics import code_range

__all__ = ["Placement"]

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """An 8-bit tensor's place, shape and meaning: real = scale * (code - zero_point).

    address : bytes.  shape : (N, C, H, W).  block : channels of a block.  border : (top, left, bottom, right) pixels.
    model_shape : the model's own shape;  channels_last : its last axis is C and all others together are W.
    heads : equal runs of channels, each in whole blocks of its own.
    """

    name: str
    address: int
    shape: tuple[int, int, int, int]
    block: int
    border: tuple[int, int, int, int]
    scale: float
    zero_point: int
    signed: bool
    model_shape: tuple[int, ...]
    channels_last: bool = False
    heads: int = 1

    @property
    def head_blocks(self) -> int:
        """Channel blocks of one head."""
        return -(-self.shape[1] // (self.heads * self.block))

    @property
    def blocks(self) -> int:
        """Channel blocks of one image."""
        return self.heads * self.head_blocks

    @property
    def slots(self) -> NDArray[np.int64]:
        """Where every channel stands among the slots of an image's blocks, int64 [C]."""
        head, channel = np.divmod(np.arange(self.shape[1]), self.shape[1] // self.heads)
        return head * (self.head_blocks * self.block) + channel

    @property
    def rows(self) -> int:
        """Rows with padding."""
        return self.border[0] + self.shape[2] + self.border[2]

    @property
    def pixels(self) -> int:
        """Pixels of a row with padding."""
        return self.border[1] + self.shape[3] + self.border[3]

    @property
    def row_bytes(self) -> int:
        """Bytes from a row to the next."""
        return self.pixels * self.block

    @property
    def block_bytes(self) -> int:
        """Bytes from a channel block to the next."""
        return self.rows * self.row_bytes

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.shape[0] * self.blocks * self.block_bytes

    @property
    def zero_byte(self) -> int:
        """The bit pattern of real zero."""
        return self.zero_point & 0xFF

    def to_memory(self, codes: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Codes [N, C, H, W] to the tensor's bytes, border and filling included."""
        n, _, h, w = self.shape
        top, left = self.border[:2]
        out = np.full((n, self.blocks * self.block, self.rows, self.pixels), self.zero_byte, dtype=np.uint8)
        out[:, self.slots, top : top + h, left : left + w] = (codes.astype(np.int64) & 0xFF).astype(np.uint8)
        shaped = out.reshape(n, self.blocks, self.block, self.rows, self.pixels)
        return np.ascontiguousarray(shaped.transpose(0, 1, 3, 4, 2)).reshape(-1)

    def from_memory(self, data: NDArray[np.uint8]) -> NDArray[np.int16]:
        """The tensor's bytes to codes int16 [N, C, H, W]."""
        n, _, h, w = self.shape
        top, left = self.border[:2]
        shaped = data.reshape(n, self.blocks, self.rows, self.pixels, self.block).transpose(0, 1, 4, 2, 3)
        inner = shaped.reshape(n, -1, self.rows, self.pixels)[:, self.slots, top : top + h, left : left + w]
        return (inner.view(np.int8) if self.signed else inner).astype(np.int16)

    def quantise(self, values: NDArray[np.generic], *, codes: bool = False) -> NDArray[np.int16]:
        """Real values, in the model's shape, to codes [N, C, H, W].

        values : floating or integer, of any width.  codes : integers are codes already, not real values.
        Raises ModelError for a wrong shape, for values that are not finite numbers, or a code out of range.
        """
        array = np.asarray(values)
        if array.shape != self.model_shape:
            raise ModelError(f"{self.name!r} must have shape {self.model_shape}, not {array.shape}")
        low, high = code_range(self.signed)
        if array.dtype.kind not in "fiu":
            raise ModelError(f"{self.name!r} takes real values{' or codes' * codes}, not {array.dtype}")
        if codes and array.dtype.kind != "f":
            if array.size and (int(array.min()) < low or int(array.max()) > high):
                raise ModelError(
                    f"{self.name!r} takes codes from {low} to {high}, not {int(array.min())}..{int(array.max())}"
                )
            return self.to_nchw(array.astype(np.int16))
        if not np.all(np.isfinite(array)):
            raise ModelError(f"{self.name!r} has values that are not finite")
        with np.errstate(over="ignore"):  # too large for float32 saturates like all that is too large
            real = np.rint(array.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        return self.to_nchw(np.clip(real, low, high).astype(np.int16))

    def dequantise(self, codes: NDArray[np.int16]) -> NDArray[np.float32]:
        """Codes [N, C, H, W] to float32 in the model's shape."""
        real = (codes.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)
        return self.to_model(real)

    def to_nchw(self, array: NDArray[T]) -> NDArray[T]:
        """From the model's shape to (N, C, H, W)."""
        n, c, h, w = self.shape
        if self.channels_last:
            return array.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        return array.reshape(self.shape)

    def to_model(self, array: NDArray[T]) -> NDArray[T]:
        """From (N, C, H, W) to the model's shape."""
        if self.channels_last:
            array = array.transpose(0, 2, 3, 1)
        return array.reshape(self.model_shape)
