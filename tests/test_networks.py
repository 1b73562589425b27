"""Whole networks end to end, by the benchmark that makes the table: compile, simulate, compare with onnxruntime."""

import sys
from pathlib import Path

import pytest

from gossamer.arch.spec import ArchSpec

FOLDER = Path(__file__).parent.parent / "benchmarks"

SHARE = {"detection": 0.99}
"""Least share of the multiply-accumulates on the array, where it is not all of them."""

COSINE = {
    "mobilenet_v2": 0.99,
    "mobilenet_v2_int8": 0.95,
    "orientation": 0.99,
    "minilm": 0.99,
    "recognition": 0.95,
    "detection": 0.7,
}
"""Least cosine to the floating-point network: 0.999 for the others."""

CUT = 8
"""Largest difference where a mean that does not fit is cut in two: it is rounded twice, into much finer codes."""


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    try:
        import networks
        import sources
    finally:
        sys.path.remove(str(FOLDER))
    return networks, sources


def check(bench, name, spec="server", most=1):
    networks, sources = bench
    try:
        source = sources.load(name)
    except sources.Missing as reason:
        pytest.skip(str(reason))
    report = networks.measure(source, ArchSpec.load(spec), None, 1)
    share, largest = report.layer_codes
    assert largest <= most
    assert share < 1e-3
    assert report.share >= SHARE.get(name, 1.0)
    assert report.cosine > COSINE.get(name, 0.999)
    assert report.cycles >= report.bound


def test_squeezenet(bench):
    check(bench, "squeezenet")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "vgg19", "zfnet512",
     "mobilenet_v2", "mobilenet_v2_int8", "orientation", "detection", "recognition", "minilm"],
)  # fmt: skip
def test_network(bench, name):
    check(bench, name, most=CUT if name == "detection" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["edge", "dense", "tiny"])
@pytest.mark.parametrize("name", ["squeezenet", "orientation"])
def test_small_accelerators(bench, name, spec):
    check(bench, name, spec, most=CUT if (name, spec) == ("orientation", "tiny") else 1)
