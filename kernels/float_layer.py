"""A float32 linear layer made ready once and called often: `prepare_float(weight, ...)` gives a `Layer`.

    out = activation(x @ weight.T + bias + residual)

Every sum is within gamma(n + 3) * (|x| @ |weight|.T + |bias| + |residual|) of the exact one, with n the nonzeros of the
output, gamma(m) = m u / (1 - m u) and u = 2**-24: the bound of a sum in any order (Higham, "Accuracy and Stability of
Numerical Algorithms", 2002, section 3.1). A weight of 0 near a nonzero may be multiplied like it, at most in the same
cell of 64 outputs by 4 inputs; no other one is, so that an infinite activation reaches only outputs of cells with a
weight for it or for a neighbour of it. "silu" is v * sigmoid(v) and "gelu" its form with a sigmoid,
v * sigmoid(2 sqrt(2 / pi) (v + 0.044715 v**3)), the same as that with a hyperbolic tangent: both are within 4 u * |v|
of the function's value at the sum that was computed, and change by at most 1.13 times what the sum does.

A layer may end in 8-bit codes, rounded once from the float32 result:

    code = clamp(rint(out * (1 / scale)) + zero_point, code range),   1 / scale in float32, rint half to even

An element that is not a number gives the lowest code.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import start_compiler
from gossamer.arch.numerics import code_range
from gossamer.kernels.checks import check_array, check_int
from gossamer.kernels.choose import Decision, usable_features
from gossamer.kernels.float_lines import Lines
from gossamer.kernels.float_panels import PANEL, FloatPanels, FloatWeight, Nonzeros, find_nonzeros, lay_out
from gossamer.kernels.float_rows import lay_out_rows
from gossamer.kernels.layer import Layer
from gossamer.kernels.vectorised import Begins, Calls, Run, Vectorised
from gossamer.kernels.vectors import LANES, has_vectors

__all__ = ["Activation", "FloatCodes", "prepare_float"]

Floats = NDArray[np.float32]
Activation = Literal["none", "relu", "relu6", "gelu", "silu"]

_ACTIVATIONS: dict[str, tuple[float, float, tuple[int, ...] | None]] = {
    "none": (-np.inf, np.inf, None),
    "relu": (0.0, np.inf, None),
    "relu6": (0.0, 6.0, None),
    "gelu": (-np.inf, np.inf, (0,)),
    "silu": (-np.inf, np.inf, ()),
}
"""Clamp, and kind of gate (float_after)."""
_TALLEST = {(16, 4): 6, (16, 2): 8, (16, 1): 8, (8, 1): 6, (4, 1): 2}
"""Rows of a tile of the kernel of rows by lanes and width: accumulators and operands within 32 or 16 registers."""
_FEW, _LEAST = 11, 2
"""Rows that the kernel of rows works on in the time in which that on lines, at the same cost, works on a vector; and
those for which it takes hardly longer than for one, since what it waits for is the weight."""
_PLAIN = 1.3
"""Cost for each nonzero up to which the kernel of rows is taken without a look at lines, which have to be turned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatCodes:
    """How a float32 result becomes 8-bit codes (rounding: see the module).

    scale : float32 [N], one an output, or a float for all; finite and above 0, as is its inverse.
    zero_point : code of real zero.  signed : int8 codes instead of uint8. Raises ModelError.
    """

    scale: Floats | float
    zero_point: int = 0
    signed: bool = True

    def __post_init__(self) -> None:
        check_int("zero_point", self.zero_point, *code_range(self.signed))
        if isinstance(self.scale, np.ndarray):
            check_array("scale", self.scale, [np.float32], 1)
        with np.errstate(divide="ignore", over="ignore"):
            legal = np.isfinite(self.scale) & (np.asarray(self.scale) > 0) & np.isfinite(self.inverse)
        if not np.all(legal):
            raise ModelError(f"scale must be finite and above 0, as its inverse in float32, not {self.scale!r}")

    @property
    def inverse(self) -> Floats:
        """1 / scale in float32, [N] or a single one."""
        return np.float32(1) / np.atleast_1d(np.asarray(self.scale, dtype=np.float32))


def prepare_float(
    weight: FloatWeight,
    *,
    bias: Floats | None = None,
    activation: Activation = "none",
    residual: bool = False,
    codes: FloatCodes | None = None,
    threads: int = 1,
    features: frozenset[str] | None = None,
    pieces: tuple[NDArray[np.int64], int] | None = None,
) -> Layer:
    """Make a float32 layer of a weight (formula, error and rounding: see the module).

    weight : float32 [N, K], an array or a sparse array of SciPy; its pattern is found and not told. Later changes to
        it are not seen.
    bias : float32 [N], or None for zeros.
    activation : "relu" is max(v, 0), "relu6" min(max(v, 0), 6); for "gelu" and "silu" see the module.
    residual : whether every call brings a second operand that is added.
    codes : how the result becomes 8-bit codes; None: it stays float32.
    threads : over which the rows of a call are divided; results do not depend on it.
    features : of the processor, in LLVM's names; None: this one's. They choose the length of vectors.
    pieces : of the windows of a convolution (`Windows.piece_starts` and the length of a piece); None: a row is whole.

    Raises ModelError when an argument does not fit.
    """
    if has_vectors():
        start_compiler()
    nonzeros = find_nonzeros(weight)
    n, k = nonzeros.shape
    check_int("threads", threads, 1)
    if activation not in _ACTIVATIONS:
        raise ModelError(f"activation must be one of {', '.join(_ACTIVATIONS)}, not {activation!r}")
    if bias is not None:
        check_array("bias", bias, [np.float32], 1)
        if bias.shape != (n,):
            raise ModelError(f"bias must have shape ({n},), one an output, not {bias.shape}")
    rounding = None
    if codes is not None:
        if codes.inverse.size not in (1, n):
            raise ModelError(f"scale must be one number or have shape ({n},), not {codes.inverse.shape}")
        lo, hi = (float(code - codes.zero_point) for code in code_range(codes.signed))
        rounding = (_padded(codes.inverse, n), codes.zero_point, np.float32(lo), np.float32(hi))
    low, high, curve = _ACTIVATIONS[activation]
    after = (_padded(bias, n), np.float32(low), np.float32(high), curve, () if residual else None, rounding)
    lanes = _lanes(usable_features() if features is None else features)
    run: Run
    if not has_vectors():
        why = Decision(kernel="reference", reason="NUMBA_DISABLE_JIT is set, and vectors exist in compiled code only")
        run = _reference(nonzeros, after)
    else:
        why, run = _vectorised(nonzeros, pieces or (np.zeros(1, np.int64), k), after, lanes, threads)
    return Layer(
        shape=nonzeros.shape,
        why=why,
        activation=np.dtype(np.float32),
        residual=np.dtype(np.float32) if residual else None,
        result=np.dtype(np.float32 if codes is None else np.int8 if codes.signed else np.uint8),
        run=run,
    )


def _vectorised(
    nonzeros: Nonzeros, pieces: tuple[NDArray[np.int64], int], after: tuple[Any, ...], lanes: int, threads: int
) -> tuple[Decision, Run]:
    """The kernel of rows, that on lines, or that on lines with the other for few rows, and why.

    Sums are the same to the bit: either way they begin at 0 and go by inputs.
    """
    starts, length = pieces
    cost, packed = lay_out_rows(nonzeros, length=length, widest=4 if lanes == LANES else 1)
    if starts.size > 1:
        which, rest = np.divmod(packed.places, 4 * length)
        packed = replace(packed, places=4 * starts[which] + rest)
    zeros, tallest = np.zeros(packed.slots, np.int32), _TALLEST[lanes, packed.width]
    rows = Vectorised(packed, zeros, after, tallest=tallest, mode=None, threads=threads)
    if cost <= _PLAIN * nonzeros.values.size:
        return packed.decision, rows
    panels = lay_out(nonzeros)
    if cost <= panels.cost:
        return packed.decision, rows
    lines = Lines(panels, after, lanes=lanes, threads=threads, pieces=pieces)
    few = int(_FEW * panels.cost / cost)
    if few < _LEAST:
        return _decision(panels), lines

    def run(x: Floats, out: NDArray[Any], residual: Floats | None, begins: Begins = None) -> Calls | None:
        return (rows if out.shape[0] <= few else lines)(x, out, residual, begins)

    return _decision(panels), run


def _padded(values: Floats | None, count: int) -> Floats:
    """float32 [count, padded to the widest cell], of values or of one for all; None for zeros."""
    padded = np.zeros(count + -count % (4 * LANES), dtype=np.float32)
    if values is not None:
        padded[: count if values.size == 1 else values.size] = values
    return padded


def _lanes(features: frozenset[str]) -> int:
    """float32 in a vector of this processor; every processor can do 4, in parts if it must."""
    return 16 if "avx512f" in features else 8 if "avx" in features else 4


def _decision(panels: FloatPanels) -> Decision:
    kept = f"{panels.density:.0%} is kept"
    if panels.shared:
        entries = PANEL * int(panels.pointers[-1])
        return Decision(
            kernel="shared", reason=f"{kept}, and {panels.nonzeros / max(1, entries):.0%} of what four outputs share"
        )
    return Decision(kernel="own", reason=f"{kept}, at inputs that neighbouring outputs do not share")


def _reference(nonzeros: Nonzeros, after: tuple[Any, ...]) -> Run:
    """The layer by SciPy, which like the compiled kernels does not multiply with absent weights."""
    from scipy.sparse import csr_array  # only where nothing is compiled

    weight = csr_array((nonzeros.values, (nonzeros.i, nonzeros.k)), shape=nonzeros.shape)
    bias, low, high, curve, _, codes = after
    bias = bias[: nonzeros.shape[0]]

    def run(x: Floats, out: NDArray[Any], residual: Floats | None, begins: Begins = None) -> None:
        assert begins is None
        total = (weight @ x.T).T + bias
        if residual is not None:
            total += residual
        total = np.clip(total, low, high)
        if curve is not None:
            gate = 2 * np.sqrt(2 / np.pi) * (total + 0.044715 * total**3) if curve else total
            total /= 1 + np.exp(-np.clip(gate, -88, 88), dtype=np.float64)
        if codes is None:
            out[...] = total
            return
        inverse, zero_point, lo, hi = codes
        real = np.where(np.isnan(total), lo, np.clip(total * inverse[: bias.size], lo, hi))
        out[...] = np.rint(real).astype(np.int32) + zero_point

    return run
