"""What every pattern is, and the ways to choose the largest of something.

A weight is [out_channels, in_channels, *kernel] (or [out_features, in_features]). Patterns count along the input
channels, separately at each kernel tap, because that is the order in which the array takes its groups.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError

__all__ = [
    "Array",
    "Mask",
    "Pattern",
    "best_share",
    "channel_rows",
    "check_share",
    "from_channel_rows",
    "largest",
    "percent",
]

Array = NDArray[Any]
Mask = NDArray[np.bool_]


class Pattern:
    """A pattern of zeros. str() writes what parse() reads."""

    imposable: ClassVar[bool] = True
    """False for what a layer is, and cannot be made."""

    @property
    def only_zeros(self) -> bool:
        """Whether imposing it makes zeros and leaves the layer's shape."""
        return True

    @staticmethod
    def parse(text: "str | Pattern") -> "Pattern":
        """Read a pattern's text (see notation.parse_pattern). Raises ModelError."""
        from gossamer.compiler.sparsity.patterns.notation import parse_pattern  # the notation knows all patterns

        return parse_pattern(text)

    @property
    def zeros(self) -> float:
        """The share of zeros the pattern asks for, 0 to 1."""
        return 0.0

    def with_zeros(self, share: float) -> "Pattern":
        """The pattern of the same family with the nearest share of zeros. Raises ModelError where there is none."""
        raise ModelError(
            f"allocation: {self} has no share of zeros to choose; must be unstructured, fanin, block, N:M or vnm"
        )

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Why a weight of this shape cannot hold the pattern, "" when it can."""
        return ""

    def mask(self, scores: Array) -> Mask:
        """Which elements stay: those of the largest magnitude that the pattern allows.

        scores : importance of each weight, signed or not, of the weight's shape; the weight itself prunes by
        magnitude. Returns booleans of that shape.
        """
        return np.ones(scores.shape, dtype=bool)


def channel_rows(weight: Array) -> Array:
    """[out, in, *kernel] as [out, taps, in]: a tap's input channels lie side by side."""
    return np.moveaxis(weight.reshape(*weight.shape[:2], -1), 1, 2)


def from_channel_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """Inverse of channel_rows."""
    return np.ascontiguousarray(np.moveaxis(rows, 2, 1)).reshape(shape)


def percent(share: float) -> str:
    """A share as patterns write it, in four digits or as many as tell it from none and all: 0.7 is "70%"."""
    text = f"{share * 100:.4g}%"
    return f"{share * 100:.6g}%" if text in ("0%", "100%") else text


def check_share(what: str, value: float) -> None:
    """Raise ModelError unless value is a share."""
    if not 0.0 <= value <= 1.0:
        raise ModelError(f"{what}: the share of zeros must be from 0% to 100%, not {percent(value)}")


def largest(values: Array, n: int) -> Mask:
    """The n largest along the last axis; of equals, the first."""
    keep = np.zeros(values.shape, dtype=bool)
    order = np.argsort(-values, axis=-1, kind="stable")[..., :n]
    np.put_along_axis(keep, order, True, axis=-1)
    return keep


def best_share(values: Array, zeros: float) -> Mask:
    """All but the given share of smallest values; of equals, the first stay."""
    flat = values.reshape(-1)
    count = flat.size - round(flat.size * zeros)
    keep = np.zeros(flat.size, dtype=bool)
    if count >= flat.size:
        keep[:] = True
    elif count > 0:
        threshold = np.partition(flat, flat.size - count)[flat.size - count]
        keep = flat > threshold
        ties = np.flatnonzero(flat == threshold)
        keep[ties[: count - int(keep.sum())]] = True
    return keep.reshape(values.shape)
