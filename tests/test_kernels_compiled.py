"""What being compiled asks of the kernels: call graphs within a file, the same results without the compiler."""

import ast
import builtins
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.kernels import codes, float_vectors, intrinsics, vectors

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "kernels").rglob("*.py"))
OPERATIONS = (float_vectors, intrinsics)
"""Modules of intrinsics: instructions rather than functions."""


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
    assert "6 passed" in done.stdout


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
