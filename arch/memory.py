"""The memory contract: one definition, run by the simulator and by the testbench memory.

Three ports share nothing: instruction fetch (read), data read, data write. Each keeps its own order.

A master splits a row of contiguous beats into INCR bursts: a burst ends with its row, at `burst_beats`, or at a
4 KiB boundary (AXI4, A3.4.1), whichever comes first.

Reads. A burst whose address is accepted in cycle a has its first beat in cycle
    first = max(a + read_latency, last beat of the burst before + beat_interval + burst_gap)
and beat j in first + j * beat_interval. The master takes every beat at once.

Writes. The memory takes beat j of a burst in first + j * beat_interval, where
    first = max(data ready, last beat of the burst before + beat_interval + burst_gap)
and responds in last + write_latency.

The memory accepts every address in the cycle it is offered; LOAD keeps at most `outstanding_reads` and STORE at
most `outstanding_writes` bursts in flight, FETCH the two it has a buffer for.

Any other memory is recorded, burst by burst, and replayed (see Trace).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.jit import jit

__all__ = ["BOUNDARY", "Trace", "burst_length", "first_beat"]

BOUNDARY = 4096
"""Bytes that no burst crosses."""


@jit
def burst_length(address: int, remaining: int, beat_bytes: int, longest: int) -> int:
    """Beats of the next burst of a row: address in beats, remaining beats of the row."""
    to_boundary = (BOUNDARY - address * beat_bytes % BOUNDARY) // beat_bytes
    return min(remaining, longest, to_boundary)


@jit
def first_beat(ready: int, previous_last: int, interval: int, gap: int) -> int:
    """Cycle of a burst's first beat: `ready` is accepted + read_latency, or the cycle the data is there."""
    return max(ready, previous_last + interval + gap)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What a memory outside the contract did, burst by burst in order: cycles, int64.

    fetch, read : [bursts, 3] = address accepted, first beat, last beat.
    write : [bursts, 4] = address accepted, first beat, last beat, response.
    fetch_beats : cycle of every fetch beat, in order, since instructions are dispatched as they come.
    """

    fetch: NDArray[np.int64]
    fetch_beats: NDArray[np.int64]
    read: NDArray[np.int64]
    write: NDArray[np.int64]
