"""Gradual pruning, for whoever trains: how much to prune at each step of training.

Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression" (2017), equation 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.patterns import Pattern

__all__ = ["Cubic"]


@dataclass(frozen=True, kw_only=True)
class Cubic:
    """s(t) = final + (initial - final) (1 - (t - begin) / (end - begin))³ between the steps begin and end.

    Much is pruned early, while the network has redundancy to spare, and little late. Shares are of zeros, 0 to 1.
    every : steps between two prunings.
    """

    begin: int
    end: int
    final: float
    initial: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.begin < self.end and self.every >= 1):
            raise ModelError(
                f"schedule: needs 0 <= begin < end and every >= 1, not begin = {self.begin}, end = {self.end}, "
                f"every = {self.every}"
            )
        if not 0.0 <= self.initial <= self.final <= 1.0:
            raise ModelError(
                f"schedule: needs 0 <= initial <= final <= 1, not initial = {self.initial}, final = {self.final}"
            )

    def share(self, step: int) -> float:
        """The share of zeros at a step of training."""
        left = 1.0 - (min(max(step, self.begin), self.end) - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * left**3

    def patterns(self, pattern: Pattern) -> Iterator[tuple[int, Pattern]]:
        """(step, what to impose then) for every step at which the pattern changes, up to the final share.

        pattern : gives the family; N:M goes down from N = M. Raises ModelError for a family without a choice.
        """
        last: Pattern | None = None
        steps = [*range(self.begin, self.end, self.every), self.end]
        for step in steps:
            found = pattern.with_zeros(self.share(step))
            if found != last:
                yield step, found
            last = found
