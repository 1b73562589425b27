"""Cycles with mappings chosen by cost and by simulation (--refine): python benchmarks/refine.py [--random 388].

Known networks first, then random networks of one to four layers, every other one on a random spec and the rest on
presets, with odd sizes that the closed-form cost was not made for.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from workloads import chain_network

from gossamer.arch.errors import CapacityError
from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.layers import Network
from gossamer.sim.simulate import simulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.networks import random_network
from support.specs import random_spec

NETWORKS = (
    ("resnet50", "server", "2:8"),
    ("resnet50", "edge", "2:8"),
    ("mobilenet_v2", "server", "dense"),
    ("mobilenet_v2", "edge", "2:8"),
    ("bert_base_seq128", "server", "2:8"),
)
PRESETS = ("edge", "tiny", "server", "sat-2of8")


def main() -> None:
    """Print a line for each network, and one each for random networks on presets and on random specs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=0, help="random networks instead of known ones")
    args = parser.parse_args()
    if args.random:
        _random(args.random)
        return
    for name, preset, pattern in NETWORKS:
        cost, measured = _both(chain_network(name, pattern), ArchSpec.load(preset))
        print(f"{name}, {pattern}, on {preset}: {cost:,} by cost, {measured:,} by simulation, {cost / measured:.3f}")


def _random(count: int) -> None:
    ratios: dict[str, list[float]] = {"presets": [], "random specs": []}
    seed = 0
    while sum(map(len, ratios.values())) < count:
        rng = np.random.default_rng(seed)
        seed += 1
        spec = random_spec(rng) if seed % 2 else ArchSpec.load(PRESETS[seed // 2 % len(PRESETS)])
        try:
            cost, measured = _both(random_network(rng), spec)
        except CapacityError:
            continue
        ratios["random specs" if seed % 2 else "presets"].append(cost / measured)
    for where, found in ratios.items():
        r = np.array(found)
        print(
            f"{r.size} on {where}: cycles by cost over those by simulation {np.exp(np.log(r).mean()):.3f} (geometric "
            f"mean), {np.quantile(r, 0.95):.2f} (one in twenty is above), from {r.min():.2f} to {r.max():.2f}; "
            f"{(r < 1).mean():.0%} below 1"
        )


def _both(network: Network, spec: ArchSpec) -> tuple[int, int]:
    return _cycles(build_program(network, spec)), _cycles(build_program(network, spec, measure=_cycles))


def _cycles(program: Program) -> int:
    return simulate(program, values=False, check=False).cycles


if __name__ == "__main__":
    main()
