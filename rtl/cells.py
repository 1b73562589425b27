"""Memories and shared modules: the cells that everything else is built from.

Memories are instances of the three Verilog modules of `primitives.v`, which a user may replace by the macros of a
process. None needs an initial value. A Library elaborates a component that many places use exactly once and places
instances of it, so that export time and Verilog grow with the kinds of modules and not with their number.
"""

from typing import Any

from amaranth.hdl import ClockSignal, Elaboratable, Instance, Module, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Fifo", "Library", "Ram", "Regfile", "bits_for", "delayed"]


def bits_for(count: int) -> int:
    """Bits of an index below `count`, at least one."""
    return max(1, (count - 1).bit_length())


def delayed(m: Any, value: Any, cycles: int, name: str, *, reset: bool = False) -> Any:
    """`value` some cycles later. Only valid bits need a reset."""
    for k in range(cycles):
        register = Signal(Value.cast(value).shape(), name=f"{name}_{k + 1}", reset_less=not reset)
        m.d.sync += register.eq(value)
        value = register
    return value


class Library:
    """Modules that are elaborated once: `place` gives an Elaboratable that is an instance of one."""

    def __init__(self) -> None:
        self.modules: dict[str, Any] = {}

    def place(self, name: str, component: Any, reset: Any = None) -> Any:
        """An instance of `component` as module `gossamer_<name>`; one name, one kind of module.

        reset : its reset, if it is not the surrounding module's.
        """
        component._MustUse__used = True  # only the first of a name is elaborated
        self.modules.setdefault(f"gossamer_{name}", component)
        return _Placed(f"gossamer_{name}", component, ResetSignal() if reset is None else reset)


class _Placed(Elaboratable):
    def __init__(self, module: str, component: Any, reset: Any) -> None:
        self._module, self._component, self._reset = module, component, reset

    def elaborate(self, platform: Any) -> Any:
        ports = {"i_clk": ClockSignal(), "i_rst": self._reset}
        for path, member, value in self._component.signature.flatten(self._component):
            direction = "i" if member.flow == In else "o"
            ports[f"{direction}_{'__'.join(str(p) for p in path)}"] = Value.cast(value)
        return Instance(self._module, **ports)


class Ram(wiring.Component):
    """A memory with one write port (an enable for every `grain` bits) and one read port.

    Latency: what is written in cycle t is read by an address given in t + 1, and seen in t + 2. The output holds
    its value until the next read. Throughput: a read and a write a cycle. A read of the row that is being written
    is undefined; the hazard rules of arch/access.py exclude it.
    """

    def __init__(self, width: int, depth: int, grain: int | None = None) -> None:
        self._width, self._depth, self._grain = width, depth, grain or width
        address = bits_for(depth)
        super().__init__(
            {
                "w_en": In(width // self._grain),
                "w_addr": In(address),
                "w_data": In(width),
                "r_en": In(1),
                "r_addr": In(address),
                "r_data": Out(width),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        m.submodules.memory = Instance(
            "gossamer_ram",
            p_WIDTH=self._width,
            p_DEPTH=self._depth,
            p_ADDRESS=bits_for(self._depth),
            p_GRAIN=self._grain,
            i_clk=ClockSignal(),
            i_w_en=self.w_en,
            i_w_addr=self.w_addr,
            i_w_data=self.w_data,
            i_r_en=self.r_en,
            i_r_addr=self.r_addr,
            o_r_data=self.r_data,
        )
        return m


class Regfile(wiring.Component):
    """A small memory with one write port and `ports` read ports without a register.

    Latency: what is written in cycle t is seen in t + 1. Throughput: every port, every cycle.
    """

    def __init__(self, width: int, depth: int, ports: int = 1) -> None:
        self._width, self._depth, self._ports = width, depth, ports
        address = bits_for(depth)
        super().__init__(
            {
                "w_en": In(1),
                "w_addr": In(address),
                "w_data": In(width),
                "r_addr": In(address * ports),
                "r_data": Out(width * ports),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        m.submodules.memory = Instance(
            "gossamer_regfile",
            p_WIDTH=self._width,
            p_DEPTH=self._depth,
            p_ADDRESS=bits_for(self._depth),
            p_PORTS=self._ports,
            i_clk=ClockSignal(),
            i_w_en=self.w_en,
            i_w_addr=self.w_addr,
            i_w_data=self.w_data,
            i_r_addr=self.r_addr,
            o_r_data=self.r_data,
        )
        return m


class Fifo(wiring.Component):
    """A first-in first-out queue whose head is visible.

    Latency: what is pushed in cycle t is at the head (if it was empty) in t + 1. Throughput: a push and a pop a
    cycle; `full` falls in the cycle after a pop. A push when full and a pop when empty are ignored.
    """

    def __init__(self, width: int, depth: int) -> None:
        self._width, self._depth = width, depth
        super().__init__(
            {
                "push": In(1),
                "w_data": In(width),
                "full": Out(1),
                "pop": In(1),
                "r_data": Out(width),
                "valid": Out(1),
                "level": Out(bits_for(depth + 1)),
            }
        )

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        m.submodules.store = store = Regfile(self._width, self._depth)
        head = Signal(bits_for(self._depth))
        tail = Signal(bits_for(self._depth))
        push = Signal()
        pop = Signal()
        last = self._depth - 1
        m.d.comb += [
            self.full.eq(self.level == self._depth),
            self.valid.eq(self.level != 0),
            push.eq(self.push & ~self.full),
            pop.eq(self.pop & self.valid),
            store.w_en.eq(push),
            store.w_addr.eq(tail),
            store.w_data.eq(self.w_data),
            store.r_addr.eq(head),
            self.r_data.eq(store.r_data),
        ]
        with m.If(push):
            m.d.sync += tail.eq(tail + 1)
            with m.If(tail == last):
                m.d.sync += tail.eq(0)
        with m.If(pop):
            m.d.sync += head.eq(head + 1)
            with m.If(head == last):
                m.d.sync += head.eq(0)
        with m.If(push & ~pop):
            m.d.sync += self.level.eq(self.level + 1)
        with m.Elif(pop & ~push):
            m.d.sync += self.level.eq(self.level - 1)
        return m
