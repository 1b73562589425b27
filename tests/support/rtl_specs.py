"""Small specs that between them have every kind of hardware the generator makes."""

import numpy as np
import pytest

from gossamer.arch.spec import ArchSpec
from gossamer.rtl.build import missing_tools
from tests.support.specs import random_spec

needs_hardware_tools = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))

_SHAPES: dict[str, dict[str, int]] = {  # without dynamic operands, unless it says so
    "2x2": {"lanes": 2, "columns": 2, "group": 4, "macs": 2, "hop": 4, "axi_bytes": 4, "ppu": 1},
    "1x12": {"lanes": 1, "columns": 12, "group": 4, "macs": 1, "hop": 2, "axi_bytes": 4, "multiply_stages": 3,
             "dynamic_operands": True},
    "no-select": {"lanes": 3, "columns": 4, "group": 1, "macs": 1, "hop": 1, "axi_bytes": 8, "tables": 0},
    "mask": {"lanes": 2, "columns": 4, "group": 8, "macs": 4, "hop": 2, "axi_bytes": 16, "ppu": 4, "tables": 2,
             "dynamic_operands": True},
    "all-of-window": {"lanes": 5, "columns": 8, "group": 8, "macs": 8, "hop": 8, "depth": 1, "axi_bytes": 4, "ppu": 1,
                      "dynamic_operands": True},
    "wide-window": {"lanes": 2, "columns": 2, "group": 32, "macs": 1, "hop": 1, "axi_bytes": 4, "ppu": 1},
}  # fmt: skip

SMALL_SPECS: dict[str, ArchSpec] = {"tiny": ArchSpec.load("tiny")} | {
    name: random_spec(np.random.default_rng(k), **{"dynamic_operands": False, **shape}).evolve(name=name)
    for k, (name, shape) in enumerate(_SHAPES.items())
}
