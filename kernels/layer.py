"""A linear layer made ready once and called often: `prepare(weight, ...)` gives a `Layer`, and a layer is a function.

Everything that does not depend on the activations is done when the layer is made: the weight is packed for the kernel
that was chosen, the zero point's share and the bias become what accumulators start from, the parameters of the
requantisation are proved and laid out. A call checks the activations and enters compiled code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.numerics import Requant
from gossamer.kernels.checks import check_array, check_int, check_zero_point
from gossamer.kernels.choose import Decision
from gossamer.kernels.epilogue import requantise
from gossamer.kernels.fast import packed_linear, packed_matmul
from gossamer.kernels.formats import Weight
from gossamer.kernels.matmul import spmm
from gossamer.kernels.pack import pack

__all__ = ["Layer", "prepare"]

Codes = NDArray[np.int8] | NDArray[np.uint8]
CodeType = Literal["int8", "uint8"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A weight with all that belongs to it, ready to be applied: `layer(x)`. Made by `prepare`.

    weight : what it multiplies with, [N, K].  why : the kernel, and the reason for it.
    activation : dtype of x.  result : dtype of what a call returns: int32 sums without a requantisation, else codes.
    """

    weight: Weight
    why: Decision
    activation: np.dtype[Any]
    result: np.dtype[Any]
    run: Callable[[Codes, Codes | None, NDArray[Any] | None], NDArray[Any]]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight.shape

    def __call__(self, x: Codes, *, residual: Codes | None = None, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The layer's result [rows, N] for x [rows, K], rows >= 0.

        x : of dtype `activation`; fastest when C-contiguous.
        residual : codes [rows, N] of the dtype that `prepare` was told, given if and only if it was.
        out : [rows, N] of dtype `result`, C-contiguous and writeable, to write and return; new memory costs a page
            fault every 4 KiB. Raises ModelError when an argument does not fit.
        """
        return self.run(x, residual, out)


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
) -> Layer:
    """Make a layer of a weight.

        sums = (x - zero_point) @ weight.T + bias                                    int32, without requant
        codes = gossamer.arch.numerics.requantise(sums - bias, bias, requant, residual, table)     with it, bit for bit

    weight : int8 [N, K] of any format; later changes to its arrays are not seen.
    activation : dtype of the codes x.  zero_point : of x, a code of that dtype.
    bias : int32 [N], or None for zeros.
    requant : multiplier and shift per output; lo and hi are codes of the result (of int8 or uint8 alike when there is
        a table). None: the result is int32 sums.
    result : dtype of the codes that come out; None: that of the activations.
    residual : dtype of a second operand of every call, which requant adds; None: there is none.
    table : 256 codes of the result's dtype, looked up by the requantised code, or None.
    threads : over which a call's work is divided; results do not depend on it.
    features : of the processor, see `choose`.

    Sums wrap at 32 bits, so they are exact whenever the true one fits: the caller proves it (`max_accumulator`).
    Raises ModelError when an argument does not fit.
    """
    dtype, codes = np.dtype(activation), np.dtype(result or activation)
    check_zero_point(zero_point, dtype)
    check_int("threads", threads, 1)
    packed = pack(weight, features=features)
    biases = np.zeros(packed.shape[0], np.int32) if bias is None else bias
    signed = codes == np.int8

    def run(x: Codes, residuals: Codes | None, out: NDArray[Any] | None) -> NDArray[Any]:
        check_array("x", x, [dtype.type], 2)
        if (residuals is None) != (residual is None):
            raise ModelError(f"residual must be given to a layer prepared with one, and only then: {residual}")
        if packed.decision.kernel == "reference":
            sums = spmm(x, packed, zero_point=zero_point)
            made: NDArray[Any] = sums + biases
            if requant is not None:
                made = requantise(sums, biases, requant, residuals, table).astype(codes)
            if out is None:
                return made
            out[...] = made
            return out
        if requant is not None:
            return packed_linear(
                x, packed, biases, requant, zero_point=zero_point, signed=bool(signed), residual=residuals, table=table,
                out=out,
            )  # fmt: skip
        total = packed_matmul(x, packed, zero_point=zero_point, out=out)
        total += biases
        return total

    return Layer(
        weight=weight,
        why=packed.decision,
        activation=dtype,
        result=np.dtype(np.int32) if requant is None else codes,
        run=run,
    )
