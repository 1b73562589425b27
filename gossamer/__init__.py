"""Gossamer: hardware/simulator co-design for sparse accelerators.

>>> import gossamer
>>> gossamer.ArchSpec.load("tiny").pes
16

Rooms are imported when they are used, so that `import gossamer` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.api import compile, simulate
    from gossamer.arch.errors import GossamerError
    from gossamer.arch.program import Program
    from gossamer.arch.run import Run
    from gossamer.arch.spec import ArchSpec
    from gossamer.explanation import explain
    from gossamer.verification import verify

__version__ = "0.1.0"

__all__ = ["ArchSpec", "GossamerError", "Program", "Run", "compile", "explain", "simulate", "verify"]

_HOME = {
    "compile": "gossamer.api",
    "explain": "gossamer.explanation",
    "simulate": "gossamer.api",
    "ArchSpec": "gossamer.arch.spec",
    "GossamerError": "gossamer.arch.errors",
    "Program": "gossamer.arch.program",
    "Run": "gossamer.arch.run",
    "verify": "gossamer.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gossamer' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
