"""Bursts against brute force, the beats of the memory contract by hand, and how a tensor lies in DRAM."""

import re
from itertools import product
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gossamer.arch.errors import ModelError
from gossamer.arch.layout import Placement
from gossamer.arch.memory import BOUNDARY, burst_length, first_beat


def refused(message: str) -> Any:
    """A ModelError with exactly this message."""
    return pytest.raises(ModelError, match=f"^{re.escape(message)}$")


# ---- bursts ----


def split(address: int, beats: int, beat_bytes: int, longest: int) -> list[tuple[int, int]]:
    """A row of beats as (address, beats) of its bursts."""
    bursts = []
    while beats:
        length = burst_length(address, beats, beat_bytes, longest)
        bursts.append((address, length))
        address, beats = address + length, beats - length
    return bursts


def split_slowly(address: int, beats: int, beat_bytes: int, longest: int) -> list[tuple[int, int]]:
    """Beat by beat: a new burst where the open one is full, or where a beat stands on a 4 KiB boundary."""
    bursts: list[tuple[int, int]] = []
    for beat in range(address, address + beats):
        if not bursts or bursts[-1][1] == longest or beat * beat_bytes % 4096 == 0:
            bursts.append((beat, 0))
        bursts[-1] = (bursts[-1][0], bursts[-1][1] + 1)
    return bursts


@given(
    address=st.integers(0, 5000) | st.integers(0, 2**32 - 1),
    beats=st.integers(1, 600),
    beat_bytes=st.sampled_from([4, 8, 16, 32, 64, 128]),
    longest=st.integers(1, 256),
)
def test_a_row_is_split_like_beat_by_beat(address: int, beats: int, beat_bytes: int, longest: int) -> None:
    bursts = split(address, beats, beat_bytes, longest)
    assert bursts == split_slowly(address, beats, beat_bytes, longest)
    assert sum(length for _, length in bursts) == beats
    for begin, length in bursts:
        assert 1 <= length <= longest
        first, last = begin * beat_bytes, (begin + length) * beat_bytes - 1
        assert first // BOUNDARY == last // BOUNDARY


@pytest.mark.parametrize(
    ("address", "beats", "beat_bytes", "longest", "expected"),
    [
        (0, 256, 16, 256, [256]),  # exactly 4 KiB
        (0, 257, 16, 256, [256, 1]),
        (255, 3, 16, 64, [1, 2]),
        (250, 200, 16, 64, [6, 64, 64, 64, 2]),
        (31, 33, 128, 256, [1, 32]),
        (7, 1, 4, 1, [1]),
    ],
)
def test_bursts_by_hand(address: int, beats: int, beat_bytes: int, longest: int, expected: list[int]) -> None:
    assert [length for _, length in split(address, beats, beat_bytes, longest)] == expected


def test_first_beat_waits_for_the_data_or_for_the_bus() -> None:
    assert first_beat(40, -1, 1, 0) == 40, "an idle bus"
    assert first_beat(40, 39, 1, 0) == 40
    assert first_beat(40, 40, 1, 0) == 41, "back to back"
    assert first_beat(40, 40, 3, 0) == 43
    assert first_beat(40, 40, 3, 2) == 45


# ---- tensors ----


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    n, c, h, w = shape = draw(st.tuples(*[st.integers(1, top) for top in (2, 9, 4, 4)]))
    signed, channels_last = draw(st.booleans()), draw(st.booleans())
    border = draw(st.tuples(*[st.integers(0, 2)] * 4))
    if channels_last:
        shape, model_shape = (n, c, 1, h * w), (n, h, w, c)
    else:
        model_shape = draw(st.sampled_from([(n, c, h, w), (n * c, h, w), (n, c * h * w)]))
    return Placement(
        name="t",
        address=64,
        shape=shape,
        block=draw(st.sampled_from([1, 2, 4, 8])),
        border=border,
        scale=draw(st.sampled_from([0.1, 1.0, 0.00390625])),
        zero_point=draw(st.integers(-128, 127) if signed else st.integers(0, 255)),
        signed=signed,
        model_shape=model_shape,
        channels_last=channels_last,
    )


def codes_of(tensor: Placement, seed: int) -> NDArray[np.int16]:
    low, high = (-128, 127) if tensor.signed else (0, 255)
    return np.random.default_rng(seed).integers(low, high, tensor.shape, endpoint=True).astype(np.int16)


@given(placements(), st.integers(0, 2**32 - 1))
def test_every_element_stands_where_the_formula_says(tensor: Placement, seed: int) -> None:
    codes = codes_of(tensor, seed)
    n, c, h, w = tensor.shape
    top, left, bottom, right = tensor.border
    block = tensor.block
    blocks, rows, pixels = (c + block - 1) // block, top + h + bottom, left + w + right
    expected = {}
    for image, channel, y, x in product(range(n), range(c), range(h), range(w)):
        at = (((image * blocks + channel // block) * rows + top + y) * pixels + left + x) * block + channel % block
        assert at not in expected, "no two elements share a byte"
        expected[at] = int(codes[image, channel, y, x]) & 0xFF
    memory = tensor.to_memory(codes)
    assert memory.dtype == np.uint8
    assert memory.size == tensor.size == n * blocks * rows * pixels * block
    for at, byte in enumerate(memory.tolist()):
        assert byte == expected.get(at, tensor.zero_point & 0xFF), "border and filling hold the zero point"
    assert tensor.row_bytes == pixels * block
    assert tensor.block_bytes == rows * pixels * block


@given(placements(), st.integers(0, 2**32 - 1))
def test_from_memory_is_the_inverse_of_to_memory(tensor: Placement, seed: int) -> None:
    codes = codes_of(tensor, seed)
    back = tensor.from_memory(tensor.to_memory(codes))
    assert back.dtype == np.int16
    assert np.array_equal(back, codes)


@given(placements(), st.integers(0, 2**32 - 1))
def test_from_memory_reads_no_border_and_no_filling(tensor: Placement, seed: int) -> None:
    codes = codes_of(tensor, seed)
    memory = tensor.to_memory(codes)
    other = tensor.to_memory(np.invert(codes))
    memory[memory == other] ^= 0x55  # exactly what no element owns
    assert np.array_equal(tensor.from_memory(memory), codes)


@given(placements(), st.integers(0, 2**32 - 1))
def test_model_shape_and_back(tensor: Placement, seed: int) -> None:
    codes = codes_of(tensor, seed)
    model = tensor.to_model(codes)
    assert model.shape == tensor.model_shape
    assert np.array_equal(tensor.to_nchw(model), codes)
    assert np.array_equal(tensor.quantise(model, codes=True), codes)
    assert np.array_equal(tensor.quantise(tensor.dequantise(codes)), codes)
    n, c, _, w = tensor.shape
    if tensor.channels_last:
        flat = model.reshape(n, w, c)
        assert all(flat[i, x, k] == codes[i, k, 0, x] for i, x, k in product(range(n), range(w), range(c)))
    else:
        assert model.reshape(-1).tolist() == codes.reshape(-1).tolist()


def flat(length: int, scale: float, zero_point: int, signed: bool) -> Placement:
    """A tensor of one pixel."""
    return Placement(
        name="x", address=0, shape=(1, length, 1, 1), block=8, border=(0, 0, 0, 0), scale=scale,
        zero_point=zero_point, signed=signed, model_shape=(1, length),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("signed", "zero_point", "scale"), [(True, 0, 0.5), (True, -7, 0.1), (False, 128, 0.25), (False, 0, 0.0173)]
)
def test_quantise_is_onnx_quantize_linear(signed: bool, zero_point: int, scale: float) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            np.arange(-300, 300) * np.float32(scale) / 2,  # halves and whole codes, and beyond both ends
            rng.normal(0, 60 * scale, 400),
            [1e38, -1e38, 0.0, -0.0, 1e-45],
        ]
    ).astype(np.float32)[None]
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
        "q",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", kind, values.shape)],
        [
            numpy_helper.from_array(np.array(scale, dtype=np.float32), "s"),
            numpy_helper.from_array(np.array(zero_point, dtype=np.int8 if signed else np.uint8), "z"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": values})[0]
    tensor = flat(values.shape[1], scale, zero_point, signed)
    assert np.array_equal(tensor.to_model(tensor.quantise(values)), expected)


def test_quantise_saturates_and_rounds_half_to_even() -> None:
    tensor = flat(8, 0.5, 3, True)
    values = np.array([[0.25, 0.75, -0.25, 1e300, -1e300, 3.4e38, 61.9, 62.4]])
    assert tensor.quantise(values).reshape(-1).tolist() == [3, 5, 3, 127, -128, 127, 127, 127]
    assert flat(1, 0.5, 128, False).quantise(np.array([[-1000.0]])).tolist() == [[[[0]]]]


def test_dequantise_by_hand() -> None:
    tensor = flat(3, 0.25, 128, False)
    real = tensor.dequantise(np.array([0, 128, 255], dtype=np.int16).reshape(1, 3, 1, 1))
    assert real.dtype == np.float32
    assert real.tolist() == [[-32.0, 0.0, 31.75]]


def test_quantise_refuses() -> None:
    signed, unsigned = flat(2, 0.5, 0, True), flat(2, 0.5, 0, False)
    with refused("'x' must have shape (1, 2), not (2, 1)"):
        signed.quantise(np.zeros((2, 1)))
    for bad in (np.nan, np.inf, -np.inf):
        with refused("'x' has values that are not finite"):
            signed.quantise(np.array([[0.0, bad]]))
    with refused("'x' takes codes from -128 to 127, not 0..128"):
        signed.quantise(np.array([[0, 128]]), codes=True)
    with refused("'x' takes codes from 0 to 255, not -1..0"):
        unsigned.quantise(np.array([[0, -1]]), codes=True)
    with refused("'x' takes codes from 0 to 255, not 0..18446744073709551615"):
        unsigned.quantise(np.array([[0, 2**64 - 1]], dtype=np.uint64), codes=True)
    for other in (np.zeros((1, 2), dtype=bool), np.array([["a", "b"]]), np.zeros((1, 2), dtype=complex)):
        with refused(f"'x' takes real values or codes, not {other.dtype}"):
            signed.quantise(other, codes=True)
        with refused(f"'x' takes real values, not {other.dtype}"):
            signed.quantise(other)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_integers_are_real_values_unless_told(dtype: type[np.integer]) -> None:
    tensor, integers = flat(3, 0.5, 3, False), np.array([[0, 7, 200]], dtype=dtype)
    assert tensor.quantise(integers).reshape(-1).tolist() == [3, 17, 255]
    assert np.array_equal(tensor.quantise(integers), tensor.quantise(integers.astype(np.float32)))
    assert tensor.quantise(integers, codes=True).reshape(-1).tolist() == [0, 7, 200]
