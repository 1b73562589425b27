"""Random quantised networks, and what they compute, layer by layer with the reference kernels."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.numerics import make_requant
from gossamer.compiler.layers import Conv, MatMul, MaxPool, Network, Tensor
from gossamer.kernels import conv2d, max_pool2d, requantise


def reference(network: Network, inputs: Mapping[str, NDArray[np.integer]]) -> dict[str, NDArray[np.int64]]:
    """Codes of every tensor, [N, C, H, W]; inputs are codes in that shape."""
    codes: dict[str, NDArray[np.int64]] = {n: np.asarray(v, np.int64) for n, v in inputs.items()}
    for layer in network.layers:
        first = network.tensors[layer.inputs[0]]
        if isinstance(layer, MatMul):
            codes[layer.output] = product(layer, network, codes)
            continue
        dtype = np.int8 if first.signed else np.uint8
        x = np.concatenate([codes[n] for n in layer.inputs], axis=1).astype(dtype)
        if isinstance(layer, MaxPool):
            pooled = max_pool2d(x, layer.kernel, stride=layer.stride, pads=layer.pads, dilation=layer.dilation)
            codes[layer.output] = np.clip(pooled.astype(np.int64), layer.lo, layer.hi)
            continue
        acc = conv2d(
            x,
            layer.weight,
            zero_point=first.zero_point,
            stride=layer.stride,
            pads=layer.pads,
            dilation=layer.dilation,
            groups=layer.groups,
        )
        residual, zero = None, 0
        if layer.residual:
            r = network.tensors[layer.residual]
            residual, zero = codes[layer.residual].astype(np.int8 if r.signed else np.uint8), r.zero_point
        q = make_requant(
            layer.scale,
            zero_point=layer.zero_point,
            lo=layer.lo,
            hi=layer.hi,
            residual_ratio=layer.residual_ratio if layer.residual else None,
            residual_zero_point=zero,
        )
        table = layer.table
        if table is not None and layer_output_signed(network, layer):
            table = table.view(np.int8)
        codes[layer.output] = requantise(acc, layer.bias, q, residual, table, axis=1).astype(np.int64)
    return codes


def product(layer: MatMul, network: Network, codes: dict[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Codes of a product of two activations."""
    a, b = (matrices(codes[name], layer.products) for name in layer.inputs)
    left = a - network.tensors[layer.a].zero_point
    acc = np.einsum("prk,pck->prc" if layer.transposed else "prk,pkc->prc", left, b)
    q = make_requant(np.array([layer.scale]), zero_point=layer.zero_point, lo=layer.lo, hi=layer.hi)
    shape = network.tensors[layer.output].shape
    table = layer.table
    if table is not None and network.tensors[layer.output].signed:
        table = table.view(np.int8)
    flat = acc.transpose(0, 2, 1).reshape(1, 1, -1).astype(np.int32)
    return requantise(flat, np.zeros(1, np.int32), q, None, table, axis=1).astype(np.int64).reshape(shape)


def matrices(codes: NDArray[np.int64], products: int) -> NDArray[np.int64]:
    """A tensor's codes [N, C, 1, tokens] as matrices [products, tokens, channels of a run]."""
    return codes.reshape(products, -1, codes.shape[3]).transpose(0, 2, 1)


def layer_output_signed(network: Network, layer: Conv | MaxPool) -> bool:
    """The code range of a layer's output tensor."""
    return network.tensors[layer.output].signed


def random_conv(
    rng: np.random.Generator,
    name: str,
    source: Tensor | tuple[Tensor, ...],
    channels: int,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    density: float = 1.0,
    residual: Tensor | None = None,
    table: bool = False,
    signed: bool = True,
) -> tuple[Conv, Tensor]:
    """A convolution with random weights, and its output tensor; scales keep the codes spread over their range."""
    sources = source if isinstance(source, tuple) else (source,)
    n, _, h, w = sources[0].shape
    fan = sum(t.shape[1] for t in sources) // groups
    weight = rng.integers(-127, 128, (channels, fan, *kernel)).astype(np.int8)
    weight[rng.random(weight.shape) > density] = 0
    rows = (h + pads[0] + pads[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    pixels = (w + pads[1] + pads[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    low, high = (-128, 127) if signed else (0, 255)
    shape = (n, channels, rows, pixels)
    zero = int(rng.integers(low, high + 1))
    out = Tensor(name=f"{name}.out", shape=shape, scale=0.05, zero_point=zero, signed=signed)
    spread = 60 * 73 * np.sqrt(max(1.0, fan * kernel[0] * kernel[1] * density))
    conv = Conv(
        name=name,
        inputs=tuple(t.name for t in sources),
        output=out.name,
        weight=weight,
        bias=rng.integers(-5000, 5000, channels).astype(np.int32),
        scale=rng.uniform(0.5, 1.5, channels) * 50 / spread,
        stride=stride,
        pads=pads,
        dilation=dilation,
        groups=groups,
        residual=residual.name if residual else None,
        residual_ratio=float(rng.uniform(0.2, 1.5)) if residual else 0.0,
        zero_point=zero,
        lo=low if rng.random() < 0.5 else max(low, min(zero, high)),
        hi=high,
        signed=signed,
        table=rng.integers(0, 256, 256).astype(np.uint8) if table else None,
    )
    return conv, out


def random_tensor(rng: np.random.Generator, name: str, shape: tuple[int, int, int, int]) -> Tensor:
    """An input tensor with a random code range and zero point."""
    signed = bool(rng.random() < 0.5)
    low, high = (-128, 127) if signed else (0, 255)
    return Tensor(name=name, shape=shape, scale=0.1, zero_point=int(rng.integers(low, high + 1)), signed=signed)


def random_codes(rng: np.random.Generator, tensor: Tensor) -> NDArray[np.int16]:
    """Codes over the whole range of a tensor."""
    low, high = (-128, 127) if tensor.signed else (0, 255)
    return rng.integers(low, high + 1, tensor.shape).astype(np.int16)


def random_network(rng: np.random.Generator, *, largest: int = 40, side: int = 12) -> Network:
    """One to four layers of every kind the back end takes, with odd sizes."""
    n = int(rng.choice([1, 1, 1, 2]))
    tokens = rng.random() < 0.3
    h = 1 if tokens else int(rng.integers(1, side))
    w = int(rng.integers(1, side * 2 if tokens else side))
    x = random_tensor(rng, "x", (n, int(rng.integers(1, largest)), h, w))
    tensors, stages = [x], []
    for k in range(int(rng.integers(1, 5))):
        source = tensors[-1]
        _, c, h, w = source.shape
        kind = rng.choice(["conv", "conv", "depthwise", "grouped", "pool", "concat", "residual"])
        kernel = (int(rng.integers(1, min(4, h) + 1)), int(rng.integers(1, min(4, w) + 1)))
        if rng.random() < 0.3:
            kernel = (1, 1)
        stride = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
        dilation = (
            int(rng.integers(1, 3)) if (kernel[0] - 1) * 2 < h else 1,
            int(rng.integers(1, 3)) if (kernel[1] - 1) * 2 < w else 1,
        )
        pads = tuple(int(p) for p in rng.integers(0, 2, 4) * rng.integers(0, 2))
        density = float(rng.choice([1.0, 0.5, 0.2, 0.05, 0.0]))
        common = {"density": density, "signed": bool(rng.random() < 0.5), "table": bool(rng.random() < 0.2)}
        shaped = {"stride": stride, "dilation": dilation, "pads": pads}
        if kind == "pool":
            pads = (0, 0, 0, 0)
            rows = (h - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
            pixels = (w - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
            out = Tensor(
                name=f"l{k}.out", shape=(n, c, rows, pixels), scale=source.scale, zero_point=source.zero_point,
                signed=source.signed,
            )  # fmt: skip
            lo, hi = (-128, 127) if source.signed else (0, 255)
            stages.append(
                MaxPool(
                    name=f"l{k}", inputs=(source.name,), output=out.name, kernel=kernel, stride=stride,
                    dilation=dilation, pads=pads, lo=lo, hi=hi,
                )
            )  # fmt: skip
            tensors.append(out)
            continue
        name, channels = f"l{k}", int(rng.integers(1, largest))
        if kind == "depthwise":
            conv, out = random_conv(
                rng, name, source, c * int(rng.integers(1, 3)), kernel, groups=c, **common, **shaped
            )
        elif kind == "grouped" and c % 2 == 0:
            conv, out = random_conv(rng, name, source, 2 * channels, kernel, groups=2, **common, **shaped)
        elif kind == "concat":
            twin = [
                t for t in tensors
                if t.shape[2:] == source.shape[2:] and (t.scale, t.zero_point, t.signed)
                == (source.scale, source.zero_point, source.signed)
            ]  # fmt: skip
            conv, out = random_conv(rng, name, (*twin, source), channels, kernel, **common, **shaped)
        elif kind == "residual":
            conv, out = random_conv(rng, name, source, c, (1, 1), residual=source, **common)
        else:
            conv, out = random_conv(rng, name, source, channels, kernel, **common, **shaped)
        stages.append(conv)
        tensors.append(out)
    return Network(
        name="random",
        tensors={t.name: t for t in tensors},
        stages=tuple(stages),
        inputs=("x",),
        outputs=(tensors[-1].name,),
    )
