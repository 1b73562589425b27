"""Networks with products of two activations."""

import numpy as np

from gossamer.compiler.layers import MatMul, Network, Tensor


def tensor(name: str, shape: tuple[int, int, int, int], zero_point: int = 0, signed: bool = True) -> Tensor:
    return Tensor(name=name, shape=shape, scale=0.1, zero_point=zero_point, signed=signed)


def attention(
    rng: np.random.Generator,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    width: int,
    *,
    merged: bool | None = None,
    mask: np.ndarray | None = None,
    mask_tile: tuple[int, int] = (1, 1),
) -> Network:
    """Q K^T and P V (P is an input, as if the host had done the softmax); heads in channels (merged) or in images."""
    products = batch * heads

    def placed(name: str, tokens: int, channels: int, zero_point: int = 0, signed: bool = True) -> Tensor:
        in_channels = bool(rng.random() < 0.5) if merged is None else merged
        shape = (batch, heads * channels, 1, tokens) if in_channels else (products, channels, 1, tokens)
        return tensor(name, shape, zero_point, signed)

    zero = int(rng.integers(-20, 20))
    tensors = [
        placed("q", queries, width, int(rng.integers(0, 256)), signed=False),
        placed("k", keys, width),
        placed("v", keys, width),
        placed("scores", queries, keys, zero),
        placed("p", queries, keys, int(rng.integers(0, 3)), signed=False),
        placed("context", queries, width, 3),
    ]
    common = {"products": products, "mask": mask, "mask_tile": mask_tile}
    table = rng.integers(0, 256, 256).astype(np.uint8) if mask is None and rng.random() < 0.2 else None
    scores = MatMul(
        name="qk", a="q", b="k", output="scores", transposed=True, scale=0.01 / np.sqrt(width), zero_point=zero,
        table=table, **common,
    )  # fmt: skip
    context = MatMul(
        name="pv", a="p", b="v", output="context", transposed=False, scale=0.01 / np.sqrt(keys), zero_point=3,
        lo=-100, **common,
    )  # fmt: skip
    return Network(
        name="attention",
        tensors={t.name: t for t in tensors},
        stages=(scores, context),
        inputs=("q", "k", "v", "p"),
        outputs=("scores", "context"),
    )
