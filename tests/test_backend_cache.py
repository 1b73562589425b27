"""A layer that was compiled for a spec is not compiled again, and what is compiled anew is the same bytes."""

from dataclasses import replace

import numpy as np
import pytest

from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend import mapped
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.backend.cache import Cache
from tests.support.networks import random_network

SPEC = ArchSpec.load("tiny")


@pytest.fixture
def cache(monkeypatch):
    fresh = Cache()
    monkeypatch.setattr(mapped, "_KNOWN", fresh)
    return fresh


def network(seed=5):
    return random_network(np.random.default_rng(seed))


def test_second_compilation_packs_nothing(cache, monkeypatch):
    first = build_program(network(), SPEC).to_bytes()
    monkeypatch.setattr(mapped, "pack_unit", None)
    assert build_program(network(), SPEC).to_bytes() == first
    assert cache.hits >= len(network().layers)


def test_only_a_changed_layer_is_packed_again(cache, monkeypatch):
    old = network()
    build_program(old, SPEC)
    index, conv = next((i, s) for i, s in enumerate(old.stages) if hasattr(s, "weight"))
    weight = conv.weight.copy()
    weight.flat[0] += 1
    stages = list(old.stages)
    stages[index] = replace(conv, weight=weight)
    new = replace(old, stages=tuple(stages))
    packed = []
    pack = mapped.pack_unit
    monkeypatch.setattr(mapped, "pack_unit", lambda p, u: packed.append(p.layer.name) or pack(p, u))
    warm = build_program(new, SPEC).to_bytes()
    assert set(packed) == {conv.name}
    monkeypatch.setattr(mapped, "_KNOWN", Cache())
    assert build_program(new, SPEC).to_bytes() == warm


def test_another_spec_is_another_compilation(cache):
    one = build_program(network(), SPEC)
    hits = cache.hits
    two = build_program(network(), replace(SPEC, depth=SPEC.depth * 2))
    assert one.to_bytes() != two.to_bytes()
    assert cache.hits == hits


@pytest.mark.parametrize("seed", range(12))
def test_cached_and_fresh_programs_are_the_same(cache, monkeypatch, seed):
    build_program(network(seed), SPEC)
    warm = build_program(network(seed), SPEC).to_bytes()
    monkeypatch.setattr(mapped, "_KNOWN", Cache())
    assert build_program(network(seed), SPEC).to_bytes() == warm


def test_what_was_used_longest_ago_goes_first():
    cache = Cache(limit=2)
    made = []

    def get(key):
        return cache.get(key, lambda: made.append(key) or key, lambda _: 1)

    for key in (b"a", b"b", b"a", b"c", b"a", b"b"):
        assert get(key) == key
    assert made == [b"a", b"b", b"c", b"b"]
