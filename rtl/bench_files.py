"""The bench of a bundle: it runs a Program on the generated hardware, by the memory contract, and checks itself."""

from importlib import resources

from gossamer.arch.spec import ArchSpec
from gossamer.rtl.cosim import hex_lines
from gossamer.rtl.images import Case, stage_words
from gossamer.rtl.registers_map import REGISTERS

__all__ = ["bench_files"]

PATIENCE = 1_000_000
"""Clocks the bench waits for the interrupt of a Program that nobody has simulated."""


def bench_files(spec: ArchSpec, case: Case) -> dict[str, str]:
    """The files of the bench's folder by name."""
    words = stage_words(case.program)
    defines = {
        "DATA_BYTES": spec.axi_bytes,
        "FETCH_BYTES": spec.fetch_bytes,
        "READ_LATENCY": spec.read_latency,
        "BEAT_INTERVAL": spec.beat_interval,
        "BURST_GAP": spec.burst_gap,
        "WRITE_LATENCY": spec.write_latency,
        "DRAM_BEATS": case.program.dram_bytes // spec.axi_bytes,
        "PROGRAM_BEATS": len(words) * spec.fetch_beats,
        "PROGRAM_LENGTH": len(words),
        "CYCLES": 0 if case.cycles is None else case.cycles,  # 0: not to be compared
        "CLOCK_LIMIT": PATIENCE if case.cycles is None else 2 * case.cycles + PATIENCE,
        **{f"AT_{r.name.upper()}": f"10'h{r.address:03x}" for r in REGISTERS if not r.name.startswith("counter_")},
    }
    room = resources.files("gossamer.rtl")
    lines = "".join(f"`define {name} {value}\n" for name, value in defines.items())
    return {
        "bench.sv": room.joinpath("bench.sv").read_text(encoding="utf-8"),
        "bench_top.sv": lines + room.joinpath("bench_top.sv").read_text(encoding="utf-8"),
        "program.hex": hex_lines(words, spec.fetch_bytes),
        "memory.hex": hex_lines(case.before, spec.axi_bytes),
        "expected.hex": hex_lines(case.after, spec.axi_bytes),
        "Makefile": room.joinpath("bench.mk").read_text(encoding="utf-8"),
    }
