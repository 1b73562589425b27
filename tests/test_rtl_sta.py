"""Static timing: liberty tables, and paths of small netlists whose delays can be worked out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.arch.errors import GossamerError
from gossamer.rtl.liberty import Library
from gossamer.rtl.sta import longest_paths
from gossamer.rtl.tables import Stack, Table
from gossamer.rtl.trees import Trees
from tests.support.liberty import library


def read(tmp_path: Path, text: str) -> Library:
    path = tmp_path / "small.lib"
    path.write_text(text)
    return Library([path])


def module(ports: dict[str, tuple[str, list[int]]], *cells: tuple[str, dict[str, list[int]]]) -> dict[str, Any]:
    """A module as Yosys writes it; net 1 is the clock."""
    return {
        "ports": {name: {"direction": direction, "bits": bits} for name, (direction, bits) in ports.items()},
        "cells": {f"c{k}": {"type": kind, "connections": pins} for k, (kind, pins) in enumerate(cells)},
        "netnames": {f"n{b}": {"hide_name": 0, "bits": [b]} for b in range(1, 40)},
    }


def flop(data: int, out: int) -> tuple[str, dict[str, list[int]]]:
    return "FLOP", {"C": [1], "D": [data], "Q": [out]}


def test_tables_are_bilinear_and_go_on_beyond_their_ends() -> None:
    table = Table(np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0]), np.array([[0.0, 2.0], [1.0, 3.0], [3.0, 5.0]]))
    assert table(2.0, 1.0) == pytest.approx(3.0)  # the sum of both, here
    assert table(5.0, -1.0) == pytest.approx(4.0)
    other = Table.constant(7.0)
    stack = Stack([table, other])
    found = stack(stack.index([other, table]), np.array([9.0, 0.5]), np.array([9.0, 0.0]))
    assert found == pytest.approx([7.0, 0.5])


def test_a_chain_takes_the_sum_of_its_cells(tmp_path: Path) -> None:
    """20 + 1 to the clock's data, 10 + 2 where an inverter drives two pins, 10 + 1, and 5 of setup."""
    netlist = module(
        {"clk": ("input", [1])},
        flop(5, 2),
        ("INV", {"A": [2], "Y": [3]}),
        ("NAND", {"A": [3], "B": [3], "Y": [4]}),
        ("INV", {"A": [4], "Y": [5]}),
    )
    path = longest_paths({"m": netlist}, "m", read(tmp_path, library()))["m"]
    assert path.delay == pytest.approx(21 + 12 + 11 + 11 + 5)
    assert [(s.cell, s.net) for s in path.steps] == [("FLOP", "n2"), ("INV", "n3"), ("NAND", "n4"), ("INV", "n5")]
    assert [s.arrival for s in path.steps] == pytest.approx([21, 33, 44, 55])


def test_nanoseconds(tmp_path: Path) -> None:
    netlist = module({"clk": ("input", [1])}, flop(2, 2))
    assert longest_paths({"m": netlist}, "m", read(tmp_path, library(unit="1ns")))["m"].delay == pytest.approx(26_000)


def test_depth_where_nothing_is_said_of_time(tmp_path: Path) -> None:
    netlist = module(
        {"clk": ("input", [1])}, flop(4, 2), ("INV", {"A": [2], "Y": [3]}), ("XOR", {"A": [2], "B": [3], "Y": [4]})
    )
    found = read(tmp_path, library(timed=False))
    assert not found.timed
    assert longest_paths({"m": netlist}, "m", found)["m"].delay == 2


def test_modules_are_timed_with_the_worst_of_their_places(tmp_path: Path) -> None:
    """`inner` stands behind a register and behind an inverter, and drives one pin and three."""
    inner = module({"a": ("input", [2]), "y": ("output", [3])}, ("INV", {"A": [2], "Y": [3]}))
    pins = {"A": [10], "B": [10]}
    top = module(
        {"clk": ("input", [1])},
        flop(8, 4),
        ("inner", {"a": [4], "y": [5]}),
        ("inner", {"a": [5], "y": [10]}),
        ("NAND", {**pins, "Y": [8]}),
        ("INV", {"A": [10], "Y": [11]}),
        flop(11, 12),
    )
    # Its first place drives its second: as one module that is a loop, though the netlist has none.
    with pytest.raises(AssertionError, match="loop"):
        longest_paths({"top": top, "inner": inner}, "top", read(tmp_path, library()))
    top["cells"]["c2"]["connections"]["a"] = [4]
    path = longest_paths({"top": top, "inner": inner}, "top", read(tmp_path, library()))["top"]
    # The register drives two pins in two modules: 22. The inverter inside three pins at most: 13. Then 11, and 5.
    assert path.delay == pytest.approx(22 + 13 + 11 + 5)
    assert [s.module for s in path.steps] == ["top", "inner", "top"]


def test_memories_launch_and_capture_like_registers(tmp_path: Path) -> None:
    netlist = module(
        {"clk": ("input", [1])},
        ("ram", {"clk": [1], "r_addr": [4], "r_data": [2, 3]}),
        ("AND", {"A": [2], "B": [3], "Y": [4]}),
    )
    path = longest_paths({"m": netlist}, "m", read(tmp_path, library()), {"ram"})["m"]
    assert path.delay == pytest.approx(21 + 11 + 5)
    assert path.steps[0].cell == "ram"


def test_a_heavy_net_has_a_tree_if_that_is_faster(tmp_path: Path) -> None:
    """A buffer of input capacitance 1 takes 10 + load: for 256 pins best in levels of 8 to 16."""
    heavy = (flop(2, 2), *(("INV", {"A": [2], "Y": [k]}) for k in range(1000, 1256)))
    netlist = module({"clk": ("input", [1])}, *heavy)
    bare = longest_paths({"m": netlist}, "m", read(tmp_path, library(buffers=False)))["m"]
    assert bare.delay == pytest.approx(20 + 257 + 5)
    treed = longest_paths({"m": netlist}, "m", read(tmp_path, library()))["m"]
    best = min(levels * (10 + 257 ** (1 / levels)) for levels in (2, 3, 4))
    assert treed.delay == pytest.approx(20 + 1 + best + 5, rel=0.01)


def test_trees_of_a_library_without_buffers(tmp_path: Path) -> None:
    trees = Trees(read(tmp_path, library(buffers=False)))
    assert np.isinf(trees.behind(np.array([1.0, 1000.0])).delay).all()


def test_a_cell_that_is_not_liberty_is_refused(tmp_path: Path) -> None:
    found = read(tmp_path, library().replace('values ("5, 5", "5, 5")', 'values ("5, 5", "five")'))
    with pytest.raises(GossamerError, match=r"cell FLOP of '.*small\.lib' is not as liberty has it"):
        found.cell("FLOP")
