"""The ports of the top module: their order in the Verilog, and what the bundle's README says of them."""

from typing import NamedTuple

from gossamer.arch.memory import BOUNDARY
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.registers_map import LITE_BITS

__all__ = ["Port", "about", "ports"]


class Port(NamedTuple):
    """A port. group : the interface it belongs to.  direction : input or output.  width : bits."""

    name: str
    group: str
    direction: str
    width: int


def ports(spec: ArchSpec) -> list[Port]:
    """The ports of the top module in the order of its Verilog: clock and reset, then interface by interface."""
    from amaranth.hdl import Shape
    from amaranth.lib.wiring import In, SignatureMembers

    from gossamer.rtl.machine import interfaces

    found = [Port("clk", "clk", "input", 1), Port("rst", "rst", "input", 1)]
    for path, member in SignatureMembers(interfaces(spec)).flatten():
        if member.is_port:
            direction = "input" if member.flow == In else "output"
            found.append(Port("_".join(path), path[0], direction, Shape.cast(member.shape).width))
    return found


def about(spec: ArchSpec) -> dict[str, str]:
    """What is to be known of each group of ports, as a sentence or more."""
    master = (
        f"AXI4, master. Bursts are INCR, of full and aligned beats, and never cross {BOUNDARY} bytes. There are no "
        "identifiers, and no `lock`, `cache`, `prot`, `qos` and `region`: tie them off. What is in flight must be "
        "answered in order."
    )
    return {
        "clk": "The only clock: everything happens at its rising edge.",
        "rst": (
            "Reset, active high, synchronous: one rising edge of `clk` is enough. Memories and registers that need no "
            "value start undefined."
        ),
        "host": (
            f"AXI4-Lite, slave, {1 << LITE_BITS} bytes: the registers of map.md, at multiples of 4. A write is taken "
            "when its address and its data are both there, and does something only with all four strobes set. An "
            "address without a register reads 0. Responses are always OKAY."
        ),
        "fetch": (
            f"Instructions. {master} A burst is up to {spec.fetch_burst * spec.fetch_beats} beats of "
            f"{spec.fetch_bytes} bytes, two may be in flight, `rready` is always high."
        ),
        "read": (
            f"Data into the machine. {master} A burst is up to {spec.burst_beats} beats of {spec.axi_bytes} bytes, "
            f"{spec.outstanding_reads} may be in flight, `rready` is always high."
        ),
        "write": (
            f"Data out of the machine. {master} A burst is up to {spec.burst_beats} beats of {spec.axi_bytes} bytes, "
            f"{spec.outstanding_writes} may be in flight, all strobes are set, `bready` is always high. The data of a "
            "burst follows its accepted address."
        ),
        "irq": "Interrupt, level, active high: see *Starting a program*. May stay open if the host polls.",
        "running": "High while a program runs. May stay open.",
        "events": "What happens in every cycle, for a testbench's event log: a bit for each unit. May stay open.",
    }
