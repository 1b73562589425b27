"""The step-stream kernel equals the definition of a step, MAC by MAC."""

import os
import platform
import subprocess
import sys
from pathlib import Path
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
from gossamer.kernels.vectors import cpu_features

ROOT = Path(__file__).resolve().parents[1]


def oracle(case: dict[str, Any]) -> NDArray[np.int32]:
    """Every MAC of every step in int64, one after the other; then what 32 bits keep of it."""
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
    return acc.astype(np.int32)


ENDS = np.array([-(2**31), -(2**31) + 1, 2**31 - 2, 2**31 - 1], dtype=np.int32)
"""From where a sum wraps, and a maximum changes nothing or everything."""


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
        "acc": rng.choice(ENDS, (lanes, depth, columns))
        if sizes["extreme"]
        else rng.integers(-(2**20), 2**20, (lanes, depth, columns)).astype(np.int32),
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
    columns=st.sampled_from([1, 2, 3, 5, 16, 17, 40]),
    macs=st.sampled_from([1, 2, 3, 4, 5, 8, 16]),
    steps=st.integers(0, 9),
    group_log=st.integers(0, 8),
    hop_log=st.integers(0, 8),
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


@pytest.mark.parametrize("lanes", [1, 31, 64, 65, 300])
def test_rows_of_every_length(lanes: int) -> None:
    """Rows are worked on in blocks, and by eights and fours within them."""
    for maximum in (False, True):
        check(make(3, lanes=lanes, depth=3, steps=5, hop=2, signed=False, maximum=maximum, **SMALL))


@pytest.mark.parametrize("macs", [1, 2, 4, 8])
@pytest.mark.parametrize(("group", "hop"), [(1, 1), (2, 1), (8, 8), (32, 8), (64, 64), (256, 128)])
def test_streams_of_many_chunks(macs: int, group: int, hop: int) -> None:
    """More steps than a chunk has room for, of few windows (vectors run out) or of many (lines do)."""
    sizes = {"columns": 5, "macs": macs, "group": group, "hop": hop, "density": 0.5, "zero": 77, "signed": True}
    for steps, maximum in ((700, False), (300, True)):
        case = make(11, lanes=2, depth=2, steps=steps, maximum=maximum, accumulate=True, extreme=True, **sizes)
        check(case)
        case["offsets"] = np.sort(case["offsets"])
        check(case)


def test_weights_of_one_element_add_up() -> None:
    """An element that a column selects often weighs more than int8 holds, and its sum may wrap around twice."""
    case = make(4, lanes=1, depth=1, steps=1, hop=1, signed=False, maximum=False, **SMALL)
    many = {name: np.repeat(case[name], 300_000, axis=0) for name in ("offsets", "values", "selects")}
    case |= many | {"bank": np.full_like(case["bank"], 255), "zero_point": 0}
    case["values"][:] = -128
    before = case["acc"].astype(np.int64)
    stream_matmul(**case)
    total = before - 255 * 128 * 2 * 300_000
    assert total.max() < -(2**34)
    assert np.array_equal(case["acc"], total.astype(np.int32))


@pytest.mark.parametrize(("code", "weight", "largest"), [(255, -128, -32640), (255, 127, 32385), (0, -128, 0)])
def test_largest_of_one_product(code: int, weight: int, largest: int) -> None:
    """The least product there is is still more than none; a column without weights keeps the smallest int32."""
    case = make(2, lanes=1, depth=1, steps=1, hop=4, signed=False, maximum=True, **SMALL)
    case |= {"bank": np.full_like(case["bank"], code), "zero_point": 0, "accumulate": False}
    case["values"][0] = [[0, weight], [0, 0], [weight, weight]]
    stream_matmul(**case)
    assert case["acc"].tolist() == [[[largest, ACC_MIN, largest]]]


def test_windows_may_reach_beyond_the_bank() -> None:
    """Only what a nonzero value selects is read; a step without one is no step."""
    case = make(9, lanes=2, depth=2, steps=3, hop=4, signed=False, maximum=False, **SMALL)
    case["values"][1] = 0
    expected = oracle(case)
    case["offsets"][1] = 10_000
    stream_matmul(**case)
    assert np.array_equal(case["acc"], expected)


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="there is no vector in plain Python")
def test_portable_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a processor without vector instructions, as far as this one can be told to do without."""
    monkeypatch.setenv("GOSSAMER_PORTABLE", "1")
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sizes = {"columns": int(rng.choice([3, 16, 33])), "macs": int(rng.choice([1, 2, 4, 8])), "zero": 200}
        sizes |= {"group": 8, "hop": int(rng.choice([1, 8])), "density": 0.7, "steps": int(rng.integers(1, 60))}
        flags = {"signed": bool(seed & 1), "maximum": bool(seed & 2), "accumulate": bool(seed & 4)}
        check(make(seed, lanes=3, depth=5, extreme=bool(seed & 8), **sizes, **flags))


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


@pytest.mark.parametrize(
    ("processor", "features"),
    [
        pytest.param("x86-64", "+sse2,+ssse3", marks=pytest.mark.slow),
        ("haswell", "+avx2,+fma,+ssse3"),
        pytest.param("skylake-avx512", "+avx512f,+avx512bw,+avx512vl,+avx2,+fma,+ssse3", marks=pytest.mark.slow),
        pytest.param(
            "cascadelake", "+avx512f,+avx512bw,+avx512vl,+avx512vnni,+avx2,+fma,+ssse3", marks=pytest.mark.slow
        ),
        ("alderlake", "+avx2,+fma,+avxvnni,+ssse3"),
    ],
)
def test_other_processors(processor: str, features: str) -> None:
    """Exact, and without an abort, in code for processors that pick bytes and multiply them in other ways."""
    if platform.machine() != "x86_64" or not set(features.replace("+", "").split(",")) <= cpu_features():
        pytest.skip("code for a processor that has more than this one")
    code = (
        "from tests.test_kernels_stream import SMALL, check, make\n"
        "for maximum in (False, True):\n"
        "    for seed in range(20):\n"
        "        sizes = dict(SMALL, columns=17, depth=3, steps=40, hop=2, lanes=3, signed=bool(seed & 1))\n"
        "        check(make(seed, maximum=maximum, **sizes))\n"
        "print('exact')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_DISABLE_JIT"}
    environment |= {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.stdout == "exact\n", done.stderr
