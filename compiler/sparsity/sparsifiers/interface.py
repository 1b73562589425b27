"""The one interface of all sparsifiers, and their table."""

from typing import Protocol

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.patterns import Array, Pattern
from gossamer.compiler.sparsity.sparsifiers.magnitude import Magnitude
from gossamer.compiler.sparsity.sparsifiers.moments import Moments
from gossamer.compiler.sparsity.sparsifiers.sparsegpt import SparseGPT
from gossamer.compiler.sparsity.sparsifiers.wanda import Wanda

__all__ = ["SPARSIFIERS", "Sparsifier", "sparsifier"]


class Sparsifier(Protocol):
    """Makes zeros in a weight. What a user brings instead of the ones below only has to look like this."""

    @property
    def name(self) -> str:
        """For reports."""

    @property
    def needs_inputs(self) -> bool:
        """Whether it is called with the moments of the layer's inputs."""

    def __call__(self, weight: Array, pattern: Pattern, moments: Moments | None) -> Array:
        """The weight with the pattern: zeros where it asks for them, and maybe other values elsewhere.

        weight : float [out_channels, in_channels / groups, *kernel].  moments : of its inputs, None when not needed.
        """


SPARSIFIERS: dict[str, Sparsifier] = {s.name: s for s in (Magnitude(), Wanda(), SparseGPT())}
"""Sparsifiers by name."""


def sparsifier(wanted: str | Sparsifier) -> Sparsifier:
    """The sparsifier of that name. Raises ModelError."""
    if not isinstance(wanted, str):
        return wanted
    if wanted not in SPARSIFIERS:
        raise ModelError(f"sparsifier must be one of {', '.join(SPARSIFIERS)}, not {wanted!r}")
    return SPARSIFIERS[wanted]
