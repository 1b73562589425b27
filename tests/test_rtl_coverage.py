"""Coverage: the cross knows every legal kind of work, random programs reach all of it, and lines and toggles merge."""

import json
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gossamer import campaign, cli
from gossamer.arch.errors import GossamerError
from gossamer.arch.isa import Op
from gossamer.arch.spec import ArchSpec
from gossamer.coverage import Cross, legal_bins
from gossamer.rtl.coverage import read_coverage
from gossamer.rtl.example import example
from gossamer.sim import simulate
from tests.support.rtl_specs import SMALL_SPECS, needs_hardware_tools

TINY = ArchSpec.load("tiny").evolve(dynamic_operands=False)


def test_bins_are_those_of_the_spec() -> None:
    bins = list(legal_bins(TINY))
    assert len(bins) == len(set(bins)) == 332
    names = {b.operation for b in legal_bins(TINY.evolve(tables=0))}
    assert "LOAD table" not in names
    assert not any("table" in name for name in names)
    assert {b.edge for b in legal_bins(TINY.evolve(depth=1)) if b.operation.startswith("MATMUL")} == {"whole"}
    assert {b.encoding for b in legal_bins(ArchSpec.load("dense"))} == {"-", "DENSE"}


def test_instructions_count_once() -> None:
    """The example: five LOADs, a MATMUL of one position, a DRAIN of all columns, a STORE of whole tiles."""
    program, _ = example(TINY)
    cross = Cross(TINY)
    cross.add(simulate(program), held_back=False)
    counted = {", ".join(b): count for b, count in cross.counts.items() if count}
    assert counted == {
        "LOAD activation, -, whole, none, -": 1,
        "LOAD offset, -, -, none, -": 1,
        "LOAD weight, DENSE, -, none, -": 1,
        "LOAD parameter, -, -, none, -": 1,
        "LOAD output, -, whole, none, -": 1,
        "MATMUL sum, DENSE, edge, semaphore, 0": 1,
        "DRAIN to output, -, whole, semaphore, 0": 1,
        "STORE, -, whole, semaphore, -": 1,
    }
    assert len(cross.holes()) == 332 - 8
    assert sum(cross.counts.values()) == np.count_nonzero(program.instructions[:, 0] != Op.END)


@needs_hardware_tools
def test_no_holes() -> None:
    """Every operation with every encoding, whole and cut, held back by each, in both banks: in hardware, and equal."""
    spec = SMALL_SPECS["mask"]
    cross = Cross(spec)
    cases = takewhile(lambda _: cross.holes(), campaign.random_cases(spec, 1000, 1))
    found = campaign.tally(spec, "until nothing is left", cases, stalls=True, seen=cross)
    assert found.difference is None
    assert set(cross.counts) == set(legal_bins(spec)), "a bin that is not legal was counted"
    assert cross.holes() == []


def test_instances_of_a_module_are_merged(tmp_path: Path) -> None:
    points = [
        ("toggle", "v_toggle/pe", "7", "a[0]:0->1", "top.x", 0),
        ("toggle", "v_toggle/pe", "7", "a[0]:0->1", "top.y", 3),
        ("toggle", "v_toggle/pe__W8", "7", "a[0]:1->0", "top.z", 0),
        ("line", "v_line/pe", "9", "block", "top.x", 1),
        ("branch", "v_branch/pe", "9", "if", "top.x", 0),
    ]
    text = "# SystemC::Coverage-3\n" + "".join(
        f"C '\1f\2d.v\1l\2{line}\1n\2{k}\1t\2{kind}\1page\2{page}\1o\2{what}\1h\2{where}' {count}\n"
        for k, (kind, page, line, what, where, count) in enumerate(points)
    )
    (tmp_path / "a.dat").write_text(text)
    (module,) = read_coverage(tmp_path / "a.dat")
    assert (module.module, module.lines, module.toggles) == ("pe", (1, 2), (1, 2))
    assert module.missing == ("a[0]:1->0", "line 9.4 (if)")
    (tmp_path / "b.dat").write_text("nothing")
    with pytest.raises(GossamerError, match="holds no coverage"):
        read_coverage(tmp_path / "b.dat")


@pytest.mark.slow
@needs_hardware_tools
def test_command_coverage(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["coverage", "tiny", "--random", "30", "-o", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "found.json").read_text())
    lines = np.sum([m["lines"] for m in facts["modules"]], axis=0)
    toggles = np.sum([m["toggles"] for m in facts["modules"]], axis=0)
    assert lines[0] > 0.9 * lines[1]
    assert toggles[0] > 0.85 * toggles[1]
    assert facts["run"]["mismatches"] == 0
    assert "bins of operation x encoding" in done.stdout
    assert "gossamer_pe" in done.stdout
