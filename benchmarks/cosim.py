"""What hardware models cost: seconds to generate and build one, and simulated clock cycles a second.

    python benchmarks/cosim.py            4x4, 8x8 and 16x16 PEs with two MACs each, as `sat-2of8` has them

Seconds are CPU seconds of this process and of the tools it starts, with empty caches; a second spec on a machine takes
less, since ccache has Verilator's run-time library then. Cycles a second are those of random programs in the model,
without the simulator's share.
"""

import argparse
import os
import resource
import tempfile
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from gossamer.arch.spec import ArchSpec
from gossamer.rtl.build import library, verilog_of
from gossamer.rtl.model import Model
from gossamer.sim.random_programs import random_program

SIZES = (4, 8, 16)


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(size: int, seconds: float) -> tuple[float, float, int, float]:
    """CPU seconds for Verilog and for the model, bytes of Verilog, and cycles a CPU second."""
    spec = ArchSpec.load("sat-2of8").evolve(name=f"{size}x{size}", lanes=size, columns=size)
    begin = cpu_seconds()
    text = verilog_of(spec)
    generated = cpu_seconds()
    library(spec)
    built = cpu_seconds()
    program = random_program(np.random.default_rng(1), spec, 100)
    (stage,) = program.accelerator_stages
    cycles = 0
    with Model(spec) as model:
        start = time.thread_time()
        while time.thread_time() - start < seconds:
            cycles += model.run_stage(program, stage, program.memory()).cycles
        speed = cycles / (time.thread_time() - start)
    return generated - begin, built - generated, len(text), speed


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each model runs")
    options = parser.parse_args()
    table = Table(title="Hardware models, two MACs a PE, group of 8")
    for column in ("PEs", "Verilog, CPU s", "KiB", "Verilator and C++, CPU s", "cycles a second"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory(prefix="gossamer-") as cache:
        os.environ |= {"GOSSAMER_CACHE_DIR": cache, "CCACHE_DISABLE": "1"}
        for size in SIZES:
            generated, built, length, speed = measure(size, options.seconds)
            cells = (f"{size}x{size}", f"{generated:.1f}", f"{length / 1024:,.0f}", f"{built:.1f}", f"{speed:,.0f}")
            table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()
