"""What tests of prepared layers have in common: activation codes, and a layer with everything behind its sums."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch import numerics
from gossamer.arch.numerics import Requant
from gossamer.kernels import Layer, Weight, prepare


def codes(rng: np.random.Generator, shape: tuple[int, ...], signed: bool, extreme: bool = False) -> NDArray[Any]:
    """Random activation codes, or only the smallest and the largest."""
    low, high = (-128, 127) if signed else (0, 255)
    values = rng.choice([low, high], shape) if extreme else rng.integers(low, high + 1, shape)
    return values.astype(np.int8 if signed else np.uint8)


def check_form(
    rng: np.random.Generator,
    form: str,
    weight: Weight,
    x: NDArray[np.uint8],
    sums: NDArray[np.int64],
    q: Requant,
    **features: Any,
) -> Layer:
    """A layer that requantises against arch.numerics; sums : of x less the zero point 3.

    form : of the arithmetic, with "residual" and "table" if there are any; float64 and int64 need larger biases.
    """
    (count, n), signed = sums.shape, "table" in form
    bias = rng.integers(-5000, 5000, n).astype(np.int32)
    if form != "float32":
        bias[:10] = 2**25
    if form.startswith("int64"):
        bias[10:20] = rng.choice([-(2**31), 2**31 - 1], 10)
    residual = table = None
    if "residual" in form:
        q = replace(q, residual_multiplier=65535, residual_shift=9, residual_zero_point=2)
        residual = codes(rng, (count, n), signed)
    if "table" in form:
        table = codes(rng, (256,), signed)
    layer = prepare(
        weight,
        zero_point=3,
        bias=bias,
        requant=q,
        result="int8" if signed else "uint8",
        residual=None if residual is None else residual.dtype.name,  # type: ignore[arg-type]
        table=table,
        **features,
    )
    out = layer(x, residual=residual)
    assert out.dtype == (np.int8 if signed else np.uint8)
    assert np.array_equal(out, numerics.requantise(sums.astype(np.int32), bias, q, residual, table))
    return layer
