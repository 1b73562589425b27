"""What `gossamer rtl` writes: Verilog, its map and guide, lint waivers, a FuseSoC core file, images and a bench."""

import json
from pathlib import Path
from typing import Any

from gossamer.arch.isa import WORD_BYTES
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.bench_files import bench_files
from gossamer.rtl.build import verilog_of
from gossamer.rtl.guide import guide
from gossamer.rtl.images import Case, check, example_case, image_files, tensor_table
from gossamer.rtl.ports import ports
from gossamer.rtl.registers_map import as_json, as_markdown
from gossamer.rtl.verilog import primitives

__all__ = ["FILES", "WAIVERS", "bundle", "memory_map", "write_bundle"]

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


FILES = {
    "README.md": "this page",
    "gossamer.v": "the accelerator, generated Verilog",
    "gossamer_memories.v": "its memories, to be replaced by the macros of your process",
    "gossamer.vlt": "Verilator's warnings that are waived, and why",
    "gossamer.core": "FuseSoC core file",
    "gossamer.toml": "the spec it was generated from",
    "map.md": "registers, counters and memories on chip",
    "map.json": "the same for programs, with the spec",
    "images/program.bin": "the instructions, as they lie in memory",
    "images/memory.bin": "DRAM before the start",
    "images/expected.bin": "DRAM in the end",
    "images/tensors.json": "where tensors lie in DRAM, and what their codes mean",
    "bench/Makefile": "builds and runs the bench",
    "bench/bench_top.sv": "the bench: a driver that checks",
    "bench/bench.sv": "the memory that the bench puts around the accelerator",
    "bench/program.hex": "the instructions for $readmemh, a beat a line, first byte last",
    "bench/memory.hex": "DRAM before the start, likewise",
    "bench/expected.hex": "DRAM in the end, likewise",
}
"""What each file of a bundle is, by its path."""


def bundle(spec: ArchSpec, case: Case | None = None) -> dict[str, str | bytes]:
    """Every file by its path; the same content for the same spec and case.

    case : what the bench runs and the images hold; a small example without it. Raises ProgramError if it does not fit.
    """
    if case is None:
        case = example_case(spec)
    check(case.program, spec)
    waivers = "".join(f"lint_off -rule {rule}  // {why}\n" for rule, why in WAIVERS.items())
    document = {"spec": spec.to_dict(), "registers": as_json(), "memories": memory_map(spec)}
    files: dict[str, str | bytes] = {
        "README.md": guide(spec, case, ports(spec), FILES),
        "gossamer.v": verilog_of(spec),
        "gossamer_memories.v": primitives(),
        "gossamer.vlt": "`verilator_config\n" + waivers,
        "gossamer.core": _core_file(spec),
        "gossamer.toml": spec.to_toml(),
        "map.md": _map_markdown(spec),
        "map.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        "images/tensors.json": tensor_table(case.program),
        **{f"images/{name}": data for name, data in image_files(case).items()},
        **{f"bench/{name}": text for name, text in bench_files(spec, case).items()},
    }
    assert files.keys() == FILES.keys()
    return {name: files[name] for name in FILES}


def write_bundle(spec: ArchSpec, folder: Path, case: Case | None = None) -> list[Path]:
    """Write the bundle; files that are there are replaced. Returns what was written. Raises as `bundle` does."""
    written = []
    for name, content in bundle(spec, case).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        written.append(path)
    return written
