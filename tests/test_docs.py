"""The generated pages of docs/ are current."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generate: ModuleType) -> None:
    assert list(generate.stale(ROOT / "docs")) == [], "run `make docs` and commit the pages"


def test_a_stale_page_is_found(generate: ModuleType, tmp_path: Path) -> None:
    for name, write in generate.PAGES.items():
        (tmp_path / name).write_text(write())
    assert list(generate.stale(tmp_path)) == []
    (tmp_path / "isa.md").write_text((tmp_path / "isa.md").read_text().replace("MATMUL", "MATMULL"))
    (tmp_path / "spec.md").unlink()
    assert list(generate.stale(tmp_path)) == ["isa.md", "spec.md"]


def test_a_cell_may_hold_a_bar(generate: ModuleType) -> None:
    assert generate.table(("a", "b"), [(1, "x | y")]) == "| a | b |\n| --- | --- |\n| 1 | x \\| y |"
