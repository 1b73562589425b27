"""How the benchmarks of kernels measure: on one thread of one core, in turns, by CPU time, and against the peak."""

import os
import sys
import time
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from opponents import Call, aligned

from gossamer.kernels import float_vectors as fv
from gossamer.kernels.choose import usable_features
from gossamer.kernels.intrinsics import multiply, start, store
from gossamer.kernels.vectors import aligned_empty

__all__ = ["measure", "peaks", "pin"]

TURNS = 100_000
_THREADS = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_CAPS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def pin(core: int) -> None:
    """Stay on one core, with one thread for everybody. Libraries read that when they are loaded: it starts anew."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    if any(name in os.environ for name in _CAPS) or not _THREADS.items() <= os.environ.items():
        for name in _CAPS:
            os.environ.pop(name, None)  # a capped BLAS is no opponent
        os.environ |= _THREADS
        os.execv(sys.executable, [sys.executable, *sys.argv])


@njit
def _dot_peak(x: Any, w: Any, first: Any, out: Any) -> None:
    """Dot products on registers alone: 16 accumulators, operands that never change."""
    starts, width = (0, 4, 8, 12), (0, 0, 0, 0)
    acc = start(starts, width, (0,), None, first, 0)
    for _ in range(TURNS):
        acc = multiply(acc, width, (0,), None, x, starts, 0, w, 0, None)
    store(acc, starts, out, 0, 64, 64)


@njit
def _fma_peak(x: Any, inputs: Any, weights: Any, lines: Any, out: Any, lanes: Any) -> None:
    """The same with fused multiply-adds of float32."""
    acc = fv.zeros(lanes, (0, 0, 0, 0), (0, 0, 0, 0))
    for _ in range(TURNS):
        acc = fv.mac(acc, (), (0, 0, 0, 0), (0, 0, 0, 0), x, 0, inputs, weights, 0)
    fv.store_lines(acc, (0, 0, 0, 0), (0, 0, 0, 0), out, lines, 0)


def peaks() -> tuple[dict[str, Call], dict[str, float]]:
    """Loops that do nothing but multiply, and the operations in each."""
    lanes = 16 if "avx512f" in usable_features() else 8 if "avx" in usable_features() else 4
    bytes_ = (aligned_empty((256,), np.uint8), aligned_empty((256,), np.int8), np.zeros(64, np.int32))
    sums = np.empty((4, 64), np.int32)
    lines = np.arange(4, dtype=np.uint32)
    floats = (aligned(np.ones(4 * lanes, np.float32)), np.zeros(1, np.uint16), np.zeros(4, np.float32), lines)
    acc = aligned_empty((16 * lanes,), np.float32)
    calls: dict[str, Call] = {
        "dot peak": lambda: _dot_peak(*bytes_, sums),
        "FMA peak": lambda: _fma_peak(*floats, acc, (0,) * lanes),
    }
    return calls, {"dot peak": TURNS * 16 * 128.0, "FMA peak": TURNS * 16 * 2.0 * lanes}


def clock(call: Call, least: float) -> float:
    """Seconds of this thread's CPU for one call, over enough calls to fill `least` seconds.

    The clock is read once for twice as many calls as before: reading it takes a microsecond, as some calls do.
    """
    calls, spent = 1, 0.0
    while spent < least:
        begin = time.thread_time()
        for _ in range(calls):
            call()
        spent = time.thread_time() - begin
        calls *= 2
    return spent / (calls // 2)


def measure(calls: dict[str, Call], rounds: int, least: float) -> dict[str, NDArray[np.float64]]:
    """Seconds of every call in every round; the first, uncounted round compiles and warms up."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(clock(call, least))
    return {name: np.array(seconds) for name, seconds in times.items()}
