"""Conditions that are known before the model runs: the branch that is taken takes the If's place.

Exporters ask for ranks and sizes at run time; once shapes are fixed, so are the answers.
"""

from collections.abc import Mapping

import onnx
from onnx import helper, numpy_helper

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.importer import captured
from gossamer.compiler.frontend.ops import Host, TensorInfo

__all__ = ["inline_known_branches"]


def inline_known_branches(graph: Graph) -> Graph:
    """Replace every If whose condition is a constant; what only the other branch read is pruned."""
    graph = graph.copy()
    for op in graph.order():
        if isinstance(op, Host) and op.node.op_type == "If" and op.inputs[0] in graph.constants:
            taken = "then_branch" if graph.constants[op.inputs[0]].any() else "else_branch"
            body = next(a.g for a in op.node.attribute if a.name == taken)
            if not body.sparse_initializer:
                _inline(graph, op, body)
    graph.prune()
    return graph


def _inline(graph: Graph, op: Host, body: onnx.GraphProto) -> None:
    """The branch's nodes under names of their own; its outputs are written by Identity."""
    names: dict[str, str] = {}

    def own(name: str) -> str:
        names[name] = graph.fresh(f"{op.name}/{name}")
        graph.tensors[names[name]] = TensorInfo(name=names[name])
        return names[name]

    for tensor in body.initializer:
        name, value = own(tensor.name), numpy_helper.to_array(tensor)
        graph.constants[name] = value
        graph.tensors[name] = TensorInfo(name=name, shape=value.shape, dtype=str(value.dtype))
    hosts = []
    for inner in body.node:
        node = renamed(inner, names)
        node.output[:] = [own(name) if name else "" for name in inner.output]
        hosts.append(_host(graph, op, node))
    for output, target in zip(body.output, op.outputs, strict=True):
        if target:
            hosts.append(
                _host(graph, op, helper.make_node("Identity", [names.get(output.name, output.name)], [target]))
            )
    taken = {host.name for host in hosts}
    assert len(taken) == len(hosts)
    graph.replace(op.name, *hosts)


def _host(graph: Graph, op: Host, node: onnx.NodeProto) -> Host:
    """A node as an operation called after what it writes, which nobody else does."""
    stem = next((o for o in node.output if o), node.op_type)
    return Host(
        name=graph.fresh(f"{stem}:{node.op_type}"),
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        source=op.source,
        node=node,
        captured=tuple(sorted(captured(node))),
    )


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node that reads tensors by their new names, in its subgraphs too where these do not hide them."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    for attribute in copy.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            _rename_inside(body, names)
    return copy


def _rename_inside(body: onnx.GraphProto, names: Mapping[str, str]) -> None:
    hidden = {i.name for i in (*body.input, *body.initializer)} | {o for n in body.node for o in n.output}
    visible = {old: new for old, new in names.items() if old not in hidden}
    for index, inner in enumerate(body.node):
        body.node[index].CopyFrom(renamed(inner, visible))
    for output in body.output:
        output.name = visible.get(output.name, output.name)
