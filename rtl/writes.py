"""The write side of a lane's bank: a beat from LOAD or codes from DRAIN, to one of the partitions."""

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Mux, Signal

from gossamer.rtl.banks import place_of

__all__ = ["WritePort", "write_ports"]


@dataclass(frozen=True, kw_only=True)
class WritePort:
    """What a partition's memory sees: an enable for every grain of the row, the row's address, and the row."""

    enable: Any
    row: Any
    data: Any


def write_ports(
    m: Any,
    *,
    rows: int,
    partitions: int,
    row_bytes: int,
    beat_bytes: int,
    ppu: int,
    grain: int,
    load: tuple[Any, Any, Any],
    drain: tuple[Any, Any, Any, Any],
    conflict: Any,
) -> list[WritePort]:
    """The write ports of all partitions; `conflict` is driven when both writers meet in one.

    load : enable, beat address, beat.  drain : enable, raw, group address, `ppu` words of 32 bits whose low bytes are
    the codes. Both writers are combinational here: their registers stand in LOAD and DRAIN.
    """
    l_en, l_at, l_data = load
    d_en, d_raw, d_at, d_data = drain
    beats = row_bytes // beat_bytes
    beat_bits = beats.bit_length() - 1
    groups = row_bytes // ppu
    group_bits = groups.bit_length() - 1

    # In units of ppu bytes: a group of codes is one, a group of words four.
    place = Signal(len(d_at) + 2, name="drain_place")
    m.d.comb += place.eq(Mux(d_raw, d_at << 2, d_at))
    d_mask = Mux(d_raw, Const(0b1111, groups), Const(1, groups)) << (place[:group_bits] if group_bits else 0)
    codes = Cat(d_data[32 * k : 32 * k + 8] for k in range(ppu))
    d_row = Mux(d_raw, Cat(d_data for _ in range(row_bytes // (4 * ppu))), Cat(codes for _ in range(row_bytes // ppu)))
    l_mask = Const(1, beats) << (l_at[:beat_bits] if beat_bits else 0)
    l_row = Cat(l_data for _ in range(beats))

    d_hit, d_inside = place_of(m, place[group_bits:], rows, partitions, "drain_row")
    l_hit, l_inside = place_of(m, l_at[beat_bits:], rows, partitions, "load_row")
    grains = row_bytes // grain
    d_enable, l_enable = Signal(grains, name="drain_enable"), Signal(grains, name="load_enable")
    m.d.comb += [
        d_enable.eq(Cat(d_mask[k * grain // ppu] for k in range(grains))),
        l_enable.eq(Cat(l_mask[k * grain // beat_bytes] for k in range(grains))),
    ]
    ports = []
    both: Any = Const(0, 1)
    for p in range(partitions):
        drains, loads = Signal(name=f"drains_{p}"), Signal(name=f"loads_{p}")
        m.d.comb += [drains.eq(d_en & d_hit[p]), loads.eq(l_en & l_hit[p])]
        both = both | (drains & loads)
        enable = Mux(drains, d_enable, 0) | Mux(loads, l_enable, 0)
        ports.append(WritePort(enable=enable, row=Mux(drains, d_inside, l_inside), data=Mux(drains, d_row, l_row)))
    m.d.comb += conflict.eq(both)
    return ports
