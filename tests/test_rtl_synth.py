"""Hardware cost: what is refused, and that every module has a component."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gossamer import cli
from gossamer.arch.errors import GossamerError
from gossamer.arch.spec import ArchSpec

pytestmark = pytest.mark.skipif(
    find_spec("amaranth") is None or find_spec("pyosys") is None, reason="gossamer[rtl] is not installed"
)

SPARSE = ArchSpec.load("tiny").evolve(name="sparse", lanes=2, columns=2, axi_bytes=4, group=4, macs=2, tables=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the liberty file"),
        ("a library of books", "is not a liberty file"),
        ("library (x) { cell (INV) { area : 1; } }", "none of the liberty files has a flip-flop"),
    ],
)
def test_liberty_that_will_not_do(text: str | None, message: str, tmp_path: Path) -> None:
    from gossamer.rtl.synth import synthesise

    path = tmp_path / "x.lib"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GossamerError, match=message):
        synthesise(SPARSE, liberty=[path])


def test_command_refuses_an_unknown_liberty() -> None:
    done = CliRunner().invoke(cli.app, ["synth", "tiny", "--liberty", "nowhere.lib"])
    assert done.exit_code == 1
    assert "cannot read the liberty file 'nowhere.lib'" in done.stderr


def test_every_module_has_a_component() -> None:
    from gossamer.rtl.synth import component_of

    assert component_of("gossamer_tile_4x4") == "broadcast registers"
    assert component_of("gossamer_core.weights_0") == "step buffers"
    with pytest.raises(AssertionError, match="gossamer_new belongs to no component"):
        component_of("gossamer_new")
