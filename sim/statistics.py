"""What only a model can count."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.program import Program
from gossamer.arch.run import StageRun

__all__ = ["statistics"]


def statistics(program: Program, stages: Sequence[StageRun], dram: NDArray[np.uint8]) -> Mapping[str, float]:
    """Statistics of a run."""
    return {}
