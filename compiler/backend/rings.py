"""On-chip buffers: space for chunks, given out round and round so that the next chunk seldom waits for the last."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Optional

__all__ = ["Chunk", "Load", "Region", "Ring"]

Region = tuple[str, int, int, int, int]
"""(tensor, image, block, first pixel, last pixel + 1), pixels counted through the padded plane."""


@dataclass
class Load:
    """A LOAD that fills a chunk or a part of it. fields : its destination counts from the chunk's base.

    reads : what it reads of tensors.
    after : index of the last item whose STORE it reads; -1 when it reads constants or inputs of the stage.
    """

    fields: dict[str, int]
    reads: tuple[Region, ...] = ()
    after: int = -1


@dataclass(eq=False)
class Chunk:
    """Something that will stand in a buffer from its first use to its last.

    ring : which buffer.  size, align : in the ring's units.
    loads : the LOADs that fill it.  issued : how many of them have been emitted, in order.
    per_unit : ring units of one unit of a LOAD's destination.
    whole : a reservation this chunk is a part of, at `within`; the reservation is placed with its first part.
    high : it stands at the end of the buffer, apart from what comes and goes below.
    below : it must not reach beyond; what will stand high later finds its place free.
    """

    ring: str
    size: int
    align: int
    loads: list[Load]
    per_unit: int = 1
    last_use: int = -1
    base: int = -1
    issued: int = 0
    ready: float = 0.0
    """About when its LOADs will have ended, in cycles."""
    whole: Optional["Chunk"] = None
    within: int = 0
    high: bool = False
    below: int = 1 << 62

    @property
    def placed(self) -> bool:
        """It has its place."""
        return self.base >= 0

    @property
    def complete(self) -> bool:
        """It has its place and all its LOADs have been emitted."""
        return self.base >= 0 and self.issued == len(self.loads)

    @property
    def constant(self) -> bool:
        """It reads no tensor."""
        return not any(load.reads for load in self.loads)


@dataclass
class Ring:
    """A buffer of `capacity` units: first fit behind the chunk placed last, then from the beginning.

    partition : units of a physical cut, whose write port belongs to one unit of the machine at a time. DRAINs fill high
    chunks and LOADs all others, so others that fit elsewhere keep out of the partitions of high ones.
    to_end : the last chunk before the buffer's end stands at its end. Of chunks that take almost half the buffer, each
    a little larger or smaller than the one before, two then always fit.
    """

    capacity: int
    partition: int = 1
    to_end: bool = False
    _live: list[Chunk] = field(default_factory=list)
    _cursor: int = 0

    def place(self, chunk: Chunk) -> bool:
        """Give the chunk a place; False when there is no room. A part places its reservation first."""
        if chunk.whole is not None:
            if not chunk.whole.placed and not self.place(chunk.whole):
                return False
            chunk.base = chunk.whole.base + chunk.within
            return True
        self._live.sort(key=lambda c: c.base)
        bases = [c.base for c in self._live]
        last = (self.capacity - chunk.size) // chunk.align * chunk.align
        for start in [last] if chunk.high else self._low(chunk):
            end = start + chunk.size
            k = bisect_right(bases, start)  # chunks do not overlap: only both neighbours can be in the way
            free = (k == 0 or self._live[k - 1].base + self._live[k - 1].size <= start) and end <= (
                bases[k] if k < len(bases) else self.capacity
            )
            if free:
                at_end = self.to_end and k == len(bases) and end + chunk.size > self.capacity
                chunk.base = last if at_end else start
                self._cursor = self._cursor if chunk.high else chunk.base + chunk.size
                self._live.append(chunk)
                return True
        return False

    def _low(self, chunk: Chunk) -> list[int]:
        """Places to try: the cursor and the ends of live chunks from there on, then the beginning and the rest."""
        ends = [0, self._cursor, *(c.base + c.size for c in self._live)]
        floor = min((c.base for c in self._live if c.high), default=self.capacity) // self.partition * self.partition
        most = min(chunk.below, floor) if chunk.size <= floor else chunk.below
        starts = sorted(s for s in {-(-e // chunk.align) * chunk.align for e in ends} if s + chunk.size <= most)
        return [s for s in starts if s >= self._cursor] + [s for s in starts if s < self._cursor]

    def release(self, done: int) -> None:
        """Forget the chunks that no item after `done` needs."""
        self._live = [c for c in self._live if c.last_use > done]
