"""A matrix as a sparse one plus one of low rank: two branches whose outputs are added.

The form of Chen et al., "Pixelated Butterfly" (ICLR 2022), where the sparse one is a flat block butterfly; any pattern
of zeros will do. A linear layer or a 1x1 convolution becomes the sparse layer, which keeps its name and bias, and a
pair of layers with few channels between them, which adds the other's output to its own.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Add, Conv, Linear
from gossamer.compiler.sparsity.factor import make_pair, matrix_as

__all__ = ["branch", "sparse_and_low_rank"]

Real = NDArray[np.float64]

ROUNDS = 100
"""At most; what is such a sum takes some thirty, any other matrix less than ten."""

IMPROVEMENT = 0.01
"""Rounds end when one takes less than this share of the error away,"""

EXACT = 1e-14
"""or when this share of the matrix's energy is left: float32 can hold no more."""

POWER_STEPS = 2
"""Steps of subspace iteration in a round."""


def sparse_and_low_rank(
    matrix: Real, prune: Callable[[Real], Real], rank: int, gram: Real | None = None
) -> tuple[Real, tuple[Real, Real]]:
    """Matrices S with the zeros that `prune` makes, A [rank, in] and B [out, rank], such that S + B A is near.

    matrix : [out, in].  prune : gives a matrix its zeros.  gram : second moments of the inputs [in, in], to be near in
    outputs; None to be near in weights.

    In turn, each of the two is what the other leaves: S of the matrix without B A, and B A the part of rank `rank` of
    the matrix without S. With a fixed mask and no gram neither makes the error larger: GoDec (Zhou and Tao, ICML 2011),
    with one subspace iteration going on through the rounds instead of a decomposition in each. The best round counts.
    """
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((len(matrix), rank)))[0]
    low = np.zeros_like(matrix)
    whole = _energy(matrix, gram)
    least, found = np.inf, (low, low, basis)
    for _ in range(ROUNDS):
        sparse = prune(matrix - low)
        rest = matrix - sparse
        seen = rest if gram is None else rest @ gram
        for _ in range(POWER_STEPS):
            basis = np.linalg.qr(seen @ (rest.T @ basis))[0]
        low = basis @ (basis.T @ rest)
        before, error = least, _energy(rest - low, gram)
        if error < least:
            least, found = error, (sparse, rest, basis)
        if not error < before * (1.0 - IMPROVEMENT) or error <= EXACT * whole:
            break
    sparse, rest, basis = found
    u, d, vt = np.linalg.svd(basis.T @ rest, full_matrices=False)
    root = np.sqrt(d)
    return sparse, (root[:, np.newaxis] * vt, basis @ u * root)


def _energy(matrix: Real, gram: Real | None) -> float:
    """Of outputs, or of weights without a gram."""
    return float(np.vdot(matrix if gram is None else matrix @ gram, matrix))


def branch(graph: Graph, op: Conv | Linear, sparse: Real, pair: tuple[Real, Real]) -> tuple[str, str]:
    """Split a layer in the graph into a sparse one and a pair beside it, and return the pair's names.

    Where the layer's output goes into an addition and nowhere else, the sparse layer takes that addition, so that each
    branch has one and neither stands alone: (S x + B A x) + r is B A x + (S x + r).
    """
    whole, name = op.output, op.name
    left, right = graph.fresh(f"{whole}/sparse"), graph.fresh(f"{whole}/low_rank")
    for tensor in (left, right):
        graph.tensors[tensor] = replace(graph.info(whole), name=tensor, quant=None)
    outer = graph.sole_consumer(whole)
    stem = replace(op, outputs=(left,), weight=matrix_as(op, sparse), weight_scale=None)
    twin = replace(op, name=graph.fresh(f"{name}/low_rank"), outputs=(right,), bias=None, weight_scale=None)
    if isinstance(outer, Add) and outer.activation is None and graph.info(whole).quant is None:
        other = outer.inputs[1] if outer.inputs[0] == whole else outer.inputs[0]
        inner = graph.fresh(f"{outer.output}/sparse")
        graph.tensors[inner] = replace(graph.info(outer.output), name=inner, quant=None)
        first = replace(outer, name=graph.fresh(f"{outer.name}/sparse"), inputs=(left, other), outputs=(inner,))
        graph.replace(name, stem, twin)
        graph.replace(outer.name, first, replace(outer, inputs=(right, inner)))
    else:
        joined = Add(name=graph.fresh(f"{name}/sum"), inputs=(right, left), outputs=(whole,), residual=True)
        graph.replace(name, stem, twin, joined)
    return make_pair(graph, twin, *pair)
