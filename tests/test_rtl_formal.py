"""Small proofs of what everything rests on: semaphores, queues, burst splitter, expander.

Each puts a component and assertions into one module; Yosys' SAT solver then looks for inputs that break one, from
the reset state and over a bounded number of cycles, long enough to reach every corner of the small sizes used.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossamer.arch.isa import SEMAPHORES, Encoding
from gossamer.arch.spec import ArchSpec
from tests.support.rtl_specs import needs_hardware_tools

pytestmark = needs_hardware_tools


def proved(build: Callable[[Any, Callable[[str, int], Any]], None], cycles: int) -> bool:
    """Whether no inputs break an assertion of `build(m, free)`; free(name, width) is an input of any value."""
    from amaranth.back.rtlil import convert
    from amaranth.hdl import Module, Signal

    from gossamer.rtl.verilog import primitives, run_yosys

    m = Module()
    inputs: list[Any] = []

    def free(name: str, width: int) -> Any:
        inputs.append(Signal(width, name=name))
        return inputs[-1]

    build(m, free)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "proof.il").write_text(convert(m, name="proof", ports=inputs, emit_src=False))
        (folder / "primitives.v").write_text(primitives())
        log = run_yosys(
            f"read_rtlil {folder / 'proof.il'}",
            f"read_verilog {folder / 'primitives.v'}",
            "hierarchy -top proof",
            "proc",
            "flatten",
            "memory",
            "async2sync",
            "chformal -lower",
            "opt",
            "select -assert-min 1 t:$assert",
            f"sat -prove-asserts -set-assumes -set rst 0 -seq {cycles} proof",
        )
    found = re.search(r"SAT proof finished - (no )?model found", log)
    assert found, log[-2000:]
    return found[1] is not None


@pytest.mark.parametrize("wrong", [False, True])
def test_semaphores_count(wrong: bool) -> None:
    """A semaphore is available while more has been posted than taken, and fresh when its only count is new."""
    from amaranth.hdl import Assert, Assume, Signal

    from gossamer.rtl.semaphores import Semaphores

    def build(m: Any, free: Callable[[str, int], Any]) -> None:
        m.submodules.dut = dut = Semaphores()
        count = len(SEMAPHORES)
        m.d.comb += [dut.post.eq(free("post", count)), dut.take.eq(free("take", count))]
        m.d.comb += Assume((dut.take & ~dut.available) == 0)
        for k in range(count):
            model, before = Signal(8, name=f"model_{k}"), Signal(name=f"before_{k}")
            m.d.sync += [model.eq(model + dut.post[k] - dut.take[k]), before.eq(dut.post[k])]
            m.d.comb += Assert(dut.available[k] == (model > int(wrong)))
            m.d.comb += Assert(dut.fresh[k] == (before & (model == 1)))

    assert proved(build, 8) is not wrong


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("wrong", [False, True])
def test_queue_keeps_order(depth: int, wrong: bool) -> None:
    """What comes out is what went in, in order; full and valid say the truth."""
    from amaranth.hdl import Array, Assert, Signal

    from gossamer.rtl.cells import Fifo

    def build(m: Any, free: Callable[[str, int], Any]) -> None:
        m.submodules.dut = dut = Fifo(2, depth)
        m.d.comb += [dut.push.eq(free("push", 1)), dut.pop.eq(free("pop", 1)), dut.w_data.eq(free("data", 2))]
        held = Array(Signal(2, name=f"held_{k}") for k in range(depth + 1))
        level = Signal(range(depth + 2))
        pushes, pops = dut.push & (level != depth), dut.pop & (level != 0)
        with m.If(pops):
            for k in range(depth):
                m.d.sync += held[k].eq(held[k + 1])
        with m.If(pushes):
            m.d.sync += held[(level - pops)[: len(level)]].eq(dut.w_data)
        m.d.sync += level.eq(level + pushes - pops)
        m.d.comb += [Assert(dut.full == (level == depth)), Assert(dut.valid == (level != 0))]
        m.d.comb += Assert(~dut.valid | (dut.r_data == held[0] ^ wrong))

    assert proved(build, 2 * depth + 4) is not wrong


@pytest.mark.parametrize("wrong", [False, True])
def test_bursts_keep_the_rules(wrong: bool) -> None:
    """No burst crosses 4 KiB, is longer than the longest, or is one more in flight than allowed."""
    from amaranth.hdl import Assert, Assume

    from gossamer.rtl.bursts import Bursts

    spec = ArchSpec(name="proof", axi_bytes=16, burst_beats=24)
    page = 4096 // spec.axi_bytes

    def build(m: Any, free: Callable[[str, int], Any]) -> None:
        m.submodules.dut = dut = Bursts(spec, 2)
        region = dut.region
        m.d.comb += [dut.start.eq(free("start", 1)), dut.accept.eq(free("accept", 1)), dut.retire.eq(free("retire", 1))]
        for name in region.shape().members:
            m.d.comb += region[name].eq(free(name, len(region[name])))
        m.d.comb += [
            Assume(~dut.start | dut.ready),
            Assume(~dut.retire | (dut.flying != 0)),
            Assume((region.beats != 0) & (region.rows != 0) & (region.blocks != 0)),
        ]
        limit = spec.burst_beats - int(wrong)
        m.d.comb += [
            Assert(~dut.valid | (dut.address % page + dut.length < page)),
            Assert(~dut.valid | (dut.length < limit)),
            Assert(dut.flying <= 2),
        ]

    assert proved(build, 6) is not wrong


@pytest.mark.parametrize("wrong", [False, True])
def test_expander_of_masks(wrong: bool) -> None:
    """The v-th value of a column belongs to the v-th set bit of its mask."""
    from amaranth.hdl import Assert, Const, Signal

    from gossamer.rtl.cells import delayed
    from gossamer.rtl.expander import Expander, row_bits

    spec = ArchSpec(name="proof", lanes=1, columns=1, group=8, macs=4, hop=8, axi_bytes=8, ppu=1)

    def build(m: Any, free: Callable[[str, int], Any]) -> None:
        m.submodules.dut = dut = Expander(spec, 8)
        record = free("record", 64)
        m.d.comb += [dut.valid.eq(1), dut.encoding.eq(int(Encoding.MASK)), dut.record.eq(record)]
        late = delayed(m, record, 2, "record", reset=True)
        then = delayed(m, Const(1, 1), 2, "then", reset=True)
        mask = late[32:40]
        for v in range(spec.macs):
            row = dut.o_row[row_bits(spec) * v : row_bits(spec) * (v + 1)]
            below = Signal(4, name=f"below_{v}")
            m.d.comb += below.eq(sum((mask[i] & (i < row[8:]) for i in range(8)), Const(0, 4)))
            ranked = sum((mask[i] for i in range(8)), Const(0, 4)) > v
            m.d.comb += Assert(~then | (row[:8] == late[8 * v : 8 * v + 8]))
            m.d.comb += Assert(~then | ~ranked | (mask.bit_select(row[8:], 1) & (below == v + int(wrong))))

    assert proved(build, 4) is not wrong
