"""What being compiled asks of the kernels: call graphs within a file, the same results without the compiler."""

import ast
import builtins
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.arch import rounding
from gossamer.kernels import codes, float_after, float_vectors, intrinsics, line_vectors, step_vectors, vectors
from gossamer.kernels.vectors import cpu_features

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "kernels").rglob("*.py"))
OPERATIONS = (float_after, float_vectors, intrinsics, line_vectors, rounding, step_vectors)
"""Modules of intrinsics, instructions rather than functions, and the one compiled function from another file."""


def is_jitted(node: ast.AST) -> bool:
    """Whether a function is compiled: @jit, @njit, @numba.njit, with or without arguments."""
    if not isinstance(node, ast.FunctionDef):
        return False
    targets = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(
        ast.unparse(t).rpartition(".")[2] in {"jit", "parallel_jit", "njit", "vectorize", "guvectorize"}
        for t in targets
    )


def foreign_names(source: str) -> Iterator[str]:
    """Names a compiled function reads that are neither its own, nor numpy, nor a compiled function of its file.

    numba freezes what a compiled function reads, code and constants alike, and keys its cache by the file of the
    function alone: a name from another file, or a plain constant made from one, could be an old one. OPERATIONS are
    covered by the digest of gossamer.arch.jit, and prange is numba's own.
    """
    tree = ast.parse(source)
    jitted = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and is_jitted(node)}
    allowed = jitted | set(dir(builtins)) | {"np", "prange"}
    allowed |= {name for module in OPERATIONS for name in module.__all__}
    for function in (node for node in ast.walk(tree) if is_jitted(node)):
        assert isinstance(function, ast.FunctionDef)
        own = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
        names = [n for statement in function.body for n in ast.walk(statement) if isinstance(n, ast.Name)]
        own |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
        for name in sorted({n.id for n in names} - own - allowed):
            yield f"{function.name} reads {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_compiled_functions_stay_in_their_file(path: Path) -> None:
    assert list(foreign_names(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "from gossamer.kernels.other import dot\n@jit\ndef f(x):\n    return dot(x)",
        "from gossamer.arch.numerics import ACC_MIN\n@njit(cache=True)\ndef f(x):\n    return max(x, ACC_MIN)",
        "def plain(x):\n    return x\n@jit\ndef f(x):\n    return plain(x)",
    ],
)
def test_foreign_names_are_found(source: str) -> None:
    assert len(list(foreign_names(source))) == 1


def test_own_names_are_accepted() -> None:
    source = (
        "@jit\ndef g(x):\n    return np.sum(x)\n@jit\ndef f(x):\n    for i in range(x):\n        y = g(i)\n    return y"
    )
    assert list(foreign_names(source)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_compiled_through_arch_jit_only(path: Path) -> None:
    """numba's own decorators have the cache that gossamer.arch.jit mends. Intrinsics are not compiled by themselves."""
    tree = ast.parse(path.read_text())
    if path.stem in {module.__name__.rpartition(".")[2] for module in (*OPERATIONS, codes, vectors)}:
        assert not any(is_jitted(node) for node in ast.walk(tree))
        return
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [module for module in modules if module.partition(".")[0] == "numba"]


def test_same_results_without_the_compiler() -> None:
    """The small cases of every kernel as plain Python, where overflow and wrong indices are errors of their own."""
    files = sorted(str(path) for path in (ROOT / "tests").glob("test_kernels_*.py") if path != Path(__file__))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_small", *files]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout


def test_import_compiles_nothing() -> None:
    """`import gossamer.kernels` leaves every kernel uncompiled."""
    code = (
        "import sys, gossamer.kernels\n"
        "from numba.core.registry import CPUDispatcher\n"
        "rooms = [m for n, m in sys.modules.items() if n.startswith('gossamer.kernels')]\n"
        "found = [f for m in rooms for f in vars(m).values() if isinstance(f, CPUDispatcher)]\n"
        "print(len(found) > 0, sum(len(f.signatures) for f in found))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_DISABLE_JIT"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert done.stdout.split() == ["True", "0"]


LAYERS = """
import numpy as np
from gossamer.arch import numerics
from gossamer.kernels import BSR, NM, Dense, prepare

rng = np.random.default_rng(0)
dense = rng.integers(-128, 128, (40, 70)).astype(np.int8)
x = rng.integers(0, 256, (13, 70)).astype(np.uint8)
q = numerics.make_requant(np.full(40, 0.001), zero_point=3, lo=0, hi=255)
few = np.where(np.arange(70) % 4 < 1, dense, 0).astype(np.int8)
for weight in (Dense.from_dense(dense), BSR.from_dense(dense, block=(16, 8)), NM.from_dense(few, n=1, m=4)):
    sums = ((x.astype(np.int64) - 3) @ weight.to_dense().astype(np.int64).T).astype(np.int32)
    codes = numerics.requantise(sums, np.zeros(40, np.int32), q)
    layers = prepare(weight, zero_point=3), prepare(weight, zero_point=3, requant=q)
    print(layers[0].why, np.array_equal(layers[0](x), sums), np.array_equal(layers[1](x), codes))
"""


@pytest.mark.parametrize(
    ("processor", "features", "dot"),
    [
        ("x86-64", "+sse2", "without"),
        pytest.param("haswell", "+avx2,+fma", "without", marks=pytest.mark.slow),
        pytest.param("skylake-avx512", "+avx512f,+avx512bw,+avx512vl,+fma", "without", marks=pytest.mark.slow),
        ("alderlake", "+avx2,+fma,+avxvnni", "avxvnni multiplies 32"),
    ],
)
def test_other_processors(processor: str, features: str, dot: str) -> None:
    """Exact, and without an abort, in code for processors that have less than this one."""
    if platform.machine() != "x86_64" or not set(features.replace("+", "").split(",")) <= cpu_features():
        pytest.skip("code for a processor that has more than this one")
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_DISABLE_JIT"}
    environment |= {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", LAYERS], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("True True") == done.stdout.count(dot) == 3, done.stdout


def test_cache_serves_no_stale_kernel(tmp_path: Path) -> None:
    """A change in one file reaches a kernel of another that was compiled and cached before it."""
    package = tmp_path / "gossamer"
    package.mkdir()
    (package / "__init__.py").touch()
    for room in ("arch", "kernels"):
        shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    script = """
import numpy as np
from gossamer.arch.numerics import Requant
from gossamer.kernels import Dense, fast, prepare

one = np.ones(1, np.int64)
layer = prepare(Dense.from_dense(np.array([[2, 3]], np.int8)), requant=Requant(multiplier=one, shift=one, lo=0, hi=99))
print(layer(np.array([[4, 6]], np.uint8))[0, 0], sum(fast.product.stats.cache_hits.values()))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_DISABLE_JIT", "PYTHONPATH")}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}

    def run() -> list[str]:
        command = [sys.executable, "-P", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert run() == ["13", "0"]
    assert run() == ["13", "1"]
    helper = package / "kernels" / "codes.py"
    text = helper.read_text()
    assert text.count("splat(VECTOR, _BITS32)") == 1
    helper.write_text(text.replace("splat(VECTOR, _BITS32)", "splat(VECTOR, _BITS32 - 7)"))
    assert run() == ["20", "0"]
