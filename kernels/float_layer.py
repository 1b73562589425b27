"""A float32 linear layer made ready once and called often: `prepare_float(weight, ...)` gives a `FloatLayer`.

    out = activation(x @ weight.T + bias + residual)

Every sum is within gamma(n + 3) * (|x| @ |weight|.T + |bias| + |residual|) of the exact one, with n the nonzeros of the
output, gamma(m) = m u / (1 - m u) and u = 2**-24: the bound of a sum in any order (Higham, "Accuracy and Stability of
Numerical Algorithms", 2002, section 3.1). A weight of 0 that stands in a block with nonzeros is multiplied like they
are; no other one is, so that an infinite activation reaches only outputs that have a weight for it or for which a
neighbour among four has one. "silu" is v * sigmoid(v) and "gelu" its form with a sigmoid,
v * sigmoid(2 sqrt(2 / pi) (v + 0.044715 v**3)), the same as that with a hyperbolic tangent: both are within 4 u * |v|
of the function's value at the sum that was computed, and change by at most 1.13 times what the sum does.

A layer may end in 8-bit codes, rounded once from the float32 result:

    code = clamp(rint(out * (1 / scale)) + zero_point, code range),   1 / scale in float32, rint half to even

An element that is not a number gives the lowest code.
"""

import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import start_compiler
from gossamer.arch.numerics import code_range
from gossamer.kernels.checks import check_array, check_int
from gossamer.kernels.choose import Decision, usable_features
from gossamer.kernels.float_kernels import run_parallel, run_serial
from gossamer.kernels.float_panels import PANEL, FloatPanels, FloatWeight, lay_out
from gossamer.kernels.vectors import aligned_empty, has_vectors

__all__ = ["Activation", "FloatCodes", "FloatLayer", "prepare_float"]

Floats = NDArray[np.float32]
Activation = Literal["none", "relu", "relu6", "gelu", "silu"]

_TALLEST = {16: 4}
"""Vectors of rows in a tile by lanes: with four outputs they fill 16 of 32 registers."""
_TALL = 3
"""The same with shorter vectors: 12 of 16 registers."""

_FEW = 4
"""So many rows and fewer are one vector together with the outputs of a panel (a height of 0)."""

_kept = threading.local()
_NOTHING = np.empty(0, dtype=np.float32)

_ACTIVATIONS: dict[str, tuple[float, float, tuple[int, ...] | None]] = {
    "none": (-np.inf, np.inf, None),
    "relu": (0.0, np.inf, None),
    "relu6": (0.0, 6.0, None),
    "gelu": (-np.inf, np.inf, (0,)),
    "silu": (-np.inf, np.inf, ()),
}
"""Clamp, and kind of gate (float_vectors)."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatLayer:
    """A float32 weight with all that belongs to it, ready to be applied: `layer(x)`. Made by `prepare_float`.

    panels : the weight, [N, K], laid out.  why : the kernel, and the reason for it.
    result : dtype of what a call returns.  with_residual : whether a call takes a residual.
    threads : over which its rows are divided.  lanes : float32 of a vector.
    after : bias float32 [N padded], and the bounds of the activation.  curve : its gate, or None.
    codes : 1 / scale float32 [N padded], zero point, and the bounds of what is rounded; or None.
    """

    panels: FloatPanels
    why: Decision
    result: np.dtype[Any]
    with_residual: bool
    threads: int
    lanes: int
    after: tuple[Any, ...]
    curve: tuple[int, ...] | None
    codes: tuple[Any, ...] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.panels.shape

    def __call__(self, x: Floats, *, residual: Floats | None = None, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The layer's result [rows, N] for x [rows, K], rows >= 0.

        x : float32, fastest when C-contiguous and aligned to 64 bytes.
        residual : float32 [rows, N], given if and only if the layer was prepared for one.
        out : [rows, N] of dtype `result`, C-contiguous and writeable, to write and return; new memory costs a page
            fault every 4 KiB. Raises ModelError when an argument does not fit.
        """
        n, k = self.shape
        check_array("x", x, [np.float32], 2)
        if x.shape[1] != k:
            raise ModelError(f"x must have shape (rows, {k}) for this weight, not {x.shape}")
        rows = x.shape[0]
        if (residual is not None) != self.with_residual:
            raise ModelError(f"residual must be {'given' if self.with_residual else 'None'}: see prepare_float")
        if residual is not None:
            check_array("residual", residual, [np.float32], 2)
            if residual.shape != (rows, n):
                raise ModelError(f"residual must have shape (rows, N) = {(rows, n)}, not {residual.shape}")
            residual = np.ascontiguousarray(residual)
        if out is None:
            out = aligned_empty((rows, n), self.result)
        else:
            check_array("out", out, [self.result.type], 2)
            if out.shape != (rows, n) or not (out.flags.c_contiguous and out.flags.writeable):
                raise ModelError(f"out must be C-contiguous, writeable and of shape {(rows, n)}, not {out.shape}")
        if rows:
            self._run(np.ascontiguousarray(x), residual, out)
        return out

    def _run(self, x: Floats, residual: Floats | None, out: NDArray[Any]) -> None:
        if not has_vectors():
            _reference(x, residual, self, out)
            return
        p, rows, first = self.panels, x.shape[0], 0
        shared = () if p.shared else None
        layout = (p.run, p.blocks, p.panels, p.pointers, p.inputs, p.weights, p.lines)
        lanes = self.lanes if rows > _FEW else _FEW
        tallest = _TALLEST.get(lanes, _TALL) if rows > _FEW else 0
        for height, tiles in _tiles(-(-rows // lanes), tallest, self.threads):
            workers, long = min(self.threads, tiles), lanes * max(1, height)
            lines, sums = _scratch(workers, p.blocks * (p.run + 1) * long, self.after[0].size * long)
            run = run_parallel if workers > 1 else run_serial
            run(
                x, first, tiles, shared, layout, self.after, residual, self.curve, self.codes, out,
                lines, sums, (0,) * lanes, (0,) * height,
            )  # fmt: skip
            first += tiles * long


def prepare_float(
    weight: FloatWeight,
    *,
    bias: Floats | None = None,
    activation: Activation = "none",
    residual: bool = False,
    codes: FloatCodes | None = None,
    threads: int = 1,
    features: frozenset[str] | None = None,
) -> FloatLayer:
    """Make a float32 layer of a weight (formula, error and rounding: see the module).

    weight : float32 [N, K], an array or a sparse array of SciPy; its pattern is found and not told. Later changes to
        it are not seen.
    bias : float32 [N], or None for zeros.
    activation : "relu" is max(v, 0), "relu6" min(max(v, 0), 6); for "gelu" and "silu" see the module.
    residual : whether every call brings a second operand that is added.
    codes : how the result becomes 8-bit codes; None: it stays float32.
    threads : over which the rows of a call are divided; results do not depend on it.
    features : of the processor, in LLVM's names; None: this one's. They choose the length of vectors.

    Raises ModelError when an argument does not fit.
    """
    if has_vectors():
        start_compiler()
    panels = lay_out(weight)
    n, _ = panels.shape
    check_int("threads", threads, 1)
    if activation not in _ACTIVATIONS:
        raise ModelError(f"activation must be one of {', '.join(_ACTIVATIONS)}, not {activation!r}")
    padded = n + -n % 16
    biases = np.zeros(padded, dtype=np.float32)
    if bias is not None:
        check_array("bias", bias, [np.float32], 1)
        if bias.shape != (n,):
            raise ModelError(f"bias must have shape ({n},), one an output, not {bias.shape}")
        biases[:n] = bias
    rounding = None
    if codes is not None:
        if codes.inverse.size not in (1, n):
            raise ModelError(f"scale must be one number or have shape ({n},), not {codes.inverse.shape}")
        inverse = np.zeros(padded, dtype=np.float32)
        inverse[:n] = codes.inverse
        lo, hi = (float(code - codes.zero_point) for code in code_range(codes.signed))
        rounding = (inverse, codes.zero_point, np.float32(lo), np.float32(hi))
    low, high, curve = _ACTIVATIONS[activation]
    return FloatLayer(
        panels=panels,
        why=_decision(panels),
        result=np.dtype(np.float32 if codes is None else np.int8 if codes.signed else np.uint8),
        with_residual=residual,
        threads=threads,
        lanes=_lanes(usable_features() if features is None else features),
        after=(biases, np.float32(low), np.float32(high)),
        curve=curve,
        codes=rounding,
    )


def _scratch(workers: int, lines: int, sums: int) -> tuple[Floats, Floats]:
    """Arrays [workers, lines] and [workers, sums], aligned, of memory that the calling thread keeps.

    New memory in every call would cost a page fault every 4 KiB, as much as some layers take.
    """
    middle, end = workers * lines, workers * (lines + sums)
    if getattr(_kept, "floats", _NOTHING).size < end:
        _kept.floats = aligned_empty((end,), np.float32)
    floats: Floats = _kept.floats
    return floats[:middle].reshape(workers, lines), floats[middle:end].reshape(workers, sums)


def _lanes(features: frozenset[str]) -> int:
    """float32 in a vector of this processor; every processor can do 4, in parts if it must."""
    return 16 if "avx512f" in features else 8 if "avx" in features else 4


def _decision(panels: FloatPanels) -> Decision:
    kept = f"{panels.density:.0%} is kept"
    if not has_vectors():
        return Decision(kernel="reference", reason="NUMBA_DISABLE_JIT is set, and vectors exist in compiled code only")
    if panels.shared:
        entries = PANEL * int(panels.pointers[-1])
        return Decision(
            kernel="shared", reason=f"{kept}, and {panels.nonzeros / max(1, entries):.0%} of what four outputs share"
        )
    return Decision(kernel="own", reason=f"{kept}, at inputs that neighbouring outputs do not share")


def _tiles(vectors: int, tallest: int, threads: int) -> list[tuple[int, int]]:
    """(height, number) of the tiles that cover so many vectors of rows.

    One thread: as few as can be, of two neighbouring heights, so that no vector stays empty. More: all of one height,
    so that all take the same time, and one for each thread if there are enough vectors.

    >>> _tiles(13, 4, 1), _tiles(13, 4, 2), _tiles(2, 4, 2)
    ([(4, 1), (3, 3)], [(4, 4)], [(1, 2)])
    """
    if not tallest:
        return [(0, vectors)]
    count = max(-(-vectors // tallest), min(threads, vectors))
    if threads > 1:
        height = -(-vectors // count)
        return [(height, -(-vectors // height))]
    height, taller = divmod(vectors, count)
    return [(h, number) for h, number in ((height + 1, taller), (height, count - taller)) if number]


def _reference(x: Floats, residual: Floats | None, layer: FloatLayer, out: NDArray[Any]) -> None:
    """The layer by SciPy, which like the compiled kernels does not multiply with absent weights."""
    from scipy.sparse import csr_array  # only where nothing is compiled

    bias, low, high = layer.after
    n, _ = layer.shape
    total = (csr_array(layer.panels.to_dense()) @ x.T).T + bias[:n]
    if residual is not None:
        total += residual
    total = np.clip(total, low, high)
    if layer.curve is not None:
        gate = 2 * np.sqrt(2 / np.pi) * (total + 0.044715 * total**3) if layer.curve else total
        total /= 1 + np.exp(-np.clip(gate, -88, 88), dtype=np.float64)
    if layer.codes is None:
        out[...] = total
        return
    inverse, zero_point, lo, hi = layer.codes
    real = np.where(np.isnan(total), lo, np.clip(total * inverse[:n], lo, hi))
    out[...] = np.rint(real).astype(np.int32) + zero_point
