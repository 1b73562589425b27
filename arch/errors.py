"""The one family of errors: everything Gossamer refuses, it refuses with one of these.

A message names the field, the value found and what is legal; `assert` is kept for what cannot happen.
"""

__all__ = ["CapacityError", "GossamerError", "ModelError", "ProgramError", "SimulationError", "SpecError", "reason"]


class GossamerError(Exception):
    """Root of every error a user can cause."""


class SpecError(GossamerError, ValueError):
    """An architecture spec (or its TOML file) is not legal."""


class ModelError(GossamerError, ValueError):
    """A network (its file, weights, shapes or inputs) cannot be used."""


class CapacityError(GossamerError):
    """A layer does not fit the buffers of this spec in any tiling."""


class ProgramError(GossamerError, ValueError):
    """A Program file or its instructions are corrupt or illegal."""


class SimulationError(GossamerError, RuntimeError):
    """A Program that cannot be run: it would deadlock, overflow, or read what nobody wrote."""


def reason(error: Exception) -> str:
    """What is wrong with a file whose name the message has already."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
