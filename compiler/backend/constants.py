"""The constant part of DRAM: weight records, offsets, parameters and tables, each whole beats, equal ones once."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.program import Segment

__all__ = ["ConstantPool"]


@dataclass
class ConstantPool:
    """Grows upwards from `base` (a byte address, whole beats)."""

    base: int
    beat: int
    _parts: list[NDArray[np.uint8]] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)
    _size: int = 0

    def add(self, data: NDArray[np.uint8]) -> int:
        """Place bytes (padded to whole beats) and return their beat address."""
        key = data.tobytes()
        if key not in self._known:
            spare = -data.size % self.beat
            padded = np.concatenate([data, np.zeros(spare, dtype=np.uint8)]) if spare else data
            self._known[key] = (self.base + self._size) // self.beat
            self._parts.append(padded)
            self._size += padded.size
        return self._known[key]

    @property
    def end(self) -> int:
        """First byte behind everything placed."""
        return self.base + self._size

    def segment(self) -> Segment:
        """Everything placed, as one segment of the image."""
        data = np.concatenate(self._parts) if self._parts else np.empty(0, dtype=np.uint8)
        return Segment(address=self.base, data=data)
