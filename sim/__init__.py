"""The simulator: runs a Program, values by kernels and time by recurrences."""

from gossamer.sim.simulate import Simulator, run_batch, simulate

__all__ = ["Simulator", "run_batch", "simulate"]
