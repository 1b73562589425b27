"""The static checker: what a Program must satisfy before it is run."""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.program import Program

__all__ = ["check_fields", "check_program"]


def check_fields(program: Program, dram: NDArray[np.uint8]) -> None:
    """Fields and ranges."""


def check_program(program: Program, dram: NDArray[np.uint8]) -> None:
    """Everything."""
    check_fields(program, dram)
