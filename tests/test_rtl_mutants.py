"""The comparison bites: hardware with one wrong thing in it is caught, whatever the thing is."""

import numpy as np
import pytest

from gossamer.arch.errors import SimulationError
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.build import verilog_of
from gossamer.rtl.example import example
from gossamer.rtl.model import Model
from gossamer.sim.random_programs import random_program
from gossamer.verification import verify
from tests.support.mutants import MUTANTS, ROOM, Mutant, mutated
from tests.support.rtl_specs import needs_hardware_tools

SPEC = ArchSpec(
    name="mutant", lanes=4, columns=4, group=8, macs=4, hop=4, depth=6, ppu=1, axi_bytes=8, activation_bytes=256,
    output_bytes=256, weight_steps=24, offset_steps=32, parameter_channels=16, tables=1, queue_depth=3, fetch_burst=2,
    read_latency=9, write_latency=5, outstanding_reads=2, outstanding_writes=2, burst_beats=8, broadcast_columns=2,
    broadcast_lanes=2, dynamic_operands=True,
)  # fmt: skip
"""All encodings, a table, groups of columns, windows that begin between words: every mutant changes something."""

PROGRAMS = 40


def caught_by(text: str) -> str | None:
    """What is said of the first program that shows the mutant, or None."""
    with Model(SPEC, text=text, limit=200_000) as model:
        # Sums that lie halfway between two codes are too rare in random programs.
        ties = [example(SPEC, shift=shift, largest=2)[0] for shift in (1, 2)]
        others = (random_program(np.random.default_rng(seed), SPEC, 20) for seed in range(PROGRAMS))
        for program in (*ties, *others):
            try:
                found = verify(program, model=model)
            except SimulationError as error:
                return str(error)
            if found.difference is not None:
                return found.difference
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.kind)
def test_a_mutant_can_be_made(mutant: Mutant) -> None:
    """Its line still stands in the generator, once."""
    assert (ROOM / mutant.file).read_text().count(mutant.old) == 1


@pytest.mark.slow
@needs_hardware_tools
def test_the_unchanged_hardware_is_not_caught() -> None:
    assert caught_by(verilog_of(SPEC)) is None


@pytest.mark.slow
@needs_hardware_tools
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.kind)
def test_every_mutant_is_caught(mutant: Mutant) -> None:
    text = mutated(mutant, SPEC)
    assert text != verilog_of(SPEC), "the mutant is no different"
    assert caught_by(text) is not None
