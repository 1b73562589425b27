"""The RTL generator: Amaranth components made from an ArchSpec.

    machine     registers, and the core: fetch, issue, semaphores, load, matmul, drain, store, array, lane
    verilog     the text that is exported;  build, model: its Verilated model, which runs Programs
    cosim       the same under cocotb
    bundle      what `gossamer rtl` writes, with guide (its README), images and bench_files

Nothing here loads amaranth until hardware is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.rtl.build import missing_tools
    from gossamer.rtl.bundle import write_bundle
    from gossamer.rtl.cosim import CocotbModel
    from gossamer.rtl.images import Case
    from gossamer.rtl.model import HardwareError, Memory, Model

__all__ = ["Case", "CocotbModel", "HardwareError", "Memory", "Model", "missing_tools", "write_bundle"]

_HOME = {
    "Case": "images",
    "CocotbModel": "cosim",
    "HardwareError": "model",
    "Memory": "model",
    "Model": "model",
    "missing_tools": "build",
    "write_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gossamer.rtl' has no attribute {name!r}")
    return getattr(import_module(f"gossamer.rtl.{_HOME[name]}"), name)
