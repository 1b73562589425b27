"""What the command line says while people wait."""

import pytest
from numba.core import event

from gossamer import report
from gossamer.report import Progress


def test_the_first_compilation_is_said_once_where_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress():
        for _ in range(2):
            with event.trigger_event("numba:compile"):
                pass
    assert capsys.readouterr().err.count("Compiling the simulator for this machine, once") == 1


def test_nothing_is_said_of_compilations_outside_of_it_or_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress("mapping", 1, 2)
    with event.trigger_event("numba:compile"):
        pass
    assert capsys.readouterr().err == ""


def test_counted_work_tells_how_far_it_is_where_there_is_no_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress() as progress:
        progress("try depth 16 -> 32", 3, 20)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(report, "LINE_SECONDS", 0.0)
        progress("load", 0, 0)
        progress("try depth 16 -> 32", 3, 20)
        assert capsys.readouterr().err == "try depth 16 -> 32 (3 of 20 done)\n"
