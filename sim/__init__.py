"""The simulator: what a Program computes, to the bit, and how long it takes, to the cycle.

simulate: one Program, one set of inputs.  run_batch, Simulator: many.  layer_report: where the time went.

    checker   refuses what could go wrong in any timing (legal: fields, tokens: order, contents: who wrote what)
    engine    time: the recurrence of arch/timing.py
    values    bits: instructions in program order (machine: memories, moves: LOAD and STORE, array: MATMUL and DRAIN)
    host      the stages that onnxruntime runs
"""

from gossamer.arch.layers import layer_report
from gossamer.sim.checker import check_program
from gossamer.sim.simulate import Simulator, run_batch, simulate

__all__ = ["Simulator", "check_program", "layer_report", "run_batch", "simulate"]
