"""The int8 kernel on lines gives the plain int64 product and its requantisation, in every mode, and is what it says."""

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.layers import check_form, codes

from gossamer.arch.numerics import Requant
from gossamer.kernels import BSR, layer, prepare
from gossamer.kernels.choose import usable_features
from gossamer.kernels.line_groups import lay_out_groups
from gossamer.kernels.line_kernels import run_tiles
from gossamer.kernels.on_lines import OnLines, suits_lines

compiled = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="vectors exist in compiled code")
wanted = pytest.mark.skipif(not {"avx512vnni", "avx512vbmi"} <= usable_features(), reason="layers take lines elsewhere")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines for small weights too."""
    monkeypatch.setattr(layer, "suits_lines", lambda shape, density: shape[0] % 64 == 0 and shape[1] >= 64)


def sparse(rng: np.random.Generator, n: int, k: int, density: float, extreme: bool = False) -> NDArray[np.int8]:
    """Four outputs share their inputs; a group or two have none, another has them all."""
    kept = rng.random((n // 4, k)) < density
    kept[0], kept[-1], kept[n // 8] = False, False, True
    dense: NDArray[np.int8] = np.where(kept.repeat(4, axis=0), codes(rng, (n, k), True, extreme), 0).astype(np.int8)
    return dense


def product(x: NDArray[Any], zero_point: int, dense: NDArray[np.int8]) -> NDArray[np.int64]:
    total: NDArray[np.int64] = (x.astype(np.int64) - zero_point) @ dense.astype(np.int64).T
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 90), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_groups_hold_the_weight(seed: int, groups: int, k: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((groups * 4, k)) < density, codes(rng, (groups * 4, k), True), 0).astype(np.int8)
    made = lay_out_groups(dense)
    rebuilt = np.zeros((groups * 4, k), np.int64)
    for group in range(groups):
        for step in range(made.pointers[group], made.pointers[group + 1]):
            for i, line in enumerate(made.inputs[4 * step : 4 * step + 4]):
                rebuilt[4 * group : 4 * group + 4, line // 64] += made.weights.reshape(-1, 4, 4)[step, :, i]
    assert np.array_equal(rebuilt, dense)


@compiled
@pytest.mark.parametrize("mode", [pytest.param(None, id="native"), pytest.param((), id="portable")])
@given(data=st.data())
@settings(deadline=None)
def test_sums(mode: Any, data: st.DataObject) -> None:
    """Rows and inputs that leave a part of a tile over; more and fewer steps than sums are written apart by."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, k = data.draw(st.integers(64, 200)), data.draw(st.integers(64, 200))
    n, extreme = data.draw(st.sampled_from([64, 128, 192])), data.draw(st.booleans())
    dense = sparse(rng, n, k, data.draw(st.sampled_from([0.0, 0.1, 0.4])), extreme)
    x, first = codes(rng, (rows, k), False, extreme), rng.integers(-(2**31), 2**31, n).astype(np.int32)
    made, out = lay_out_groups(dense), np.full((rows, n), 77, np.int32)
    run_tiles(x, out, out, None, (made.pointers, made.inputs, made.weights, first), None, mode)
    assert np.array_equal(out, (product(x, 0, dense) + first).astype(np.int32))


@compiled
@wanted
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 100, 126, 128, 130])
def test_layers(rows: int, signed: bool) -> None:
    """Whichever layout a call takes."""
    rng = np.random.default_rng(rows)
    dense, x = sparse(rng, 128, 133, 0.2, True), codes(rng, (rows, 133), signed, True)
    bias = rng.integers(-(2**20), 2**20, 128).astype(np.int32)
    made = prepare(
        BSR.from_dense(dense, block=(4, 1)), activation="int8" if signed else "uint8", zero_point=-5 if signed else 250,
        bias=bias,
    )  # fmt: skip
    assert isinstance(made.run, OnLines)
    assert str(made.why).endswith("; rows that fill tiles of 64 are turned into lines instead")
    for _ in range(2):
        assert np.array_equal(made(x), product(x, -5 if signed else 250, dense) + bias)
    every = np.zeros((rows, 266), x.dtype)
    every[:, ::2] = x
    assert np.array_equal(made(every[:, ::2]), made(x))


@compiled
@wanted
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("form", ["float32", "float64", "float64 residual", "int64", "int64 residual table"])
def test_codes(form: str) -> None:
    rng = np.random.default_rng(6)
    count, n, k, signed = 130, 192, 90, "table" in form
    dense, x = sparse(rng, n, k, 0.2), codes(rng, (count, k), False)
    low, high = (-125, 125) if signed else (3, 253)
    q = Requant(multiplier=rng.integers(0, 1 << 20, n), shift=rng.integers(14, 30, n), zero_point=5, lo=low, hi=high)
    weight = BSR.from_dense(dense, block=(4, 1))
    assert isinstance(check_form(rng, form, weight, x, product(x, 3, dense), q).run, OnLines)


@compiled
@wanted
@pytest.mark.slow  # the parallel back end compiles for some seconds
@pytest.mark.usefixtures("always")
def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(7)
    dense = sparse(rng, 128, 100, 0.2)
    for count in (64, 128, 300):
        x = codes(rng, (count, 100), False)
        made = [prepare(BSR.from_dense(dense, block=(4, 1)), threads=threads) for threads in (1, 2, 3)]
        assert all(np.array_equal(one(x), product(x, 0, dense)) for one in made)


@compiled
def test_a_processor_without_dot_products_takes_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_PORTABLE", "1")
    rng = np.random.default_rng(8)
    dense, x = sparse(rng, 768, 700, 0.1), codes(rng, (64, 700), False)
    made = prepare(BSR.from_dense(dense, block=(4, 1)), features=frozenset({"avx512vnni", "avx512vbmi"}))
    assert suits_lines((768, 700), 0.1)
    assert not isinstance(made.run, OnLines)
    assert np.array_equal(made(x), product(x, 0, dense))


@pytest.mark.parametrize(
    ("shape", "density", "expected"),
    [
        ((768, 768), 0.1, True),
        ((768, 768), 0.25, False),
        ((776, 768), 0.1, False),
        ((256, 1024), 0.1, False),
        ((3072, 256), 0.1, False),
    ],
)
def test_suitable_weights(shape: tuple[int, int], density: float, expected: bool) -> None:
    assert suits_lines(shape, density) == expected
