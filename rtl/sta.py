"""Static timing of a mapped hierarchical netlist, before placement.

What it is: the nonlinear delay model of the liberty files (delay and transition from tables, rise and fall apart, the
later arrival and the slower transition kept), an ideal clock, and no wires. Every kind of module is timed once, with
the latest arrival and the largest load of all the places where it stands; so the result is an upper bound of a flat
analysis, and the effort grows with the kinds of modules and not with their number.

What it assumes: a net that is slower without than with a tree of the library's buffers has one (their delay counts,
nobody inserted them); memories launch and capture like the flip-flop that the design uses most, their own access time
is unknown; a register stands at the other side of every port.

With liberty files that have no timing every cell takes one unit, so that the result is the depth in cells.
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.rtl.liberty import Cell, Library
from gossamer.rtl.tables import Stack, Table
from gossamer.rtl.trees import Trees

__all__ = ["Path", "Step", "longest_paths"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A point of a path: a net ("" if only tools named it), the cell that drives it, and when it has settled, in ps (in
    cells without timing).
    """

    module: str
    net: str
    cell: str
    arrival: float


@dataclass(frozen=True, kw_only=True)
class Path:
    """The longest path that ends in the module `end`. delay : with the setup time at its end, in ps (in cells without
    timing).
    """

    delay: float
    steps: tuple[Step, ...]
    end: str


def longest_paths(
    modules: dict[str, Any], top: str, library: Library, memories: Collection[str] = ()
) -> dict[str, Path]:
    """For every module with registers or memories, the longest path that ends in one of them.

    modules : as Yosys' write_json has them, mapped to cells of the library.  memories : modules that are black boxes.
    A kind of module may not drive another place of its own kind without a register between: merged, that is a loop.
    """
    graph = _Graph(modules, top, library, frozenset(memories))
    return _Analysis(graph, library).paths()


_CLOCK = 0
"""The node where every path begins."""


@dataclass(frozen=True)
class _Edge:
    """How an edge follows another. Both are 2 * node + index into EDGES; without tables it is a wire."""

    source: int
    target: int
    delay: Table | None
    transition: Table | None
    cell: str


@dataclass(frozen=True)
class _End:
    """Where paths end: a node, the setup tables of both edges there, and its module."""

    node: int
    setup: tuple[Table, Table]
    module: str


class _Graph:
    """Nodes are the nets of every kind of module, and the clock; edges are the arcs of cells and the ports."""

    def __init__(self, modules: dict[str, Any], top: str, library: Library, memories: frozenset[str]) -> None:
        self._modules, self._library, self._memories = modules, library, memories
        self._nodes: dict[tuple[str, int], int] = {("", 0): _CLOCK}
        self._own: dict[int, float] = defaultdict(float)  # capacitance of the pins at a node
        self._inside: dict[int, list[int]] = defaultdict(list)  # where a node goes in
        self._outside: dict[int, list[int]] = defaultdict(list)  # where a node comes out
        self._public: dict[str, dict[int, str]] = {}  # names of each module's bits
        self.edges: list[_Edge] = []
        self.ends: list[_End] = []
        reached = _reachable(modules, top)
        kinds = Counter(c["type"] for m in reached for c in modules[m]["cells"].values())
        self._register = library.cell(max(sorted(library.registers), key=lambda name: kinds[name]))
        for module in reached:
            for cell in modules[module]["cells"].values():
                self._add(module, cell["type"], cell["connections"])
        for port in modules[top]["ports"].values():
            for node in self._of(top, port["bits"]):
                if port["direction"] == "output":
                    self.ends.append(_End(node, (Table.constant(0.0),) * 2, top))
                else:
                    self.edges += [_Edge(2 * _CLOCK + e, 2 * node + e, None, None, "input") for e in (0, 1)]
        self.names = list(self._nodes)

    def _of(self, module: str, bits: list[Any]) -> list[int]:
        """Nodes of a module's bits; constants have none."""
        return [self._nodes.setdefault((module, b), len(self._nodes)) for b in bits if isinstance(b, int)]

    def _add(self, module: str, kind: str, connections: dict[str, list[Any]]) -> None:
        """What one cell adds."""
        if kind in self._memories:
            for port, bits in connections.items():
                self._memory(module, kind, port, self._of(module, bits))
        elif kind in self._modules:
            for port, facts in self._modules[kind]["ports"].items():
                pairs = zip(connections.get(port, []), facts["bits"], strict=False)
                for outer, inner in ((o, i) for o, i in pairs if isinstance(o, int) and isinstance(i, int)):
                    (outside,), (inside,) = self._of(module, [outer]), self._of(kind, [inner])
                    self._wire(outside, inside, facts["direction"])
        elif kind in self._library:
            pins = {port: self._of(module, bits) for port, bits in connections.items()}
            self._cell(module, self._library.cell(kind), {port: nodes[0] for port, nodes in pins.items() if nodes})
        else:
            assert kind == "$scopeinfo", f"{kind} in {module} is not mapped"

    def _wire(self, outer: int, inner: int, direction: str) -> None:
        source, target = (outer, inner) if direction == "input" else (inner, outer)
        (self._inside if direction == "input" else self._outside)[source].append(target)
        self.edges += [_Edge(2 * source + e, 2 * target + e, None, None, "") for e in (0, 1)]

    def _cell(self, module: str, cell: Cell, nodes: dict[str, int]) -> None:
        for name, node in nodes.items():
            self._own[node] += cell.pins[name].capacitance
            self.ends += [_End(node, setup, module) for setup in cell.setups.get(name, ())]
        for arc in cell.arcs:
            if arc.target in nodes and (cell.register or arc.source in nodes):
                source = _CLOCK if cell.register else nodes[arc.source]
                edges = 2 * source + arc.edges[0], 2 * nodes[arc.target] + arc.edges[1]
                self.edges.append(_Edge(*edges, arc.delay, arc.transition, cell.name))

    def _memory(self, module: str, kind: str, port: str, nodes: list[int]) -> None:
        """Data follows the clock, all else is captured by it, as with the register the design uses most."""
        data = next(iter(self._register.setups))
        first = self._register.arcs[0].target
        for node in nodes:
            if port == "r_data":
                for arc in (a for a in self._register.arcs if a.target == first):
                    edges = 2 * _CLOCK + arc.edges[0], 2 * node + arc.edges[1]
                    self.edges.append(_Edge(*edges, arc.delay, arc.transition, kind))
            elif port != "clk":
                self._own[node] += self._register.pins[data].capacitance
                self.ends += [_End(node, setup, module) for setup in self._register.setups[data]]

    def loads(self) -> NDArray[np.float64]:
        """What each node's driver sees: pins here and inside, and outside where that is most."""
        found: dict[int, float] = {}

        def load(node: int) -> float:
            if node not in found:
                outside = max((load(n) for n in self._outside[node]), default=0.0)
                found[node] = self._own[node] + sum(load(n) for n in self._inside[node]) + outside
            return found[node]

        return np.array([load(node) for node in range(len(self._nodes))])

    def net(self, node: int) -> str:
        """The name of a node's net, if the design gave it one."""
        module, bit = self.names[node]
        if module not in self._public:
            facts = self._modules[module]["netnames"].items() if module else ()
            named = sorted(((n, f["bits"]) for n, f in facts if not f["hide_name"]), key=lambda n: (len(n[0]), n))
            found = self._public[module] = {}
            for name, bits in named:
                for k, b in enumerate(bits):
                    found.setdefault(b, name if len(bits) == 1 else f"{name}[{k}]")
        return self._public[module].get(bit, "")


def _reachable(modules: dict[str, Any], top: str) -> list[str]:
    found = [top]
    for module in found:
        kinds = dict.fromkeys(c["type"] for c in modules[module]["cells"].values())
        found += [k for k in kinds if k in modules and k not in found and modules[k]["cells"]]
    return found


class _Analysis:
    """Arrivals and transitions at both edges of every node, in the order of the signals."""

    def __init__(self, graph: _Graph, library: Library) -> None:
        edges = graph.edges
        none = Table.constant(0.0)
        self._graph, self._trees = graph, Trees(library)
        self._stack = Stack([none, *(t for e in edges for t in (e.delay, e.transition) if t)])
        self._source = np.array([e.source for e in edges])
        self._target = np.array([e.target for e in edges])
        self._delay = self._stack.index(e.delay or none for e in edges)
        self._transition = self._stack.index(e.transition or none for e in edges)
        self._wire = np.array([e.delay is None for e in edges])
        self._plant(graph.loads())
        self._propagate(2 * len(graph.names))

    def _plant(self, loads: NDArray[np.float64]) -> None:
        """Put a tree of buffers behind every driver that it makes faster: what drivers see, and what trees add."""
        cells = np.flatnonzero(~self._wire)
        delay, node = self._delay[cells], self._target[cells] // 2
        usual = np.full(len(cells), self._trees.transition)
        self._tree = tree = self._trees.behind(loads)
        without, with_tree = np.full(len(loads), -np.inf), np.full(len(loads), -np.inf)
        np.maximum.at(without, node, self._stack(delay, usual, loads[node]))
        np.maximum.at(with_tree, node, self._stack(delay, usual, tree.capacitance[node]) + tree.delay[node])
        self._has_tree = with_tree < without
        self._load = np.where(self._has_tree, tree.capacitance, loads)

    def _propagate(self, count: int) -> None:
        """Every edge once, as soon as all that comes into its source is known."""
        order = np.argsort(self._source, kind="stable")
        begin = np.searchsorted(self._source[order], np.arange(count + 1))
        missing = np.bincount(self._target, minlength=count)
        clock = slice(2 * _CLOCK, 2 * _CLOCK + 2)
        self._arrival, self._slope = np.full(count, -np.inf), np.zeros(count)
        self._arrival[clock], self._slope[clock] = 0.0, self._trees.transition
        self._cause = np.full(count, -1)  # the edge that comes last
        ready = np.flatnonzero(missing == 0)
        done = 0
        while len(ready):
            done += len(ready)
            taken = np.concatenate([order[begin[r] : begin[r + 1]] for r in ready])
            arrival, slope = self._through(taken)
            target = self._target[taken]
            later = np.argsort(arrival, kind="stable")  # so that of several into one target the last one is kept
            taken, arrival, slope, target = taken[later], arrival[later], slope[later], target[later]
            better = arrival > self._arrival[target]
            self._cause[target[better]] = taken[better]
            np.maximum.at(self._arrival, target, arrival)
            np.maximum.at(self._slope, target, slope)
            missing -= np.bincount(target, minlength=count)
            ready = np.unique(target[missing[target] == 0])
        assert done == count, "a combinational loop"

    def _through(self, edges: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Arrival and transition at the targets of edges."""
        source, node = self._source[edges], self._target[edges] // 2
        slope, load = self._slope[source], self._load[node]
        delay = self._stack(self._delay[edges], slope, load)
        after = self._stack(self._transition[edges], slope, load)
        tree = self._has_tree[node]
        delay = np.where(tree, delay + self._tree.delay[node], delay)
        after = np.where(tree, self._tree.transition[node], after)
        wire = self._wire[edges]
        return self._arrival[source] + np.where(wire, 0.0, delay), np.where(wire, slope, after)

    def paths(self) -> dict[str, Path]:
        """The longest path into every module."""
        ends = self._graph.ends
        stack = Stack(t for end in ends for t in end.setup)
        delays = np.full((2, len(ends)), -np.inf)
        for edge in (0, 1):
            at = np.array([2 * end.node + edge for end in ends])
            setup = stack(
                stack.index(end.setup[edge] for end in ends),
                self._slope[at],
                np.full(len(ends), self._trees.transition),
            )
            delays[edge] = self._arrival[at] + setup
        found: dict[str, Path] = {}
        for k in np.argsort(-delays.max(axis=0), kind="stable"):
            edge = int(delays[:, k].argmax())
            end, delay = ends[k], float(delays[edge, k])
            if end.module not in found and np.isfinite(delay):
                found[end.module] = Path(delay=delay, steps=self._steps(2 * end.node + edge), end=end.module)
        return found

    def _steps(self, at: int) -> tuple[Step, ...]:
        """The nets on the way to an edge, wires left out."""
        found = []
        while (k := int(self._cause[at])) >= 0:
            if not self._wire[k] or self._source[k] // 2 == _CLOCK:
                module, _ = self._graph.names[at // 2]
                net, cell = self._graph.net(at // 2), self._graph.edges[k].cell
                found.append(Step(module=module, net=net, cell=cell, arrival=float(self._arrival[at])))
            at = int(self._source[k])
        return tuple(reversed(found))
