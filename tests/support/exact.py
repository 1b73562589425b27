"""That a compiled Program computes what its network says."""

import numpy as np

from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.layers import Network
from gossamer.sim.simulate import simulate
from tests.support.networks import random_codes, reference


def check_exact(network: Network, spec: ArchSpec, seed: int) -> Program:
    """Every tensor in DRAM equals the reference, with garbage in every memory that nobody wrote."""
    rng = np.random.default_rng(seed)
    codes = {name: random_codes(rng, network.tensors[name]) for name in network.inputs}
    expected = reference(network, codes)
    program = build_program(network, spec)
    run = simulate(program, codes, garbage=seed)
    for name, place in program.tensors.items():
        got = place.from_memory(run.memory[place.address : place.address + place.size])
        np.testing.assert_array_equal(got, expected[name], err_msg=f"{name} on {spec.name}")
    assert run.cycles >= program.bound > 0
    assert program.bound <= sum(note.bound(spec) for note in program.layers)
    return program
