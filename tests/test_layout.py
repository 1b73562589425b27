"""The shape of the house: packages, links and folders agree, and rooms import in one direction only."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import gossamer.arch
import gossamer.compiler
import gossamer.kernels
import gossamer.rtl
import gossamer.sim

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "arch": set(),
    "kernels": {"arch"},
    "sim": {"arch", "kernels"},
    "compiler": {"arch"},
    "rtl": {"arch"},
}
"""Which other rooms a room may import."""

NUMBA_ROOMS = {"arch", "kernels", "sim"}
"""Rooms that conftest.py and the Makefile digest for the name of numba's cache."""

HEAVY = {"amaranth", "matplotlib", "networkx", "numba", "onnx", "onnxruntime", "scipy"}
"""What `import gossamer` must not load: every `import gossamer.<room>` would pay for it."""

UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"__import__", "eval", "exec"}

COMPILER = {
    "layers": set(),
    "frontend": {"layers"},
    "backend": {"layers"},
    "sparsity": {"layers", "frontend", "backend"},
    "passes": {"layers", "frontend", "sparsity"},
}
"""Which parts of the compiler its parts may import."""

SOURCES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]
TOP_LEVEL = sorted((ROOT / "gossamer").glob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, wherever it stands in the file.

    >>> list(imported(ast.parse("from gossamer.arch import spec")))
    [(1, 'gossamer.arch.spec')]
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def wrong_imports(room: str, source: str) -> list[str]:
    """Imports in a file of this room that break the direction."""
    wrong = []
    for line, name in imported(ast.parse(source)):
        top, _, rest = name.partition(".")
        if top != "gossamer" or rest == "__version__":
            continue
        target = rest.partition(".")[0]
        if target not in {room} | MAY_IMPORT[room]:
            wrong.append(f"line {line}: {room} may not import {name}")
    return wrong


def unsafe_uses(source: str) -> list[str]:
    """Uses of pickle and its kin, eval and exec."""
    tree = ast.parse(source)
    found = [f"line {line}: {name}" for line, name in imported(tree) if name.partition(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in UNSAFE_CALLS:
            found.append(f"line {node.lineno}: {node.id}")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(f"line {node.value.lineno}: allow_pickle")
    return found


def shipped() -> set[str]:
    """What a wheel must hold, by its path there."""
    files = {path for room in MAY_IMPORT for path in (ROOT / room).rglob("*") if path.is_file()}
    names = {f"gossamer/{name_of(path)}" for path in files if path.parent.name != "__pycache__"}
    return names | {name_of(path) for path in TOP_LEVEL} | {"gossamer/py.typed"}


def test_every_room_is_shipped() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert config["only-include"] == ["gossamer", *sorted(MAY_IMPORT)]
    assert config["sources"] == {room: f"gossamer/{room}" for room in MAY_IMPORT}


def test_wheels_hold_every_file(tmp_path: Path) -> None:
    """Made from a checkout, and from a source distribution, which has no links."""
    pytest.importorskip("hatchling")

    def build(folder: Path, kind: str) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path / folder.name)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (made,) = (tmp_path / folder.name).glob("*.whl" if kind == "wheel" else "*.tar.gz")
        return made

    def contents(wheel: Path) -> set[str]:
        names = zipfile.ZipFile(wheel).namelist()
        assert len(names) == len(set(names))
        return {name for name in names if ".dist-info/" not in name}

    assert contents(build(ROOT, "wheel")) == shipped()
    with tarfile.open(build(ROOT, "sdist")) as archive:
        assert not any(member.issym() for member in archive)
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("gossamer-*/")
    assert contents(build(unpacked, "wheel")) == shipped()


@pytest.mark.parametrize("installed", [True, False], ids=["as installed", "path of an editable install"])
def test_a_folder_called_gossamer_is_not_the_package(tmp_path: Path, installed: bool) -> None:
    """A clone is such a folder to a script or a notebook beside it."""
    (tmp_path / "gossamer" / "gossamer").mkdir(parents=True)
    code, options = "import gossamer; print(gossamer.__file__, gossamer.compile)", []
    if not installed:  # -S: without site-packages, so that this folder alone can have it
        config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
        (folder,) = (ROOT / name for name in config["dev-mode-dirs"])
        if not (folder / "gossamer").is_symlink():
            pytest.skip("this checkout has no symbolic links, so it cannot be installed editable")
        assert [path.name for path in folder.iterdir()] == ["gossamer"]
        code, options = (
            f"import sys; sys.path.append({str(folder)!r}); import gossamer; print(gossamer.__file__)",
            ["-S"],
        )
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith(str(tmp_path))


def test_no_module_hides_a_function_of_the_api() -> None:
    """`import gossamer.explain` would put the module in the function's place."""
    assert {path.stem for path in TOP_LEVEL} & set(gossamer.__all__) == set()
    code = "import gossamer.cli, gossamer.explanation as e; print(gossamer.explain is e.explain)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "True\n"


def test_every_package_has_an_init() -> None:
    folders = {path.parent for path in SOURCES}
    assert [name_of(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_link_leads_to_room(room: str) -> None:
    link = ROOT / "gossamer" / room
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links; an installed package does not need them")
    assert link.resolve() == ROOT / room


def test_rooms_are_not_top_level_modules() -> None:
    """`import arch.spec` would be a second copy of every class in it."""
    loaded = {room: sys.modules[room] for room in MAY_IMPORT if room in sys.modules}
    ours = [room for room, module in loaded.items() if str(getattr(module, "__file__", "")).startswith(str(ROOT))]
    assert ours == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_direction_of_imports(path: Path) -> None:
    assert wrong_imports(path.relative_to(ROOT).parts[0], path.read_text()) == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "compiler")], ids=name_of)
def test_direction_inside_the_compiler(path: Path) -> None:
    """Front end and back end share the Network of layers.py and nothing else."""
    part = path.relative_to(ROOT / "compiler").parts[0].removesuffix(".py")
    found = {name.split(".")[2] for _, name in imported(ast.parse(path.read_text())) if ".compiler." in name}
    assert found <= COMPILER.get(part, set()) | {part}


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("arch", "import gossamer.kernels"),
        ("arch", "from gossamer import kernels"),
        ("sim", "def f():\n    from gossamer.compiler.layers import Conv"),
        ("rtl", "from gossamer.kernels import dot"),
        ("compiler", "if TYPE_CHECKING:\n    import gossamer.sim.engine"),
        ("kernels", "import gossamer"),
        ("kernels", "from gossamer.api import compile"),
    ],
)
def test_wrong_direction_is_found(room: str, line: str) -> None:
    assert len(wrong_imports(room, line)) == 1


def test_right_direction_is_accepted() -> None:
    assert wrong_imports("sim", "import numpy\nfrom gossamer.kernels import dot\nfrom gossamer.arch import isa") == []
    assert wrong_imports("arch", "from gossamer import __version__") == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_numba_stays_in_digested_rooms(path: Path) -> None:
    """A compiled function elsewhere could be served stale from numba's cache (see conftest.py)."""
    uses = any(name.partition(".")[0] == "numba" for _, name in imported(ast.parse(path.read_text())))
    assert not uses or path.relative_to(ROOT).parts[0] in NUMBA_ROOMS


def test_digested_rooms_are_named_alike() -> None:
    conftest = re.search(r"^NUMBA_ROOMS = \((.*)\)$", (ROOT / "conftest.py").read_text(), re.MULTILINE)
    makefile = re.search(r"\$\(shell find ([a-z ]+) -name", (ROOT / "Makefile").read_text())
    assert conftest is not None
    assert set(re.findall(r"\w+", conftest[1])) == NUMBA_ROOMS
    assert makefile is not None
    assert set(makefile[1].split()) == NUMBA_ROOMS


@pytest.mark.parametrize("path", SOURCES + TOP_LEVEL, ids=name_of)
def test_no_pickle_eval_or_exec(path: Path) -> None:
    """Files that users exchange (specs, models, programs) are data, never code."""
    assert unsafe_uses(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "f = exec",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trust)",
    ],
)
def test_unsafe_use_is_found(line: str) -> None:
    assert len(unsafe_uses(line)) == 1


@pytest.mark.parametrize("module", ["gossamer", *(f"gossamer.{path.stem}" for path in TOP_LEVEL)])
def test_import_is_light(module: str) -> None:
    if module.endswith(("__init__", "__main__")):
        pytest.skip("the same as gossamer, or runs the command line")
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
