"""Set-up of every test run. pytest reads this before anything imports numba."""

import hashlib
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent

NUMBA_ROOMS = ("arch", "kernels", "sim")
"""Rooms whose code ends up in compiled functions, as code or as constants (tests/test_layout.py holds this)."""


def source_digest() -> str:
    """Digest of the sources of NUMBA_ROOMS; the Makefile computes the same one."""
    files = [path for room in NUMBA_ROOMS for path in (ROOT / room).rglob("*.py")]
    files.sort(key=lambda path: path.relative_to(ROOT).as_posix())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


# numba keys a compiled function by its own source file and not by the functions and constants it uses. Without a
# cache of its own for every state of the sources, a test could run yesterday's kernel.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".cache" / "numba" / source_digest()))

# Doctests import every module. Those of rtl/ need the extra of the same name; cocotb_stage runs inside a simulation.
HARDWARE = find_spec("amaranth") is not None and find_spec("pyosys") is not None
collect_ignore_glob = ["gossamer/rtl/cocotb_stage.py"] if HARDWARE else ["gossamer/rtl/*"]

# No deadline: the first example pays for numba's compilation. `pytest --hypothesis-profile=thorough` looks harder.
settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True)
settings.register_profile("thorough", settings.get_profile("dev"), max_examples=2000)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --update-golden` writes golden files anew; read the difference before you commit it."""
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing with them")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Compare a JSON value with a file of tests/golden."""

    def compare(name: str, value: object) -> None:
        path = ROOT / "tests" / "golden" / f"{name}.json"
        text = json.dumps(value, indent=1) + "\n"
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; make it with pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"{path.name} differs; if it should, pytest --update-golden"

    return compare
