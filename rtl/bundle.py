"""What `gossamer rtl` writes: Verilog, its map, lint waivers, a FuseSoC core file and an example bench."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from gossamer.arch import isa
from gossamer.arch.isa import WORD_BYTES
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.build import verilog_of
from gossamer.rtl.cosim import hex_lines
from gossamer.rtl.example import example
from gossamer.rtl.registers_map import REGISTERS, as_json, as_markdown
from gossamer.rtl.verilog import primitives

__all__ = ["WAIVERS", "bundle", "memory_map", "write_bundle"]

WAIVERS = {
    "DECLFILENAME": "one file holds all generated modules",
    "UNUSEDSIGNAL": "carries of additions that are cut to their width, and the last tile's registers",
    "WIDTHEXPAND": "generated expressions rely on Verilog's own extension of operands",
    "WIDTHTRUNC": "generated assignments rely on Verilog's own truncation",
    "CASEOVERLAP": "generated priority chains are casez with overlapping patterns, first match wins",
}
"""Verilator's warnings that generated Verilog does not avoid, and why that is right."""


def memory_map(spec: ArchSpec) -> dict[str, Any]:
    """The memories of an accelerator: on-chip ones in bytes, and how the program and its data are addressed."""
    return {
        "on_chip_bytes": spec.buffer_bytes,
        "ports": {
            "fetch": {"beat_bytes": spec.fetch_bytes, "holds": "instructions of 32 bytes",
                      "alignment_bytes": spec.fetch_burst * WORD_BYTES},
            "read": {"beat_bytes": spec.axi_bytes, "address": "instruction field x beat_bytes"},
            "write": {"beat_bytes": spec.axi_bytes, "address": "instruction field x beat_bytes"},
        },
    }  # fmt: skip


def _map_markdown(spec: ArchSpec) -> str:
    sizes = "".join(f"| {name} | {size:,} |\n" for name, size in spec.buffer_bytes.items())
    return (
        f"# Gossamer accelerator `{spec.name}`\n\n{spec.purpose}\n\n## Registers\n\n{as_markdown()}\n"
        f"## Memories on chip\n\n| memory | bytes |\n|---|---|\n{sizes}\n"
        f"## Ports\n\nThe program lies at `program_low`, `program_high`, aligned to {spec.fetch_burst * WORD_BYTES} "
        f"bytes, and is read in beats of {spec.fetch_bytes} bytes. Data is read and written in beats of "
        f"{spec.axi_bytes} bytes, at byte address beat x {spec.axi_bytes}.\n"
    )


def _core_file(spec: ArchSpec) -> str:
    name = "".join(c if c.isalnum() else "_" for c in spec.name)
    return f"""CAPI=2:
name: ::gossamer-{name}:0.1.0
description: {json.dumps(spec.purpose or f"Gossamer accelerator {spec.name}", ensure_ascii=False)}
filesets:
  rtl:
    files: [gossamer.v, gossamer_memories.v]
    file_type: verilogSource
  lint:
    files: [gossamer.vlt]
    file_type: vlt
  bench:
    files: [bench/bench.sv, bench/bench_top.sv]
    file_type: systemVerilogSource
targets:
  default: &default
    filesets: [rtl]
    toplevel: gossamer
  lint:
    <<: *default
    filesets: [rtl, lint]
    default_tool: verilator
    tools:
      verilator:
        mode: lint-only
        verilator_options: [-Wall]
"""


def _bench(spec: ArchSpec) -> dict[str, str]:
    program, expected = example(spec)
    words = isa.encode(program.instructions)
    beats = program.dram_bytes // spec.axi_bytes
    defines = {
        "DATA_BYTES": spec.axi_bytes,
        "FETCH_BYTES": spec.fetch_bytes,
        "READ_LATENCY": spec.read_latency,
        "BEAT_INTERVAL": spec.beat_interval,
        "BURST_GAP": spec.burst_gap,
        "WRITE_LATENCY": spec.write_latency,
        "DRAM_BEATS": beats,
        "PROGRAM_BEATS": len(words) * spec.fetch_beats,
        "PROGRAM_LENGTH": len(words),
        **{f"AT_{r.name.upper()}": f"10'h{r.address:03x}" for r in REGISTERS[:12]},
    }
    room = resources.files("gossamer.rtl")
    lines = "".join(f"`define {name} {value}\n" for name, value in defines.items())
    return {
        "bench.sv": room.joinpath("bench.sv").read_text(encoding="utf-8"),
        "bench_top.sv": lines + room.joinpath("bench_top.sv").read_text(encoding="utf-8"),
        "program.hex": hex_lines(words, spec.fetch_bytes),
        "memory.hex": hex_lines(program.memory(), spec.axi_bytes),
        "expected.hex": hex_lines(expected, spec.axi_bytes),
        "Makefile": _MAKEFILE,
    }


_MAKEFILE = """# make run: prints PASS or FAIL. Needs Verilator 5.
run: obj/bench
\tobj/bench +program=program.hex +memory=memory.hex +expected=expected.hex

obj/bench: bench.sv bench_top.sv ../gossamer.v ../gossamer_memories.v
\tverilator --binary --timing -Wno-fatal -Wno-lint --top-module gossamer_bench -Mdir obj -o bench \\
\t  -CFLAGS -std=gnu++20 bench_top.sv bench.sv ../gossamer.v ../gossamer_memories.v

clean:
\trm -rf obj
"""


def bundle(spec: ArchSpec) -> dict[str, str]:
    """Every file by its path; the same text for the same spec."""
    waivers = "".join(f"lint_off -rule {rule}  // {why}\n" for rule, why in WAIVERS.items())
    document = {"spec": spec.to_dict(), "registers": as_json(), "memories": memory_map(spec)}
    return {
        "gossamer.v": verilog_of(spec),
        "gossamer_memories.v": primitives(),
        "gossamer.vlt": "`verilator_config\n" + waivers,
        "gossamer.core": _core_file(spec),
        "gossamer.toml": spec.to_toml(),
        "map.md": _map_markdown(spec),
        "map.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        **{f"bench/{name}": text for name, text in _bench(spec).items()},
    }


def write_bundle(spec: ArchSpec, folder: Path) -> list[Path]:
    """Write the bundle; files that are there are replaced. Returns what was written."""
    written = []
    for name, text in bundle(spec).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
