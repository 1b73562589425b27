"""From a quantised network to a Program that computes exactly what the kernels compute."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.exact import check_exact
from support.networks import random_conv, random_network, random_tensor
from support.specs import random_spec

import gossamer
from gossamer.arch.errors import CapacityError, GossamerError
from gossamer.arch.isa import Op, column
from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec, preset_names
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.backend.rings import Chunk, Ring
from gossamer.compiler.layers import Network, Tensor
from gossamer.sim.simulate import simulate


def one_layer(conv, x: Tensor, y: Tensor, *others: Tensor) -> Network:
    tensors = {t.name: t for t in (x, *others, y)}
    return Network(
        name="one", tensors=tensors, stages=(conv,), inputs=tuple(t.name for t in (x, *others)), outputs=(y.name,)
    )


@pytest.mark.parametrize("preset", preset_names())
@given(seed=st.integers(0, 2**32))
@settings(max_examples=6)
def test_random_networks_on_presets(preset, seed):
    check_exact(random_network(np.random.default_rng(seed)), ArchSpec.load(preset), seed)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_random_networks_on_random_specs(seed):
    """Odd machines: one lane, one column, V = M, H < M, PPUs narrower than the columns, small buffers."""
    rng = np.random.default_rng(seed)
    spec = random_spec(rng)
    network = random_network(rng, largest=20, side=7)
    with suppress(CapacityError):  # some of these machines are too small for some of these layers
        check_exact(network, spec, seed % 1000)


def test_the_same_network_gives_the_same_bytes():
    network = random_network(np.random.default_rng(5))
    spec = ArchSpec.load("sat-2of8")
    assert build_program(network, spec).to_bytes() == build_program(network, spec).to_bytes()


def gemm(positions: int, inputs: int, outputs: int, keep: float | tuple[int, int]) -> Network:
    rng = np.random.default_rng(0)
    x = Tensor(name="x", shape=(1, inputs, 1, positions), scale=0.1, zero_point=3, signed=False)
    density = keep if isinstance(keep, float) else 1.0
    conv, y = random_conv(rng, "gemm", x, outputs, (1, 1), density=density)
    weight = np.where(conv.weight == 0, 1, conv.weight) if density == 1.0 else conv.weight
    if isinstance(keep, tuple):
        n, m = keep
        rank = rng.random((outputs, inputs // m, m)).argsort(axis=2).argsort(axis=2)
        weight = weight * (rank < n).reshape(outputs, inputs, 1, 1)
    conv = type(conv)(**{**conv.__dict__, "weight": weight.astype(np.int8)})
    return one_layer(conv, x, y)


@pytest.mark.parametrize(("n", "m"), [(4, 8), (2, 8), (1, 8), (2, 4), (1, 4)])
def test_cycles_follow_n_of_m(n, m):
    """M / N times fewer array cycles than dense, to group / macs at most: exactly, for steps are counted."""
    spec = ArchSpec.load("sat-2of8")
    dense = simulate(build_program(gemm(64, 128, 64, 1.0), spec), values=False).counters["slots"]
    sparse = simulate(build_program(gemm(64, 128, 64, (n, m)), spec), values=False).counters["slots"]
    assert dense / sparse == min(m / n, spec.group / spec.macs)


@pytest.mark.parametrize(("side", "kernel", "positions"), [(14, 3, 13), (14, 1, 13), (10, 3, 7), (7, 3, 4)])
def test_a_map_in_two_bands(side, kernel, positions):
    """14 x 14 on 16 lanes: 13 positions a lane, where every single grid takes 14."""
    spec = ArchSpec.load("edge").evolve(name="wide bus", axi_bytes=64)
    rng = np.random.default_rng(side)
    x = random_tensor(rng, "x", (1, 64, side, side))
    pad = kernel // 2
    conv, y = random_conv(rng, "conv", x, 96, (kernel, kernel), pads=(pad,) * 4, residual=x if kernel == 1 else None)
    if kernel == 1:  # another layer wants a border, so that the map is no row of pixels
        conv, y = random_conv(rng, "conv", x, 64, (1, 1), residual=x)
        after, z = random_conv(rng, "after", y, 16, (3, 3), pads=(1, 1, 1, 1))
        tensors = {t.name: t for t in (x, y, z)}
        network = Network(name="two", tensors=tensors, stages=(conv, after), inputs=("x",), outputs=(z.name,))
    else:
        network = one_layer(conv, x, y)
    program = check_exact(network, spec, side)
    note = program.layers[0]
    rows = program.instructions[note.first : note.first + note.count]
    rows = rows[rows[:, 0] == Op.MATMUL]
    slots = (rows[:, column(Op.MATMUL, "nx")] * rows[:, column(Op.MATMUL, "ny")]).sum()
    tiles = -(-conv.weight.shape[0] // spec.block) * spec.block // spec.columns
    assert slots == tiles * positions


def test_bands_stand_together_in_the_bank():
    """What a column tile needs at once is placed at once: the layer before may stand in the middle of the bank."""
    spec = ArchSpec.load("sat-2of8")
    rng = np.random.default_rng(0)
    tensors, stages = [random_tensor(rng, "x", (1, 16, 14, 14))], []
    for k, (channels, kernel) in enumerate([(256, 1), (256, 3), (96, 1), (256, 3), (256, 3), (16, 3)]):
        conv, y = random_conv(rng, f"l{k}", tensors[-1], channels, (kernel,) * 2, pads=(kernel // 2,) * 4, density=0.1)
        tensors.append(y)
        stages.append(conv)
    network = Network(
        name="bands", tensors={t.name: t for t in tensors}, stages=tuple(stages), inputs=("x",), outputs=(y.name,)
    )
    program = build_program(network, spec)
    assert sum(" and " in note.mapping for note in program.layers) >= 3
    simulate(program, values=False)


def test_depthwise_keeps_every_pe_busy():
    """With group >= columns and one MAC a PE, a depthwise convolution wastes no slot."""
    spec = ArchSpec.load("s4-1of32")
    rng = np.random.default_rng(1)
    x = random_tensor(rng, "x", (1, 32, 16, 16))
    conv, y = random_conv(rng, "dw", x, 32, (3, 3), pads=(1, 1, 1, 1), groups=32)
    weight = np.where(conv.weight == 0, 1, conv.weight).astype(np.int8)
    conv = type(conv)(**{**conv.__dict__, "weight": weight})
    program = build_program(one_layer(conv, x, y), spec)
    slots = simulate(program, values=False).counters["slots"]
    assert program.layers[0].useful_macs == slots * spec.peak_macs


def test_zero_padding_of_channels_costs_no_cycles():
    """Three channels in a block of sixteen: only their own windows become steps."""
    spec = ArchSpec.load("sat-2of8")
    rng = np.random.default_rng(2)
    x = random_tensor(rng, "x", (1, 3, 8, 8))
    conv, y = random_conv(rng, "stem", x, 16, (3, 3), pads=(1, 1, 1, 1))
    weight = np.where(conv.weight == 0, 1, conv.weight).astype(np.int8)
    conv = type(conv)(**{**conv.__dict__, "weight": weight})
    run = simulate(build_program(one_layer(conv, x, y), spec), values=False)
    assert run.counters["slots"] == 9 * 2 * 64 // spec.lanes  # nine taps of ceil(3 / 2) steps


def test_a_lost_wait_is_refused():
    """The static checker bites: without its wait, a MATMUL would read what is still being loaded."""
    program = build_program(gemm(64, 128, 64, 1.0), ArchSpec.load("sat-2of8"))
    matrix = program.instructions.copy()
    first = int(np.flatnonzero(matrix[:, 0] == Op.MATMUL)[0])
    matrix[first, 1] = 0
    broken = Program(**{**program.__dict__, "instructions": matrix})
    with pytest.raises(GossamerError, match=rf"instruction {first}\b"):
        simulate(broken, values=False)


def test_a_layer_that_cannot_fit_says_so():
    tiny = ArchSpec.load("tiny").evolve(name="too-small", activation_bytes=32, activation_partitions=1)
    rng = np.random.default_rng(3)
    x = random_tensor(rng, "x", (1, 8, 9, 9))
    conv, y = random_conv(rng, "wide", x, 8, (9, 9))
    with pytest.raises(CapacityError, match=r"^layer 'wide' does not fit spec 'too-small'.*activation_bytes = 32"):
        build_program(one_layer(conv, x, y), tiny)
    table, y = random_conv(rng, "curve", x, 8, (1, 1), table=True)
    with pytest.raises(CapacityError, match=r"^layer 'curve' needs a table.*tables = 0"):
        build_program(one_layer(table, x, y), ArchSpec.load("tiny").evolve(tables=0))


def test_a_pattern_that_a_layer_cannot_hold_is_not_passed_over_in_silence():
    digits = Path(__file__).resolve().parents[1] / "examples" / "digits" / "digits-dense.onnx"
    images = np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"stem.*left as it is instead of 2:8"):
        gossamer.compile(digits, "tiny", sparsity="2:8", calibration={"image": images})


@pytest.mark.parametrize("preset", ["server", "edge", "dense", "s4-1of32"])
@pytest.mark.parametrize(("channels", "kernel", "stride", "dilation"), [(3, 7, 2, 1), (3, 3, 1, 1), (1, 5, 2, 2)])
def test_few_channels_share_a_beat(preset, channels, kernel, stride, dilation):
    """A picture costs the bus its pixels and little more, wherever lanes and macro tiles begin."""
    spec = ArchSpec.load(preset)
    rng = np.random.default_rng(3)
    x = random_tensor(rng, "x", (1, channels, 29, 37))
    conv, y = random_conv(
        rng, "stem", x, 16, (kernel, kernel), stride=(stride,) * 2, pads=(kernel // 2,) * 4, dilation=(dilation,) * 2
    )
    program = check_exact(one_layer(conv, x, y), spec, channels)
    wide = check_exact(one_layer(conv, x, y), spec.evolve(name="small", activation_bytes=spec.activation_bytes // 8), 1)
    place = program.tensors["x"]
    assert place.block <= max(4, spec.group)
    assert place.row_bytes % spec.axi_bytes == 0
    assert wide.tensors["x"] == place
    read = simulate(program, values=False).counters["beats_read_activation"]
    if preset == "server":  # halos are read again, but far less than whole blocks would take
        assert read * spec.axi_bytes < 0.25 * place.size * spec.block / place.block


def test_a_tensor_with_other_readers_keeps_whole_blocks():
    spec = ArchSpec.load("server")
    rng = np.random.default_rng(4)
    x = random_tensor(rng, "x", (1, 3, 8, 8))
    one, y = random_conv(rng, "one", x, 3, (1, 1))
    two, z = random_conv(rng, "two", y, 3, (1, 1), residual=x)
    tensors = {t.name: t for t in (x, y, z)}
    network = Network(name="n", tensors=tensors, stages=(one, two), inputs=("x",), outputs=(z.name,))
    assert {p.block for p in check_exact(network, spec, 0).tensors.values()} == {spec.block}


@pytest.mark.parametrize("preset", ["sat-2of8", "edge"])
def test_zeros_help_a_batch_as_well(preset):
    """What has to be loaded again for every output block counts for every image too."""
    spec, rng, taken = ArchSpec.load(preset), np.random.default_rng(8), {}
    for keep in (1.0, 0.5):
        x = random_tensor(rng, "x", (8, 64, 1, 24))
        up, y = random_conv(rng, "up", x, 256, (1, 1))
        down, z = random_conv(rng, "down", y, 64, (1, 1))
        layers = [replace(c, weight=four_of_eight(c.weight) if keep < 1 else c.weight | 1) for c in (up, down)]
        network = Network(
            name="ffn", tensors={t.name: t for t in (x, y, z)}, stages=tuple(layers), inputs=("x",), outputs=(z.name,)
        )
        taken[keep] = simulate(build_program(network, spec, chains=False), values=False).cycles
    assert taken[0.5] < 0.75 * taken[1.0]


def four_of_eight(weight):
    """The first four of every eight inputs."""
    return (weight | 1) * (np.arange(weight.shape[1]) % 8 < 4)[None, :, None, None].astype(np.int8)


def test_two_weight_chunks_of_almost_half_a_buffer_fit_whatever_their_order():
    ring = Ring(100, to_end=True)
    for use, size in enumerate((48, 50, 49, 50, 50, 47, 50)):
        chunk = Chunk(ring="weight", size=size, align=1, loads=[], last_use=use)
        assert ring.place(chunk)  # beside the one before, which is still in use
        ring.release(use - 1)


def test_positions_beyond_the_map_are_not_computed():
    """Four pixels share a beat, so tiles are four wide, and of the last one a single position is left."""
    spec = ArchSpec.load("tiny").evolve(
        columns=16, axi_bytes=16, group=2, depth=2, activation_bytes=64, output_bytes=640, dynamic_operands=False
    )
    rng = np.random.default_rng(0)
    x = random_tensor(rng, "x", (1, 3, 1, 19))
    conv, y = random_conv(rng, "conv", x, 16, (1, 3))
    network = Network(name="n", tensors={"x": x, y.name: y}, stages=(conv,), inputs=("x",), outputs=(y.name,))
    check_exact(network, spec, 0)


@pytest.mark.parametrize("preset", ["edge", "dbb-4of8"])
def test_pixels_between_strides_are_not_in_the_bound(preset):
    rng = np.random.default_rng(0)
    x = random_tensor(rng, "x", (2, 120, 9, 11))
    conv, y = random_conv(rng, "conv", x, 120, (1, 1), stride=(2, 1), groups=120)
    network = Network(name="n", tensors={"x": x, y.name: y}, stages=(conv,), inputs=("x",), outputs=(y.name,))
    program = check_exact(network, ArchSpec.load(preset), 0)
    read = 2 * 120 * 5 * 11  # rows 1, 3, 5 and 7 are not read
    assert program.layers[0].read_beats < 1.5 * read / program.spec.axi_bytes
