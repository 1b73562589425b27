"""From real weights to integers: the codes and biases the array works with, and the proof that they fit."""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.numerics import ACC_MAX
from gossamer.compiler.frontend.ops import Affine, Array, Conv, Linear

__all__ = ["WEIGHT_MAX", "integer_weights", "real_weights", "weight_scales"]

WEIGHT_MAX = 127
"""Largest magnitude of a weight code; -128 is not used, so that codes are symmetric."""

_BIAS_LIMIT = 2.0**29
_BIAS_OF_EMPTY = 2.0**20


def real_weights(op: Conv | Linear | Affine) -> tuple[Array, Array]:
    """Weight [out_channels, ...] (float32 or float64) and bias float64 [out_channels] of an operation."""
    if isinstance(op, Affine):
        return op.scale.astype(np.float64), op.shift.astype(np.float64)
    bias = np.zeros(op.weight.shape[0]) if op.bias is None else op.bias
    return op.weight, bias


def weight_scales(op: Conv | Linear | Affine, input_scale: float) -> NDArray[np.float32]:
    """One scale per output channel, so that the largest weight becomes 127.

    A channel whose bias would not fit gets a larger scale; one without weights takes its scale from its bias.
    Returns float32 [out_channels], all positive.
    """
    weight, bias = real_weights(op)
    rows = weight.reshape(len(weight), -1)
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1)).astype(np.float64)
    scale = np.maximum(largest / WEIGHT_MAX, np.abs(bias) / (input_scale * _BIAS_LIMIT))
    scale = np.where(largest > 0, scale, np.abs(bias) / (input_scale * _BIAS_OF_EMPTY))
    tiny = float(np.finfo(np.float32).tiny)
    return np.where(scale > tiny, scale, 1.0).astype(np.float32)


def integer_weights(
    op: Conv | Linear | Affine, input_scale: float, scales: Array
) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """Weight codes and bias codes: round(weight / s_w), round(bias / (s_x * s_w)), half to even.

    scales : float32 [out_channels]. Returns int8 of the weight's shape and int32 [out_channels].
    Raises ModelError when some input could make a 32-bit accumulator overflow.
    """
    weight, bias = real_weights(op)
    column = scales.reshape(-1, *[1] * (weight.ndim - 1))
    ratio = np.divide(weight, column)  # float32 where the weight is: a large layer's memory counts
    codes = np.clip(np.rint(ratio, out=ratio), -WEIGHT_MAX - 1, WEIGHT_MAX, out=ratio).astype(np.int8)
    wide = np.rint(bias / (float(input_scale) * scales.astype(np.float64)))
    magnitude = np.abs(codes.reshape(len(codes), -1), dtype=np.int16)
    largest = magnitude.sum(axis=1, dtype=np.int64) * 255 + np.abs(wide)
    if (largest > ACC_MAX).any():
        channel = int(largest.argmax())
        raise ModelError(
            f"layer {op.name!r}, output channel {channel}: sum of |weight| * 255 + |bias| is {int(largest[channel])}; "
            f"must be at most {ACC_MAX} so that the 32-bit accumulator cannot overflow"
        )
    return codes, wide.astype(np.int32)
