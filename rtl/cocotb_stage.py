"""The cocotb test that runs one stage: registers, start, interrupt, counters. Imported by cocotb only.

The bench's memory is in RTL, or, where GOSSAMER_STALL is set, three AXI4 slaves of cocotbext-axi that hold back
addresses, beats and responses at random, answer after a random time, and check the rules of AXI.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiRamRead, AxiRamWrite, AxiReadBus, AxiWriteBus

from gossamer.rtl.registers_map import REGISTERS

__all__ = ["run_stage"]

LONGEST_WAIT = 30
"""Cycles of the longest delay of an answer."""


@cocotb.test()
async def run_stage(dut: Any) -> None:
    """Write the program's length, start, wait for the interrupt, and leave registers and memory in files."""
    folder = Path(os.environ["GOSSAMER_FOLDER"])
    at = {r.name: r.address for r in REGISTERS}
    dut.dump.value = 0
    dut.rst.value = 1
    Clock(dut.clk, 10, unit="ns").start()
    memory = _memories(dut, folder) if "GOSSAMER_STALL" in os.environ else None
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
    if memory is not None:
        (folder / "result.bin").write_bytes(memory.read(0, memory.size))
    lines = "".join(f"{name} {value}\n" for name, value in values.items())
    (folder / "registers.txt").write_text(lines, encoding="utf-8")


def _memories(dut: Any, folder: Path) -> Any:
    """Slaves on the three ports, with their pauses; gives the one that holds the data."""
    stall, rng = int(os.environ["GOSSAMER_STALL"]), random.Random(int(os.environ["GOSSAMER_SEED"]))

    def pauses() -> Iterator[bool]:
        mine = random.Random(rng.random())
        while True:
            yield mine.randrange(256) < stall

    async def late() -> None:
        if rng.randrange(256) < stall // 8:
            await ClockCycles(dut.clk, rng.randint(1, LONGEST_WAIT))

    class LateRead(AxiRamRead):
        async def _read(self, address: int, length: int) -> Any:
            await late()
            return await super()._read(address, length)

    class LateWrite(AxiRamWrite):
        async def _write(self, address: int, data: Any) -> None:
            await late()
            await super()._write(address, data)

    program, data = (folder / "program.bin").read_bytes(), (folder / "memory.bin").read_bytes()
    fetch = LateRead(AxiReadBus.from_prefix(dut, "fetch"), dut.clk, dut.rst, size=len(program))
    write = LateWrite(AxiWriteBus.from_prefix(dut, "write"), dut.clk, dut.rst, size=len(data))
    read = LateRead(AxiReadBus.from_prefix(dut, "read"), dut.clk, dut.rst, size=len(data), mem=write.mem)
    fetch.write(0, program)
    write.write(0, data)
    for port in (fetch, read, write):
        for name in ("ar_channel", "r_channel", "aw_channel", "w_channel", "b_channel"):
            if hasattr(port, name):
                getattr(port, name).set_pause_generator(pauses())
    return write
