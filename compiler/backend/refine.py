"""Mappings ranked by what they take and not by what they should: the best few of a layer are compiled and measured.

The closed-form cost of mapping.py only ranks. Who has a simulator passes it as `measure`; the compiler does not know
it. Among what is tried is the best mapping of every fixed dataflow, so the one that is kept never loses to any of them.
"""

from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table

import numpy as np

from gossamer.arch.layout import Placement
from gossamer.arch.program import AcceleratorStage, Fill, Program
from gossamer.arch.spec import ArchSpec
from gossamer.arch.sync import synchronise
from gossamer.compiler.backend.constants import ConstantPool
from gossamer.compiler.backend.emit import Emitter
from gossamer.compiler.backend.items import Item
from gossamer.compiler.backend.mapping import candidates
from gossamer.compiler.backend.problem import Problem
from gossamer.compiler.backend.schedule import layer_items
from gossamer.compiler.backend.streams import UnitStreams
from gossamer.compiler.backend.tiling import Mapping

__all__ = ["TRIES", "Measure", "layer_program", "measured_program", "refine"]

Measure = Callable[[Program], int]
"""Cycles of a Program."""

TRIES = 3
"""Mappings that are measured beside the search's own and those of the fixed dataflows."""

DATAFLOWS = ("output", "weight", "input")


def refine(
    problem: Problem,
    streams: tuple[UnitStreams, ...],
    found: Mapping,
    placements: Table[str, Placement],
    measure: Measure,
) -> Mapping:
    """The fastest of `found`, the next best candidates and the best of every fixed dataflow."""
    options = [found, *candidates(problem, streams)[: 1 + TRIES]]
    options += [fixed[0] for fixed in (candidates(problem, streams, d) for d in DATAFLOWS) if fixed]
    cycles: dict[Mapping, int] = {}
    for option in options:
        if option not in cycles:
            cycles[option] = measure(layer_program(problem, streams, option, placements))
    return min(cycles, key=lambda option: cycles[option])  # of equals the first, so the search's own


def layer_program(
    problem: Problem, streams: tuple[UnitStreams, ...], mapping: Mapping, placements: Table[str, Placement]
) -> Program:
    """A Program that runs a layer, for measuring."""

    def items(index: int, pool: ConstantPool) -> list[Item]:
        return layer_items(index, problem, streams, mapping, pool)

    return measured_program([items], problem.spec, placements)


def measured_program(
    layers: Sequence[Callable[[int, ConstantPool], list[Item]]], spec: ArchSpec, placements: Table[str, Placement]
) -> Program:
    """A Program that runs layers twice: from the second time on nothing starts cold, as in the middle of a network.

    layers : makes the items of each layer, or chain of layers, from an index and the constants.
    """
    base = max(p.address + p.size for p in placements.values())
    pool = ConstantPool(base=-(-base // spec.axi_bytes) * spec.axi_bytes, beat=spec.axi_bytes)
    emitter = Emitter(spec)
    emitter.run([item for index, items in enumerate((*layers, *layers)) for item in items(index, pool)])
    matrix = np.array(emitter.rows, dtype=np.int64)
    constants = pool.segment()
    image = np.zeros(-(-pool.end // spec.axi_bytes) * spec.axi_bytes, dtype=np.uint8)
    image[constants.address : constants.address + constants.data.size] = constants.data
    synchronise(matrix, spec, image)
    return Program(
        name="measured",
        spec=spec,
        instructions=matrix,
        dram_bytes=image.size,
        segments=(constants,),
        fills=tuple(Fill(address=p.address, size=p.size, value=p.zero_byte) for p in placements.values()),
        stages=(AcceleratorStage(name="measured", first=0, count=len(matrix)),),
    )
