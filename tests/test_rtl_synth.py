"""Hardware cost: counts that can be known beforehand, sums, what is refused, and the command."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gossamer import cli
from gossamer.arch.errors import GossamerError
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.cost import COMPONENTS, Component, Cost, Memory, Placement, Route, component_of, tally
from gossamer.rtl.liberty import Library
from gossamer.rtl.place import placement
from tests.support.liberty import library

pytestmark = pytest.mark.skipif(
    find_spec("amaranth") is None or find_spec("pyosys") is None, reason="gossamer[rtl] is not installed"
)

SPARSE = ArchSpec.load("tiny").evolve(name="sparse", lanes=2, columns=2, axi_bytes=4, group=4, macs=2, tables=0)
DENSE = SPARSE.evolve(name="plain", group=1, macs=1, hop=1)


def test_the_command_counts_what_the_spec_says(tmp_path: Path) -> None:
    """Areas, counts and bits add up; memories have the sizes of the spec; the array has its multipliers."""
    cells, spec = tmp_path / "small.lib", tmp_path / "sparse.toml"
    cells.write_text(library())
    SPARSE.save(spec)
    done = CliRunner().invoke(cli.app, ["synth", str(spec), "--liberty", str(cells), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    parts = {part["name"]: part for part in found["components"]}
    total = found["total"]
    assert list(parts) == list(COMPONENTS)
    for name in ("area", "cells", "flip_flops", "ram_bits", "regfile_bits", "share"):
        assert sum(part[name] for part in parts.values()) == pytest.approx(total.get(name, 1), rel=1e-3), name
    assert found["multipliers"] == found["macs"] == SPARSE.peak_macs
    assert parts["select"]["cells"] > 0
    # Gates of area 1 to 4 and flip-flops of area 8: the area lies between what their numbers allow.
    gates = total["cells"] - total["flip_flops"]
    assert gates <= total["area"] - 8 * total["flip_flops"] <= 4 * gates
    # A PE registers the products of its MACs and their sum.
    assert parts["multiply and accumulate"]["flip_flops"] >= SPARSE.pes * (17 * SPARSE.macs + 18)

    sizes = SPARSE.buffer_bytes
    assert parts["multiply and accumulate"]["regfile_bits"] == 8 * sizes["accumulators"]
    assert parts["activation bank and window"]["ram_bits"] == 8 * sizes["activations"]
    assert parts["output buffer"]["ram_bits"] == 8 * sizes["outputs"]
    assert parts["PPU"]["ram_bits"] == 8 * sizes["parameters"]
    assert parts["step buffers"]["ram_bits"] == 8 * (sizes["weights"] + sizes["offsets"])
    bits = sum(m["width"] * m["depth"] * m["count"] for m in found["memories"])
    assert bits == total["ram_bits"] + total["regfile_bits"]
    (accumulators,) = (m for m in found["memories"] if m["component"] == "multiply and accumulate")
    assert (accumulators["width"], accumulators["depth"], accumulators["ports"]) == (32, 2 * SPARSE.depth, 2)
    assert accumulators["count"] == SPARSE.pes

    assert found["route"]["timed"]
    assert found["route"]["delay"] == max(part["path"] or 0 for part in parts.values()) == total["path"]
    assert found["fmax"] == pytest.approx(1e6 / total["path"], rel=1e-3)


@pytest.mark.slow
def test_a_group_of_one_has_no_select_logic() -> None:
    from gossamer.rtl.synth import synthesise

    found = synthesise(DENSE)
    assert next(part for part in found.components if part.name == "select").cells == 0
    assert found.target == "generic"
    assert found.multipliers == DENSE.peak_macs
    assert found.total.area is None
    assert found.fmax is None


@pytest.mark.slow
def test_ecp5_has_a_dsp_for_every_multiplier() -> None:
    from gossamer.rtl.synth import synthesise

    found = synthesise(SPARSE, "ecp5")
    parts = {part.name: part for part in found.components}
    assert parts["multiply and accumulate"].dsps == SPARSE.peak_macs
    assert found.total.luts == sum(part.luts for part in parts.values()) > 0
    assert parts["activation bank and window"].block_rams + parts["activation bank and window"].distributed_rams > 0


LIBRARIES = [Path(name) for name in os.environ.get("GOSSAMER_LIBERTY", "").split(os.pathsep) if name]
"""Folders of liberty files, one process each; the repository has none."""


@pytest.mark.slow
@pytest.mark.skipif(not LIBRARIES, reason="GOSSAMER_LIBERTY names no folders of liberty files")
@pytest.mark.parametrize("folder", LIBRARIES, ids=lambda folder: folder.name)
def test_a_real_library(folder: Path) -> None:
    """Every cell can be read, and a design be mapped and timed: in cells where the files have no timing."""
    from gossamer.rtl.synth import synthesise

    files = sorted(folder.glob("*.lib"))
    cells = Library(files)
    for name in cells.names:
        cell = cells.cell(name)
        assert all(arc.source in cell.pins and arc.target in cell.pins for arc in cell.arcs), name
    found = synthesise(SPARSE, liberty=files)
    assert found.total.area == pytest.approx(sum(part.area or 0.0 for part in found.components))
    assert (found.fmax is not None) == cells.timed
    assert found.route is not None
    assert found.route.delay > 0


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


def test_targets_and_time_limit(tmp_path: Path) -> None:
    from gossamer.rtl.synth import synthesise

    path = tmp_path / "small.lib"
    path.write_text(library())
    with pytest.raises(GossamerError, match="target must be one of generic, ecp5, cells, not 'asic'"):
        synthesise(SPARSE, "asic")
    with pytest.raises(GossamerError, match="target cells needs liberty files"):
        synthesise(SPARSE, "cells")
    with pytest.raises(GossamerError, match="target cells needs liberty files"):
        synthesise(SPARSE, "ecp5", [path])
    with pytest.raises(GossamerError, match="only target ecp5 can be placed and routed, not cells"):
        synthesise(SPARSE, liberty=[path], place=True)
    with pytest.raises(GossamerError, match=r"more than 0\.01 s"):
        synthesise(SPARSE, timeout=0.01)


def test_place_and_route_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.rtl.place.shutil.which", lambda *_, **__: None)
    done = CliRunner().invoke(cli.app, ["synth", "tiny", "--target", "ecp5", "--place"])
    assert done.exit_code == 1
    assert done.stderr == "error: place and route needs nextpnr-ecp5; install it, or gossamer[fpga]\n"


def test_command_refuses_an_unknown_liberty() -> None:
    done = CliRunner().invoke(cli.app, ["synth", "tiny", "--liberty", "nowhere.lib"])
    assert done.exit_code == 1
    assert "cannot read the liberty file 'nowhere.lib'" in done.stderr


def test_every_module_has_a_component() -> None:
    assert component_of("gossamer_tile_4x4") == "broadcast registers"
    assert component_of("gossamer_core.weights_0") == "step buffers"
    with pytest.raises(AssertionError, match="gossamer_new belongs to no component"):
        component_of("gossamer_new")


def test_modules_count_as_often_as_they_are_there() -> None:
    """Two lanes with two PPUs of three gates and a flip-flop each: 4 x 3, 4 x 1, and what lanes have themselves."""
    modules = {
        r"\gossamer": {"area": 61.0, "num_cells_by_type": {"gossamer_lane": 2, "NAND": 1}},
        r"\gossamer_lane": {
            "area": 30.0,
            "num_cells_by_type": {"gossamer_ppu": 2, "INV": 6, "gossamer_lane.output": 1},
        },
        r"\gossamer_ppu": {"area": 11.0, "num_cells_by_type": {"NAND": 3, "FLOP": 1}},
        r"\gossamer_lane.output": {"area": 2.0, "num_cells_by_type": {"gossamer_ram": 1, "INV": 2}},
    }
    memories = {"gossamer_lane.output": ("ram", 32, 16, 1)}
    paths = {"gossamer_ppu": 70.0, "gossamer_lane": 90.0, "gossamer_lane.output": 5.0}
    components, found = tally(modules, memories, frozenset({"FLOP"}), paths, top="gossamer", with_area=True)
    parts = {part.name: part for part in components}
    assert parts["PPU"] == Component(name="PPU", cells=4 * 4 + 2 * 6, flip_flops=4, area=4 * 11.0 + 2 * 6.0, path=90.0)
    assert parts["control"] == Component(name="control", cells=1, area=1.0)
    assert parts["output buffer"] == Component(name="output buffer", cells=4, area=4.0, path=5.0, ram_bits=1024)
    assert found == (Memory(component="output buffer", kind="ram", width=32, depth=16, ports=1, count=2),)


def cost(**changes: Any) -> Cost:
    parts = (Component(name="select", cells=1, area=1.0, path=90.0), Component(name="PPU", cells=3, area=3.0))
    fields = {"spec": "x", "target": "cells", "macs": 4, "multipliers": 4, "components": parts, "memories": ()}
    return Cost(**{**fields, **changes})


def test_the_report_says_how_fast_and_from_where() -> None:
    found = cost(route=Route(delay=100.0, timed=True, cells=7, through=("drain.shift", "ppu")))
    assert found.fmax == 10_000
    text = "\n".join(found.lines())
    assert "longest path: 100 ps, 10,000 MHz, 7 cells\n  drain.shift > ppu" in text
    assert [line.split()[-1] for line in text.splitlines()[2:5]] == ["25.0%", "75.0%", "100.0%"]
    depth = replace(found, route=Route(delay=7, timed=False, cells=7, through=("ppu",)))
    assert depth.fmax is None
    assert "longest path: 7 cells (the liberty files have no timing)" in "\n".join(depth.lines())


def test_what_nextpnr_reports() -> None:
    """Its slowest path between registers, by logic and wires and by the modules that it passes."""

    def hop(kind: str, delay: float, source: str, target: str) -> dict[str, Any]:
        return {"type": kind, "delay": delay, "from": {"cell": source}, "to": {"cell": target}}

    kinds = ("TRELLIS_COMB", "TRELLIS_FF", "MULT18X18D", "DP16KD", "TRELLIS_RAMW", "DCCA")
    path = [
        hop("clk-to-q", 0.5, "core.drain.shift_FF", "core.drain.shift_FF"),
        hop("routing", 2.0, "core.drain.shift_FF", "$nextpnr_CCU2C_1"),
        hop("logic", 0.25, "$nextpnr_CCU2C_1", "$nextpnr_CCU2C_1"),
        hop("routing", 1.0, "$nextpnr_CCU2C_1", "core.lane_3.ppu_0.quotient_FF"),
        hop("setup", 0.0, "core.lane_3.ppu_0.quotient_FF", "core.lane_3.ppu_0.quotient_FF"),
    ]
    report = {
        "fmax": {"clk": {"achieved": 62.504, "constraint": 50.0}},
        "utilization": {kind: {"used": k, "available": 10} for k, kind in enumerate(kinds)},
        "critical_paths": [
            {"from": "<async>", "to": "posedge clk", "path": []},
            {"from": "posedge clk", "to": "posedge clk", "path": path},
        ],
    }
    found = placement(report)
    assert (found.fmax, found.logic, found.routing) == (62.5, 0.75, 3.0)
    assert found.used == {"LUTs": 0, "flip-flops": 1, "DSPs": 2, "block RAMs": 3, "distributed RAMs": 4}
    assert found.through == ("core.drain", "core.lane_3.ppu_0")
    assert not found.too_many
    lines = cost(target="ecp5", placement=found).lines()
    assert lines[-2] == "placed and routed: 62.5 MHz; 0.8 ns of logic, 3.0 ns of wires"


def test_the_report_says_what_is_too_many_of_what() -> None:
    placement = Placement(
        device="LFE5U-85F", fmax=None, used={"LUTs": 10, "DSPs": 256}, available={"LUTs": 20, "DSPs": 156}
    )
    found = cost(target="ecp5", placement=placement)
    assert found.fmax is None
    assert found.lines()[-2:] == [
        "LFE5U-85F: 10 of 20 LUTs, 256 of 156 DSPs",
        "does not fit: 256 DSPs where it has 156",
    ]
