"""Mutants of the hardware: one wrong thing each, made by changing a line of the generator.

`mutated(mutant, spec)` gives the Verilog of a spec from a generator in which `old` stands as `new`. It runs in a
process of its own, whose import of that one file reads the changed text. `python -m tests.support.mutants` tries all of
them and prints the score (minutes); names of mutants as arguments try only those.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gossamer.arch.errors import SimulationError
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.example import example
from gossamer.rtl.model import Model
from gossamer.sim.random_programs import random_program
from gossamer.verification import verify

SPEC = ArchSpec(
    name="mutant", lanes=4, columns=4, group=8, macs=4, hop=4, depth=6, ppu=1, axi_bytes=8, activation_bytes=256,
    output_bytes=256, weight_steps=24, offset_steps=32, parameter_channels=16, tables=1, queue_depth=3, fetch_burst=2,
    read_latency=9, write_latency=5, outstanding_reads=2, outstanding_writes=2, burst_beats=8, broadcast_columns=2,
    broadcast_lanes=2, dynamic_operands=True,
)  # fmt: skip
"""All encodings, a table, groups of columns, windows that begin between words: every mutant changes something."""

PROGRAMS = 40

ROOM = Path(__file__).resolve().parents[2] / "rtl"


@dataclass(frozen=True)
class Mutant:
    """kind : what is wrong, in words.  file : of rtl/.  old : text that stands there exactly once.  new : instead."""

    kind: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "a post of LOAD is dropped",
        "load.py",
        "self.post.eq(Mux(done3, post3, 0))",
        "self.post.eq(Mux(done3, post3 & ~1, 0))",
    ),
    Mutant(
        "a post comes a cycle early",
        "matmul.py",
        "Mux(self.freeing, work.post, 0), latency - 1",
        "Mux(self.freeing, work.post, 0), latency - 2",
    ),
    Mutant("a wait takes nothing", "semaphores.py", "count + self.post[k] - self.take[k]", "count + self.post[k]"),
    Mutant(
        "a wait is not waited for",
        "issue.py",
        "self.head.wait[s] & ~self.available[s]",
        "self.head.wait[s] & ~self.available[s] & (s != mine[-1])",
    ),
    Mutant("one position too many", "matmul.py", "x_ends.eq(x == work.nx - 1)", "x_ends.eq(x == work.nx)"),
    Mutant("one row of positions too few", "drain.py", "ends.eq(y == work.ny - 1)", "ends.eq(y + 2 >= work.ny)"),
    Mutant(
        "one group of columns too few",
        "drain.py",
        "group == work.column_groups - 1",
        "(group == work.column_groups - 1) | (group == 1)",
    ),
    Mutant(
        "the last step is lost",
        "matmul.py",
        "left.eq(head.steps - 1)",
        "left.eq(Mux(head.steps == 1, 0, head.steps - 2))",
    ),
    Mutant("accumulate starts from zero", "matmul.py", "opening.eq(~head.accumulate)", "opening.eq(1)"),
    Mutant(
        "the first step adds to what was there",
        "pe.py",
        "Mux(acc.fresh, Mux(acc.maximum, ACC_MIN, 0), old)",
        "Mux(acc.fresh & acc.maximum, ACC_MIN, old)",
    ),
    Mutant("the maximum starts from zero", "pe.py", "Mux(acc.maximum, ACC_MIN, 0)", "0"),
    Mutant("a zero takes part in a maximum", "pe.py", "maximum & (value == 0)", "maximum & (value == 1)"),
    Mutant(
        "a select is stuck",
        "expander.py",
        "row = [Cat(values[8 * k : 8 * k + 8], selects[k])",
        "row = [Cat(values[8 * k : 8 * k + 8], selects[k] | (k == 0))",
    ),
    Mutant(
        "a mask counts its own bit",
        "expander.py",
        "m.d.sync += rank.eq(count)",
        "m.d.sync += rank.eq(count + self.record[at + i])",
    ),
    Mutant(
        "the phase of dense records is not reset",
        "load.py",
        "phase_now.eq(Mux(starts, 0, phase))",
        "phase_now.eq(phase)",
    ),
    Mutant(
        "blocks of a transposed operand stand in one place",
        "operand.py",
        "base.eq(Mux(block_ends, step, base_now))",
        "base.eq(base_now)",
    ),
    Mutant(
        "a natural operand always takes the first part of a beat",
        "operand.py",
        "self.part[: bits_for(parts)]",
        "0 & self.part[: bits_for(parts)]",
    ),
    Mutant("a natural operand fills every MAC", "weights.py", "here & (operand.mac == v)", "here"),
    Mutant("the selects of an operand stand still", "operand.py", "place.phase + step_ends", "place.phase"),
    Mutant("the wrong bank of weights is seen", "weights.py", "read.eq(self.r_at[:low])", "read.eq(self.r_at[1:])"),
    Mutant(
        "left-over bytes are kept",
        "gearbox.py",
        "with m.If(self.last):\n                m.d.sync += level.eq(0)",
        "with m.If(self.last & (level == 1)):\n                m.d.sync += level.eq(0)",
    ),
    Mutant(
        "lanes are swapped",
        "core.py",
        "lane.keep_activation.eq(load.keep_activation[r])",
        "lane.keep_activation.eq(load.keep_activation[r ^ 1])",
    ),
    Mutant("a lane's window is one beat wider", "windows.py", "(x < left + tile_beats)", "(x <= left + tile_beats)"),
    Mutant(
        "a window's second word is not the next",
        "activation.py",
        "self.hop[:sub_bits] > s",
        "self.hop[:sub_bits] > s + 1",
    ),
    Mutant(
        "unsigned codes are taken as signed", "activation.py", "Cat(code, code[7] & is_signed)", "Cat(code, code[7])"
    ),
    Mutant("round half up", "ppu.py", "half & (Cat(*rest).any() | low[0])", "half"),
    Mutant("round towards minus infinity", "ppu.py", "half & (Cat(*rest).any() | low[0])", "0"),
    Mutant(
        "the clamp's lower bound is not kept", "ppu.py", "Mux(moved < self.clamp.lo, self.clamp.lo, moved)", "moved"
    ),
    Mutant(
        "the residual is not shifted",
        "ppu.py",
        "lifted.eq(residual << self.lift)",
        "lifted.eq(residual)",
    ),
    Mutant(
        "the bias is added twice",
        "ppu.py",
        "self.accumulator + self.bias)",
        "self.accumulator + self.bias + self.bias)",
    ),
    Mutant(
        "the table is read at the wrong place",
        "ppu.py",
        "Cat(clamped[:8], self.lookup.table)",
        "Cat(clamped[:8] ^ 1, self.lookup.table)",
    ),
    Mutant("a burst crosses 4 KiB", "bursts.py", "Mux(to_boundary < limit, to_boundary, limit)", "limit"),
    Mutant(
        "the next row begins a beat late",
        "bursts.py",
        "(row_now + now.row_stride)[:32]",
        "(row_now + now.row_stride + 1)[:32]",
    ),
    Mutant(
        "one burst more in flight", "bursts.py", "self.flying < self._outstanding", "self.flying <= self._outstanding"
    ),
    Mutant(
        "a place in the queue is lost", "fetch.py", "queue_full[unit])", "queue_full[unit] | (self.index[:5] == 31))"
    ),
    Mutant("the buffer of FETCH holds one burst", "fetch.py", "(held < 2)", "(held < 1)"),
    Mutant("a lane is stored twice", "store.py", "lane.eq(lane_row + lane_x)", "lane.eq(lane_row)"),
    Mutant(
        "rows of a tile are not told from lanes",
        "store.py",
        "inner_y == work.tile_rows - 1",
        "inner_y == work.tile_rows",
    ),
    Mutant("a counter misses slots", "core.py", "counters.slot.eq(matmul.active)", "counters.slot.eq(matmul.step)"),
    Mutant("a stall has the wrong cause", "issue.py", "blocked[k] & ~blocked[:k].any()", "blocked[k]"),
    Mutant("a cause is not reported", "issue.py", "self.waited[-1].eq(self.freeing)", "self.waited[-1].eq(0)"),
    Mutant(
        "a register is not reset",
        "cells.py",
        "head = Signal(bits_for(self._depth))",
        "head = Signal(bits_for(self._depth), reset_less=True)",
    ),
)

_PROGRAM = """
import importlib.abc, importlib.machinery, importlib.util, json, sys
order = json.load(sys.stdin)

class Loader(importlib.machinery.SourceFileLoader):
    def get_data(self, path):
        data = super().get_data(path)
        if path.endswith(".py"):
            text = data.decode()
            assert text.count(order["old"]) == 1, f"{text.count(order['old'])} places to change"
            data = text.replace(order["old"], order["new"]).encode()
        return data
    def path_stats(self, path):
        raise OSError("no compiled file stands for the changed one")

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == order["module"]:
            return importlib.util.spec_from_file_location(name, order["path"], loader=Loader(name, order["path"]))

sys.meta_path.insert(0, Finder())
from gossamer.arch.spec import ArchSpec
from gossamer.rtl.verilog import verilog
sys.stdout.write(verilog(ArchSpec.from_dict(order["spec"])))
"""


def mutated(mutant: Mutant, spec: ArchSpec) -> str:
    """The Verilog of a mutant. Raises RuntimeError when the change does not apply."""
    order = {
        "module": f"gossamer.rtl.{mutant.file.removesuffix('.py')}",
        "path": str(ROOM / mutant.file),
        "old": mutant.old,
        "new": mutant.new,
        "spec": spec.to_dict(),
    }
    done = subprocess.run([sys.executable, "-c", _PROGRAM], input=json.dumps(order), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{mutant.kind}: {done.stderr[-1000:]}")
    return done.stdout


def caught_by(text: str) -> str | None:
    """What is said of the first program that shows the mutant, or None."""
    with Model(SPEC, text=text, limit=200_000) as model:
        # Sums that lie halfway between two codes are too rare in random programs.
        ties = [example(SPEC, shift=shift, largest=2)[0] for shift in (1, 2)]
        others = (random_program(np.random.default_rng(seed), SPEC, 20) for seed in range(PROGRAMS))
        for program in (*ties, *others):
            try:
                found = verify(program, model=model)
            except SimulationError as error:
                return str(error)
            if found.difference is not None:
                return found.difference
    return None


def main() -> int:
    """Try every mutant and print the score."""
    wanted = sys.argv[1:]
    survivors, tried = [], 0
    for mutant in MUTANTS:
        if wanted and mutant.kind not in wanted:
            continue
        begin = time.perf_counter()
        found = caught_by(mutated(mutant, SPEC))
        tried += 1
        if found is None:
            survivors.append(mutant.kind)
        print(f"{time.perf_counter() - begin:6.1f} s  {mutant.kind:<50} {(found or 'NOT CAUGHT')[:120]}", flush=True)
    print(
        f"{tried - len(survivors)} of {tried} mutants caught" + "".join(f"\nnot caught: {kind}" for kind in survivors)
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
