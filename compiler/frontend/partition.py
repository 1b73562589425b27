"""Where the border between array and host runs, once it is known what the array can run.

A crossing rounds to 8 bits and moves the tensor, so what only hands data from host to host stays there, and so does
an addition that only the host reads: the residual stream of a transformer is then never rounded. A tensor that the
host makes and reads itself crosses only for the array.
"""

from dataclasses import replace

import networkx as nx
import onnx

from gossamer.compiler.frontend.export import host_ops
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Add, Conv, Host, Linear, Op, Product

__all__ = ["partition"]


def partition(graph: Graph) -> Graph:
    """Move operations without products to the host where that saves crossings, and keep host values from rounding."""
    graph = graph.copy()
    _islands(graph)
    _sums(graph)
    _forget_layouts(graph)
    _own_copies(graph)
    return graph


def _islands(graph: Graph) -> None:
    """Send array operations without any product to the host when they lie between host operations."""
    near = nx.Graph()
    near.add_nodes_from(op.name for op in graph if not isinstance(op, Host))
    near.add_edges_from((a, b) for a, b in graph.dag.edges if a in near and b in near)
    for names in list(nx.connected_components(near)):
        ops = [graph.op(name) for name in names]
        if any(isinstance(op, Conv | Linear | Product) for op in ops):
            continue
        behind = any(isinstance(graph.producer(t), Host) for op in ops for t in op.reads)
        ahead = any(isinstance(user, Host) for op in ops for user in graph.consumers(op.output))
        if behind and ahead:
            for op in ops:
                _to_host(graph, op, "between operations of the host, and no matrix product")


def _sums(graph: Graph) -> None:
    """Send additions to the host whose sums, by themselves or in further such additions, only the host reads."""
    staying: set[str] = set()
    for op in reversed(graph.order()):
        if isinstance(op, Add) and _unforced(graph, op):
            users = graph.consumers(op.output)
            hosts = [user for user in users if isinstance(user, Host) or user.name in staying]
            if users and len(hosts) == len(users) and op.output not in graph.outputs:
                staying.add(op.name)
    for name in staying:
        _to_host(graph, graph.op(name), "a sum that only the host reads, where it is not rounded")


def _unforced(graph: Graph, op: Op) -> bool:
    """Whether the model itself asks for no rounding here."""
    return all(graph.info(t).quant is None for t in (*op.reads, op.output))


def _to_host(graph: Graph, op: Op, reason: str) -> None:
    graph.replace(op.name, *host_ops(graph, op, reason))


def _forget_layouts(graph: Graph) -> None:
    """A tensor that no array operation makes or reads has no place in the array."""
    for tensor in list(graph.tensors):
        producer = graph.producer(tensor)
        if producer is not None and not isinstance(producer, Host):
            continue
        if all(isinstance(user, Host) for user in graph.consumers(tensor)):
            graph.update(tensor, layout=None)


def _own_copies(graph: Graph) -> None:
    """Give the array a copy of what the host makes and reads, so that only the copy is rounded."""
    for op in graph.order():
        if not isinstance(op, Host):
            continue
        for tensor in op.outputs:
            users = graph.consumers(tensor) if tensor else []
            array = [user for user in users if not isinstance(user, Host)]
            if not array or len(array) == len(users) or graph.info(tensor).quant is not None:
                continue
            copy = graph.fresh(f"{tensor}/array")
            graph.tensors[copy] = replace(graph.info(tensor), name=copy)
            graph.update(tensor, layout=None)
            for user in array:
                inputs = tuple(copy if t == tensor else t for t in user.inputs)
                graph.replace(user.name, replace(user, inputs=inputs))
            node = onnx.helper.make_node("Identity", [tensor], [copy])
            graph.add(
                Host(
                    name=copy, inputs=(tensor,), outputs=(copy,), node=node, source=op.source, reason=op.reason
                )
            )  # fmt: skip
