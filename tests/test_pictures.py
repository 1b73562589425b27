"""Pictures of a run: files are made, what they show adds up, and mistakes are told."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import gossamer
from gossamer import cli, drawing, pictures
from gossamer.arch.errors import GossamerError
from gossamer.arch.isa import SEMAPHORES, Instruction, Op, Unit, to_matrix
from gossamer.arch.layers import stalls
from gossamer.arch.program import AcceleratorStage, Program
from gossamer.arch.run import Run
from gossamer.arch.spec import ArchSpec
from gossamer.compiler.backend.build import build_program
from gossamer.compiler.layers import Network
from gossamer.explanation import INSIDE, MEANING, explain
from gossamer.sim.simulate import simulate
from tests.support.networks import random_conv, random_tensor

WORKERS = (Unit.LOAD, Unit.MATMUL, Unit.DRAIN, Unit.STORE)


@pytest.fixture(scope="module")
def program() -> Program:
    """Two convolutions, the second with a residual."""
    rng = np.random.default_rng(7)
    x = random_tensor(rng, "x", (1, 8, 6, 6))
    first, middle = random_conv(rng, "first", x, 8, (3, 3), pads=(1, 1, 1, 1), density=0.5)
    second, out = random_conv(rng, "second", middle, 8, (1, 1), residual=middle)
    network = Network(
        name="two-layers",
        tensors={t.name: t for t in (x, middle, out)},
        stages=(first, second),
        inputs=("x",),
        outputs=(out.name,),
    )
    return build_program(network, ArchSpec.load("tiny"))


@pytest.fixture(scope="module")
def run(program: Program) -> Run:
    return simulate(program, values=False)


@pytest.fixture(scope="module")
def bare() -> Run:
    """One LOAD and END, without notes on layers."""
    load = Instruction.make(Op.LOAD, beats=4, rows=1, blocks=1, tile_beats=4, tile_rows=1)
    program = Program(
        name="bare",
        spec=ArchSpec.load("tiny"),
        instructions=to_matrix([load, Instruction.make(Op.END)]),
        dram_bytes=4096,
        stages=(AcceleratorStage(name="main", first=0, count=2),),
    )
    return simulate(program, values=False)


@pytest.mark.parametrize("name", ["run.png", "run.svg", "run.pdf"])
@pytest.mark.parametrize("draw", [pictures.timeline, pictures.layers, pictures.overview])
def test_file_is_made(draw: object, name: str, run: Run, tmp_path: Path) -> None:
    assert callable(draw)
    draw(run, tmp_path / name)
    head = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    data = (tmp_path / name).read_bytes()
    assert data.startswith(head[Path(name).suffix])
    assert len(data) > 5000


def test_words(run: Run, tmp_path: Path) -> None:
    pictures.overview(run, tmp_path / "run.svg")
    text = (tmp_path / "run.svg").read_text()
    title = f"two-layers on tiny: {run.cycles:,} cycles"
    for word in (title, "first", "second", "MATMUL", "read bus", "waits for", "lower bound"):
        assert word in text


def test_same_run_same_picture(run: Run, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        pictures.overview(run, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_long_stages_are_shares(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_MOST_BARS", 10)
    pictures.timeline(run, tmp_path / "run.svg")
    assert "each column shows the shares of" in (tmp_path / "run.svg").read_text()


def test_one_stage(run: Run, tmp_path: Path) -> None:
    pictures.timeline(run, tmp_path / "run.svg", stage=run.stages[0].name)
    assert f", stage {run.stages[0].name}:" in (tmp_path / "run.svg").read_text()
    with pytest.raises(GossamerError, match=r"^stage must be one of first, not 'third'$"):
        pictures.timeline(run, tmp_path / "other.svg", stage="third")


def test_stalls_are_those_of_the_counters(run: Run) -> None:
    """Bars of one cause add up to the hardware's counters of that cause."""
    for stage, noted in zip(run.stages, run.program.accelerator_stages, strict=True):
        waits = stalls(run.program, noted, stage)
        for unit in WORKERS:
            bars = pictures._stalls(waits, stage.events, unit)
            length = bars.end - bars.begin
            causes = {Unit.FETCH: "fetch"} | {s.poster: s.name for s in SEMAPHORES if s.waiter is unit}
            for poster, cause in causes.items():
                assert length[bars.label == poster].sum() == stage.counters[f"stall_{unit.name.lower()}_{cause}"]


def test_spans_cover_the_run(run: Run) -> None:
    spans = pictures._spans(run)
    assert [run.program.layers[s.note].name for s in spans] == ["first", "second"]
    assert spans[0].begin == 0
    assert spans[0].end == spans[1].begin
    assert run.cycles - 2 <= spans[1].end <= run.cycles  # all but END
    assert sum(s.array for s in spans) == run.counters["busy_matmul"]
    assert all(s.array >= 0 and s.bus >= 0 and s.array + s.bus <= s.cycles for s in spans)


def test_covered_and_union() -> None:
    rng = np.random.default_rng(3)
    begin = rng.integers(0, 90, 20)
    end = begin + rng.integers(1, 10, 20)
    edges = np.array([0, 7, 30, 31, 100])
    bars = pictures._Bars.make(begin, end, np.zeros(20, dtype=np.int64))
    hit = np.zeros(100, dtype=np.int64)
    for b, e in zip(begin, end, strict=True):
        hit[b:e] += 1
    np.testing.assert_array_equal(pictures._covered(bars, edges), np.add.reduceat(hit, edges[:-1]))
    either = pictures._union([bars])
    np.testing.assert_array_equal(pictures._covered(either, edges), np.add.reduceat(hit > 0, edges[:-1], dtype=int))


def test_program_without_notes(bare: Run, tmp_path: Path) -> None:
    pictures.overview(bare, tmp_path / "bare.png")
    assert (tmp_path / "bare.png").stat().st_size > 5000
    with pytest.raises(
        GossamerError, match=r"^Program 'bare' has no notes on its layers, so there is nothing to draw$"
    ):
        pictures.layers(bare, tmp_path / "layers.png")


def test_parts_look_different_and_the_picture_says_of_what_it_is(run: Run, tmp_path: Path) -> None:
    facts = explain(run)
    parts = dict.fromkeys(facts["parts"], 50.0)  # as if it had every part there is
    facts["layers"] = [{**layer, "parts": parts} for layer in facts["layers"]]
    pictures.explanation(facts, tmp_path / "parts.svg")
    text = (tmp_path / "parts.svg").read_text()
    assert f"two-layers on tiny: {run.cycles:,} cycles, {facts['ratio']:.3f} × bound" in text
    beyond = [name for name in MEANING if name not in INSIDE and name != "hidden"]
    assert list(drawing.PARTS) == beyond
    looks = {colour for colour, _ in drawing.PARTS.values()}
    assert len(looks) == len(beyond)
    assert pictures._SPENT[0][1] not in looks  # the bound
    for name, (colour, _) in drawing.PARTS.items():
        assert f">{name}<" in text
        assert f"fill: {colour}" in text or f'fill="{colour}"' in text  # a hatch is a pattern


def test_lines_between_stages_are_in_the_legend(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    x = random_tensor(rng, "x", (1, 16, 6, 6))
    first, a = random_conv(rng, "first", x, 16, (1, 1))
    second, b = random_conv(rng, "second", a, 16, (3, 3))  # too large for the banks below
    third, out = random_conv(rng, "third", b, 16, (1, 1))
    network = Network(
        name="split",
        tensors={t.name: t for t in (x, a, b, out)},
        stages=(first, second, third),
        inputs=("x",),
        outputs=(out.name,),
    )
    for spec, told in ((ArchSpec(activation_bytes=128, activation_partitions=1), True), (ArchSpec(), False)):
        pictures.timeline(simulate(gossamer.compile(network, spec), values=False), tmp_path / "run.svg")
        assert ("the host runs" in (tmp_path / "run.svg").read_text()) == told


@given(
    words=st.lists(st.lists(st.text("abC.1", min_size=1, max_size=8), min_size=1, max_size=3), min_size=1, max_size=4),
    room=st.integers(1, 40),
)
def test_names_keep_to_their_room(words: list[list[str]], room: int) -> None:
    name = " > ".join("/".join(member) for member in words)
    text = drawing.short(name, room)
    assert 0 < len(text) <= max(room, 2)
    assert text == name or len(name) > room


def test_unknown_suffix(run: Run, tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match=r"^a picture's name must end in one of .*png.*svg.*, not 'run\.txt'$"):
        pictures.timeline(run, tmp_path / "run.txt")


def test_without_matplotlib(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(GossamerError, match=r"^pictures need matplotlib: pip install 'gossamer\[plot\]'$"):
        pictures.timeline(run, tmp_path / "run.png")


def test_command_line(program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "two.gsm")
    done = CliRunner().invoke(cli.app, ["run", str(tmp_path / "two.gsm"), "--picture", str(tmp_path / "two.png")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    wrong = CliRunner().invoke(cli.app, ["run", str(tmp_path / "two.gsm"), "--picture", str(tmp_path / "two")])
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("error: a picture's name must end in one of")
