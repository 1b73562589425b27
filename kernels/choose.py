"""Which kernel multiplies with a weight, and why: a function of format, shape and the processor's features.

    dense       row-major activations, a dword of each broadcast against 16 outputs a vector
    blocks      the same for blocks of a multiple of 16 outputs by a multiple of 4 inputs; absent blocks cost nothing
    select      16 outputs a vector; each picks its nonzeros out of 64 bytes of activations. Any sparsity: outputs
                with fewer nonzeros in those 64 than their neighbours are padded
    reference   plain loops, in any format

`GOSSAMER_PORTABLE=1` in the environment decides, and computes, as if the processor had no vector extension.
"""

import os
from dataclasses import dataclass

from gossamer.arch.errors import ModelError
from gossamer.kernels.formats import BSR, CSR, NM, Dense, Weight
from gossamer.kernels.intrinsics import cpu_features, has_vectors

__all__ = ["Decision", "choose", "usable_features"]

_DOT, _PICK = "avx512vnni", "avx512vbmi"
_SELECT_DENSITY = 0.75


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
    dot = f"{_DOT} multiplies 64 at a time" if _DOT in has else f"without {_DOT} in 16-bit products"
    if isinstance(weight, Dense):
        return Decision(kernel="dense", reason=f"every weight is used, and {dot}")
    if isinstance(weight, BSR) and weight.block[0] % 16 == 0 and weight.block[1] % 4 == 0:
        return Decision(kernel="blocks", reason=f"blocks of {weight.block[0]} x {weight.block[1]} fill vectors; {dot}")
    missing = sorted({_DOT, _PICK} - has)
    if missing:
        return Decision(kernel="reference", reason=f"picking nonzeros out of a vector needs {' and '.join(missing)}")
    density = _density(weight)
    if density > _SELECT_DENSITY:
        return Decision(
            kernel="dense", reason=f"{density:.0%} is kept: multiplying zeros costs less than skipping them"
        )
    return Decision(kernel="select", reason=f"{density:.0%} is kept, picked by {_PICK} for {_DOT}")


def _density(weight: NM | BSR | CSR) -> float:
    stored = weight.data.size if isinstance(weight, CSR | BSR) else weight.values.size
    return stored / (weight.shape[0] * weight.shape[1])
