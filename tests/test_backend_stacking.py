"""Poolings over whole maps, whose channel blocks lanes share out as they do positions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.exact import check_exact
from support.networks import random_conv, random_tensor
from support.specs import random_spec

from gossamer.arch.errors import CapacityError
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend import problem
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.backend.placing import place_tensors
from gossamer.compiler.backend.problem import make_problem
from gossamer.compiler.layers import MaxPool, Network, Tensor
from gossamer.sim.simulate import simulate


def pooled(rng: np.random.Generator, block: int, *, maximum: bool, bordered: bool, blocks: int = 3) -> Network:
    """A convolution, the mean or maximum of its whole map, and what reads it; bordered : the map has a border, too."""
    n, h, w = int(rng.integers(1, 3)), int(rng.integers(1, 6)), int(rng.integers(2, 6))
    x = random_tensor(rng, "x", (n, 5, h, w))
    maker, t = random_conv(rng, "maker", x, blocks * block, (1, 1))
    stages, tensors = [maker], [x, t]
    if bordered:
        reader, out = random_conv(rng, "reader", t, 3, (3, 3), pads=(1, 1, 1, 1))
        stages, tensors = [*stages, reader], [*tensors, out]
    if maximum:
        low, high = (-128, 127) if t.signed else (0, 255)
        y = Tensor(name="y", shape=(n, t.shape[1], 1, 1), scale=t.scale, zero_point=t.zero_point, signed=t.signed)
        stages.append(MaxPool(name="pool", inputs=(t.name,), output="y", kernel=(h, w), lo=low, hi=high))
    else:
        conv, y = random_conv(rng, "pool", t, t.shape[1], (h, w), groups=t.shape[1], table=bool(rng.random() < 0.3))
        even = {"weight": np.ones_like(conv.weight), "bias": np.full_like(conv.bias, 7)}
        stages.append(replace(conv, **even, scale=np.full_like(conv.scale, 1 / (h * w))))
    last, z = random_conv(rng, "last", y, 4, (1, 1))
    every = {tensor.name: tensor for tensor in (*tensors, y, z)}
    return Network(name="pooled", tensors=every, stages=(*stages, last), inputs=("x",), outputs=(z.name,))


def is_stacked(network: Network, spec: ArchSpec) -> bool:
    layer = next(s for s in network.layers if s.name == "pool")
    return make_problem(layer, place_tensors(network, spec), spec).stacked > 1


@pytest.mark.parametrize("maximum", [False, True])
@pytest.mark.parametrize("bordered", [False, True])
@pytest.mark.parametrize("preset", ["tiny", "sat-2of8", "s4-1of32"])
def test_blocks_of_a_pooled_map_are_computed_side_by_side(preset, bordered, maximum):
    spec = ArchSpec.load(preset)
    network = pooled(np.random.default_rng(3), spec.block, maximum=maximum, bordered=bordered)
    assert is_stacked(network, spec)
    check_exact(network, spec, 3)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_pooled_maps_on_random_accelerators(seed):
    rng = np.random.default_rng(seed)
    spec = random_spec(rng)
    network = pooled(rng, spec.block, maximum=bool(rng.random() < 0.5), bordered=bool(rng.random() < 0.5))
    try:
        build_program(network, spec)
    except CapacityError:
        return
    check_exact(network, spec, seed % 1000)


def test_weights_that_differ_from_block_to_block_are_not_stacked():
    spec = ArchSpec.load("tiny")
    network = pooled(np.random.default_rng(0), spec.block, maximum=False, bordered=False)
    pool = next(s for s in network.layers if s.name == "pool")
    for name in ("weight", "bias", "scale"):
        values = getattr(pool, name).copy()
        values[-1] = values[-1] * 2
        changed = replace(pool, **{name: values})
        stages = tuple(changed if s is pool else s for s in network.stages)
        other = replace(network, stages=stages)
        assert not is_stacked(other, spec)
        check_exact(other, spec, 0)


def test_all_lanes_work(monkeypatch):
    spec = ArchSpec.load("server")
    whole = pooled(np.random.default_rng(1), spec.block, maximum=False, bordered=False, blocks=32)
    pool = next(s for s in whole.layers if s.name == "pool")
    network = replace(whole, stages=(pool,), inputs=pool.inputs, outputs=(pool.output,))
    stacked = simulate(build_program(network, spec), values=False).cycles
    monkeypatch.setattr(problem, "stack", lambda *_: None)
    assert stacked < 0.5 * simulate(build_program(network, spec), values=False).cycles
