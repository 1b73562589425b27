"""Host segments: which operations run together in onnxruntime, when, and as what model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import networkx as nx

from gossamer.compiler.frontend.export import Writer, rename, value_info
from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.macs import host_macs
from gossamer.compiler.frontend.ops import Host, Op, View
from gossamer.compiler.layers import HostSegment

__all__ = ["build_segment", "host_groups", "stage_order"]


def host_groups(graph: Graph) -> list[list[Host]]:
    """Host operations in groups that can each run in one go; connected groups are joined as far as order allows."""
    level: dict[str, int] = {}
    for op in graph.order():
        # The number of changes between host and array on the longest way here: equal levels cannot wait in a circle.
        level[op.name] = max(
            (
                level[p] + (isinstance(graph.op(p), Host) != isinstance(op, Host))
                for p in graph.dag.predecessors(op.name)
            ),
            default=0,
        )
    near = nx.Graph()
    near.add_nodes_from(name for name in level if isinstance(graph.op(name), Host))
    near.add_edges_from((a, b) for a, b in graph.dag.edges if a in near and b in near and level[a] == level[b])
    group = {name: number for number, names in enumerate(nx.connected_components(near)) for name in names}
    group = _joined(graph, group)
    members: dict[int, list[Host]] = {}
    for op in graph.order():
        if isinstance(op, Host):
            members.setdefault(group[op.name], []).append(op)
    return list(members.values())


def _joined(graph: Graph, group: dict[str, int]) -> dict[str, int]:
    """Join two groups that follow each other directly when nothing on the array lies between them."""
    small = _condensed(graph, group)
    ways = [(a, b) for a, b in small.edges if isinstance(a, int) and isinstance(b, int)]
    while ways:
        a, b = ways.pop()
        if a == b or a not in small or b not in small or not small.has_edge(a, b):
            continue
        small.remove_edge(a, b)
        if nx.has_path(small, a, b):
            small.add_edge(a, b)
            continue
        group = {name: a if number == b else number for name, number in group.items()}
        small = nx.contracted_nodes(small, a, b, self_loops=False, copy=False)
        ways = [(p, q) for p, q in small.edges if isinstance(p, int) and isinstance(q, int)]
    return group


def _condensed(graph: Graph, group: Mapping[str, int]) -> "nx.DiGraph":
    """The graph with each host group as one node (a number); array operations keep their names."""
    small = nx.DiGraph()
    small.add_nodes_from(group.get(name, name) for name in graph.dag)
    for a, b in graph.dag.edges:
        a, b = group.get(a, a), group.get(b, b)
        if a != b:
            small.add_edge(a, b)
    return small


def stage_order(graph: Graph, groups: list[list[Host]]) -> Iterator[Op | list[Host]]:
    """Array operations and host groups in an order in which each finds its inputs ready."""
    group = {op.name: number for number, ops in enumerate(groups) for op in ops}
    small = _condensed(graph, group)
    age = {name: data["age"] for name, data in graph.dag.nodes(data=True)}

    def first(node: str | int) -> tuple[int, str]:
        return (age[node], node) if isinstance(node, str) else (age[groups[node][0].name], groups[node][0].name)

    for node in nx.lexicographical_topological_sort(small, key=first):
        yield graph.op(node) if isinstance(node, str) else groups[node]


def build_segment(graph: Graph, name: str, ops: list[Host]) -> HostSegment:
    """A group of host operations as a model of its own.

    Tensors of the array enter and leave as 8-bit codes under their own names; views that lead from them to the
    group's operations are run inside.
    """
    inside = {op.name for op in ops}
    inputs, views = _boundary(graph, ops, inside)
    outputs = [
        tensor
        for op in ops
        for tensor in op.outputs
        if tensor and (tensor in graph.outputs or any(u.name not in inside for u in graph.consumers(tensor)))
    ]
    writer = Writer(graph, qdq=True)
    crossing = []
    for tensor in inputs:
        info = graph.info(tensor)
        if info.quant is not None and info.layout is not None:
            writer.dequantise(tensor, f"{tensor}/dq", info.quant)
            writer.read_as[tensor] = f"{tensor}/dq"
            info = replace(info, dtype=info.quant.dtype)
        elif info.quant is not None and tensor in graph.inputs:  # the model rounds it, but the array never sees it
            writer.round_trip(tensor, f"{tensor}/dq", info.quant)
            writer.read_as[tensor] = f"{tensor}/dq"
        crossing.append(value_info(info))
    for op in (*views, *ops):
        writer.operation(op)
    leaving = []
    for tensor in outputs:
        info = graph.info(tensor)
        if info.quant is not None and info.layout is not None:
            for node in writer.nodes:
                rename(node, {tensor: f"{tensor}/real", f"{tensor}/codes": tensor})
            info = replace(info, dtype=info.quant.dtype)
        leaving.append(value_info(info))
    if any(a.type in (a.GRAPH, a.GRAPHS) for node in writer.nodes for a in node.attribute):
        for value in crossing:  # in a branch that is not taken, fixed sizes may contradict each other
            for axis in value.type.tensor_type.shape.dim:
                axis.ClearField("dim_value")
    model = writer.model(name, crossing, leaving)
    return HostSegment(
        name=name,
        model=model.SerializeToString(),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        reason="; ".join(dict.fromkeys(op.reason for op in ops)),
        ops=tuple(op.node.op_type for op in ops),
        macs=host_macs(graph, ops),
    )


def _boundary(graph: Graph, ops: list[Host], inside: set[str]) -> tuple[list[str], list[View]]:
    """Tensors a group reads from outside, and the views between them and the group, in order."""
    inputs: dict[str, None] = {}
    views: dict[str, View] = {}

    def follow(tensor: str) -> None:
        if tensor in graph.constants:
            return
        producer = graph.producer(tensor)
        if isinstance(producer, View):
            follow(producer.inputs[0])
            views.setdefault(producer.name, producer)
        elif producer is None or producer.name not in inside:
            inputs.setdefault(tensor)

    for op in ops:
        for tensor in op.reads:
            follow(tensor)
    return list(inputs), list(views.values())
