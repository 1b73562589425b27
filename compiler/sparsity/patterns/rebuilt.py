"""What changes the layer instead of its zeros: channels removed, and weights that become products of smaller ones."""

from dataclasses import dataclass

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.patterns.pattern import Pattern, check_share, percent

__all__ = ["Channels", "LowRank", "Monarch", "PlusLowRank", "Rebuilt"]

NO_MATRIX = "only a linear layer or a 1x1 convolution is a matrix"


class Rebuilt(Pattern):
    """A pattern that is not a matter of zeros."""

    @property
    def only_zeros(self) -> bool:
        """The layer becomes another one."""
        return False


@dataclass(frozen=True)
class Channels(Rebuilt):
    """Structured removal: a share of the output channels goes, and with them whatever they are coupled to (shrink)."""

    sparsity: float

    def __post_init__(self) -> None:
        check_share("channels", self.sparsity)
        if self.sparsity == 1.0:
            raise ModelError("channels 100%: at least one channel must stay")

    def __str__(self) -> str:
        return f"channels {percent(self.sparsity)}"

    @property
    def zeros(self) -> float:
        """As asked for."""
        return self.sparsity

    def with_zeros(self, share: float) -> "Channels":
        """Any share that leaves a channel."""
        return Channels(min(share, 0.999))


@dataclass(frozen=True)
class Monarch(Rebuilt):
    """The product of two block-diagonal matrices of `blocks` blocks with a fixed permutation between them (factor).

    Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate Training" (ICML 2022).
    """

    blocks: int

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise ModelError(f"monarch {self.blocks}: needs at least 2 blocks")

    def __str__(self) -> str:
        return f"monarch {self.blocks}"

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs a matrix of equal blocks."""
        if any(side != 1 for side in shape[2:]):
            return NO_MATRIX
        uneven = any(side % self.blocks for side in shape[:2])
        return f"{shape[0]}x{shape[1]} channels do not divide into {self.blocks} blocks each" if uneven else ""


@dataclass(frozen=True)
class LowRank(Rebuilt):
    """The product of a matrix of `rank` outputs and one of `rank` inputs (factor)."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ModelError(f"lowrank {self.rank}: the rank must be at least 1")

    def __str__(self) -> str:
        return f"lowrank {self.rank}"

    def refusal(self, shape: tuple[int, ...]) -> str:
        """Needs a matrix of a larger rank."""
        if any(side != 1 for side in shape[2:]):
            return NO_MATRIX
        small = self.rank >= min(shape[:2])
        return f"{shape[0]}x{shape[1]} channels have no rank above {self.rank}" if small else ""


@dataclass(frozen=True)
class PlusLowRank(Rebuilt):
    """The sum of a weight with a pattern of zeros and a product of rank `rank`, as two branches (branches).

    With a flat block butterfly as the pattern it is that of Chen et al., "Pixelated Butterfly" (ICLR 2022).
    """

    sparse: Pattern
    rank: int

    def __post_init__(self) -> None:
        if not (self.sparse.only_zeros and self.sparse.imposable) or str(self.sparse) == "dense":
            raise ModelError(f"pattern {self}: {self.sparse} is no pattern of zeros that a low rank could stand beside")

    def __str__(self) -> str:
        return f"{self.sparse} + {self.low_rank}"

    @property
    def low_rank(self) -> LowRank:
        """The other branch."""
        return LowRank(self.rank)

    def refusal(self, shape: tuple[int, ...]) -> str:
        """What either branch needs."""
        return self.low_rank.refusal(shape) or self.sparse.refusal(shape)
