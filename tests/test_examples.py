"""The examples run, and what they print is true."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(path: Path, monkeypatch: pytest.MonkeyPatch):
    """An example as a module, with its own folder importable as when it is run as a script."""
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_demo(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    demo = load(EXAMPLES / "digits" / "demo.py", monkeypatch)
    demo.main(["--images", "12", "--output", str(tmp_path / "demo.png")])
    text = capsys.readouterr().out
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    speedups = [float(x) for x in re.findall(r"([\d.]+)x", text)]
    assert speedups[0] == 1.0
    assert max(speedups) > 2.5
    assert "picture:" in text


def test_explore(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    explore = load(EXAMPLES / "explore.py", monkeypatch)
    explore.main(["--limit", "4", "--jobs", "1", "--output", str(tmp_path / "explore.png")])
    text = capsys.readouterr().out
    assert (tmp_path / "explore.png").stat().st_size > 10_000
    assert "2x16 2:8" in text
    assert len(list(explore.candidates())) == 30


def test_pareto(monkeypatch):
    explore = load(EXAMPLES / "explore.py", monkeypatch)
    specs = list(explore.candidates())[:3]
    points = [explore.Point(spec=s, cycles=c, busy=1.0) for s, c in zip(specs, (100, 10, 20), strict=True)]
    same = [explore.Point(spec=specs[0].evolve(name=f"p{c}"), cycles=c, busy=1.0) for c in (5, 6)]
    assert explore.pareto(same) == {"p5"}
    assert specs[1].name in explore.pareto(points)


def test_the_session_in_the_readme():
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    (session,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(session.replace('"examples/', f'"{EXAMPLES}/'), names)
    assert names["run"].outputs["logits"].argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert names["run"].cycles > 0
