"""The step-stream kernel equals the definition of a step, MAC by MAC."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gossamer.arch.errors import GossamerError, ModelError, ProgramError
from gossamer.arch.numerics import ACC_MIN
from gossamer.arch.packing import pack
from gossamer.arch.spec import ArchSpec
from gossamer.kernels import stream_matmul


def oracle(case: dict[str, Any]) -> NDArray[np.int64]:
    """Every MAC of every step in int64, one after the other."""
    bank, m = case["bank"].astype(np.int64), case["group"]
    acc: NDArray[np.int64] = case["acc"].astype(np.int64)
    if not case["accumulate"]:
        acc[:] = ACC_MIN if case["maximum"] else 0
    steps, columns, macs = case["values"].shape
    for s in range(steps):
        first = int(case["offsets"][s]) * case["hop"]
        for c in range(columns):
            for v in range(macs):
                w = int(case["values"][s, c, v])
                if w == 0:
                    continue
                element = next(e for e in range(first, first + m) if e % m == case["selects"][s, c, v])
                for t, position in enumerate(case["positions"]):
                    product = w * (bank[:, element + position] - case["zero_point"])
                    acc[:, t, c] = np.maximum(acc[:, t, c], product) if case["maximum"] else acc[:, t, c] + product
    return acc


def make(seed: int, **sizes: Any) -> dict[str, Any]:
    """Arguments of stream_matmul with random contents; a step reads up to the very end of the bank."""
    rng = np.random.default_rng(seed)
    lanes, depth, columns, macs, steps = (sizes[k] for k in ("lanes", "depth", "columns", "macs", "steps"))
    group, hop, signed = sizes["group"], sizes["hop"], sizes["signed"]
    positions = rng.integers(0, 5, depth) * group
    offsets = rng.integers(0, 12, steps)
    length = int(offsets.max(initial=0)) * hop + group + int(positions.max(initial=0))
    low, high = (-128, 127) if signed else (0, 255)
    bank = (
        rng.choice([low, high], (lanes, length)) if sizes["extreme"] else rng.integers(low, high + 1, (lanes, length))
    )
    values = (
        rng.choice([-128, 127], (steps, columns, macs))
        if sizes["extreme"]
        else rng.integers(-9, 10, (steps, columns, macs))
    )
    return {
        "bank": bank.astype(np.int8 if signed else np.uint8),
        "offsets": offsets,
        "values": np.where(rng.random(values.shape) < sizes["density"], values, 0).astype(np.int8),
        "selects": rng.integers(0, group, values.shape).astype(np.uint8),
        "positions": positions,
        "acc": rng.integers(-(2**20), 2**20, (lanes, depth, columns)).astype(np.int32),
        "hop": hop,
        "group": group,
        "zero_point": sizes["zero"] - 128 * signed,
        "accumulate": sizes["accumulate"],
        "maximum": sizes["maximum"],
    }


def check(case: dict[str, Any]) -> None:
    expected = oracle(case)
    stream_matmul(**case)
    assert np.array_equal(case["acc"], expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    lanes=st.integers(1, 9),
    depth=st.integers(0, 9),
    columns=st.integers(1, 5),
    macs=st.integers(1, 4),
    steps=st.integers(0, 9),
    group_log=st.integers(0, 5),
    hop_log=st.integers(0, 5),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    zero=st.sampled_from([0, 128, 255]),
    signed=st.booleans(),
    extreme=st.booleans(),
    accumulate=st.booleans(),
    maximum=st.booleans(),
)
def test_streams(seed: int, group_log: int, hop_log: int, **sizes: Any) -> None:
    check(make(seed, group=1 << group_log, hop=1 << min(hop_log, group_log), **sizes))


SMALL = {
    "columns": 3,
    "macs": 2,
    "group": 4,
    "density": 0.8,
    "zero": 128,
    "extreme": True,
    "accumulate": True,
}


def test_small_streams() -> None:
    for maximum in (False, True):
        for hop, lanes in ((1, 1), (4, 3)):
            check(make(7, depth=2, steps=4, hop=hop, lanes=lanes, signed=maximum, maximum=maximum, **SMALL))


@pytest.mark.parametrize("lanes", [1, 31, 255, 256, 300])
def test_rows_of_every_length(lanes: int) -> None:
    """Positions are worked on in blocks whose size depends on the lanes."""
    check(make(3, lanes=lanes, depth=19, steps=5, hop=2, signed=False, maximum=False, **SMALL))


def test_accumulators_may_be_a_strided_view() -> None:
    case = make(5, lanes=4, depth=3, steps=6, hop=2, signed=True, maximum=False, **SMALL)
    whole = np.full((4, 10, 3), 77, dtype=np.int32)
    whole[:, 2:8:2] = case["acc"]
    case["acc"] = whole[:, 2:8:2]
    check(case)
    assert np.all(whole[:, [0, 1, 3, 5, 7, 8, 9]] == 77)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint64])
def test_addresses_of_any_integer_type(dtype: type[np.integer]) -> None:
    case = make(8, lanes=2, depth=3, steps=4, hop=2, signed=False, maximum=False, **SMALL)
    case |= {"offsets": case["offsets"].astype(dtype), "positions": case["positions"].astype(dtype)}
    check(case)


def test_read_only_streams() -> None:
    case = make(6, lanes=2, depth=3, steps=4, hop=2, signed=False, maximum=False, **SMALL)
    for name in ("bank", "offsets", "values", "selects", "positions"):
        case[name].flags.writeable = False
    check(case)


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(1, 60))
def test_packed_streams_are_matrix_products(seed: int, hop_log: int, k: int) -> None:
    """A packed weight, run at positions, is the product with the elements at those positions."""
    rng = np.random.default_rng(seed)
    spec = ArchSpec(lanes=4, columns=8, group=16, macs=2, hop=1 << hop_log)
    addresses = np.sort(rng.choice(100, k, replace=False))
    weights = np.where(rng.random((k, 8)) < 0.4, rng.integers(-128, 128, (k, 8)), 0).astype(np.int8)
    stream = pack(addresses, weights, spec)
    positions = np.array([0, 32, 16])
    bank = rng.integers(0, 256, (4, 160)).astype(np.uint8)
    acc = np.empty((4, 3, 8), dtype=np.int32)
    stream_matmul(
        bank,
        stream.offsets,
        stream.values,
        stream.selects,
        positions,
        acc,
        hop=spec.hop,
        group=spec.group,
        zero_point=100,
    )
    operands = bank.astype(np.int64)[:, positions[:, None] + addresses] - 100
    assert np.array_equal(acc, operands @ weights.astype(np.int64))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"offsets": np.array([12, 0])}, ProgramError, r"^the stream must read within the bank's 16 elements, not"),
        ({"positions": np.array([0, 12])}, ProgramError, r"^the stream must read within the bank's 16 elements, not"),
        (
            {"offsets": np.array([3, 0]), "selects": np.zeros((2, 3, 1), np.uint8)},
            ProgramError,
            r"^the stream must read within the bank's 16 elements, not element 16$",
        ),
        ({"offsets": np.array([-1, 0])}, ProgramError, r"^offsets must be at least 0, not -1$"),
        ({"positions": np.array([0, 3])}, ProgramError, r"^positions must be multiples of group \(4\) .*, not 3$"),
        ({"positions": np.array([0, -4])}, ProgramError, r"^positions must be multiples of group \(4\) .*, not -4$"),
        ({"selects": np.full((2, 3, 1), 4, np.uint8)}, ProgramError, r"^selects must be below group \(4\), not 4$"),
        ({"selects": np.zeros((2, 3, 2), np.uint8)}, ModelError, r"^selects must have the shape of values \(2, 3, 1\)"),
        ({"offsets": np.array([0])}, ModelError, r"^offsets must have 2 entries, one a step, not 1$"),
        ({"offsets": np.array([0.0, 1.0])}, ModelError, r"^offsets must be an ndarray of integers with 1 dimension"),
        (
            {"acc": np.zeros((5, 2, 4), np.int32)},
            ModelError,
            r"^acc must have shape .* = \(5, 2, 3\), not \(5, 2, 4\)$",
        ),
        ({"acc": np.zeros((5, 2, 3), np.int64)}, ModelError, r"^acc must be an ndarray of int32 with 3 dim"),
        ({"group": 6}, ModelError, r"^group must be a power of two, not 6$"),
        ({"hop": 8}, ModelError, r"^hop must be an integer from 1 to 4, not 8$"),
        ({"zero_point": 256}, ModelError, r"^zero_point must be an integer from 0 to 255, not 256$"),
    ],
)
def test_refusals(change: dict[str, Any], kind: type[GossamerError], message: str) -> None:
    case: dict[str, Any] = {
        "bank": np.zeros((5, 16), np.uint8),
        "offsets": np.array([0, 1]),
        "values": np.ones((2, 3, 1), np.int8),
        "selects": np.full((2, 3, 1), 3, np.uint8),
        "positions": np.array([0, 4]),
        "acc": np.zeros((5, 2, 3), np.int32),
        "hop": 4,
        "group": 4,
    }
    stream_matmul(**case)
    with pytest.raises(kind, match=message):
        stream_matmul(**(case | change))
