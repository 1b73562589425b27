"""Products of two activations in the back end: exactly what NumPy computes, on any machine with dynamic operands."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import matrices, random_codes, random_conv, random_tensor, reference
from support.products import attention, tensor
from support.specs import random_spec

from gossamer.arch.errors import CapacityError, ModelError
from gossamer.arch.program import Program
from gossamer.arch.run import Run
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.layers import MatMul, Network
from gossamer.sim.simulate import simulate


def run_of(network: Network, spec: ArchSpec, codes: dict, seed: int = 0) -> tuple[Program, Run, dict]:
    """The Program, its run with garbage in unwritten memories, and the codes of every tensor."""
    program = build_program(network, spec)
    run = simulate(program, codes, garbage=seed)
    got = {n: p.from_memory(run.memory[p.address : p.address + p.size]) for n, p in program.tensors.items()}
    return program, run, got


def check_exact(network: Network, spec: ArchSpec, seed: int) -> Program:
    rng = np.random.default_rng(seed)
    codes = {name: random_codes(rng, network.tensors[name]) for name in network.inputs}
    expected = reference(network, codes)
    program, run, got = run_of(network, spec, codes, seed)
    for name, array in got.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=f"{name} on {spec.name}")
    assert run.cycles >= program.bound > 0
    return program


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_random_products_on_random_specs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = random_spec(rng, dynamic_operands=True)
    sizes = rng.integers(1, [3, 4, 20, 20, 24], endpoint=True)
    with suppress(CapacityError):  # some of these machines are too small
        check_exact(attention(rng, *(int(n) for n in sizes)), spec, seed % 1000)


@pytest.mark.parametrize("preset", ["tiny", "edge", "server"])
@pytest.mark.parametrize("merged", [True, False])
def test_presets(preset: str, merged: bool) -> None:
    rng = np.random.default_rng(1)
    spec = ArchSpec.load(preset)
    check_exact(attention(rng, 1, 2, 40, 33, 24, merged=merged), spec, 2)
    check_exact(attention(rng, 1, 2, 16, 64, spec.block, merged=merged), spec, 3)


def test_operands_that_do_not_fit_come_in_pieces() -> None:
    """64 channels are 32 steps of a machine with 16, and 40 keys are 20."""
    rng = np.random.default_rng(4)
    spec = ArchSpec.load("tiny").evolve(weight_steps=16)
    check_exact(attention(rng, 1, 2, 9, 40, 64), spec, 5)


@pytest.mark.parametrize("lanes", [3, 6])
def test_lanes_that_are_no_power_of_two(lanes: int) -> None:
    """Tokens are seen as rows, so that no lane is idle."""
    rng = np.random.default_rng(6)
    spec = ArchSpec.load("tiny").evolve(lanes=lanes)
    program = check_exact(attention(rng, 1, 1, 24, 8, 8, merged=False), spec, 7)
    steps, tiles = 4, 2
    assert simulate(program, values=False).counters["slots"] == 2 * steps * tiles * 24 // lanes


@given(seed=st.integers(0, 2**32))
@settings(max_examples=12)
def test_projections_around_a_product(seed: int) -> None:
    """Linear layers write and read tensors whose heads fill channel blocks of their own, with a residual beside."""
    rng = np.random.default_rng(seed)
    buffers = {"activation_bytes": 1024, "activation_partitions": 1, "output_bytes": 1024, "output_partitions": 1}
    spec = random_spec(rng, dynamic_operands=True, hop=1, **buffers)
    heads, width, tokens = (int(n) for n in rng.integers(1, [4, 12, 14], endpoint=True))
    x = random_tensor(rng, "x", (2, int(rng.integers(1, 20)), 1, tokens))
    made = {name: random_conv(rng, name, x, heads * width, (1, 1)) for name in ("q", "k", "v", "r")}
    made = {
        name: (replace(conv, zero_point=0), replace(out, zero_point=0)) if name in "kv" else (conv, out)
        for name, (conv, out) in made.items()
    }
    scores = tensor("scores", (2 * heads, tokens, 1, tokens), -100)
    context = tensor("context", (2, heads * width, 1, tokens), 9)
    common = {"products": 2 * heads, "scale": 0.002}
    qk = MatMul(name="qk", a="q.out", b="k.out", output="scores", transposed=True, zero_point=-100, **common)
    pv = MatMul(name="pv", a="scores", b="v.out", output="context", transposed=False, zero_point=9, **common)
    last, y = random_conv(rng, "o", context, heads * width, (1, 1), residual=made["r"][1])
    network = Network(
        name="block",
        tensors={t.name: t for t in (x, *(out for _, out in made.values()), scores, context, y)},
        stages=(*(conv for conv, _ in made.values()), qk, pv, last),
        inputs=("x",),
        outputs=(y.name,),
    )
    with suppress(CapacityError):
        check_exact(network, spec, seed % 1000)


PACKED = [
    ("tiny", {}, 4, 4),  # two heads a block, a column tile each
    ("edge", {}, 8, 4),  # two heads a column tile
    ("server", {}, 32, 4),
    ("server", {}, 16, 8),  # four heads a tile, and a beat of 64 channels
    ("tiny", {"columns": 16, "axi_bytes": 4, "macs": 1, "output_bytes": 1024}, 8, 4),  # two beats a head
    ("tiny", {"columns": 16, "axi_bytes": 4, "macs": 4, "group": 8, "output_bytes": 1024}, 8, 2),
]


@pytest.mark.parametrize(("preset", "changes", "width", "heads"), PACKED)
def test_heads_share_channel_blocks(preset: str, changes: dict, width: int, heads: int) -> None:
    """Nothing is spread, so that projections cost no more than their channels, and every head finds its own."""
    spec = ArchSpec.load(preset).evolve(**changes)
    rng = np.random.default_rng(width)
    for tokens, keys in ((12, 2 * spec.block), (21, spec.block // 2)):
        program = check_exact(attention(rng, 2, heads, tokens, keys, width, merged=True), spec, heads)
        assert all(program.tensors[name].heads == 1 for name in ("q", "k", "v", "context"))
    mixed = attention(rng, 1, heads, 9, 10, width)
    check_exact(mixed, spec, 1)


def test_heads_that_fill_no_block_are_spread() -> None:
    """Three heads of 32 channels on blocks of 64: the last block would be half a head's."""
    program = check_exact(attention(np.random.default_rng(3), 1, 3, 8, 8, 32, merged=True), ArchSpec.load("server"), 4)
    assert [program.tensors[name].heads for name in "qkv"] == [3, 3, 3]


MASKS = {
    "causal": np.tril(np.ones((8, 8), bool)),
    "window": np.abs(np.subtract.outer(np.arange(8), np.arange(8))) <= 1,
    "block": np.kron(np.eye(2, dtype=bool), np.ones((4, 4), bool)),
    "stripe": np.repeat([[True, False, False, True, False, False, False, True]], 8, axis=0),
    "diagonal": np.eye(8, dtype=bool),
}


@pytest.mark.parametrize("name", MASKS)
def test_masked_tiles_cost_nothing(name: str) -> None:
    """Tiles of 16 x 16 on a machine whose macro tiles can be as small: slots follow the mask, values are the same."""
    mask = MASKS[name]
    rng = np.random.default_rng(8)
    spec = ArchSpec(
        name="square", lanes=16, columns=16, group=8, macs=2, hop=8, depth=16, axi_bytes=16, dynamic_operands=True
    )
    network = attention(rng, 1, 2, 128, 128, 16, merged=False, mask=mask, mask_tile=(16, 16))
    codes = {n: random_codes(rng, network.tensors[n]) for n in network.inputs}
    keep = np.kron(mask, np.ones((16, 16), bool))
    codes["p"][:, ~keep.T[:, None]] = network.tensors["p"].zero_point
    expected = reference(network, codes)
    program, run, got = run_of(network, spec, codes, 9)
    np.testing.assert_array_equal(got["context"], expected["context"])
    scores, exact = (matrices(t["scores"].astype(np.int64), 2) for t in (got, expected))
    np.testing.assert_array_equal(scores[:, keep], exact[:, keep])
    assert (scores[:, ~keep] == network.tensors["scores"].zero_point).all()
    dense = 2 * (128 // 16 * 8 * 128 // 16 + 64 * 128 // 16)
    assert run.counters["slots"] == dense * mask.mean()
    assert [note.useful_macs / note.macs for note in program.layers] == [mask.mean()] * 2


def test_a_row_of_which_all_is_masked_is_written() -> None:
    mask = np.array([[True, False], [False, False]])
    rng = np.random.default_rng(10)
    spec = ArchSpec.load("tiny")
    network = attention(rng, 1, 1, 16, 16, 8, mask=mask, mask_tile=(8, 8))
    codes = {n: random_codes(rng, network.tensors[n]) for n in network.inputs}
    keep = np.kron(mask, np.ones((8, 8), bool))
    codes["p"].reshape(16, 16)[~keep.T] = network.tensors["p"].zero_point
    np.testing.assert_array_equal(run_of(network, spec, codes)[2]["context"], reference(network, codes)["context"])


def test_bert_base_comes_close_to_its_bound() -> None:
    """12 heads of 64 channels, 128 tokens."""
    network = attention(np.random.default_rng(11), 1, 12, 128, 128, 64, merged=True)
    program = build_program(network, ArchSpec.load("server"))
    assert simulate(program, values=False).cycles <= 1.06 * program.bound


def test_what_is_refused() -> None:
    rng = np.random.default_rng(12)
    network = attention(rng, 1, 2, 8, 8, 8)
    plain = ArchSpec.load("tiny").evolve(dynamic_operands=False)
    with pytest.raises(
        CapacityError, match=r"^layer 'qk' multiplies two activations, and spec 'tiny' has array\.dynam"
    ):
        build_program(network, plain)
    tensors = {**network.tensors, "k": replace(network.tensors["k"], zero_point=1)}
    with pytest.raises(ModelError, match="'k' must be int8 with zero point 0"):
        build_program(replace(network, tensors=tensors), ArchSpec.load("tiny"))
    small = ArchSpec.load("tiny").evolve(activation_bytes=16, activation_partitions=1)
    with pytest.raises(CapacityError, match="a position reads 24 bytes and writes 8"):
        build_program(attention(rng, 1, 2, 8, 20, 20), small)
