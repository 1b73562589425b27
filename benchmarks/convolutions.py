"""Convolutions against onnxruntime's: python benchmarks/convolutions.py [--core N]

As benchmarks/kernels.py measures: one thread, CPU time, medians of ratios within a round. Maps have channels last on
both sides for int8 (onnxruntime's own form of QLinearConv), and for float32 channels first on theirs, which is the
only one it has. Padding and, on our side, everything else is in the figures.
"""

import argparse
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from opponents import Call, aligned, session
from timing import measure, peaks, pin

from gossamer.arch.numerics import make_requant
from gossamer.kernels import BSR, NM, Dense, Weight, aligned_empty, prepare_conv, prepare_float_conv

SHAPES = {
    "ResNet-50 layer1": (56, 64, 64, 3, 1),
    "ResNet-50 layer2": (28, 128, 128, 3, 1),
    "ResNet-50 layer3": (14, 256, 256, 3, 1),
    "ResNet-50 layer4": (7, 512, 512, 3, 1),
    "ResNet-50 layer2, first": (56, 128, 128, 3, 2),
    "ResNet-50 stem": (224, 3, 64, 7, 2),
    "ResNet-50 layer1, 1 x 1": (56, 64, 256, 1, 1),
    "ResNet-50 layer3, shortcut": (28, 512, 1024, 1, 2),
}
"""Height and width of a map, channels, outputs, kernel, stride."""
ZERO_POINT = 7


def theirs(x: Any, weight: Any, kernel: int, stride: int) -> Call:
    """QLinearConv with channels last, or Conv with channels first. weight : [N, kernel, kernel, channels]."""
    pads, channels_first = [kernel // 2] * 4, np.ascontiguousarray(weight.transpose(0, 3, 1, 2))
    geometry = {"strides": [stride, stride], "pads": pads, "kernel_shape": [kernel, kernel]}
    if x.dtype == np.float32:
        node = helper.make_node("Conv", ["x", "w"], ["y"], **geometry)
        return session(node, {"w": channels_first}, aligned(x.transpose(0, 3, 1, 2)), TensorProto.FLOAT, 4)
    scale, zero = np.array(0.1, np.float32), np.array(ZERO_POINT, np.uint8)
    constants = {"w": channels_first, "s": scale, "xz": zero, "wz": np.array(0, np.int8), "ys": np.array(9, np.float32)}
    node = helper.make_node(
        "QLinearConv", ["x", "s", "xz", "w", "s", "wz", "ys", "xz"], ["y"],
        domain="com.microsoft", channels_last=1, **geometry,
    )  # fmt: skip
    return session(node, constants, x, TensorProto.UINT8, 4)


def patterns(rng: Any, n: int, k: int) -> dict[str, Weight]:
    """Weights of a few patterns."""
    full = (rng.choice([-1, 1], (n, k)) * rng.integers(1, 128, (n, k))).astype(np.int8)
    made: dict[str, Weight] = {"dense": Dense.from_dense(full)}
    if k % 16 == 0:
        order = rng.random((n, k // 4, 4)).argsort(axis=2).reshape(n, k)
        made["1:4"] = NM.from_dense(np.where(order < 1, full, 0).astype(np.int8), n=1, m=4)
        keep = np.kron(rng.random((n // 16, k // 16)) < 0.1, np.ones((16, 16), bool))
        made["16x16 90%"] = BSR.from_dense(np.where(keep, full, 0).astype(np.int8), block=(16, 16))
    return made


def compare(name: str, rounds: int) -> None:
    """Print a line for every pattern."""
    tops, operations = peaks()
    size, channels, n, kernel, stride = SHAPES[name]
    rng = np.random.default_rng(0)
    x = aligned(rng.integers(0, 256, (1, size, size, channels)).astype(np.uint8))
    xf = aligned(x.astype(np.float32) / np.float32(256))
    k = kernel * kernel * channels
    made = patterns(rng, n, k)
    shape = (n, kernel, kernel, channels)
    dense = made["dense"].to_dense().reshape(shape)
    calls = tops | {
        "theirs": theirs(x, dense, kernel, stride),
        "theirs float": theirs(xf, dense.astype(np.float32), kernel, stride),
    }
    geometry: dict[str, Any] = {"size": (size, size), "channels": channels, "kernel": (kernel, kernel)}
    geometry |= {"stride": (stride, stride), "pads": (kernel // 2,) * 4}
    requant = make_requant(np.full(n, 0.001), zero_point=ZERO_POINT, lo=0, hi=255)
    for label, weight in made.items():
        layer = prepare_conv(weight, zero_point=ZERO_POINT, requant=requant, **geometry)
        real = prepare_float_conv(weight.to_dense().astype(np.float32), **geometry)
        out = (1, *layer.windows.out_size, n)
        codes, floats = aligned_empty(out, np.uint8), aligned_empty(out, np.float32)
        calls[label] = lambda layer=layer, codes=codes: layer(x, out=codes)  # type: ignore[misc]
        calls[f"{label} float"] = lambda real=real, floats=floats: real(xf, out=floats)  # type: ignore[misc]
    times = measure(calls, rounds, 0.004)
    work = 2.0 * k * n * np.prod(layer.windows.out_size)
    for label, weight in made.items():
        density = np.count_nonzero(weight.to_dense()) / (n * k)
        cells = [name, label]
        for kind, unit in (("", "dot peak"), (" float", "FMA peak")):
            mine = times[f"{label}{kind}"]
            share = work * density / mine / (operations[unit] / times[unit])
            cells += [
                f"{np.median(mine) * 1e6:.0f}", f"{np.median(share):.0%}",
                f"{np.median(times[f'theirs{kind}'] / mine):.2f}",
            ]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print a line for every shape and pattern."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args()
    pin(options.core)
    print("| convolution | weight | int8, us | of peak | QLinearConv | float32, us | of peak | Conv |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.shapes:
        compare(name, options.rounds)


if __name__ == "__main__":
    main()
