"""AXI4 and AXI4-Lite as wiring signatures, seen from the master. One identifier, INCR bursts of full beats."""

from typing import Any

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ADDRESS_BITS", "INCR", "axi_lite", "axi_read", "axi_write", "size_of"]

ADDRESS_BITS = 40
"""Byte addresses: 2**32 beats of up to 128 bytes fit."""

INCR = 1


def size_of(beat_bytes: int) -> int:
    """AxSIZE of a full beat."""
    return beat_bytes.bit_length() - 1


def _address(prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}addr": Out(ADDRESS_BITS),
        f"{prefix}len": Out(8),
        f"{prefix}size": Out(3),
        f"{prefix}burst": Out(2),
        f"{prefix}valid": Out(1),
        f"{prefix}ready": In(1),
    }


def axi_read(beat_bytes: int) -> Any:
    """Read address and read data channels."""
    return wiring.Signature(
        {
            **_address("ar"),
            "rdata": In(8 * beat_bytes),
            "rresp": In(2),
            "rlast": In(1),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


def axi_write(beat_bytes: int) -> Any:
    """Write address, write data and write response channels."""
    return wiring.Signature(
        {
            **_address("aw"),
            "wdata": Out(8 * beat_bytes),
            "wstrb": Out(beat_bytes),
            "wlast": Out(1),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
        }
    )


def axi_lite(address_bits: int) -> Any:
    """A 32-bit AXI4-Lite port."""
    return wiring.Signature(
        {
            "awaddr": Out(address_bits),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(32),
            "wstrb": Out(4),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "araddr": Out(address_bits),
            "arvalid": Out(1),
            "arready": In(1),
            "rdata": In(32),
            "rresp": In(2),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )
