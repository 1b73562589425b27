"""Patterns of zeros in a weight: their names, finding them, and imposing them by magnitude.

A weight is [out_channels, in_channels, *kernel] (or [out_features, in_features]). Patterns count along the input
channels, separately at each kernel tap, because that is the order in which the array takes its groups.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError

__all__ = [
    "NM",
    "VNM",
    "Block",
    "Dense",
    "FanIn",
    "Grouped",
    "Pattern",
    "Unstructured",
    "channel_rows",
    "from_channel_rows",
]

Array = NDArray[Any]


def channel_rows(weight: Array) -> Array:
    """[out, in, *kernel] as [out, taps, in]: a tap's input channels lie side by side."""
    return np.moveaxis(weight.reshape(*weight.shape[:2], -1), 1, 2)


def from_channel_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """Inverse of channel_rows."""
    return np.ascontiguousarray(np.moveaxis(rows, 2, 1)).reshape(shape)


@dataclass(frozen=True)
class Pattern:
    """A pattern of zeros. str() writes what parse() reads."""

    imposable: ClassVar[bool] = True

    @staticmethod
    def parse(text: "str | Pattern") -> "Pattern":
        """Read "dense", "2:8", "2:8 flat", "block 16x16 70%", "vnm 16:2:8", "fanin 90%", "unstructured 90%".

        Percentages are the share of zeros. Raises ModelError for anything else.
        """
        if isinstance(text, Pattern):
            return text
        for form, make in _FORMS:
            match = re.fullmatch(form, text.strip().lower())
            if match:
                found: Pattern = make(*match.groups())
                return found
        raise ModelError(
            f"sparsity pattern {text!r} is not known; must be dense, N:M (2:8), block RxC P% (block 16x16 70%), "
            "vnm V:N:M (vnm 16:2:8), fanin P%, or unstructured P%"
        )

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Why a weight of this shape cannot hold the pattern, "" when it can."""
        return ""

    def mask(self, weight: Array) -> NDArray[np.bool_]:
        """Which elements stay when the pattern is imposed by magnitude; a boolean array of the weight's shape."""
        return np.ones(weight.shape, dtype=bool)


def _percent(share: float) -> str:
    return f"{share * 100:.6g}%"


def _read(percent: str) -> float:
    return round(float(percent) / 100, 10)  # 21.1% is 0.211, not its neighbour


def _share(what: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ModelError(f"{what}: the share of zeros must be from 0% to 100%, not {_percent(value)}")


@dataclass(frozen=True)
class Dense(Pattern):
    """No zeros to speak of."""

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True)
class Grouped(Pattern):
    """A convolution in groups; depthwise when a group has one input channel."""

    imposable: ClassVar[bool] = False
    groups: int
    depthwise: bool = False

    def __str__(self) -> str:
        return f"{'depthwise' if self.depthwise else 'grouped'} {self.groups}"


@dataclass(frozen=True)
class NM(Pattern):
    """At most n nonzeros in every group of m consecutive input channels.

    flat : groups run along [in_channels, *kernel] flattened in that order, instead of per tap.
    """

    n: int
    m: int
    flat: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m <= 32 or self.m & (self.m - 1):
            raise ModelError(f"pattern {self.n}:{self.m}: M must be 2, 4, 8, 16 or 32, and N from 1 to M")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}{' flat' if self.flat else ''}"

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs a whole group of input channels."""
        length = math.prod(shape[1:]) if self.flat else shape[1]
        return f"{length} input channels are fewer than a group of {self.m}" if length < self.m else ""

    def mask(self, weight: Array) -> NDArray[np.bool_]:
        """The n largest of each group; a last group that is not full also keeps n."""
        rows = weight.reshape(len(weight), 1, -1) if self.flat else channel_rows(weight)
        keep = _largest(_grouped(np.abs(rows), self.m), self.n).reshape(*rows.shape[:2], -1)[:, :, : rows.shape[2]]
        return keep.reshape(weight.shape) if self.flat else from_channel_rows(keep, weight.shape)


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of rows output channels by cols input channels (at one tap) that are zero or full."""

    rows: int
    cols: int
    sparsity: float

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise ModelError(f"block {self.rows}x{self.cols}: both sides must be at least 1")
        _share("block", self.sparsity)

    def __str__(self) -> str:
        return f"block {self.rows}x{self.cols} {_percent(self.sparsity)}"

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs room for a block."""
        small = shape[0] < self.rows or shape[1] < self.cols
        return f"{shape[0]}x{shape[1]} channels are fewer than a block of {self.rows}x{self.cols}" if small else ""

    def mask(self, weight: Array) -> NDArray[np.bool_]:
        """Blocks of the largest energy."""
        rows = channel_rows(weight)
        energy = _tiles(np.square(rows, dtype=np.float64), self.rows, self.cols).sum(axis=(1, 4))
        keep = _best_share(energy, self.sparsity)
        full = np.repeat(np.repeat(keep, self.rows, axis=0), self.cols, axis=2)[: rows.shape[0], :, : rows.shape[2]]
        return from_channel_rows(full, weight.shape)


@dataclass(frozen=True)
class VNM(Pattern):
    """In each block of v output by m input channels, 4 columns are shared, and each row has n nonzeros among them."""

    shared: ClassVar[int] = 4
    v: int
    n: int
    m: int

    def __post_init__(self) -> None:
        if self.v < 1 or not 1 <= self.n <= self.shared or self.m <= self.shared or self.m > 64:
            raise ModelError(f"vnm {self.v}:{self.n}:{self.m}: needs V >= 1, N from 1 to 4, and M from 5 to 64")

    def __str__(self) -> str:
        return f"vnm {self.v}:{self.n}:{self.m}"

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs room for a block."""
        small = shape[0] < self.v or shape[1] < self.m
        return f"{shape[0]}x{shape[1]} channels are fewer than a block of {self.v}x{self.m}" if small else ""

    def mask(self, weight: Array) -> NDArray[np.bool_]:
        """The four columns of the largest sum in each block, then the n largest of those in each row."""
        rows = channel_rows(np.abs(weight))
        tiles = _tiles(rows, self.v, self.m)  # [blocks, v, taps, blocks, m]
        columns = _largest(tiles.sum(axis=1), self.shared)[:, np.newaxis]
        keep = _largest(np.where(columns, tiles, -1.0), self.n) & columns
        full = keep.reshape(-1, *keep.shape[2:3], keep.shape[3] * keep.shape[4])[: rows.shape[0], :, : rows.shape[2]]
        return from_channel_rows(full, weight.shape)


@dataclass(frozen=True)
class FanIn(Pattern):
    """The same number of nonzeros for every output channel, anywhere."""

    sparsity: float

    def __post_init__(self) -> None:
        _share("fanin", self.sparsity)

    def __str__(self) -> str:
        return f"fanin {_percent(self.sparsity)}"

    def mask(self, weight: Array) -> NDArray[np.bool_]:
        """The largest of each output channel, at least one."""
        rows = np.abs(weight.reshape(len(weight), -1))
        return _largest(rows, max(1, round(rows.shape[1] * (1 - self.sparsity)))).reshape(weight.shape)


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Zeros anywhere."""

    sparsity: float

    def __post_init__(self) -> None:
        _share("unstructured", self.sparsity)

    def __str__(self) -> str:
        return f"unstructured {_percent(self.sparsity)}"

    def mask(self, weight: Array) -> NDArray[np.bool_]:
        """The largest of the whole weight."""
        return _best_share(np.abs(weight), self.sparsity)


# --- choosing by magnitude ------------------------------------------------------------------------------------------


def _largest(values: Array, n: int) -> NDArray[np.bool_]:
    """The n largest along the last axis; of equals, the first."""
    keep = np.zeros(values.shape, dtype=bool)
    order = np.argsort(-values, axis=-1, kind="stable")[..., :n]
    np.put_along_axis(keep, order, True, axis=-1)
    return keep


def _best_share(values: Array, sparsity: float) -> NDArray[np.bool_]:
    """All but the given share of smallest values; of equals, the first stay."""
    flat = values.reshape(-1)
    count = flat.size - round(flat.size * sparsity)
    keep = np.zeros(flat.size, dtype=bool)
    if count >= flat.size:
        keep[:] = True
    elif count > 0:
        threshold = np.partition(flat, flat.size - count)[flat.size - count]
        keep = flat > threshold
        ties = np.flatnonzero(flat == threshold)
        keep[ties[: count - int(keep.sum())]] = True
    return keep.reshape(values.shape)


def _grouped(rows: Array, m: int) -> Array:
    """[out, taps, in] as [out, taps, groups, m]; missing channels of the last group lose every comparison."""
    missing = -rows.shape[2] % m
    if missing:
        rows = np.pad(rows, ((0, 0), (0, 0), (0, missing)), constant_values=-1)
    return rows.reshape(*rows.shape[:2], -1, m)


def _tiles(rows: Array, height: int, width: int) -> Array:
    """[out, taps, in] as [out blocks, height, taps, in blocks, width], padded with zeros."""
    padded = np.pad(rows, ((0, -rows.shape[0] % height), (0, 0), (0, -rows.shape[2] % width)))
    return padded.reshape(padded.shape[0] // height, height, rows.shape[1], padded.shape[2] // width, width)


_NUMBER = r"(\d+(?:\.\d+)?)\s*%"

_FORMS: tuple[tuple[str, Any], ...] = (
    (r"dense", Dense),
    (r"(\d+):(\d+)(\s+flat)?", lambda n, m, flat: NM(int(n), int(m), bool(flat))),
    (rf"block\s+(\d+)x(\d+)\s+{_NUMBER}", lambda r, c, p: Block(int(r), int(c), _read(p))),
    (r"vnm\s+(\d+):(\d+):(\d+)", lambda v, n, m: VNM(int(v), int(n), int(m))),
    (rf"fan-?in\s+{_NUMBER}", lambda p: FanIn(_read(p))),
    (rf"unstructured\s+{_NUMBER}", lambda p: Unstructured(_read(p))),
    (r"grouped\s+(\d+)", lambda g: Grouped(int(g))),
    (r"depthwise\s+(\d+)", lambda g: Grouped(int(g), depthwise=True)),
)
