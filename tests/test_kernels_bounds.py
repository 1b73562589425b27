"""The bound on accumulators holds for every input, and is reached."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arch.errors import GossamerError
from gossamer.kernels import BSR, CSR, NM, Dense, max_accumulator


@given(
    weights=st.lists(st.integers(-128, 127), min_size=1, max_size=5),
    bias=st.integers(-400, 400),
    zero=st.sampled_from([0, 1, 128, 255]),
    signed=st.booleans(),
)
def test_bound_is_the_largest_partial_sum(weights: list[int], bias: int, zero: int, signed: bool) -> None:
    """Every operand is absent, smallest or largest; the bias is added first, or last, or never."""
    low, high = (-128, 127) if signed else (0, 255)
    zero_point = zero - 128 * signed
    sums = [
        sum(w * a for w, a in zip(weights, operands, strict=True))
        for operands in product((0, low - zero_point, high - zero_point), repeat=len(weights))
    ]
    largest = max(max(abs(s), abs(s + bias)) for s in sums)
    weight = np.array([weights], dtype=np.int8)
    assert max_accumulator(weight, np.array([bias]), zero_point=zero_point, signed=signed).tolist() == [largest]


def test_without_a_zero_point_all_are_allowed() -> None:
    weight = np.array([[[-128, 0], [127, 1]], [[0, 0], [0, 0]]], dtype=np.int8)
    assert max_accumulator(weight).tolist() == [255 * (128 + 127 + 1), 0]
    assert max_accumulator(weight, np.array([-5, -7], dtype=np.int32)).tolist() == [255 * 256 + 5, 7]


def test_every_format_has_the_same_bound() -> None:
    dense = np.array([[3, 0, -4, 0, 100]], dtype=np.int8)
    formats = (
        Dense.from_dense(dense),
        NM.from_dense(dense, n=2, m=4),
        BSR.from_dense(dense, block=(2, 2)),
        CSR.from_dense(dense),
    )
    lowest = 103 * -128 - 4 * 127  # operands lie in [-128, 127]; 103 and -4 are the weights of either sign
    for weight in formats:
        assert max_accumulator(weight, zero_point=128, signed=False).tolist() == [-lowest]


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (np.ones(3, np.int8), {}, r"^weight must have at least 2 dimensions, not shape \(3,\)$"),
        (np.ones((3, 3), np.int32), {}, r"^weight must be an ndarray of int8, not int32 of shape \(3, 3\)$"),
        (np.ones((3, 3), np.int8), {"bias": np.ones(2, int)}, r"^bias must be an ndarray of integers of shape \(3,\)"),
        (np.ones((3, 3), np.int8), {"zero_point": 200}, r"^zero_point must be an integer from -128 to 127, not 200$"),
    ],
)
def test_refusals(weight: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        max_accumulator(weight, **options)
