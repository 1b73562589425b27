"""The compiler's graph: operations on named tensors, kept as a networkx DAG.

A pass copies the graph and replaces operations in the copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx

from gossamer.arch.errors import ModelError
from gossamer.compiler.frontend.ops import Array, Compute, Host, Op, TensorInfo

__all__ = ["Graph"]


@dataclass(kw_only=True)
class Graph:
    """A model as a DAG of operations.

    tensors : what is known of each tensor;  constants : values of those that never change
    opset : version of every operator domain;  notes : what passes have to tell the user.
    quantised : every tensor of the array has its Quant; before, only those have one for which the model gives it.
    dag : nodes are operation names with the operation as attribute "op"; an edge carries a tensor from its producer
    to a consumer.
    """

    name: str = "model"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    opset: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    quantised: bool = False
    dag: Any = field(default_factory=nx.DiGraph)
    _producer: dict[str, str] = field(default_factory=dict)
    _readers: dict[str, dict[str, None]] = field(default_factory=dict)
    _age: int = 0
    _sorted: tuple[str, ...] | None = None
    """Names in order(), until an operation comes or goes."""

    def copy(self) -> "Graph":
        """A graph that can be changed without changing this one; operations and arrays are shared."""
        return Graph(
            name=self.name,
            inputs=self.inputs,
            outputs=self.outputs,
            tensors=dict(self.tensors),
            constants=dict(self.constants),
            opset=dict(self.opset),
            notes=list(self.notes),
            quantised=self.quantised,
            dag=self.dag.copy(),
            _producer=dict(self._producer),
            _readers={t: dict(r) for t, r in self._readers.items()},
            _age=self._age,
            _sorted=self._sorted,
        )

    def add(self, op: Op, age: int | None = None) -> None:
        """Insert an operation; age places it among its equals in order()."""
        if op.name in self.dag:
            raise ModelError(f"graph {self.name!r}: two operations are called {op.name!r}")
        self._sorted = None
        self._age += 1
        self.dag.add_node(op.name, op=op, age=self._age if age is None else age)
        for tensor in op.outputs:
            if not tensor:
                continue
            if tensor in self._producer or tensor in self.inputs or tensor in self.constants:
                raise ModelError(f"graph {self.name!r}: tensor {tensor!r} is written twice, again by {op.name!r}")
            self._producer[tensor] = op.name
            self.tensors.setdefault(tensor, TensorInfo(name=tensor))
            for reader in self._readers.get(tensor, ()):
                self.dag.add_edge(op.name, reader, tensor=tensor)
        for tensor in op.reads:
            self._readers.setdefault(tensor, {})[op.name] = None
            if tensor in self._producer:
                self.dag.add_edge(self._producer[tensor], op.name, tensor=tensor)

    def remove(self, name: str) -> None:
        """Take an operation out; its tensors stay known."""
        op = self.op(name)
        for tensor in op.outputs:
            self._producer.pop(tensor, None)
        for tensor in op.reads:
            self._readers.get(tensor, {}).pop(name, None)
        self._sorted = None
        self.dag.remove_node(name)

    def replace(self, old: str, *new: Op) -> None:
        """Put operations in the place of another."""
        age = self.dag.nodes[old]["age"]
        self.remove(old)
        for op in new:
            self.add(op, age=age)

    def op(self, name: str) -> Op:
        """The operation of that name."""
        found: Op = self.dag.nodes[name]["op"]
        return found

    def producer(self, tensor: str) -> Op | None:
        """The operation that writes a tensor; None for inputs and constants."""
        name = self._producer.get(tensor)
        return None if name is None else self.op(name)

    def consumers(self, tensor: str) -> list[Op]:
        """The operations that read a tensor."""
        return [self.op(name) for name in self._readers.get(tensor, ())]

    def sole_consumer(self, tensor: str) -> Op | None:
        """The one operation that reads a tensor, once, when nobody else wants it."""
        users = self.consumers(tensor)
        if len(users) != 1 or tensor in self.outputs or users[0].reads.count(tensor) != 1:
            return None
        return users[0]

    def order(self) -> list[Op]:
        """Operations in a valid order, the model's own where there is a choice."""
        if self._sorted is None:
            ages = self.dag.nodes
            try:
                self._sorted = tuple(nx.lexicographical_topological_sort(self.dag, key=lambda n: ages[n]["age"]))
            except nx.NetworkXUnfeasible:
                cycle = " -> ".join(edge[0] for edge in nx.find_cycle(self.dag))
                raise ModelError(f"graph {self.name!r} has a cycle: {cycle}") from None
        return [self.op(name) for name in self._sorted]

    def __iter__(self) -> Iterator[Op]:
        return iter(self.order())

    def __len__(self) -> int:
        return len(self.dag)

    def info(self, tensor: str) -> TensorInfo:
        """What is known of a tensor."""
        return self.tensors.get(tensor) or TensorInfo(name=tensor)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The tensor's shape; raises ModelError when it is not known."""
        shape = self.info(tensor).shape
        if shape is None:
            raise ModelError(f"tensor {tensor!r}: its shape is not known; run infer_shapes first")
        return shape

    def update(self, tensor: str, **changes: Any) -> None:
        """Change what is known of a tensor."""
        self.tensors[tensor] = replace(self.info(tensor), **changes)

    def fresh(self, stem: str) -> str:
        """A tensor or operation name nobody has, starting with stem."""
        taken = (self.dag, self.tensors, self.constants)
        number, name = 0, stem
        while any(name in names for names in taken):
            number += 1
            name = f"{stem}_{number}"
        return name

    def redirect(self, old: str, new: str) -> bool:
        """Let every reader of old read new. False, and nothing done, when a subgraph captures old."""
        users = self.consumers(old)
        if any(isinstance(user, Host) and old in user.captured for user in users):
            return False
        for user in users:
            self.replace(user.name, replace(user, inputs=tuple(new if i == old else i for i in user.inputs)))
        return True

    def verify(self) -> None:
        """Every tensor that is read or given out must come from somewhere; raises ModelError."""
        known = self.constants.keys() | set(self.inputs) | self._producer.keys()
        for op in self.order():
            for tensor in op.reads:
                if tensor not in known:
                    raise ModelError(f"node {op.name!r} reads {tensor!r}, which no node, input or initialiser provides")
        for tensor in self.outputs:
            if tensor not in known:
                raise ModelError(f"output {tensor!r} is not computed by any node")

    def prune(self) -> None:
        """Drop operations no output depends on, and constants and tensors nobody reads."""
        roots = [self._producer[o] for o in self.outputs if o in self._producer]
        alive = set(roots).union(*(nx.ancestors(self.dag, r) for r in roots)) if roots else set()
        for name in [n for n in self.dag if n not in alive]:
            self.remove(name)
        pre = {op.pre for op in map(self.op, self.dag) if isinstance(op, Compute) and op.pre}
        used = {t for t, readers in self._readers.items() if readers} | set(self.outputs)
        self.constants = {name: value for name, value in self.constants.items() if name in used}
        known = used | set(self.inputs) | set(self._producer) | pre
        self.tensors = {name: info for name, info in self.tensors.items() if name in known}

    def describe(self) -> str:
        """The graph as text: one line per operation, in order."""
        lines = [f"graph {self.name} ({len(self)} operations)"]
        lines += [f"  input  %{name} : {self.info(name)}" for name in self.inputs]
        lines += [f"  {line}" for op in self.order() for line in self._lines(op)]
        lines += [f"  output %{name}" for name in self.outputs]
        lines += [f"  note   {note}" for note in self.notes]
        return "\n".join(lines)

    def _lines(self, op: Op) -> Iterator[str]:
        kind = f"host.{op.node.op_type}" if isinstance(op, Host) else type(op).__name__.lower()
        operands = list(op.inputs)
        text = ""
        if isinstance(op, Compute) and op.residual:
            text += f" + %{operands.pop()}"
        function = getattr(op, "activation", None)
        if function is not None:
            table = f" (table of {self.info(op.pre).quant})" if isinstance(op, Compute) and op.pre else ""
            text += f" then {function}{table}"
        reads = ", ".join(("#" if name in self.constants else "%") + name if name else "none" for name in operands)
        marks = "".join(f" {key}={value}" for key, value in op.attributes().items())
        yield f"%{op.output} = {kind}({reads}){text}{marks} : {self.info(op.output)}"
        for extra in op.outputs[1:]:
            if extra:
                yield f"  %{extra} : {self.info(extra)}"

    def __str__(self) -> str:
        return self.describe()
