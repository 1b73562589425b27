"""Random programs for time alone: any instruction, any legal order of semaphores. Values play no part in them."""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.isa import FORMATS, SEMAPHORES, Instruction, LoadKind, Op, to_matrix
from gossamer.arch.program import AcceleratorStage, Program
from gossamer.arch.spec import ArchSpec

DRAM_BYTES = 1 << 20


def program_of(matrix: NDArray[np.int64], spec: ArchSpec, dram_bytes: int = DRAM_BYTES) -> Program:
    """A Program of one stage."""
    stage = AcceleratorStage(name="main", first=0, count=len(matrix))
    return Program(spec=spec, instructions=matrix, dram_bytes=dram_bytes, stages=(stage,))


def random_instruction(rng: np.random.Generator, spec: ArchSpec, op: Op) -> dict[str, int]:
    """Fields that matter to time, small; addresses sometimes next to a 4 KiB boundary."""

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    if op in (Op.LOAD, Op.STORE):
        page = 4096 // spec.axi_bytes
        address = number(0, 4 * page) if rng.random() < 0.5 else max(0, number(1, 3) * page - number(0, 8))
        out = {
            "address": address,
            "beats": number(1, 12) if rng.random() < 0.8 else number(20, 60),
            "rows": number(1, 3),
            "blocks": number(1, 2),
            "row_stride": number(0, 70),
            "block_stride": number(0, 200),
        }
        return out | ({"kind": int(rng.choice(list(LoadKind)))} if op is Op.LOAD else {"tile_beats": 1, "tile_rows": 1})
    if op is Op.MATMUL:
        return {"steps": number(1, 12), "nx": number(1, 3), "ny": number(1, 3)}
    return {"nx": number(1, 3), "ny": number(1, 3), "column_groups": number(1, 4)}


def random_order(rng: np.random.Generator, count: int) -> list[tuple[Op, int]]:
    """A random merge of the four units' instructions: (op, place in the unit)."""
    ops = [Op(int(o)) for o in rng.choice([1, 2, 3, 4], size=count, p=rng.dirichlet([2, 2, 2, 2]))]
    places: dict[Op, int] = {}
    out = []
    for op in ops:
        out.append((op, places.get(op, 0)))
        places[op] = places.get(op, 0) + 1
    return out


def random_timing_program(rng: np.random.Generator, spec: ArchSpec, count: int) -> Program:
    """A program whose semaphores follow some order of execution, which need not be the order of the program.

    Waits may take posts of instructions that come later in the program. With short queues a few of these programs
    deadlock, which the simulator has to see.
    """
    program_order = random_order(rng, count)
    # The order of execution: the same sequences of the units, merged anew; mostly close to the program's order.
    jitter = rng.choice([0.0, 2.0, 6.0])
    keys: dict[tuple[Op, int], float] = {}
    reached: dict[Op, float] = {}
    for k, item in enumerate(program_order):
        reached[item[0]] = keys[item] = max(reached.get(item[0], 0.0), k + jitter * rng.random())
    execution = sorted(program_order, key=lambda item: (keys[item], item[1]))
    held = [0] * len(SEMAPHORES)
    masks: dict[tuple[Op, int], tuple[int, int]] = {}
    eager = rng.random()
    for item in execution:
        wait = post = 0
        for s in SEMAPHORES:
            if s.waiter == int(item[0]) and held[s.index] and rng.random() < eager:
                wait |= 1 << s.index
                held[s.index] -= 1
        for s in SEMAPHORES:
            if s.poster == int(item[0]) and rng.random() < 0.4:
                post |= 1 << s.index
                held[s.index] += 1
        masks[item] = (wait, post)
    rows = []
    for item in program_order:
        fields = random_instruction(rng, spec, item[0])
        assert set(fields) <= {f.name for f in FORMATS[item[0]]}
        rows.append(Instruction.make(item[0], wait=masks[item][0], post=masks[item][1], **fields))
    rows.append(Instruction.make(Op.END))
    return program_of(to_matrix(rows), spec)
