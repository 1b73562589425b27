"""A linear layer made ready once and called often: `prepare(weight, ...)` gives a `Layer`, and a layer is a function.

Everything that does not depend on the activations is done when the layer is made: the weight is packed for the kernel
that was chosen, the zero point's share and the bias become what accumulators start from, the parameters of the
requantisation are proved and laid out. A call checks the activations and enters compiled code.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import start_compiler
from gossamer.arch.numerics import Requant
from gossamer.kernels.bounds import max_accumulator
from gossamer.kernels.checks import check_array, check_int, check_zero_point
from gossamer.kernels.choose import Decision, usable_features
from gossamer.kernels.epilogue import requantise
from gossamer.kernels.formats import BSR, Weight
from gossamer.kernels.line_groups import lay_out_groups
from gossamer.kernels.matmul import spmm
from gossamer.kernels.on_lines import TILE, OnLines, suits_lines
from gossamer.kernels.pack import Packed, pack
from gossamer.kernels.scaling import Scaling, make_scaling
from gossamer.kernels.vectorised import Begins, Calls, Run, Vectorised
from gossamer.kernels.vectors import aligned_empty

__all__ = ["Layer", "prepare"]

Codes = NDArray[np.int8] | NDArray[np.uint8]
CodeType = Literal["int8", "uint8"]
_TILES = {
    ("dense", 4, 1): 6,
    ("blocks", 1, 1): 8,
    ("blocks", 2, 1): 8,
    ("blocks", 2, 2): 8,
    ("blocks", 4, 1): 6,
    ("select", 1, 1): 10,
    ("select", 2, 1): 8,
    ("select", 4, 1): 4,
    ("shared", 1, 1): 6,
}
"""Rows of a tile by kernel, width and dwords: what was fastest, with accumulators and operands within 32 registers.
Without a dot product there is little to gain, and it is 2."""
_SHAPES = 64
"""Shapes of activations that a layer remembers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A weight with all that belongs to it, ready to be applied: `layer(x)`. Made by `prepare` and `prepare_float`.

    shape : (N, K).  why : the kernel, and the reason for it.
    activation : dtype of x.  residual : dtype of a call's second operand, or None.
    result : dtype of what a call returns: int32 or float32 sums, or codes.
    known : by the shape of an x without residual, the shape of its result and the compiled calls that make it.
    """

    shape: tuple[int, int]
    why: Decision
    activation: np.dtype[Any]
    residual: np.dtype[Any] | None
    result: np.dtype[Any]
    run: Run
    known: dict[tuple[int, ...], tuple[tuple[int, int], Calls]] = field(default_factory=dict, repr=False)

    def __call__(
        self, x: NDArray[Any], *, residual: NDArray[Any] | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """The layer's result [rows, N] for x [rows, K], rows >= 0.

        x : of dtype `activation`; fastest when C-contiguous and 64-byte aligned (`aligned_empty`).
        residual : [rows, N] of dtype `residual`, given if and only if that is not None.
        out : [rows, N] of dtype `result`, C-contiguous and writeable, to write and return; new memory costs a page
            fault every 4 KiB. Raises ModelError when an argument does not fit.
        """
        # Whatever this looks at takes 2 us, as long as a small kernel; the first lines are the same in less than one.
        if type(x) is np.ndarray and type(out) is np.ndarray and residual is None:
            known = self.known.get(x.shape)
            if known is not None and x.dtype is self.activation and out.dtype is self.result:
                shape, calls = known
                if out.shape == shape and x.flags.c_contiguous and out.flags.carray:
                    for code, constants in calls:
                        code(x, out, out, None, *constants)
                    return out
        return self._call(x, residual, out)

    def _call(self, x: NDArray[Any], residual: NDArray[Any] | None, out: NDArray[Any] | None) -> NDArray[Any]:
        columns, inputs = self.shape
        if type(x) is not np.ndarray or x.dtype != self.activation or x.ndim != 2 or x.shape[1] != inputs:
            self._refuse("x", x, self.activation, f"(rows, {inputs})")
        if out is None:
            out = aligned_empty((x.shape[0], columns), self.result)
        self.check(x.shape[0], out, residual)
        if x.shape[0] > 0:
            calls = self.run(x, out, residual)
            if calls is not None and residual is None and len(self.known) < _SHAPES:
                self.known[x.shape] = (out.shape, calls)
        return out

    def check(self, rows: int, out: NDArray[Any], residual: NDArray[Any] | None) -> None:
        """Raise ModelError when these are not what a call on so many rows can take."""
        shape = (rows, self.shape[0])
        if type(out) is not np.ndarray or out.dtype != self.result or out.shape != shape or not out.flags.carray:
            self._refuse("out", out, self.result, f"{shape}, C-contiguous and writeable")
        if residual is None:
            if self.residual is not None:
                raise ModelError(f"residual must be given, of {self.residual}, for this layer, not None")
        elif self.residual is None:
            raise ModelError("residual must be None: the layer was prepared without one")
        elif type(residual) is not np.ndarray or residual.dtype != self.residual or residual.shape != shape:
            self._refuse("residual", residual, self.residual, str(shape))

    def _refuse(self, name: str, array: Any, dtype: np.dtype[Any], shape: str) -> None:
        found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ModelError(f"{name} must be an ndarray of {dtype} of shape {shape} for this layer, not {found}")


def prepare(
    weight: Weight,
    *,
    activation: CodeType = "uint8",
    zero_point: int = 0,
    bias: NDArray[np.int32] | None = None,
    requant: Requant | None = None,
    result: CodeType | None = None,
    residual: CodeType | None = None,
    table: Codes | None = None,
    threads: int = 1,
    features: frozenset[str] | None = None,
    segment: int | None = None,
) -> Layer:
    """Make a layer of a weight.

        sums = (x - zero_point) @ weight.T + bias                                                 without requant
        codes = gossamer.arch.numerics.requantise(sums - bias, bias, requant, residual, table)    with it, bit for bit

    weight : int8 [N, K] of any format; later changes to its arrays are not seen.
    activation : dtype of the codes x.  zero_point : of x, a code of that dtype.
    bias : int32 [N], or None for zeros.
    requant : multiplier and shift per output; lo and hi are codes of the result (of int8 or uint8 alike when there is
        a table). Real scales: `gossamer.arch.numerics.make_requant`; a float32 one is held exactly.
        None: the result is int32 sums.
    result : dtype of the codes that come out; None: that of the activations.
    residual : dtype of a second operand of every call, which requant adds; None: there is none.
    table : 256 codes of the result's dtype, looked up by the requantised code, or None.
    threads : over which a call's work is divided; results do not depend on it.
    features : of the processor, see `choose`.  segment : see `gossamer.kernels.pack.pack`.

    Sums wrap at 32 bits, so they are exact whenever the true one fits: the caller proves it (`max_accumulator`).
    Raises ModelError when an argument does not fit.
    """
    code, codes = _code_type("activation", activation), _code_type("result", result or activation)
    second = None if residual is None else _code_type("residual", residual)
    check_zero_point(zero_point, code)
    check_int("threads", threads, 1)
    packed = pack(weight, features=features, segment=segment)
    if packed is not None:
        start_compiler()
    n = weight.shape[0]
    biases = np.zeros(n, np.int32) if bias is None else bias
    check_array("bias", biases, [np.int32], 1)
    if biases.shape != (n,):
        raise ModelError(f"bias must have shape ({n},), one an output, not {biases.shape}")
    if requant is None and (second is not None or table is not None):
        raise ModelError("requant must be given where there is a residual or a table, not None")
    scaling = None
    if requant is not None:
        signed = bool(code == np.int8)
        bound = max_accumulator(weight, biases, zero_point=zero_point, signed=signed)
        scaling = make_scaling(
            requant, biases, bound, codes, second, table, packed.slots if packed else -(-n // 16) * 16
        )
    if packed is None:
        run = _reference(weight, zero_point, biases, requant, table)
        why = Decision(kernel="reference", reason="NUMBA_DISABLE_JIT is set, and vectors exist in compiled code only")
    else:
        shift = zero_point + (128 if code == np.int8 else 0)
        begin = -shift * weight.to_dense().sum(axis=1, dtype=np.int64)
        if scaling is None or not scaling.with_bias:
            begin += biases
        run, why = _vectorised(packed, begin, code, scaling, threads), packed.decision
        if segment is None and _takes_lines(weight, packed):
            assert isinstance(run, Vectorised)
            groups, first = lay_out_groups(weight.to_dense()), begin.astype(np.int32)
            run = OnLines(run, groups, first, _after(scaling), threads=threads)
            why = replace(why, reason=f"{why.reason}; rows that fill tiles of {TILE} are turned into lines instead")
    return Layer(
        shape=weight.shape,
        why=why,
        activation=code,
        residual=second,
        result=np.dtype(np.int32) if requant is None else codes,
        run=run,
    )


def _code_type(name: str, value: object) -> np.dtype[Any]:
    if value not in ("int8", "uint8"):
        raise ModelError(f"{name} must be 'int8' or 'uint8', not {value!r}")
    return np.dtype(str(value))


def _reference(
    weight: Weight, zero_point: int, bias: NDArray[np.int32], requant: Requant | None, table: Codes | None
) -> Run:
    def run(x: Codes, out: NDArray[Any], residual: Codes | None, begins: Begins = None) -> None:
        assert begins is None
        sums = spmm(x, weight, zero_point=zero_point)
        out[...] = sums + bias if requant is None else requantise(sums, bias, requant, residual, table)

    return run


def _takes_lines(weight: Weight, packed: Packed) -> bool:
    """Whether rows of 64 and more have a layout of their own: where dot products of 512 bits are an instruction."""
    if packed.decision.kernel != "shared" or "avx512vnni" not in usable_features() or not isinstance(weight, BSR):
        return False
    return suits_lines(weight.shape, weight.data.size / (weight.shape[0] * weight.shape[1]))


def _after(scaling: Scaling | None) -> tuple[Any, ...] | None:
    return None if scaling is None else (scaling.scale, scaling.limits, scaling.mixing, scaling.table)


def _vectorised(
    packed: Packed, begin: NDArray[np.int64], activation: np.dtype[Any], scaling: Scaling | None, threads: int
) -> Run:
    """begin : int64 [N], what an output's sum starts from."""
    padded = np.pad(begin, (0, packed.slots - begin.size))
    first = np.where(packed.outputs < 0, 0, padded[packed.outputs]).astype(np.int32).reshape(-1)
    after = _after(scaling)
    if {"avx512vnni", "avxvnni"} & usable_features():
        tallest = _TILES[packed.decision.kernel, packed.width, packed.dwords]
        return Vectorised(packed, first, after, tallest=tallest, mode=None, threads=threads)
    run = Vectorised(packed, first, after, tallest=2, mode=(), threads=threads)
    if activation == np.uint8:
        return run

    def unsigned(x: NDArray[Any], out: NDArray[Any], residual: Codes | None, begins: Begins = None) -> None:
        # 16-bit products of codes moved in place compile for minutes.
        run(x.view(np.uint8) ^ np.uint8(128), out, residual, begins)

    return unsigned
