"""The cocotb path: the same stages as rtl.model, under cocotb and Verilator.

By the memory contract, Python runs only for the registers: bench.sv reads the memory image, keeps the contract, and
writes the event log and the memory at the end. Outside of it, the slaves of cocotbext-axi are the memory, and
axi_bench.sv records when they took and gave what.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.errors import GossamerError, SimulationError
from gossamer.arch.isa import ErrorCode, Unit
from gossamer.arch.memory import Trace
from gossamer.arch.program import AcceleratorStage, Program
from gossamer.arch.run import COUNTERS, EVENT_FIELDS, StageRun
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.build import cache_folder, locked, verilator_environment, verilog_of
from gossamer.rtl.model import HardwareError, Memory
from gossamer.rtl.verilog import primitives

__all__ = ["CocotbModel", "event_log", "hex_lines", "recorded"]

TOP = "gossamer_cosim"
AXI_TOP = "gossamer_axi_bench"


def hex_lines(data: NDArray[np.uint8], width: int) -> str:
    """Bytes as lines of `width` bytes each, most significant first, as $readmemh takes them."""
    rows = np.pad(data.reshape(-1), (0, -data.size % width)).reshape(-1, width)
    return "\n".join(row[::-1].tobytes().hex() for row in rows) + "\n"


def _bytes(text: str, count: int) -> NDArray[np.uint8]:
    """The inverse of `hex_lines`; $writememh puts comments and addresses between the lines."""
    lines = [line for line in text.splitlines() if line and line[0] not in "/@"]
    rows = [np.frombuffer(bytes.fromhex(line.strip()), dtype=np.uint8)[::-1] for line in lines]
    return np.concatenate(rows)[:count]


def event_log(text: str, count: int) -> NDArray[np.int64]:
    """The lines of the bench (cycle, then a bit for each unit and kind of event) as the log of arch/run.py."""
    events = np.full((count, len(EVENT_FIELDS)), -1, dtype=np.int64)
    columns = {kind: EVENT_FIELDS.index(kind) for kind in EVENT_FIELDS[2:7]}
    kinds = ("start", "first_beat", "last_beat", "free", "end")
    order: dict[int, list[int]] = {u: [] for u in Unit}
    seen = {(u, kind): 0 for u in Unit for kind in kinds}
    dispatched = 0
    for line in text.splitlines():
        t, dispatch, *rest, waited = (int(n) for n in line.split())
        for kind, bits in zip(kinds, rest, strict=True):
            for u in Unit:
                if bits >> u & 1:
                    row = order[u][seen[u, kind]]
                    seen[u, kind] += 1
                    events[row, columns[kind]] = t
                    if kind == "start":
                        events[row, -1] = waited >> 14 * (u - Unit.LOAD) & 0x3FFF
        for u in Unit:
            if dispatch >> u & 1:
                row = events[dispatched]
                if u is Unit.FETCH:
                    row[:] = (0, t, t, -1, -1, t, t, 0)
                else:
                    row[:2] = u, t + 1
                    order[u].append(dispatched)
                dispatched += 1
    return events


def recorded(text: str) -> Trace:
    """The lines of axi_bench.sv (cycle, then a bit for each kind of handshake) as a Trace."""
    accepted: list[list[int]] = [[], [], []]
    beats: list[list[int]] = [[], [], []]
    bursts: list[list[tuple[int, int]]] = [[], [], []]
    opened = [-1, -1, -1]
    responses: list[int] = []
    for line in text.splitlines():
        t, bits = (int(n) for n in line.split())
        for port in range(3):
            address, beat, last = (bits >> 3 * port + k & 1 for k in range(3))
            if address:
                accepted[port].append(t)
            if beat:
                beats[port].append(t)
                opened[port] = t if opened[port] < 0 else opened[port]
            if last:
                bursts[port].append((opened[port], t))
                opened[port] = -1
        if bits >> 9 & 1:
            responses.append(t)

    def table(port: int, *more: list[int]) -> NDArray[np.int64]:
        rows = [accepted[port], *zip(*bursts[port], strict=True)] if bursts[port] else [[], [], []]
        return np.array([*rows, *more], dtype=np.int64).T

    return Trace(
        fetch=table(0), fetch_beats=np.array(beats[0], dtype=np.int64), read=table(1), write=table(2, responses)
    )


@contextmanager
def _environment() -> Iterator[None]:
    """cocotb starts Verilator through os.environ."""
    before = dict(os.environ)
    os.environ.update(verilator_environment())
    # Assertions need no rewriting here, and it takes a second of every start.
    os.environ["COCOTB_REWRITE_ASSERTION_FILES"] = ""
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class CocotbModel:
    """A spec's hardware under cocotb, with the interface of rtl.model.Model; every stage is a simulation of its own."""

    def __init__(self, spec: ArchSpec) -> None:
        self.spec = spec
        self._trace: Trace | None = None

    def close(self) -> None:
        """Nothing is held between stages."""

    def trace(self) -> Trace:
        """What a memory outside of the contract did in the last stage. Raises GossamerError if there was none."""
        if self._trace is None:
            raise GossamerError("the last stage kept the memory contract: there is nothing to replay")
        return self._trace

    def run_stage(
        self, program: Program, stage: AcceleratorStage, dram: NDArray[np.uint8], memory: Memory | None = None
    ) -> StageRun:
        """One accelerator stage; `dram` is changed in place.

        memory : None for the contract, else how often the AXI slaves hold back; they give no error responses.
        Raises HardwareError and SimulationError.
        """
        if memory is not None and (memory.fetch_error, memory.read_error, memory.write_error) != (-1, -1, -1):
            raise GossamerError("the slaves under cocotb give no error responses; use rtl.Model")
        words = isa.encode(program.instructions[stage.first : stage.first + stage.count])
        with tempfile.TemporaryDirectory(prefix="gossamer-") as name:
            folder = Path(name)
            if memory is None:
                self._by_contract(folder, words, dram)
            else:
                self._by_slaves(folder, words, dram, memory)
            numbers = dict(line.split() for line in (folder / "registers.txt").read_text().splitlines())
            registers = {name: int(value) for name, value in numbers.items()}
            if registers["error"]:
                raise HardwareError(ErrorCode(registers["error"]), registers["error_index"])
            if memory is None:
                self._trace, dram[:] = None, _bytes((folder / "result.hex").read_text(), dram.size)
            else:
                self._trace = recorded((folder / "handshakes.txt").read_text())
                dram[:] = np.frombuffer((folder / "result.bin").read_bytes(), dtype=np.uint8)
            events = event_log((folder / "events.txt").read_text(), len(words))
        cycles = registers["cycles_low"] | registers["cycles_high"] << 32
        counters = {n: registers[f"counter_{n}"] for n in COUNTERS}
        return StageRun(name=stage.name, cycles=cycles, events=events, counters=counters)

    def _by_contract(self, folder: Path, words: NDArray[np.uint8], dram: NDArray[np.uint8]) -> None:
        spec, beats = self.spec, dram.size // self.spec.axi_bytes
        (folder / "program.hex").write_text(hex_lines(words, spec.fetch_bytes))
        (folder / "memory.hex").write_text(hex_lines(dram, spec.axi_bytes))
        # Sizes are parameters of the build: round them up, so that programs share one.
        parameters = {
            "READ_LATENCY": spec.read_latency,
            "BEAT_INTERVAL": spec.beat_interval,
            "BURST_GAP": spec.burst_gap,
            "WRITE_LATENCY": spec.write_latency,
            "DRAM_BEATS": 1 << (beats - 1).bit_length(),
            "PROGRAM_BEATS": 1 << (len(words) * spec.fetch_beats - 1).bit_length(),
        }
        plusargs = [f"+{n}={folder / f'{n}.hex'}" for n in ("program", "memory", "result")]
        self._simulate(TOP, folder, len(words), parameters, plusargs, {})

    def _by_slaves(self, folder: Path, words: NDArray[np.uint8], dram: NDArray[np.uint8], memory: Memory) -> None:
        spec = self.spec
        # FETCH reads whole bursts: what follows the last instruction must be there, whatever it is.
        whole = np.pad(words.reshape(-1), (0, -words.size % (spec.fetch_burst * isa.WORD_BYTES)))
        (folder / "program.bin").write_bytes(whole.tobytes())
        (folder / "memory.bin").write_bytes(dram.tobytes())
        environment = {"GOSSAMER_STALL": str(memory.stall), "GOSSAMER_SEED": str(memory.seed)}
        self._simulate(AXI_TOP, folder, len(words), {}, [f"+handshakes={folder / 'handshakes.txt'}"], environment)

    def _simulate(
        self,
        top: str,
        folder: Path,
        instructions: int,
        parameters: dict[str, int],
        plusargs: list[str],
        environment: dict[str, str],
    ) -> None:
        from cocotb_tools.check_results import get_results
        from cocotb_tools.runner import get_runner

        parameters |= {"DATA_BYTES": self.spec.axi_bytes, "FETCH_BYTES": self.spec.fetch_bytes}
        sources = {"design.v": verilog_of(self.spec), "primitives.v": primitives()}
        for name in ("bench.sv", "axi_bench.sv"):
            sources[name] = resources.files("gossamer.rtl").joinpath(name).read_text(encoding="utf-8")
        key = hashlib.sha256("\0".join([*sources.values(), top, repr(parameters)]).encode()).hexdigest()[:24]
        build = cache_folder() / "cocotb" / key
        build.mkdir(parents=True, exist_ok=True)
        for name, text in sources.items():
            if not (build / name).is_file():
                (build / name).write_text(text, encoding="utf-8")
        runner: Any = get_runner("verilator")
        with _environment(), locked(build / "lock"):
            runner.build(
                sources=[build / name for name in sources],
                hdl_toplevel=top,
                parameters=parameters,
                build_dir=build / "sim",
                # Only the top's ports are visible: everything public costs a factor of ten in build and speed.
                build_args=["--no-public-flat-rw", "--public-depth", "1", "-Wno-fatal", "-Wno-lint", "--no-timing",
                            "--x-assign", "fast", "--x-initial", "unique"],
                log_file=build / "build.log",
            )  # fmt: skip
        # The runner leaves the process when something fails: what counts are the results.
        with _environment(), suppress(SystemExit):
            runner.test(
                hdl_toplevel=top,
                test_module="gossamer.rtl.cocotb_stage",
                build_dir=build / "sim",
                test_dir=folder,
                results_xml=str(folder / "results.xml"),
                plusargs=[*plusargs, f"+events={folder / 'events.txt'}", "+verilator+rand+reset+2"],
                extra_env={"GOSSAMER_LENGTH": str(instructions), "GOSSAMER_FOLDER": str(folder), **environment},
                log_file=folder / "test.log",
            )
        if not (folder / "results.xml").is_file() or get_results(folder / "results.xml")[1]:
            raise SimulationError(f"the cocotb run failed: {(folder / 'test.log').read_text()[-2000:]}")
