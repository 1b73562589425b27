"""Random legal specs, small enough to be simulated clock by clock and built in hardware."""

import numpy as np

from gossamer.arch.errors import SpecError
from gossamer.arch.spec import ArchSpec


def random_spec(rng: np.random.Generator, **fixed: int) -> ArchSpec:
    """A spec with every field drawn at random; `fixed` sets some."""

    def power(low: int, high: int) -> int:
        return 1 << int(rng.integers(low, high + 1))

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    while True:
        group, axi = power(0, 5), power(2, 5)
        columns = int(rng.choice([1, 2, 3, 4, 6, 8, 12, 16]))
        row = max(group, axi)
        block = max(columns, row)
        macs, dynamic = min(group, power(0, 3)), bool(rng.random() < 0.5)
        banks = max(1, axi // macs) if dynamic else 1
        partitions, cuts = number(1, 3), number(1, 3)
        fields = {
            "lanes": number(1, 6),
            "columns": columns,
            "group": group,
            "macs": macs,
            "hop": min(group, power(0, 5)),
            "depth": number(1, 10),
            "dynamic_operands": dynamic,
            "activation_bytes": row * partitions * number(2, 8),
            "activation_partitions": partitions,
            "output_bytes": axi * cuts * number(-(-block * 2 // (axi * cuts)), 40),
            "output_partitions": cuts,
            "weight_steps": banks * number(-(-4 // banks), -(-40 // banks)),
            "offset_steps": max(1, axi // 2) * number(1, 12),
            "parameter_channels": 0,
            "tables": number(0, 2),
            "ppu": power(0, 3),
            "axi_bytes": axi,
            "queue_depth": number(1, 4),
            "fetch_burst": power(0, 3),
            "read_latency": number(1, 12),
            "beat_interval": int(rng.choice([1, 1, 1, 2, 3])),
            "burst_gap": int(rng.choice([0, 0, 1, 3])),
            "write_latency": number(1, 8),
            "outstanding_reads": number(1, 4),
            "outstanding_writes": number(1, 4),
            "burst_beats": number(1, 16),
            "broadcast_columns": number(1, 4),
            "broadcast_lanes": number(1, 4),
            "multiply_stages": number(1, 3),
            "ppu_stages": number(1, 3),
        }
        fields["parameter_channels"] = max(4, axi // 8, fields["ppu"]) * number(-(-columns // 4), 12)
        try:
            return ArchSpec(name="random", **{**fields, **fixed})
        except SpecError:
            continue
