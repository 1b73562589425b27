"""Patterns of single weights: dense, N:M along one or both axes, constant fan-in, unstructured, taps of a kernel."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.patterns.pattern import (
    Array,
    Mask,
    Pattern,
    best_share,
    channel_rows,
    check_share,
    from_channel_rows,
    largest,
    percent,
)

__all__ = ["NM", "Dense", "FanIn", "Grouped", "Taps", "Transposable", "Unstructured"]


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


def _check_nm(n: int, m: int) -> None:
    if not 1 <= n <= m <= 32 or m < 2 or m & (m - 1):
        raise ModelError(f"pattern {n}:{m}: M must be 2, 4, 8, 16 or 32, and N from 1 to M")


@dataclass(frozen=True)
class NM(Pattern):
    """At most n nonzeros in every group of m consecutive input channels.

    flat : groups run along [in_channels, *kernel] flattened in that order, instead of per tap.
    """

    n: int
    m: int
    flat: bool = False

    def __post_init__(self) -> None:
        _check_nm(self.n, self.m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}{' flat' if self.flat else ''}"

    @property
    def zeros(self) -> float:
        """1 - N / M."""
        return 1.0 - self.n / self.m

    def with_zeros(self, share: float) -> "NM":
        """The same M with the nearest N, at least 1."""
        return NM(min(self.m, max(1, round(self.m * (1.0 - share)))), self.m, self.flat)

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs a whole group of input channels."""
        length = math.prod(shape[1:]) if self.flat else shape[1]
        return f"{length} input channels are fewer than a group of {self.m}" if length < self.m else ""

    def mask(self, scores: Array) -> Mask:
        """The n largest of each group; a last group that is not full also keeps n."""
        rows = scores.reshape(len(scores), 1, -1) if self.flat else channel_rows(scores)
        keep = largest(_grouped(np.abs(rows), self.m), self.n).reshape(*rows.shape[:2], -1)[:, :, : rows.shape[2]]
        return keep.reshape(scores.shape) if self.flat else from_channel_rows(keep, scores.shape)


def _grouped(rows: Array, m: int) -> Array:
    """[out, taps, in] as [out, taps, groups, m]; missing channels of the last group lose every comparison."""
    missing = -rows.shape[2] % m
    if missing:
        rows = np.pad(rows, ((0, 0), (0, 0), (0, missing)), constant_values=-1)
    return rows.reshape(*rows.shape[:2], -1, m)


@dataclass(frozen=True)
class Transposable(Pattern):
    """N:M along the input channels and along the output channels at once, so that W and its transpose are both N:M.

    The masks of Hubara et al., "Accelerated Sparse Neural Training" (NeurIPS 2021).
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        _check_nm(self.n, self.m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m} transposable"

    @property
    def zeros(self) -> float:
        """1 - N / M, where every row and column of a block finds its N."""
        return 1.0 - self.n / self.m

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs whole groups both ways."""
        uneven = any(side % self.m for side in shape[:2])
        return f"{shape[0]}x{shape[1]} channels are not whole blocks of {self.m}x{self.m}" if uneven else ""

    def mask(self, scores: Array) -> Mask:
        """Greedy in each m x m block, the largest first (at least half of the best sum; section 4.2 of the paper)."""
        rows = np.abs(channel_rows(scores))
        out, taps, inputs = rows.shape
        m = self.m
        blocks = rows.reshape(out // m, m, taps, inputs // m, m).transpose(0, 2, 3, 1, 4).reshape(-1, m * m)
        order = np.argsort(-blocks, axis=1, kind="stable")
        keep = np.zeros(blocks.shape, dtype=bool)
        each = np.arange(len(blocks))
        in_row, in_column = np.zeros((len(blocks), m), np.int8), np.zeros((len(blocks), m), np.int8)
        for rank in range(m * m):
            r, c = np.divmod(order[:, rank], m)
            free = (in_row[each, r] < self.n) & (in_column[each, c] < self.n)
            keep[each, order[:, rank]] = free
            in_row[each, r] += free
            in_column[each, c] += free
        full = keep.reshape(out // m, taps, inputs // m, m, m).transpose(0, 3, 1, 2, 4).reshape(out, taps, inputs)
        return from_channel_rows(full, scores.shape)


@dataclass(frozen=True)
class Taps(Pattern):
    """At most n taps of every kernel (one input channel of one output channel): kernel pattern pruning."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ModelError(f"taps {self.n}: at least 1 tap of each kernel must stay")

    def __str__(self) -> str:
        return f"taps {self.n}"

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs kernels of more taps."""
        taps = math.prod(shape[2:])
        return f"kernels have {taps} taps, which is no more than {self.n}" if taps <= self.n else ""

    def mask(self, scores: Array) -> Mask:
        """The n largest of each kernel."""
        return largest(np.abs(scores.reshape(*scores.shape[:2], -1)), self.n).reshape(scores.shape)


@dataclass(frozen=True)
class FanIn(Pattern):
    """The same number of nonzeros for every output channel, anywhere."""

    sparsity: float

    def __post_init__(self) -> None:
        check_share("fanin", self.sparsity)

    def __str__(self) -> str:
        return f"fanin {percent(self.sparsity)}"

    @property
    def zeros(self) -> float:
        """As asked for."""
        return self.sparsity

    def with_zeros(self, share: float) -> "FanIn":
        """Any share."""
        return FanIn(share)

    def mask(self, scores: Array) -> Mask:
        """The largest of each output channel, at least one."""
        rows = np.abs(scores.reshape(len(scores), -1))
        return largest(rows, max(1, round(rows.shape[1] * (1 - self.sparsity)))).reshape(scores.shape)


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Zeros anywhere."""

    sparsity: float

    def __post_init__(self) -> None:
        check_share("unstructured", self.sparsity)

    def __str__(self) -> str:
        return f"unstructured {percent(self.sparsity)}"

    @property
    def zeros(self) -> float:
        """As asked for."""
        return self.sparsity

    def with_zeros(self, share: float) -> "Unstructured":
        """Any share."""
        return Unstructured(share)

    def mask(self, scores: Array) -> Mask:
        """The largest of the whole weight."""
        return best_share(np.abs(scores), self.sparsity)
