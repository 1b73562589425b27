"""The comparison bites: hardware with one wrong thing in it is caught, whatever the thing is."""

import pytest

from gossamer.rtl.build import verilog_of
from tests.support.mutants import MUTANTS, ROOM, SPEC, Mutant, caught_by, mutated
from tests.support.rtl_specs import needs_hardware_tools


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
