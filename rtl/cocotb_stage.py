"""The cocotb test that runs one stage: registers, start, interrupt, counters. Imported by cocotb only."""

import os
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from gossamer.rtl.registers_map import REGISTERS

__all__ = ["run_stage"]


@cocotb.test()
async def run_stage(dut: Any) -> None:
    """Write the program's length, start, wait for the interrupt, and leave every register in a file."""
    at = {r.name: r.address for r in REGISTERS}
    dut.dump.value = 0
    dut.rst.value = 1
    Clock(dut.clk, 10, unit="ns").start()
    host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "host"), dut.clk, dut.rst)
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 2)
    length = int(os.environ["GOSSAMER_LENGTH"])
    for name, value in (
        ("interrupt_enable", 1),
        ("program_low", 0),
        ("program_high", 0),
        ("program_length", length),
        ("control", 1),
    ):
        await host.write_dword(at[name], value)
    if not int(dut.irq.value):
        await RisingEdge(dut.irq)
    values = {r.name: await host.read_dword(r.address) for r in REGISTERS if "r" in r.access}
    dut.dump.value = 1
    await ClockCycles(dut.clk, 1)
    dut.dump.value = 0
    await ClockCycles(dut.clk, 2)
    lines = "".join(f"{name} {value}\n" for name, value in values.items())
    Path(os.environ["GOSSAMER_REGISTERS"]).write_text(lines, encoding="utf-8")
