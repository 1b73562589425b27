"""Simulator and generated hardware agree on every event, to the cycle, on every counter and on every byte."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gossamer
from gossamer.rtl.example import example
from gossamer.rtl.model import Memory, Model
from gossamer.sim.random_programs import random_program
from gossamer.verification import Verification, verify
from tests.support.rtl_specs import SMALL_SPECS, needs_hardware_tools

pytestmark = needs_hardware_tools

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits" / "digits-2of8.onnx"


@pytest.fixture(scope="module", params=SMALL_SPECS)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    """One model for all tests of a spec: programs follow each other in it without a reset."""
    with Model(SMALL_SPECS[request.param], seed=len(request.param)) as made:
        yield made


def compared(model: Model, seed: int, memory: Memory | None = None) -> Verification:
    rng = np.random.default_rng(seed)
    program = random_program(rng, model.spec, 25, ragged=seed % 3 == 2)
    return verify(program, model=model, memory=memory)


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_programs(model: Model, first: int) -> None:
    for seed in range(first, first + 10):
        assert compared(model, seed).difference is None, f"program {seed}"


@pytest.mark.parametrize("stall", [20, 128, 240])
def test_random_back_pressure(model: Model, stall: int) -> None:
    """Whatever the memory does, its recorded times give the simulator the same log."""
    for seed in range(100, 106):
        found = compared(model, seed, Memory(stall=stall, seed=seed))
        assert found.difference is None, f"program {seed}"


@pytest.mark.parametrize("shift", [1, 2, 3, 5])
def test_halfway_between_codes(model: Model, shift: int) -> None:
    """Round half to even, positive and negative: small sums and small shifts meet it in every other column."""
    for seed in range(5):
        program, expected = example(model.spec, shift=shift, largest=3, seed=seed)
        found = verify(program, model=model)
        assert found.difference is None
        assert np.array_equal(found.hardware.memory, expected)


def test_runs_leave_nothing_behind(model: Model) -> None:
    """A, B, A, B: the same logs and bytes, whatever ran before."""
    seen = [compared(model, seed).hardware for seed in (7, 8, 7, 8)]
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]


def test_random_bits_at_power_on() -> None:
    """Nothing depends on what registers and memories hold before the reset and the first write."""
    spec = SMALL_SPECS["tiny"]
    program = random_program(np.random.default_rng(3), spec, 25)
    runs = []
    for seed in (11, 12, 13):
        with Model(spec, seed=seed) as made:
            runs.append(verify(program, model=made))
    assert [found.difference for found in runs] == [None] * 3


def test_a_difference_is_named() -> None:
    """The check bites: a wrong number in a log and a wrong byte are found, and said in words."""
    spec = SMALL_SPECS["tiny"]
    program = random_program(np.random.default_rng(5), spec, 10)
    with Model(spec) as made:
        found = verify(program, model=made)
    assert found.events > 0
    assert found.bytes > 0
    log = found.hardware.stages[0].events
    log[4, 2] += 1
    difference = found.simulated.difference(found.hardware)
    assert difference is not None
    assert "instruction 4" in difference
    log[4, 2] -= 1
    assert found.hardware.memory is not None
    found.hardware.memory[17] ^= 1
    difference = found.simulated.difference(found.hardware)
    assert difference is not None
    assert "0x11" in difference


def test_digits_network() -> None:
    """A whole compiled network: the same cycles, events, bytes and logits."""
    rng = np.random.default_rng(1)
    program = gossamer.compile(DIGITS, "tiny", calibration={"image": rng.random((1, 1, 8, 8), dtype=np.float32)})
    with Model(program.spec) as made:
        for _ in range(3):
            image = rng.random(program.tensors["image"].model_shape).astype(np.float32)
            found = verify(program, {"image": image}, model=made)
            assert found.difference is None
            assert np.array_equal(found.simulated.outputs["logits"], found.hardware.outputs["logits"])
