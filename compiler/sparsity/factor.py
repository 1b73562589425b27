"""A matrix as the product of two sparser or smaller ones: Monarch and low rank.

A linear layer or a 1x1 convolution becomes two, the second with the bias. Between them stands a tensor of its own.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.layout import array_weight
from gossamer.compiler.frontend.ops import Conv, Linear, TensorInfo
from gossamer.compiler.sparsity.patterns import LowRank, Monarch

__all__ = ["factor", "low_rank", "make_pair", "matrix_as", "monarch"]

Real = NDArray[np.float64]


def monarch(weight: Real, blocks: int) -> tuple[Real, Real]:
    """The nearest W = L P R: (P R) [middle, in] and L [out, middle], both with `blocks` blocks.

    R maps each run of in / blocks inputs to a run of middle channels, and each run of out / blocks outputs reads, by L,
    its own part of every such run. The part of W between input run k and output run j is then a product of rank
    r = min(out, in) / blocks², at least 1, and the nearest one is its truncated singular value decomposition: the
    projection of Dao et al., "Monarch" (ICML 2022), algorithm 1, where r is 1.

    Middle channels lie by (k, j, rank), so R is block-diagonal as it stands, and what an output run reads lies together
    in pieces of r channels: the array reads it without waste where r is a multiple of its group.
    """
    outputs, inputs = weight.shape
    p, s = inputs // blocks, outputs // blocks
    rank = max(1, min(outputs, inputs) // blocks**2)
    parts = weight.reshape(blocks, s, blocks, p).transpose(2, 0, 1, 3)  # [k, j, s, p]
    u, d, vt = np.linalg.svd(parts, full_matrices=False)
    root = np.sqrt(d[..., :rank])
    rank = root.shape[-1]
    left, right = u[..., :rank] * root[..., np.newaxis, :], vt[..., :rank, :] * root[..., np.newaxis]
    first = np.zeros((blocks, blocks * rank, blocks, p))
    second = np.zeros((blocks, s, blocks, blocks, rank))
    for i in range(blocks):
        first[i, :, i] = right[i].reshape(blocks * rank, p)
        second[i, :, :, i] = left[:, i].transpose(1, 0, 2)
    return first.reshape(-1, inputs), second.reshape(outputs, -1)


def low_rank(weight: Real, rank: int) -> tuple[Real, Real]:
    """The nearest product of [rank, in] and [out, rank]: the truncated singular value decomposition."""
    u, d, vt = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(d[:rank])
    return root[:, np.newaxis] * vt[:rank], u[:, :rank] * root


def factor(graph: Graph, op: Conv | Linear, pattern: Monarch | LowRank) -> tuple[str, str]:
    """Replace a layer in the graph by the two factors of its weight, and return their names."""
    weight = array_weight(graph, op, op.weight)
    matrix = weight.reshape(weight.shape[:2]).astype(np.float64)
    pair = monarch(matrix, pattern.blocks) if isinstance(pattern, Monarch) else low_rank(matrix, pattern.rank)
    return make_pair(graph, op, *pair)


def make_pair(graph: Graph, op: Conv | Linear, a: Real, b: Real) -> tuple[str, str]:
    """Replace a layer in the graph by one with weight a [middle, in] and one with b [out, middle]; returns their names.

    The second keeps the layer's name, so that whoever asks for it by name finds what gives its output.
    """
    middle, name = graph.fresh(f"{op.output}/middle"), graph.fresh(f"{op.name}/first")
    info = graph.info(op.output)
    assert info.layout is not None
    assert info.shape is not None
    n, _, h, w = info.layout.shape
    axis = 1 if isinstance(op, Conv) else len(info.shape) - 1
    shape = tuple(len(a) if i == axis else size for i, size in enumerate(info.shape))
    layout = replace(info.layout, shape=(n, len(a), h, w))
    graph.tensors[middle] = TensorInfo(name=middle, shape=shape, layout=layout)
    first = replace(op, name=name, outputs=(middle,), weight=matrix_as(op, a), bias=None, weight_scale=None)
    second = replace(op, inputs=(middle,), weight=matrix_as(op, b), weight_scale=None)
    if isinstance(second, Conv):  # stride and padding belong to the first
        second = replace(second, stride=(1,) * len(second.stride), pads=(0,) * len(second.pads))
    graph.replace(op.name, first, second)
    return name, op.name


def matrix_as(op: Conv | Linear, matrix: Real) -> NDArray[np.float32]:
    """A matrix as a weight of the operation's kind."""
    return np.ascontiguousarray(matrix, dtype=np.float32).reshape(*matrix.shape, *op.weight.shape[2:])
