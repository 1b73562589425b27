"""Which kernel multiplies with a weight, and why: a function of format, shape and the processor's features.

    dense       4 codes of a row at a time, repeated over a vector, meet 16 outputs by 4 inputs
    blocks      the same for blocks of a multiple of 16 outputs by 4 inputs; absent blocks cost nothing. With 16 outputs
                by 8 inputs two vectors share one repeated piece of 8 codes: loads are what limits this kernel
    select      16 outputs a vector; each picks 4 codes of its own out of 64 in a row, a window that slides along
    shared      the same, 4 neighbouring outputs with the same inputs picking together; where rows fill tiles of 64 and
                the weight is large, rows are turned into lines instead, and nothing is picked: kernels/on_lines.py
    reference   plain loops, in any format

`GOSSAMER_PORTABLE=1` in the environment decides, and computes, as if the processor had no vector extension.
"""

import os
from dataclasses import dataclass

from gossamer.arch.errors import ModelError
from gossamer.kernels.formats import BSR, CSR, NM, Dense, Weight
from gossamer.kernels.vectors import cpu_features, has_vectors

__all__ = ["Decision", "choose", "usable_features"]

_DOTS = {"avx512vnni": 64, "avxvnni": 32}
_PICK = "avx512vbmi"
_MOST_KEPT = {"select": 0.4, "shared": 0.8, "N:M": 0.7}
"""Density from which multiplying zeros costs less than picking around them, as measured."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A kernel's name, and the reason for it in a sentence."""

    kernel: str
    reason: str

    def __str__(self) -> str:
        """Name and reason."""
        return f"{self.kernel}: {self.reason}"


def usable_features() -> frozenset[str]:
    """Features the kernels may use: those code is generated for, or none where GOSSAMER_PORTABLE says so."""
    return frozenset() if os.environ.get("GOSSAMER_PORTABLE", "0") not in ("", "0") else cpu_features()


def choose(weight: Weight, *, features: frozenset[str] | None = None) -> Decision:
    """The kernel for a weight on a processor with these features (LLVM's names; None: this one, see the module).

    Raises ModelError when weight is of no format.

    >>> import numpy as np
    >>> print(choose(Dense(data=np.ones((4, 8), dtype=np.int8)), features=frozenset({"avx512vnni"})))
    dense: every weight is used, and avx512vnni multiplies 64 at a time
    """
    if not isinstance(weight, Dense | NM | BSR | CSR):
        raise ModelError(f"weight must be a Dense, NM, BSR or CSR, not {type(weight).__name__}")
    if not has_vectors():
        return Decision(kernel="reference", reason="NUMBA_DISABLE_JIT is set, and vectors exist in compiled code only")
    has = usable_features() if features is None else features
    dot = next((name for name in _DOTS if name in has), None)
    speed = f"{dot} multiplies {_DOTS[dot]} at a time" if dot else f"without {' or '.join(_DOTS)} in 16-bit products"
    if isinstance(weight, Dense):
        return Decision(kernel="dense", reason=f"every weight is used, and {speed}")
    if isinstance(weight, BSR) and weight.block[0] % 16 == 0 and weight.block[1] % 4 == 0:
        return Decision(
            kernel="blocks", reason=f"blocks of {weight.block[0]} x {weight.block[1]} fill vectors; {speed}"
        )
    if _PICK not in has:
        return Decision(kernel="dense", reason=f"picking nonzeros out of a vector needs {_PICK}; {speed}")
    kernel = "shared" if isinstance(weight, BSR) and weight.block[0] % 4 == 0 else "select"
    density, most = _density(weight), _MOST_KEPT["N:M" if isinstance(weight, NM) else kernel]
    if density > most:
        reason = f"{density:.0%} is kept: up to {most:.0%} {kernel} would cost less than multiplying zeros"
        return Decision(kernel="dense", reason=reason)
    return Decision(kernel=kernel, reason=f"{density:.0%} is kept, picked by {_PICK}; {speed}")


def _density(weight: NM | BSR | CSR) -> float:
    stored = weight.data.size if isinstance(weight, CSR | BSR) else weight.values.size
    return stored / (weight.shape[0] * weight.shape[1])
