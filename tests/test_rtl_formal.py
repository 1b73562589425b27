"""Proofs of what everything rests on: semaphores, queues, burst splitter, expander.

Each puts a component and assertions into one module, and Yosys' SAT solver proves them by k-induction: no inputs break
one in the first k cycles after reset, and none can after any k cycles in which all hold. So they hold for ever.
Where that needs to know more of the inside than the ports tell, a probe brings it out, and the invariant is asserted
with the rest. Each proof is tried again with an assertion that is wrong, and must fail from reset.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossamer.arch.isa import SEMAPHORE_MAX, SEMAPHORES, Encoding
from gossamer.arch.spec import ArchSpec
from tests.support.rtl_specs import needs_hardware_tools

pytestmark = needs_hardware_tools

Free = Callable[..., Any]
"""free(name, width) is an input of any value; free(name, width, "dut.inside") is what that signal is."""

STEPS = 8
"""The largest k that is tried."""


def verdict(build: Callable[[Any, Free], None]) -> str:
    """ "proved" for ever, "refuted" from reset, or "open", of the assertions that `build(m, free)` makes."""
    from amaranth.back.rtlil import convert
    from amaranth.hdl import Module, Signal

    from gossamer.rtl.verilog import primitives, run_yosys

    m = Module()
    inputs: list[Any] = []
    probes: list[tuple[str, str]] = []

    def free(name: str, width: int, inside: str | None = None) -> Any:
        inputs.append(Signal(width, name=name))
        if inside:
            probes.append((name, inside))
        return inputs[-1]

    build(m, free)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "proof.il").write_text(convert(m, name="proof", ports=inputs, emit_src=False))
        (folder / "primitives.v").write_text(primitives())
        watched = " ".join(f"-set {name} {inside}" for name, inside in probes)
        log = run_yosys(
            f"read_rtlil {folder / 'proof.il'}",
            f"read_verilog {folder / 'primitives.v'}",
            "hierarchy -top proof",
            "proc",
            "flatten",
            *(f"setattr -set keep 1 w:{inside}" for _, inside in probes),
            "memory",
            "async2sync",
            "chformal -lower",
            "opt",
            "select -assert-min 1 t:$assert",
            f"sat -prove-asserts -set-assumes -set rst 0 {watched} -tempinduct -maxsteps {STEPS} proof",
        )
    if "Induction step proven: SUCCESS!" in log:
        return "proved"
    if re.search(r"model found for base case: FAIL!", log):
        return "refuted"
    assert "Reached maximum number of time steps -> proof failed." in log, log[-2000:]
    return "open"


def expected(wrong: bool) -> str:
    return "refuted" if wrong else "proved"


def test_what_is_only_true_at_first_is_not_proved() -> None:
    """A counter that starts at 0 and goes up by 2 never is 5, but that alone is no induction."""
    from amaranth.hdl import Assert, Signal

    def build(m: Any, free: Free, invariant: bool) -> None:
        count = Signal(16)
        m.d.sync += count.eq(count + 2 + free("unused", 1) * 0)
        m.d.comb += Assert(count != 0xF005)
        if invariant:
            m.d.comb += Assert(~count[0])

    assert verdict(lambda m, free: build(m, free, False)) == "open"
    assert verdict(lambda m, free: build(m, free, True)) == "proved"


@pytest.mark.parametrize("wrong", [False, True])
def test_semaphores_count(wrong: bool) -> None:
    """A semaphore is available while more has been posted than taken, fresh when its only count is new, and says
    when it would overflow."""
    from amaranth.hdl import Assert, Assume, Cat, Signal

    from gossamer.rtl.semaphores import Semaphores

    def build(m: Any, free: Free) -> None:
        m.submodules.dut = dut = Semaphores()
        count = len(SEMAPHORES)
        m.d.comb += [dut.post.eq(free("post", count)), dut.take.eq(free("take", count))]
        m.d.comb += Assume((dut.take & ~dut.available) == 0)
        posted = free("posted", count, "dut.posted")
        over = []
        for s in SEMAPHORES:
            k = s.index
            model, before = Signal(range(SEMAPHORE_MAX + 1), name=f"model_{k}"), Signal(name=f"before_{k}")
            full = dut.post[k] & ~dut.take[k] & (model == SEMAPHORE_MAX)
            over.append(full)
            m.d.sync += before.eq(dut.post[k])
            with m.If(~full):
                m.d.sync += model.eq(model + dut.post[k] - dut.take[k])
            m.d.comb += Assert(dut.available[k] == (model > int(wrong)))
            m.d.comb += Assert(dut.fresh[k] == (before & (model == 1)))
            m.d.comb += Assert(free(f"inside_{k}", len(model), f"dut.{s.name}") == model)
            m.d.comb += Assert(posted[k] == before)
        m.d.comb += Assert(dut.overflow == Cat(*over).any())

    assert verdict(build) == expected(wrong)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("wrong", [False, True])
def test_queue_keeps_order(depth: int, wrong: bool) -> None:
    """What comes out is what went in, in order; full and valid say the truth."""
    from amaranth.hdl import Array, Assert, Mux, Signal

    from gossamer.rtl.cells import Fifo, bits_for

    def build(m: Any, free: Free) -> None:
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
        # Inside it is a ring: element k of the queue stands k behind the head.
        head, tail = (free(name, bits_for(depth), f"dut.{name}") for name in ("head", "tail"))
        words = Array(free(f"word_{k}", 2, f"dut.store.memory.words[{k}]") for k in range(depth))
        m.d.comb += [Assert(dut.level == level), Assert(level <= depth), Assert(head < depth), Assert(tail < depth)]
        m.d.comb += Assert(tail == Mux(head + level >= depth, head + level - depth, head + level))
        for k in range(depth):
            place = Mux(head + k >= depth, head + k - depth, head + k)[: bits_for(depth)]
            m.d.comb += Assert((level <= k) | (words[place] == held[k]))

    assert verdict(build) == expected(wrong)


@pytest.mark.parametrize("wrong", [False, True])
def test_bursts_keep_the_rules(wrong: bool) -> None:
    """No burst crosses 4 KiB, is longer than the longest, or is one more in flight than allowed."""
    from amaranth.hdl import Assert, Assume

    from gossamer.rtl.bursts import REGION, Bursts

    spec = ArchSpec(name="proof", axi_bytes=16, burst_beats=24)
    page = 4096 // spec.axi_bytes

    def build(m: Any, free: Free) -> None:
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
        # While bursts are still to be decided, something is left of the row, and rows have beats.
        pending = free("pending", 1, "dut.pending")
        kept = REGION(free("kept", REGION.size, "dut.kept"))
        row_beats = free("row_beats", len(region.beats), "dut.row_beats")
        for left in (kept.beats, row_beats):
            m.d.comb += Assert(~pending | (left != 0))

    assert verdict(build) == expected(wrong)


@pytest.mark.parametrize("wrong", [False, True])
def test_expander_of_masks(wrong: bool) -> None:
    """The v-th value of a column belongs to the v-th set bit of its mask."""
    from amaranth.hdl import Assert, Const, Signal

    from gossamer.rtl.cells import delayed
    from gossamer.rtl.expander import Expander, row_bits

    spec = ArchSpec(name="proof", lanes=1, columns=1, group=8, macs=4, hop=8, axi_bytes=8, ppu=1)

    def build(m: Any, free: Free) -> None:
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

    assert verdict(build) == expected(wrong)
