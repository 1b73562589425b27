"""The same programs under cocotb: with the memory contract in RTL, and with the AXI4 slaves of cocotbext-axi."""

from itertools import pairwise

import numpy as np
import pytest

from gossamer.arch.errors import GossamerError, SimulationError
from gossamer.arch.memory import Trace
from gossamer.arch.program import Program
from gossamer.rtl import cosim
from gossamer.rtl.cosim import CocotbModel, recorded
from gossamer.rtl.model import Memory
from gossamer.sim import simulate
from gossamer.sim.random_programs import random_program
from gossamer.verification import verify
from tests.support.mutants import MUTANTS, mutated
from tests.support.rtl_specs import SMALL_SPECS, needs_hardware_tools

pytestmark = needs_hardware_tools

SPEC = SMALL_SPECS["tiny"]


def programs(count: int) -> list[Program]:
    return [random_program(np.random.default_rng(seed), SPEC, 20, ragged=seed % 3 == 2) for seed in range(count)]


def test_memory_contract_in_rtl() -> None:
    for program in programs(2):
        assert verify(program, model=CocotbModel(SPEC)).difference is None


@pytest.mark.parametrize("stall", [30, 128, 220])
def test_random_stalls_and_latency(stall: int) -> None:
    """Slaves that hold back addresses, beats and responses; their times, replayed, give the simulator the same log."""
    model = CocotbModel(SPEC)
    for seed, program in enumerate(programs(3)):
        found = verify(program, model=model, memory=Memory(stall=stall, seed=seed))
        assert found.difference is None, f"program {seed}"
        assert_held_back(model.trace(), program, found.hardware.cycles)


def assert_held_back(trace: Trace, program: Program, cycles: int) -> None:
    """The memory was not the contract's: the run took longer, and beats of a burst came apart."""
    assert cycles > simulate(program).cycles
    beats = trace.fetch_beats.tolist()
    assert len({b - a for a, b in pairwise(beats)}) > 2
    for table in (trace.read, trace.write):
        assert (table[:, 0] < table[:, 1]).all()
        assert (table[:, 1] <= table[:, 2]).all()
    assert (trace.write[:, 3] > trace.write[:, 2]).all()


def test_handshakes_as_trace() -> None:
    """Bits: address, beat and last beat of fetch, of read, of write; then the response."""
    lines = {3: 0b1, 5: 0b1000, 7: 0b10, 9: 0b110, 11: 0b010000, 12: 0b110000, 13: 0b1000000, 15: 0b110000000}
    trace = recorded("".join(f"{t} {bits}\n" for t, bits in (lines | {18: 1 << 9}).items()))
    assert trace.fetch.tolist() == [[3, 7, 9]]
    assert trace.fetch_beats.tolist() == [7, 9]
    assert trace.read.tolist() == [[5, 11, 12]]
    assert trace.write.tolist() == [[13, 15, 15, 18]]


def test_what_the_slaves_cannot_do() -> None:
    program = programs(1)[0]
    model = CocotbModel(SPEC)
    with pytest.raises(GossamerError, match=r"no error responses; use rtl\.Model"):
        verify(program, model=model, memory=Memory(read_error=3))
    with pytest.raises(GossamerError, match="nothing to replay"):
        model.trace()


@pytest.mark.slow
def test_slaves_check_the_rules_of_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bursts across 4 KiB fail in the slave, before anything is compared."""
    text = mutated(next(m for m in MUTANTS if m.kind == "a burst crosses 4 KiB"), SPEC)
    monkeypatch.setattr(cosim, "verilog_of", lambda spec: text)

    def run_all() -> None:
        for seed, program in enumerate(programs(12)):
            verify(program, model=CocotbModel(SPEC), memory=Memory(stall=64, seed=seed))

    with pytest.raises(SimulationError, match="AssertionError"):
        run_all()
