"""The closed forms of systolic arrays, and that the accelerator is faster on whole networks."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import systolic
from workloads import read

from gossamer.arch.spec import ArchSpec


def test_closed_forms() -> None:
    # 16 x 16 PEs: what STONNE's RTL takes for four products
    sizes = [(16, 32, 16), (16, 16, 16), (32, 16, 32), (64, 32, 64)]
    assert [systolic.FORMS["stonne"](*size, 16, 16) for size in sizes] == [66, 50, 200, 1056]
    # one fold: the reduction and the skew of both sides; the weights first; the inputs first
    assert systolic.FORMS["output"](16, 100, 16, 16, 16) == 100 + 30 - 1
    assert systolic.FORMS["weight"](100, 16, 16, 16, 16) == 100 + 46 - 1
    assert systolic.FORMS["input"](16, 16, 100, 16, 16) == 100 + 46 - 1
    row = read("mobilenet_v2")[1]  # depthwise: one fold for each of its 32 channels
    assert systolic.closed_form(row, "output", 32, 32) == 32 * (12544 // 32 * (9 + 62) - 1)
    assert list(systolic.shapes(256)) == [(8, 32), (16, 16), (32, 8)]


def test_a_plain_array_has_the_same_multipliers() -> None:
    for name in ("server", "sat-2of8", "edge", "dense"):
        spec = ArchSpec.load(name)
        plain = systolic.plain(spec)
        assert (plain.peak_macs, plain.group, plain.macs) == (spec.peak_macs, 1, 1)
        assert plain.buffer_bytes["activations"] == spec.buffer_bytes["activations"]
    dense = ArchSpec.load("dense")
    same = systolic.plain(ArchSpec.load("sat-2of8")).evolve(name="dense", purpose=dense.purpose)
    assert same.evolve(broadcast_columns=1, broadcast_lanes=1) == dense


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["server", "dense"])
@pytest.mark.parametrize("name", systolic.NETWORKS)
def test_faster_than_the_best_systolic_array(spec: str, name: str) -> None:
    machine = ArchSpec.load(spec)
    best = min(
        sum(systolic.closed_form(row, form, r, c) for row in read(name))
        for form in systolic.FORMS
        for r, c in systolic.shapes(machine.peak_macs)
    )
    assert systolic.measure(name, machine).cycles < best
