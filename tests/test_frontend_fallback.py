"""What a spec cannot run goes to the host with the reason, and computes the same codes there."""

from dataclasses import replace

import numpy as np
import pytest

from gossamer.arch.errors import CapacityError
from gossamer.arch.program import HostStage
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend import fallback
from gossamer.compiler.backend.fallback import fitted, layer_on_host
from gossamer.compiler.layers import Conv, HostSegment, MaxPool
from gossamer.compiler.passes import build_network
from tests.support.frontend import Builder, check_structure, run_network
from tests.test_frontend_attention import SPELLINGS, attention, feeds, masked_attention

SPEC = ArchSpec.load("edge")


def network_of(model, x, **options):
    return build_network(model, calibration=[x], **options)


def same_codes(before, after, x, most=1):
    """Every tensor that both networks have holds the same codes."""
    ours, theirs = run_network(after, x)[1], run_network(before, x)[1]
    for name in theirs:
        assert np.abs(ours[name] - theirs[name]).max() <= most, name


def random_image(shape, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def convolutional():
    """Everything a convolution's epilogue can do, groups, a concatenation, pooling of both kinds."""
    b = Builder(("x", (2, 6, 9, 8)))
    y = b.op("Relu", b.conv("x", 6, 8, pads=[1, 1, 1, 1]))
    z = b.op("Sigmoid", b.conv(y, 8, 8, groups=8, pads=[2, 2, 2, 2], dilations=[2, 2]))
    both = b.op("Concat", y, z, axis=1)
    w = b.op("Add", b.conv(both, 16, 8, k=1), y)
    p = b.op("MaxPool", w, kernel_shape=[3, 2], strides=[2, 1], pads=[0, 0, 0, 0])
    p = b.op("HardSwish", b.conv(p, 8, 12, strides=[1, 2], auto_pad="SAME_UPPER"))
    return b.model(b.op("GlobalAveragePool", p)), random_image((2, 6, 9, 8))


@pytest.mark.parametrize("signed", [False, True])
def test_every_layer_computes_the_same_on_the_host(signed):
    model, x = convolutional()
    network = network_of(model, x, signed=signed)
    assert {type(layer) for layer in network.layers} == {Conv, MaxPool}
    for layer in network.layers:
        moved = layer_on_host(layer, dict(network.tensors), "because")
        stages = tuple(moved if stage is layer else stage for stage in network.stages)
        after = replace(network, stages=stages)
        check_structure(after)
        same_codes(network, after, x, most=0 if isinstance(layer, MaxPool) else 1)
        assert moved.macs == (0 if isinstance(layer, MaxPool) else macs(network, layer))


def macs(network, layer):
    n, _, h, w = network.tensors[layer.output].shape
    return layer.weight.size * n * h * w


@pytest.mark.parametrize("batch", [1, 2])
def test_products_compute_the_same_on_the_host(batch):
    for model, x in (
        (attention(SPELLINGS[0], batch), feeds(batch)),
        masked_attention(lambda b, s: b.op("Add", s, b.constant(np.triu(np.full((40, 40), -np.inf), 1)))),
    ):
        network = network_of(model, x, products=True)
        moved = [
            layer_on_host(s, dict(network.tensors), "because") if type(s).__name__ == "MatMul" else s
            for s in network.stages
        ]
        after = replace(network, stages=tuple(moved))
        check_structure(after)
        same_codes(network, after, x)


def test_a_spec_without_products_runs_them_on_the_host():
    model, x = attention(SPELLINGS[0], 1), feeds(1)
    network = fitted(network_of(model, x, products=True), replace(SPEC, dynamic_operands=False))
    reasons = [stage.reason for stage in network.stages if isinstance(stage, HostSegment)]
    assert sum("multiplies two activations" in reason for reason in reasons) == 2
    check_structure(network)


def test_without_tables_only_functions_go_to_the_host():
    model, x = convolutional()
    spec = replace(SPEC, tables=0)
    before = network_of(model, x)
    network = fitted(before, spec)
    check_structure(network)
    same_codes(before, network, x, most=0)
    hosts = [stage for stage in network.stages if isinstance(stage, HostSegment)]
    assert len(hosts) == 2
    assert all("buffers.tables = 0" in stage.reason and stage.macs == 0 for stage in hosts)
    assert len(network.layers) == len(before.layers)


def test_a_mean_that_does_not_fit_is_cut_into_its_axes(monkeypatch):
    b = Builder(("x", (1, 5, 30, 20)))
    model = b.model(b.conv(b.op("GlobalAveragePool", b.op("Relu", "x")), 5, 7, k=1))
    x = random_image((1, 5, 30, 20))
    before = network_of(model, x)
    spec = replace(SPEC, activation_bytes=4096, output_bytes=1024)
    tensors = fallback.place_tensors(before, spec)
    with pytest.raises(CapacityError):
        [fallback.map_layer(layer, tensors, spec) for layer in before.layers]
    network = fitted(before, spec)
    check_structure(network)
    assert len(network.layers) == len(before.layers) + 1
    assert not any(isinstance(stage, HostSegment) for stage in network.stages)
    assert any("cut into its two axes" in note for note in network.notes)
    same_codes(before, network, x)


def test_a_layer_that_fits_in_no_tiling_goes_to_the_host():
    b = Builder(("x", (1, 4, 40, 40)))
    y = b.conv(b.op("Relu", "x"), 4, 6, k=33)
    model, x = b.model(b.op("Relu", b.conv(y, 6, 4, k=1))), random_image((1, 4, 40, 40))
    before = network_of(model, x)
    network = fitted(before, replace(SPEC, activation_bytes=4096, output_bytes=1024))
    check_structure(network)
    same_codes(before, network, x)
    (host,) = (stage for stage in network.stages if isinstance(stage, HostSegment))
    assert "does not fit" in host.reason
    assert host.ops == ("Conv",)
    assert host.macs == 4 * 6 * 33 * 33 * 64


def test_what_fits_is_not_touched():
    model, x = convolutional()
    network = network_of(model, x)
    assert fitted(network, SPEC) is network


def test_compile_does_it():
    import gossamer

    model, x = convolutional()
    with pytest.warns(UserWarning, match="calibration"):
        program = gossamer.compile(model, replace(SPEC, tables=0))
    assert [type(stage) for stage in program.stages].count(HostStage) == 2
    run = gossamer.simulate(program, x)
    assert run.outputs
