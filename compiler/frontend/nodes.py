"""Standard operations in the place of one that says the same in another way."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx import helper

from gossamer.compiler.frontend.graph import Graph
from gossamer.compiler.frontend.ops import Array, Host, TensorInfo

__all__ = ["Nodes", "is_standard"]


def is_standard(op: Host) -> bool:
    """Whether the operation is one of ONNX's own."""
    return op.node.domain in ("", "ai.onnx")


class Nodes:
    """Nodes that together compute what one operation of the model computes; place() puts them there.

    Names begin with the operation's. The node called main=True keeps the operation's own name, so that reports and
    sparsity speak of the layer as the model does. Shapes of new tensors are left to infer_shapes.
    """

    def __init__(self, graph: Graph, op: Host) -> None:
        self.graph, self.op = graph, op
        self.attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}
        self._hosts: list[Host] = []

    def input(self, index: int) -> str:
        """Name of an input, "" when it is left out."""
        return self.op.inputs[index] if index < len(self.op.inputs) else ""

    def value(self, index: int) -> Array | None:
        """An input that is a constant, else None."""
        return self.graph.constants.get(self.input(index))

    def constant(self, stem: str, value: Any, dtype: Any = np.float32) -> str:
        """A new constant; returns its name."""
        name = self.graph.fresh(f"{self.op.name}/{stem}")
        array = np.asarray(value, dtype=dtype)
        self.graph.constants[name] = array
        self.graph.tensors[name] = TensorInfo(name=name, shape=array.shape, dtype=str(array.dtype))
        return name

    def add(
        self,
        kind: str,
        inputs: Iterable[str],
        *,
        outputs: Iterable[str] = (),
        count: int = 1,
        main: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Append a node that writes `outputs`, or `count` new tensors; returns the first output."""
        graph, reads = self.graph, tuple(inputs)
        while reads and not reads[-1]:
            reads = reads[:-1]
        written = tuple(outputs)
        while len(written) < count:
            name = graph.fresh(f"{self.op.name}/{kind}")
            graph.tensors[name] = TensorInfo(name=name)
            written += (name,)
        node = helper.make_node(kind, reads, written, **(attributes or {}))
        name = self.op.name if main else f"{self.op.name}/{len(self._hosts)}:{kind}"
        self._hosts.append(Host(name=name, inputs=reads, outputs=written, source=self.op.source, node=node))
        return written[0]

    def outputs(self) -> tuple[str, ...]:
        """Outputs of the node appended last."""
        return self._hosts[-1].outputs

    def place(self) -> None:
        """Put the nodes where the operation was."""
        self.graph.replace(self.op.name, *self._hosts)

    def append(self) -> None:
        """Add the nodes where the operation has been removed already."""
        for host in self._hosts:
            self.graph.add(host)
