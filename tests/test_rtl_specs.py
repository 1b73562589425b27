"""Random legal specs, and the corners of what is legal: each is built, and agrees with the simulator on everything."""

from pathlib import Path

import numpy as np
import pytest

from gossamer.arch.spec import ArchSpec
from gossamer.campaign import random_cases, tally
from gossamer.rtl.bundle import write_bundle
from tests.support.rtl_specs import needs_hardware_tools
from tests.support.specs import random_spec
from tests.test_rtl_bundle import lint

CORNERS: dict[str, dict[str, int]] = {
    "one PE": {"lanes": 1, "columns": 1},
    "1xN": {"lanes": 1, "columns": 16},
    "Nx1": {"lanes": 6, "columns": 1},
    "no powers of two": {"lanes": 5, "columns": 12, "group": 4, "macs": 2, "hop": 2, "axi_bytes": 4},
    "three by twenty": {"lanes": 3, "columns": 20, "group": 2, "macs": 1, "hop": 1, "axi_bytes": 4},
    "dense": {"lanes": 4, "columns": 4, "group": 1, "macs": 1, "hop": 1},
    "V = M = 4": {"group": 4, "macs": 4, "hop": 4},
    "V = M = 8, sliding": {"group": 8, "macs": 8, "hop": 2},
    "T = 1": {"depth": 1, "columns": 4},
    "PPU narrower than the columns": {"columns": 16, "ppu": 2},
    "PPU of one column, group of 32": {"columns": 8, "ppu": 1, "group": 32},
    "as many PPU columns as columns": {"columns": 8, "ppu": 8},
    "deep pipelines": {"multiply_stages": 3, "ppu_stages": 3, "broadcast_columns": 1, "broadcast_lanes": 1},
    "one of everything": {"queue_depth": 1, "outstanding_reads": 1, "outstanding_writes": 1, "fetch_burst": 1},
}
"""What is fixed; all else is random."""

RANDOM = 14

SPECS = {name: random_spec(np.random.default_rng(1000 + k), **fixed) for k, (name, fixed) in enumerate(CORNERS.items())}
SPECS |= {f"random {seed}": random_spec(np.random.default_rng(seed)) for seed in range(RANDOM)}


def test_the_corners_are_there() -> None:
    assert len(SPECS) >= 25
    specs = list(SPECS.values())
    assert len({s.to_toml() for s in specs}) == len(specs)
    for reached in (
        any(s.lanes == 1 and s.columns > 1 for s in specs),
        any(s.lanes & (s.lanes - 1) and s.columns & (s.columns - 1) for s in specs),
        any(s.macs == s.group > 1 for s in specs),
        any(s.group == 1 for s in specs),
        any(s.depth == 1 for s in specs),
        any(s.ppu < s.columns for s in specs),
        any(s.hop < s.group for s in specs),
        any(s.activation_partitions > 1 and s.output_partitions > 1 for s in specs),
    ):
        assert reached


@pytest.mark.slow
@needs_hardware_tools
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_random_specs(spec: ArchSpec) -> None:
    """Eight programs and the example, by contract and under stalls."""
    found = tally(spec, "random", random_cases(spec, 8, 1), stalls=True)
    assert found.programs == 18
    assert found.difference is None


EXTREMES: dict[str, dict[str, int]] = {
    "lanes": {"lanes": 128, "broadcast_lanes": 128},
    "columns": {"columns": 128, "output_bytes": 2048, "parameter_channels": 128, "broadcast_columns": 128},
    "window": {"group": 32, "macs": 32, "hop": 32, "activation_bytes": 2048},
    "accumulators": {"depth": 256},
    "bus": {
        "axi_bytes": 128,
        "parameter_channels": 128,
        "activation_bytes": 2048,
        "output_bytes": 2048,
        "offset_steps": 128,
    },
    "queues and bursts": {"queue_depth": 64, "outstanding_reads": 64, "outstanding_writes": 64, "burst_beats": 256},
    "stages": {"multiply_stages": 4, "ppu_stages": 6},
}
"""The largest numbers that a field takes, on a machine that is small otherwise."""


@pytest.mark.slow
@needs_hardware_tools
@pytest.mark.parametrize("name", EXTREMES)
def test_the_largest_numbers_make_clean_hardware(name: str, tmp_path: Path) -> None:
    spec = ArchSpec.load("tiny").evolve(**EXTREMES[name], dynamic_operands=False)
    write_bundle(spec, tmp_path)
    assert lint(tmp_path) == ""
