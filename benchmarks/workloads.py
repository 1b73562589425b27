"""Layer shapes of known networks (workloads/*.csv) as quantised layers with random weights of a given pattern.

Columns: M positions, GK reduction, GN outputs of a group; conv fields where it is one; count repeats; `bmm` marks
products of two activations, taken here with a constant second operand: the same work for array and bus.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gossamer.compiler.layers import Conv, Network, Tensor

__all__ = ["FOLDER", "chain_network", "layer_network", "masked", "read"]

FOLDER = Path(__file__).parent / "workloads"


def read(name: str) -> list[dict[str, str]]:
    """Rows of a workload."""
    with open(FOLDER / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def masked(rng: np.random.Generator, shape: tuple[int, int, int, int], pattern: str) -> NDArray[np.int8]:
    """Random nonzero int8 weights with zeros after a pattern: dense, n:m, block RxC p%, unstructured p%."""
    weight = rng.integers(1, 128, shape).astype(np.int8) * rng.choice(np.array([-1, 1], np.int8), shape)
    kind, *rest = pattern.split()
    flat = weight.transpose(0, 2, 3, 1).reshape(shape[0], -1)  # input channels innermost
    if ":" in kind:
        n, m = map(int, kind.split(":"))
        if shape[1] % m == 0:
            rank = rng.random((flat.size // m, m)).argsort(axis=1).argsort(axis=1)
            flat = np.where(rank < n, flat.reshape(-1, m), 0).reshape(flat.shape)
    elif kind == "block":
        (r, c), share = map(int, rest[0].split("x")), float(rest[1].rstrip("%")) / 100
        keep = rng.random((-(-flat.shape[0] // r), -(-flat.shape[1] // c))) >= share
        mask = np.kron(keep, np.ones((r, c), dtype=bool))[: flat.shape[0], : flat.shape[1]]
        flat = np.where(mask, flat, 0)
    elif kind == "unstructured":
        flat = np.where(rng.random(flat.shape) >= float(rest[0].rstrip("%")) / 100, flat, 0)
    elif kind != "dense":
        raise ValueError(f"pattern must be dense, n:m, 'block RxC p%' or 'unstructured p%', not {pattern!r}")
    back = flat.reshape(shape[0], shape[2], shape[3], shape[1]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(back.astype(np.int8))


def layer_network(row: dict[str, str], pattern: str = "dense", seed: int = 0) -> Network:
    """One layer of a workload as a network of its own."""
    conv, x, y = _layer(row, pattern, np.random.default_rng(seed))
    conv = replace(conv, inputs=("x",), output="y")
    tensors = {"x": _tensor("x", x, signed=False), "y": _tensor("y", y, signed=True)}
    return Network(name=row["layer"], tensors=tensors, stages=(conv,), inputs=("x",), outputs=("y",))


def chain_network(name: str, pattern: str = "dense", seed: int = 0) -> Network:
    """A workload whole: every layer reads the latest tensor of the shape it needs, or else an input of the network.

    The products of all heads of an attention layer are one grouped layer. Residual additions, poolings and functions
    are not in the table, so they are not here either.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    latest: dict[tuple[int, int, int, int], str] = {}
    stages, inputs = [], []
    for row in read(name):
        heads = int(row["count"] or 1) if row["kind"] == "bmm" else 1
        conv, x, y = _layer(row, pattern, rng, heads)
        if x not in latest:
            latest[x] = f"{row['layer']}.x"
            inputs.append(latest[x])
            tensors[latest[x]] = _tensor(latest[x], x, signed=True)
        conv = replace(conv, inputs=(latest[x],), output=f"{row['layer']}.y")
        latest[y] = conv.output
        tensors[conv.output] = _tensor(conv.output, y, signed=True)
        stages.append(conv)
    return Network(name=name, tensors=tensors, stages=tuple(stages), inputs=tuple(inputs), outputs=(stages[-1].output,))


Shape = tuple[int, int, int, int]


def _layer(row: dict[str, str], pattern: str, rng: np.random.Generator, heads: int = 1) -> tuple[Conv, Shape, Shape]:
    """A row as a layer, with the shapes of its input and output."""
    if row["kind"] == "conv":
        n, c, h, w, k, r, s, stride, pad, groups, p, q = (
            int(row[f]) for f in ("N", "C", "H", "W", "K", "R", "S", "stride", "pad", "groups", "P", "Q")
        )
        x, y, shape = (n, c, h, w), (n, k, p, q), (k, c // groups, r, s)
    else:
        m, c, k = (int(row[f]) for f in ("M", "GK", "GN"))
        x, y, shape = (1, heads * c, 1, m), (1, heads * k, 1, m), (heads * k, c, 1, 1)
        stride, pad, groups = 1, 0, heads
    conv = Conv(
        name=row["layer"],
        inputs=(),
        output="",
        weight=masked(rng, shape, "dense" if row["kind"] == "bmm" else pattern),
        bias=np.zeros(shape[0], dtype=np.int32),
        scale=np.full(shape[0], 1e-3),
        stride=(stride, stride),
        pads=(pad,) * 4,
        groups=groups,
        pattern=pattern,
    )
    return conv, x, y


def _tensor(name: str, shape: Shape, *, signed: bool) -> Tensor:
    return Tensor(name=name, shape=shape, scale=0.05, zero_point=0, signed=signed)
