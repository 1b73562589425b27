"""Time: when every instruction is fetched, starts and ends. The contract between simulator and RTL.

Cycles count from 0, the cycle in which FETCH leaves idle. A register written in cycle t is seen in cycle t + 1.
`end` is the first cycle in which everything the instruction did can be seen by another unit; its posts count from
that cycle on. `free` is the first cycle in which the next instruction of the unit may start.

FETCH reads the program in bursts of `fetch_burst` instructions (the last may be shorter) into a buffer of two bursts.
    decide(k)   = max(decide(k-1) + 1, dispatch of the last instruction of burst k-2, + 1); decide(0) = 0
    accepted(k) = decide(k) + 1, then the memory contract gives its beats
    dispatch(i) = max(last beat of instruction i + FETCH_LATENCY, dispatch(i-1) + 1, start(q) + 1)
                  q: the instruction of the same unit queue_depth before i (its place in the queue is free again)
    fetched(i)  = dispatch(i) + 1
    END is dispatched like any other instruction, but to no queue.

A unit (LOAD, MATMUL, DRAIN, STORE) starts its instructions in order:
    start(i) = max(fetched(i), free of the one before in the unit, the post of every semaphore it waits on)
where the k-th wait on a semaphore takes the k-th post. `waited` records what held it: bit s for every semaphore s
whose post became visible in the very cycle start(i), WAITED_FETCH if fetched(i) = start(i), WAITED_UNIT if the unit
became free in that cycle (and it had an instruction before).

LOAD issues one burst a cycle, row by row, block by block:
    decide(k)   = max(start(i) for the first burst of i, accepted(k-1), last beat(k - outstanding_reads) + 1)
    accepted(k) = decide(k) + 1
    free(i)     = accepted(last burst of i)
    end(i)      = last beat of its last burst + LOAD_LATENCY

MATMUL takes one step and one position a cycle:
    free(i) = start(i) + steps * nx * ny;   end(i) = free(i) + matmul_latency

DRAIN takes one position and one group of columns a cycle:
    free(i) = start(i) + nx * ny * column_groups;   end(i) = free(i) + drain_latency

STORE issues one burst address a cycle and sends data behind it:
    decide(k)   = max(start(i) for the first burst of i, accepted(k-1), response(k - outstanding_writes) + 1)
    accepted(k) = decide(k) + 1
    data ready  = accepted(k) + STORE_LATENCY, then the memory contract gives beats and response
    free(i)     = accepted(last burst of i)
    end(i)      = response of its last burst + 1

The program is done when END has been dispatched and everything has ended:
    cycles = max(dispatch(END), every end(i)) + 1
"""

from gossamer.arch.spec import ArchSpec

__all__ = [
    "FETCH_LATENCY",
    "LOAD_LATENCY",
    "STORE_LATENCY",
    "WAITED_FETCH",
    "WAITED_UNIT",
    "drain_latency",
    "matmul_latency",
    "reduce_stages",
    "skew",
]

FETCH_LATENCY = 2
"""From the last beat of an instruction to its dispatch: buffer, decode."""

LOAD_LATENCY = 5
"""From a beat on the bus to its data in a memory: bus register, gearbox, expander (two stages), write."""

STORE_LATENCY = 3
"""From an accepted write address to the first data beat: address, memory read, lane multiplexer."""

WAITED_FETCH = 1 << 12
WAITED_UNIT = 1 << 13


def skew(spec: ArchSpec) -> int:
    """Registers on the longest broadcast path: activation words along columns, weight words along lanes."""
    along = -(-spec.columns // spec.broadcast_columns) - 1
    down = -(-spec.lanes // spec.broadcast_lanes) - 1
    return along + down


def reduce_stages(spec: ArchSpec) -> int:
    """Pipeline registers in a PE's adder tree: one for every factor of four of its MACs, rounded up."""
    return (spec.macs.bit_length()) // 2


def matmul_latency(spec: ArchSpec) -> int:
    """From the last issue slot of a MATMUL to its accumulators.

    Sequencer, offset read, bank address, bank and weight read, window and zero point, broadcast skew, multiply, adder
    tree; the accumulator is written in the cycle that follows.
    """
    return 5 + skew(spec) + spec.multiply_stages + reduce_stages(spec)


def drain_latency(spec: ArchSpec) -> int:
    """From the last issue slot of a DRAIN to its last code in memory.

    Sequencer, accumulator and parameter read, bias, multiply and round, clamp, table (where the spec has one), write.
    """
    return 5 + spec.ppu_stages + (1 if spec.tables else 0)
