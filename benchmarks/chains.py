"""What keeping tensors between layers on chip saves: python benchmarks/chains.py [--spec server edge] [--no-refine].

Each workload is compiled and simulated three times: without chains, with those that the cost model chooses (what
`gossamer compile` does), and with chains and mappings that were measured in the simulator (`--refine`, which takes
minutes). Cycles are deterministic.
"""

import argparse

from rich.console import Console
from rich.table import Table
from workloads import chain_network

from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.sim.simulate import simulate


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=["mobilenet_v2", "resnet50", "bert_base_seq128"])
    parser.add_argument("--spec", nargs="*", default=["server"])
    parser.add_argument("--pattern", nargs="*", default=["dense", "2:8"])
    parser.add_argument("--no-refine", action="store_true", help="leave out what the simulator chooses")
    args = parser.parse_args()
    columns = ("network", "spec", "weights", "without", "by cost", "", "by simulation", "")
    table = Table(*columns, title="cycles without chains and with them, and how many times as fast")
    for name in args.workloads:
        for pattern in args.pattern:
            network = chain_network(name, pattern)
            for spec in map(ArchSpec.load, args.spec):
                apart = _cycles(build_program(network, spec, chains=False))
                found = [_cycles(build_program(network, spec))]
                if not args.no_refine:
                    found.append(_cycles(build_program(network, spec, measure=_cycles)))
                cells = [cell for cycles in found for cell in (f"{cycles:,}", f"{apart / cycles:.3f}")]
                table.add_row(name, spec.name, pattern, f"{apart:,}", *cells)
    Console(width=120, highlight=False).print(table)


def _cycles(program: Program) -> int:
    return simulate(program, values=False, check=False).cycles


if __name__ == "__main__":
    main()
