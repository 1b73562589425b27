"""Chains: layers whose tensors stay on chip give the same bytes in fewer beats, or are not made."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from gossamer.arch.errors import CapacityError
from gossamer.arch.isa import Op, column
from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec, preset_names
from gossamer.compiler.backend import chains
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.backend.mapped import map_layer
from gossamer.compiler.backend.placing import place_tensors
from gossamer.compiler.backend.refine import measured_program
from gossamer.compiler.layers import Conv, MaxPool, Network, Tensor
from gossamer.rtl.model import Model
from gossamer.sim.simulate import simulate
from gossamer.verification import verify
from tests.support.exact import check_exact
from tests.support.networks import random_codes, random_conv, random_tensor
from tests.support.rtl_specs import needs_hardware_tools
from tests.support.specs import random_spec


@pytest.fixture
def eager(monkeypatch):
    """Every chain that fits is made, the longest first, whether it pays or not; nothing is remembered."""

    def taken(parts, *_) -> float:
        return sum(0.0 if isinstance(part, chains.MappedChain) else 1.0 for part in parts)

    monkeypatch.setattr(chains, "_taken", taken)
    monkeypatch.setattr(chains, "_KNOWN", chains.Cache())


def network_of(layers: list[tuple[Conv | MaxPool, Tensor]], x: Tensor, *others: Tensor) -> Network:
    tensors = {t.name: t for t in (x, *others, *(y for _, y in layers))}
    inputs = (x.name, *(t.name for t in others))
    return Network(
        name="chain",
        tensors=tensors,
        stages=tuple(layer for layer, _ in layers),
        inputs=inputs,
        outputs=(layers[-1][1].name,),
    )


def chained(rng: np.random.Generator, largest: int = 40, side: int = 12, images: int = 2) -> Network:
    """Something in front (k x k, depthwise, pooling), then pointwise layers, with what may follow sums.

    The front may read a picture, whose few channels share beats; a layer behind that needs a border keeps the map from
    being a row of pixels, so that bands may be worth it.
    """
    n, c = int(rng.integers(1, images + 1)), int(rng.choice([1, 3, rng.integers(1, largest + 1)]))
    x = random_tensor(rng, "x", (n, c, *(int(s) for s in rng.integers(1, side + 1, 2))))
    k = int(rng.choice([1, 2, 3]))
    k = min(k, *x.shape[2:])
    pads, stride = (k // 2,) * 4, (int(rng.integers(1, 3)),) * 2
    kind = rng.choice(["conv", "depthwise", "pool"])
    layers: list[tuple[Conv | MaxPool, Tensor]] = []
    if kind == "pool":  # no padding: it would hold the zero point
        shape = (n, c, *((s - k) // stride[0] + 1 for s in x.shape[2:]))
        y = replace(x, name="pool.out", shape=shape)
        low, high = (-128, 127) if x.signed else (0, 255)
        layers.append(
            (MaxPool(name="pool", inputs=("x",), output=y.name, kernel=(k, k), stride=stride, lo=low, hi=high), y)
        )
    else:
        groups = c if kind == "depthwise" else 1
        channels = c if kind == "depthwise" else int(rng.integers(1, largest + 1))
        density = float(rng.choice([1.0, 0.3]))
        table = bool(rng.random() < 0.3)
        layers.append(
            random_conv(
                rng, "front", x, channels, (k, k), stride=stride, pads=pads, groups=groups, density=density, table=table
            )
        )
    others: list[Tensor] = []
    for i in range(int(rng.integers(1, 4))):
        channels = int(rng.integers(1, largest + 1))
        before = layers[-1][1]
        residual = None
        if rng.random() < 0.3:
            residual = random_tensor(rng, f"r{i}", (n, channels, *before.shape[2:]))
            others.append(residual)
        density, table = float(rng.choice([1.0, 0.3, 0.0])), bool(rng.random() < 0.3)
        layers.append(
            random_conv(rng, f"p{i}", before, channels, (1, 1), residual=residual, density=density, table=table)
        )
    last = layers[-1][1]
    if rng.random() < 0.5 and min(last.shape[2:]) > 1:
        layers.append(random_conv(rng, "behind", last, 4, (3, 3), pads=(1,) * 4))
    return network_of(layers, x, *others)


def chains_of(program: Program) -> list[str]:
    return [note.mapping for note in program.layers if note.kind == "chain"]


@pytest.mark.parametrize("preset", preset_names())
def test_random_chains_on_presets(preset, eager):
    made = [
        m for seed in range(12) for m in chains_of(check_exact(random_chain(seed, 22), ArchSpec.load(preset), seed))
    ]
    assert len(made) >= 6


def random_chain(seed: int, side: int) -> Network:
    return chained(np.random.default_rng(seed), side=side)


@pytest.mark.parametrize("preset", ["server", "sat-2of8", "edge", "dense"])
@pytest.mark.parametrize("side", [9, 13, 14, 22])
def test_a_picture_is_not_cut_between_beats(preset, side, eager):
    """Bands that a later layer found best do not fit a first one whose pixels share beats."""
    rng = np.random.default_rng(side)
    x = random_tensor(rng, "x", (1, 3, side, side))
    front, y = random_conv(rng, "front", x, 32, (3, 3), pads=(1,) * 4)
    project, z = random_conv(rng, "project", y, 64, (1, 1))
    last, out = random_conv(rng, "last", z, 16, (3, 3), pads=(1,) * 4)
    check_exact(network_of([(front, y), (project, z), (last, out)], x), ArchSpec.load(preset), side)


def test_chains_in_bands(eager):
    """14 x 14 on 16 lanes, both bands on chip, layer after layer."""
    rng = np.random.default_rng(3)
    x = random_tensor(rng, "x", (1, 64, 14, 14))
    front, y = random_conv(rng, "front", x, 64, (3, 3), pads=(1,) * 4)
    project, z = random_conv(rng, "project", y, 128, (1, 1))
    last, out = random_conv(rng, "last", z, 16, (3, 3), pads=(1,) * 4)
    network = network_of([(front, y), (project, z), (last, out)], x)
    made = [m for spec in ("server", "edge") for m in chains_of(check_exact(network, ArchSpec.load(spec), 3))]
    assert any(" and " in mapping for mapping in made)


def test_random_chains_on_random_specs(eager):
    """Odd machines: one lane, one column, V = M, H < M, PPUs narrower than the columns; buffers that hold something."""
    made = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng)
        buffers = ("activation_bytes", "output_bytes", "weight_steps", "offset_steps", "parameter_channels")
        spec = spec.evolve(**{name: 8 * getattr(spec, name) for name in buffers})
        with suppress(CapacityError):  # some of these machines are too small for some of these layers
            made += len(chains_of(check_exact(chained(rng, largest=20, side=7), spec, seed)))
    assert made >= 30


def block(side: int = 28, channels: int = 128) -> Network:
    """A depthwise convolution and its projection: bound by the bus."""
    rng = np.random.default_rng(7)
    x = random_tensor(rng, "x", (1, channels, side, side))
    front, y = random_conv(rng, "dw", x, channels, (3, 3), pads=(1,) * 4, groups=channels)
    project, z = random_conv(rng, "project", y, 64, (1, 1))
    return network_of([(front, y), (project, z)], x)


def test_a_chain_saves_what_stays_on_chip():
    network, spec = block(), ArchSpec.load("server").evolve(name="narrow bus", axi_bytes=16, ppu=4)
    program = check_exact(network, spec, 0)
    assert [n.kind for n in program.layers] == ["chain"]
    assert program.layers[0].name == "dw > project"
    assert "dw.out" not in program.tensors
    apart = build_program(network, spec, chains=False)
    assert set(apart.tensors) == set(network.tensors)
    assert program.dram_bytes < apart.dram_bytes
    fast, slow = simulate(program, values=False), simulate(apart, values=False)
    beats = network.tensors["dw.out"].shape[1] * 28 * 28 // spec.axi_bytes
    assert slow.counters["beats_written"] - fast.counters["beats_written"] == beats
    assert fast.counters["beats_read_activation"] < slow.counters["beats_read_activation"]
    assert fast.cycles < 0.9 * slow.cycles
    assert program.layers[0].bound(spec) < sum(n.bound(spec) for n in apart.layers)


def test_layers_in_between_do_not_matter(eager):
    """What stands between a chain's layers in the order of the network runs before it."""
    rng = np.random.default_rng(9)
    network = block()
    x = network.tensors["x"]
    side, y = random_conv(rng, "side", x, 64, (1, 1))
    front, project = network.stages
    last = Conv(**{**project.__dict__, "residual": y.name, "residual_ratio": 0.5})
    tensors = {**network.tensors, y.name: y}
    program = check_exact(
        Network(name="n", tensors=tensors, stages=(front, side, last), inputs=("x",), outputs=(last.output,)),
        ArchSpec.load("server"),
        1,
    )
    assert [n.name for n in program.layers] == ["side", "dw > project"]


@pytest.mark.parametrize("why", ["output", "second reader", "residual of another", "3 x 3", "stride", "grouped"])
def test_what_others_need_goes_to_memory(why, eager):
    rng = np.random.default_rng(11)
    x = random_tensor(rng, "x", (1, 32, 8, 8))
    front, y = random_conv(rng, "front", x, 32, (3, 3), pads=(1,) * 4)
    options = {"3 x 3": {"kernel": (3, 3), "pads": (1,) * 4}, "stride": {"stride": (2, 2)}, "grouped": {"groups": 4}}
    last, z = random_conv(rng, "last", y, 32, **{"kernel": (1, 1), **options.get(why, {})})
    layers, outputs = [(front, y), (last, z)], {z.name}
    if why == "output":
        outputs.add(y.name)
    if why == "second reader":
        layers.append(random_conv(rng, "again", y, 8, (1, 1)))
        outputs.add(layers[-1][1].name)
    if why == "residual of another":
        layers.append(random_conv(rng, "sum", z, 32, (1, 1), residual=y))
        outputs = {layers[-1][1].name}
    network = network_of(layers, x)
    network = Network(**{**network.__dict__, "outputs": tuple(outputs)})
    program = check_exact(network, ArchSpec.load("sat-2of8"), 2)
    assert y.name in program.tensors


def test_the_checker_sees_a_chain(eager):
    """Without its wait for the DRAIN, the second layer would read what is not there yet."""
    program = build_program(block(), ArchSpec.load("server"))
    matrix = program.instructions.copy()
    drains = np.flatnonzero((matrix[:, 0] == Op.DRAIN) & (matrix[:, column(Op.DRAIN, "to_activation")] == 1))
    matmuls = np.flatnonzero(matrix[:, 0] == Op.MATMUL)
    waits = np.int64(1) << 7  # drain_to_matmul
    first = int(next(i for i in matmuls if i > drains[0] and matrix[i, 1] & waits))
    matrix[first, 1] &= ~waits
    broken = Program(**{**program.__dict__, "instructions": matrix})
    with pytest.raises(Exception, match=r"instruction \d+|drain_to_matmul"):
        simulate(broken, values=False)


def test_a_chain_that_leaves_no_room_is_not_made(monkeypatch):
    """If a buffer is in pieces too small for what comes next, all layers go through memory."""
    network, spec = block(), ArchSpec.load("server")
    monkeypatch.setattr(chains.MappedChain, "items", lambda *_: (_ for _ in ()).throw(CapacityError("no room")))
    program = build_program(network, spec)
    assert [n.kind for n in program.layers] == ["conv", "conv"]


def test_only_the_chain_that_does_not_fit_is_taken_apart(monkeypatch, eager):
    rng = np.random.default_rng(1)
    x = random_tensor(rng, "x", (1, 32, 8, 8))
    made, source = [], x
    for name in ("a", "b"):  # a border behind each keeps them apart
        front, y = random_conv(rng, f"{name}.front", source, 32, (3, 3), pads=(1,) * 4)
        project, source = random_conv(rng, f"{name}.project", y, 32, (1, 1))
        made += [(front, y), (project, source)]
    items = chains.MappedChain.items

    def no_room_for_b(chain, *arguments):
        if chain.name.startswith("b"):
            raise CapacityError("no room")
        return items(chain, *arguments)

    monkeypatch.setattr(chains.MappedChain, "items", no_room_for_b)
    program = check_exact(network_of(made, x), ArchSpec.load("server"), 1)
    assert [n.name for n in program.layers] == ["a.front > a.project", "b.front", "b.project"]


@needs_hardware_tools
def test_hardware_runs_chains(eager):
    """Every event and every byte of chained Programs, on the machine that the other hardware tests build."""
    spec = ArchSpec.load("tiny")
    made = 0
    with Model(spec) as model:
        for seed in range(30):
            network = chained(np.random.default_rng(seed), largest=10, side=5, images=1)
            program = build_program(network, spec)
            if made == 4 or not any(note.kind == "chain" for note in program.layers):
                continue
            made += 1
            rng = np.random.default_rng(seed)
            codes = {name: random_codes(rng, network.tensors[name]) for name in network.inputs}
            assert verify(program, codes, model=model).difference is None
    assert made == 4


def test_measured_chains_take_least():
    """Who has a simulator compares a chain with its layers one after the other, and takes what is faster."""

    def measure(program: Program) -> int:
        return simulate(program, values=False, check=False).cycles

    seen = {}
    spec = ArchSpec.load("nm-2of4")
    for seed in range(6):
        network = chained(np.random.default_rng(seed), images=1)
        chosen = measure(build_program(network, spec, measure=measure))
        seen[seed] = chosen / min(measure(build_program(network, spec, chains=c)) for c in (True, False))
    assert max(seen.values()) <= 1.04, seen  # each chain is measured by itself, not with what stands around it
    assert min(seen.values()) < 1


def test_what_a_layer_reads_is_stored_before_and_not_after():
    """A second run of the same layers stores the tensor again: the first run's loads do not wait for that."""
    rng = np.random.default_rng(5)
    x = random_tensor(rng, "x", (1, 32, 12, 12))
    front, y = random_conv(rng, "front", x, 32, (3, 3), pads=(1,) * 4)
    last, z = random_conv(rng, "last", y, 32, (3, 3), pads=(1,) * 4)
    network, spec = network_of([(front, y), (last, z)], x), ArchSpec.load("tiny")
    places = place_tensors(network, spec)
    program = measured_program([map_layer(layer, places, spec).items for layer in network.layers], spec, places)
    assert simulate(program, values=False).cycles > 0
