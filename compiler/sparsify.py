"""Sparsity: not here yet, weights stay as they are."""

from gossamer.compiler.graph import Graph

__all__ = ["Sparsity", "sparsify"]

Sparsity = str


def sparsify(graph: Graph, sparsity: Sparsity | None = None) -> Graph:
    """The graph unchanged."""
    return graph
