"""Cycle counts that stay: a change of one is a change of the machine, the schedule or the mapper, and must be meant."""

import importlib.util
import sys
from pathlib import Path

import pytest

from gossamer.arch.spec import ArchSpec, preset_names
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.passes import build_network
from gossamer.sim.simulate import simulate

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"


def digits_data():
    spec = importlib.util.spec_from_file_location("digits_data", DIGITS / "data.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits_data"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["digits-dense", "digits-2of8", "digits-1of8"])
def test_digits(name, golden):
    images = digits_data().load()[0].images[:64]
    network = build_network(DIGITS / f"{name}.onnx", calibration={"image": images})
    found = {}
    for preset in preset_names():
        run = simulate(build_program(network, ArchSpec.load(preset)), values=False)
        keep = ("busy_matmul", "steps", "slots", "beats_read_activation", "beats_read_weight", "beats_written")
        found[preset] = {"cycles": run.cycles, **{k: run.counters[k] for k in keep}}
    golden(name, found)
