"""Processing element: select, multiply, reduce, accumulate."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gossamer.arch.numerics import ACC_MIN
from gossamer.arch.spec import ArchSpec
from gossamer.arch.timing import reduce_stages
from gossamer.rtl.cells import Regfile, bits_for, delayed

__all__ = ["OPERAND", "Pe", "accumulate_layout", "accumulator_bits", "operand_layout", "weight_layout"]

OPERAND = signed(9)
"""An activation code minus its zero point."""

_NONE = -(1 << 16)
"""Below every product: what a value of zero contributes to a maximum."""


def operand_layout(spec: ArchSpec) -> Any:
    """The window a PE sees."""
    return data.ArrayLayout(OPERAND, spec.group)


def weight_layout(spec: ArchSpec) -> Any:
    """A column's weights of a step: value and select for each MAC."""
    mac = {"value": signed(8), "select": spec.select_bits} if spec.select_bits else {"value": signed(8)}
    return data.ArrayLayout(data.StructLayout(mac), spec.macs)


def accumulator_bits(spec: ArchSpec) -> int:
    """Bits of an accumulator's address, both banks."""
    return bits_for(2 * spec.depth)


def accumulate_layout(spec: ArchSpec) -> Any:
    """What to do with a product: when (valid), start from the identity (fresh), sum or maximum, and where."""
    return data.StructLayout({"valid": 1, "fresh": 1, "maximum": 1, "at": accumulator_bits(spec)})


class Pe(wiring.Component):
    """Latency: multiply_stages + reduce_stages cycles from the operands to the accumulator's write; the sum is seen
    by the next step in the cycle that follows, so steps may update one accumulator in every cycle. `accumulate`
    arrives with the sum, multiply_stages + reduce_stages cycles behind the operands. Throughput: macs products a
    cycle. The read port for DRAIN (`drain_at`, `drain`) has no register.
    """

    def __init__(self, spec: ArchSpec) -> None:
        self._spec = spec
        super().__init__(
            {
                "operands": In(operand_layout(spec)),
                "weights": In(weight_layout(spec)),
                "maximum": In(1),
                "accumulate": In(accumulate_layout(spec)),
                "drain_at": In(accumulator_bits(spec)),
                "drain": Out(signed(32)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        spec = self._spec
        m = Module()
        # Stage by stage of multiply_stages: with one, select and multiply share it; more split them, and further ones
        # are there for the tools to retime into the multiplier.
        early = 1 if spec.multiply_stages > 1 else 0
        maximum = delayed(m, self.maximum, early, "maximum")
        products: list[Any] = []
        for v in range(spec.macs):
            mac = self.weights[v]
            operand: Any = self.operands[mac.select] if spec.select_bits else self.operands[0]
            picked = Signal(OPERAND, name=f"operand_{v}")
            m.d.comb += picked.eq(operand)
            chosen = delayed(m, picked, early, f"operand_{v}")
            value = delayed(m, mac.value, early, f"value_{v}")
            product = Signal(signed(17), name=f"product_{v}")
            nothing = maximum & (value == 0)
            m.d.comb += product.eq(Mux(nothing, Const(_NONE, signed(17)), chosen * value))
            products.append(delayed(m, product, spec.multiply_stages - early, f"product_{v}"))

        # The tree: four to one in every stage. Without select logic there is one product and no tree.
        wide = 17 + spec.macs.bit_length() - 1
        maximum = delayed(m, maximum, spec.multiply_stages - early, "tree_maximum")
        terms: list[Any] = products
        for stage in range(reduce_stages(spec)):
            reduced = []
            for k in range(0, len(terms), 4):
                four = terms[k : k + 4]
                total = Signal(signed(wide), name=f"sum_{stage}_{k // 4}", reset_less=True)
                if len(four) == 1:
                    m.d.sync += total.eq(four[0])
                else:
                    largest = four[0]
                    for term in four[1:]:
                        largest = Mux(term > largest, term, largest)
                    m.d.sync += total.eq(Mux(maximum, largest, sum(four[1:], four[0])))
                reduced.append(total)
            terms = reduced
            maximum = delayed(m, maximum, 1, f"maximum_{stage}")
        result = terms[0]

        # The accumulators, read for the sum and for DRAIN.
        m.submodules.accumulators = store = Regfile(32, 2 * spec.depth, ports=2)
        acc = self.accumulate
        old = Signal(signed(32))
        new = Signal(signed(32))
        begin = Signal(signed(32))
        m.d.comb += [
            store.r_addr.eq(Cat(acc.at, self.drain_at)),
            old.eq(store.r_data[:32]),
            self.drain.eq(store.r_data[32:]),
            begin.eq(Mux(acc.fresh, Mux(acc.maximum, ACC_MIN, 0), old)),
            store.w_en.eq(acc.valid),
            store.w_addr.eq(acc.at),
            store.w_data.eq(new),
        ]
        with m.If(acc.maximum):
            m.d.comb += new.eq(Mux((result != _NONE) & (result > begin), result, begin))
        with m.Else():
            m.d.comb += new.eq(begin + result)
        return m
