"""The vector operations equal plain integers, in the processor's own form and in the portable one."""

import os
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from gossamer.kernels.intrinsics import look, multiply, row_starts, settle, start, store
from gossamer.kernels.vectors import ALIGNMENT, aligned_empty, cpu_features

compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="there is no vector in plain Python")
MODES = [pytest.param(None, id="native"), pytest.param((), id="portable")]


@njit
def dense_step(x: Any, w: Any, first: Any, out: Any, columns: int, mode: Any) -> None:
    starts = row_starts((0, 0, 0), None, 0, x.shape[1])
    acc = start(starts, (0, 0), (0,), None, first, 0)
    acc = multiply(acc, (0, 0), (0,), None, x, look(x, starts, 0, None), 1, w, 0, mode)
    store(acc, starts, out, 0, out.shape[1], columns)


@njit
def pair_step(x: Any, w: Any, first: Any, out: Any, mode: Any) -> None:
    starts = row_starts((0, 0), None, 0, x.shape[1])
    acc = start(starts, (0, 0), (0, 0), None, first, 0)
    acc = multiply(acc, (0, 0), (0, 0), None, x, look(x, starts, 8, None), 0, w, 0, mode)
    store(settle(acc, (0, 0), None), starts, out, 0, out.shape[1], 16)


@njit
def select_step(x: Any, begins: Any, w: Any, first: Any, out: Any, mode: Any) -> None:
    starts = row_starts((0, 0), begins, 0, 0)
    acc = start(starts, (0, 0), (0,), (), first, 0)
    acc = multiply(acc, (0, 0), (0,), (), x, look(x, starts, 0, ()), 0, w, 0, mode)
    store(acc, starts, out, 0, out.shape[1], 32)


@njit
def shared_step(x: Any, w: Any, first: Any, out: Any, mode: Any) -> None:
    starts = row_starts((0, 0), None, 0, x.shape[1])
    acc = start(starts, (0,), (0, 0, 0, 0), (), first, 1)
    acc = multiply(acc, (0,), (0, 0, 0, 0), (), x, look(x, starts, 0, ()), 0, w, 1, mode)
    store(settle(acc, (0, 0, 0, 0), ()), starts, out, 0, out.shape[1], 64)


def filled(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, extreme: bool) -> NDArray[Any]:
    bounds = np.iinfo(dtype)
    array = aligned_empty(shape, dtype)
    array[...] = rng.choice([bounds.min, bounds.max], shape) if extreme else rng.integers(bounds.min, bounds.max, shape)
    return array


@compiled
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 32, 40])
def test_dense_step(mode: Any, extreme: bool, columns: int) -> None:
    """Three rows by two vectors; sums wrap, and columns beyond the last keep what they held."""
    rng = np.random.default_rng(3)
    x, w = filled(rng, (3, 8), np.uint8, extreme), filled(rng, (2, 16, 4), np.int8, extreme)
    first = filled(rng, (32,), np.int32, extreme)
    out = np.full((3, 32), 7, dtype=np.int32)
    dense_step(x, w, first, out, columns, mode)
    total = first + x[:, 4:].astype(np.int64) @ w.reshape(32, 4).T.astype(np.int64)
    expected = total.astype(np.int32)
    expected[:, columns:] = 7
    assert np.array_equal(out, expected)


@compiled
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extreme", [False, True])
def test_select_step(mode: Any, extreme: bool) -> None:
    """Of rows that begin where an array says."""
    rng = np.random.default_rng(4)
    x, values = filled(rng, (2, 64), np.uint8, extreme), filled(rng, (2, 16, 4), np.int8, extreme)
    index = rng.integers(0, 64, (2, 16, 4))
    w = aligned_empty((2, 2, 16, 4), np.int8)
    w[:, 0], w[:, 1] = index, values
    out = np.zeros((2, 32), dtype=np.int32)
    select_step(x, np.array([64, 0]), w, np.zeros(32, dtype=np.int32), out, mode)
    assert np.array_equal(out, (x[::-1, index].astype(np.int64) * values).sum(3).reshape(2, 32))


@compiled
@pytest.mark.parametrize("mode", MODES)
def test_pair_step(mode: Any) -> None:
    """Vector v holds, in lanes 4 * q + 2 * o + d, output 4 * q + 2 * v + o and dword d; the others begin at 0."""
    rng = np.random.default_rng(5)
    x, dense = filled(rng, (2, 16), np.uint8, False), filled(rng, (16, 8), np.int8, False)
    w = aligned_empty((2, 16, 4), np.int8)
    w[...] = dense.reshape(4, 2, 2, 2, 4).transpose(1, 0, 2, 3, 4).reshape(2, 16, 4)
    out = np.zeros((2, 16), dtype=np.int32)
    pair_step(x, w, np.zeros(32, np.int32), out, mode)
    assert np.array_equal(out, x[:, 8:].astype(np.int64) @ dense.T)


@compiled
@pytest.mark.parametrize("mode", MODES)
def test_shared_step(mode: Any) -> None:
    """Lane l of vector o is output 16 * (l % 4) + 4 * (l // 4) + o; the second step and group of several."""
    rng = np.random.default_rng(6)
    x, values = filled(rng, (2, 64), np.uint8, False), filled(rng, (4, 16, 4), np.int8, False)
    index, first = rng.integers(0, 64, (16, 4)), filled(rng, (128,), np.int32, False)
    w = aligned_empty((10, 16, 4), np.int8)
    w[5], w[6:] = index, values
    out = np.zeros((2, 64), dtype=np.int32)
    shared_step(x, w, first, out, mode)
    sums = (x[:, None, index].astype(np.int64) * values).sum(3) + first[64:].reshape(4, 16)
    lane = np.arange(16)
    expected = np.empty((2, 64), np.int64)
    for o in range(4):
        expected[:, 16 * (lane % 4) + 4 * (lane // 4) + o] = sums[:, o]
    assert np.array_equal(out, expected.astype(np.int32))


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (7, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_aligned(shape: tuple[int, ...], dtype: Any) -> None:
    array = aligned_empty(shape, dtype)
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.ctypes.data % ALIGNMENT == 0 or array.size == 0


def test_features_are_names() -> None:
    assert all(name and name[0] not in "+-" for name in cpu_features())
