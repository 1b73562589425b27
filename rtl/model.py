"""The Verilated model: runs a Program's stages in the generated hardware, with the same record as the simulator's."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.errors import GossamerError, SimulationError
from gossamer.arch.isa import ErrorCode
from gossamer.arch.memory import Trace
from gossamer.arch.program import AcceleratorStage, Program
from gossamer.arch.run import COUNTERS, EVENT_FIELDS, StageRun
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.build import library, wave_format
from gossamer.rtl.registers_map import REGISTERS

__all__ = ["HardwareError", "Memory", "Model"]

ADDRESS = {r.name: r.address for r in REGISTERS}
_CONTROL = ("control", "program_low", "program_high", "program_length", "interrupt_enable", "interrupt_status")


class HardwareError(SimulationError):
    """The hardware stopped with an error code. code, index : of the status registers."""

    def __init__(self, code: ErrorCode, index: int) -> None:
        super().__init__(f"the hardware stopped with {code.name} at instruction {index}")
        self.code, self.index = code, index


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How the memory behaves beyond the contract of the spec.

    stall : of 256, how often an address, a beat or a response is held back.  seed : of that.
    fetch_error, read_error, write_error : number of the beat, beat and burst that gets an error response; -1 for none.
    """

    stall: int = 0
    seed: int = 1
    fetch_error: int = -1
    read_error: int = -1
    write_error: int = -1


class Model:
    """A spec's hardware, ready to run stages one after the other. Registers and memories start from random bits.

    seed : of those bits.  wave : a .vcd or .fst file to write.
    coverage : a file for Verilator's counts of lines and toggles, written by `close`.
    text : other Verilog than the spec's own.  limit : cycles after which a stage is given up.
    """

    def __init__(
        self,
        spec: ArchSpec,
        *,
        seed: int = 1,
        wave: Path | None = None,
        coverage: Path | None = None,
        text: str | None = None,
        limit: int = 100_000_000,
    ) -> None:
        self.spec, self._limit = spec, limit
        form = None if wave is None else wave_format(wave)
        self._c = ctypes.CDLL(str(library(spec, wave=form, coverage=coverage is not None, text=text)))
        self._c.gossamer_create.restype = ctypes.c_void_p
        self._c.gossamer_create.argtypes = [ctypes.c_int64, ctypes.c_char_p, ctypes.c_char_p]
        self._c.gossamer_destroy.argtypes = [ctypes.c_void_p]
        self._c.gossamer_register.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._c.gossamer_register.restype = ctypes.c_uint32
        pointer = ctypes.c_void_p
        self._c.gossamer_run.argtypes = [
            pointer, pointer, pointer, ctypes.c_uint64, pointer, ctypes.c_uint64, pointer, ctypes.c_int64, pointer,
        ]  # fmt: skip
        self._c.gossamer_bursts.argtypes = [pointer, ctypes.c_int, pointer]
        self._c.gossamer_bursts.restype = ctypes.c_int64
        self._c.gossamer_fetch_beats.argtypes = [pointer, pointer]
        self._c.gossamer_fetch_beats.restype = ctypes.c_int64
        self._handle = self._c.gossamer_create(seed, *(str(p).encode() if p else None for p in (wave, coverage)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and finish its files."""
        if self._handle:
            self._c.gossamer_destroy(self._handle)
            self._handle = None

    def register(self, name: str) -> int:
        """A register's value."""
        return int(self._c.gossamer_register(self._handle, ADDRESS[name]))

    def run_stage(
        self, program: Program, stage: AcceleratorStage, dram: NDArray[np.uint8], memory: Memory | None = None
    ) -> StageRun:
        """One accelerator stage of a Program; `dram` is changed in place.

        Raises GossamerError for a Program of another spec, and what `run_words` raises.
        """
        if program.spec.evolve(name="x", purpose="") != self.spec.evolve(name="x", purpose=""):
            raise GossamerError(
                f"the Program is for the spec {program.spec.name!r}, the model is of {self.spec.name!r}"
            )
        words = isa.encode(program.instructions[stage.first : stage.first + stage.count])
        return self.run_words(stage.name, words, dram, memory)

    def run_words(
        self, name: str, words: NDArray[np.uint8], dram: NDArray[np.uint8], memory: Memory | None = None
    ) -> StageRun:
        """One stage from its machine words; `dram` is changed in place.

        Raises HardwareError for an error code, and SimulationError when the hardware broke a rule of the bus or of
        the event log, or ran longer than the limit.
        """
        spec, count, memory = self.spec, len(words), memory or Memory()
        program = np.ascontiguousarray(words).reshape(-1)
        config = np.array(
            [
                spec.read_latency, spec.beat_interval, spec.burst_gap, spec.write_latency, spec.axi_bytes,
                spec.fetch_bytes, memory.stall, memory.seed, memory.fetch_error, memory.read_error,
                memory.write_error, self._limit,
            ],
            dtype=np.int64,
        )  # fmt: skip
        events = np.full((count, len(EVENT_FIELDS)), -1, dtype=np.int64)
        addresses = np.array([ADDRESS[n] for n in _CONTROL], dtype=np.uint32)
        code = self._c.gossamer_run(
            self._handle, config.ctypes.data, dram.ctypes.data, dram.size, program.ctypes.data, program.size,
            events.ctypes.data, count, addresses.ctypes.data,
        )  # fmt: skip
        if code == 1:
            raise SimulationError(f"the hardware did not finish within {self._limit} cycles")
        error = ErrorCode(self.register("error"))
        if error is not ErrorCode.NONE:
            raise HardwareError(error, self.register("error_index"))
        if code == 2:
            raise SimulationError("the hardware broke a rule of the bus or of the event log")
        cycles = self.register("cycles_low") | self.register("cycles_high") << 32
        counters = {n: self.register(f"counter_{n}") for n in COUNTERS}
        return StageRun(name=name, cycles=cycles, events=events, counters=counters)

    def trace(self) -> Trace:
        """When every burst of the last stage was accepted, moved and answered."""
        ports = []
        for port in range(3):
            rows = np.zeros((self._c.gossamer_bursts(self._handle, port, None), 4), dtype=np.int64)
            self._c.gossamer_bursts(self._handle, port, rows.ctypes.data)
            ports.append(rows)
        beats = np.zeros(self._c.gossamer_fetch_beats(self._handle, None), dtype=np.int64)
        self._c.gossamer_fetch_beats(self._handle, beats.ctypes.data)
        return Trace(fetch=ports[0][:, :3], fetch_beats=beats, read=ports[1][:, :3], write=ports[2])
