"""Matrix products, by plain loops, of 8-bit activations with a weight in any format: out = (x - zero_point) @ weight.T.

    x : uint8 or int8 codes [rows, K];  weight : [N, K], see formats;  out : int32 [rows, N]

Accumulators are int32 and must not overflow, which nothing here looks at: the caller proves it (`max_accumulator`).
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import ModelError
from gossamer.arch.jit import jit
from gossamer.kernels.checks import check_array, check_zero_point, to_operand
from gossamer.kernels.formats import BSR, CSR, NM, Dense, Weight

__all__ = ["bsr_matmul", "csr_matmul", "dense_matmul", "nm_matmul", "spmm"]

Codes = NDArray[np.int8] | NDArray[np.uint8]


def spmm(x: Codes, weight: Weight, *, zero_point: int = 0) -> NDArray[np.int32]:
    """The product by the function of the weight's format. Raises ModelError as that function does."""
    match weight:
        case Dense():
            return dense_matmul(x, weight, zero_point=zero_point)
        case NM():
            return nm_matmul(x, weight, zero_point=zero_point)
        case BSR():
            return bsr_matmul(x, weight, zero_point=zero_point)
        case CSR():
            return csr_matmul(x, weight, zero_point=zero_point)
    raise ModelError(f"weight must be a Dense, NM, BSR or CSR, not {type(weight).__name__}")


def dense_matmul(x: Codes, weight: Dense, *, zero_point: int = 0) -> NDArray[np.int32]:
    """out[r, i] = sum over k of (x[r, k] - zero_point) * data[i, k].

    x : uint8 or int8 [rows, K], rows >= 0; zero_point : a code of x's dtype. Returns int32 [rows, N].
    Raises ModelError when x or zero_point does not fit.
    """
    operand, out = _prepare(x, weight, zero_point)
    _dense(operand, weight.data, out)
    return out


def nm_matmul(x: Codes, weight: NM, *, zero_point: int = 0) -> NDArray[np.int32]:
    """out[r, i] = sum over g, s of (x[r, g * m + indices[i, g, s]] - zero_point) * values[i, g, s].

    Arguments, result and errors as of `dense_matmul`.
    """
    operand, out = _prepare(x, weight, zero_point)
    _nm(operand, weight.values, weight.indices, weight.m, out)
    return out


def bsr_matmul(x: Codes, weight: BSR, *, zero_point: int = 0) -> NDArray[np.int32]:
    """out[r, i] = sum over the blocks b of i's block row, and over their columns c,
    of (x[r, indices[b] * bc + c] - zero_point) * data[b, i mod br, c].

    Arguments, result and errors as of `dense_matmul`.
    """
    operand, out = _prepare(x, weight, zero_point)
    _bsr(operand, weight.data, weight.indices, weight.indptr, out)
    return out


def csr_matmul(x: Codes, weight: CSR, *, zero_point: int = 0) -> NDArray[np.int32]:
    """out[r, i] = sum over the entries e of row i of (x[r, indices[e]] - zero_point) * data[e].

    Arguments, result and errors as of `dense_matmul`.
    """
    operand, out = _prepare(x, weight, zero_point)
    _csr(operand, weight.data, weight.indices, weight.indptr, out)
    return out


def _prepare(x: Codes, weight: Weight, zero_point: int) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Check the activations against the weight; the operand int16 [rows, K] and a cleared out int32 [rows, N]."""
    check_array("x", x, [np.int8, np.uint8], 2)
    out_features, in_features = weight.shape
    if x.shape[1] != in_features:
        raise ModelError(f"x must have shape (rows, {in_features}) for this weight, not {x.shape}")
    operand = to_operand(x, check_zero_point(zero_point, x.dtype))
    return operand, np.zeros((x.shape[0], out_features), dtype=np.int32)


# Products are cast to int32 because numba widens int32 * int16 to int64, which halves the width of the vector code.


@jit
def _dense(x: NDArray[np.int16], data: NDArray[np.int8], out: NDArray[np.int32]) -> None:
    for r in range(x.shape[0]):
        for i in range(data.shape[0]):
            total = np.int32(0)
            for k in range(data.shape[1]):
                total = np.int32(total + np.int32(np.int32(data[i, k]) * x[r, k]))
            out[r, i] = total


@jit
def _nm(
    x: NDArray[np.int16], values: NDArray[np.int8], indices: NDArray[np.integer], m: int, out: NDArray[np.int32]
) -> None:
    out_features, groups, n = values.shape
    for r in range(x.shape[0]):
        for i in range(out_features):
            total = np.int32(0)
            for g in range(groups):
                for s in range(n):
                    k = g * m + np.int64(indices[i, g, s])
                    total = np.int32(total + np.int32(np.int32(values[i, g, s]) * x[r, k]))
            out[r, i] = total


@jit
def _bsr(
    x: NDArray[np.int16],
    data: NDArray[np.int8],
    indices: NDArray[np.int32],
    indptr: NDArray[np.int32],
    out: NDArray[np.int32],
) -> None:
    _, br, bc = data.shape
    for r in range(x.shape[0]):
        for block_row in range(indptr.size - 1):
            first = block_row * br
            height = min(br, out.shape[1] - first)
            for b in range(indptr[block_row], indptr[block_row + 1]):
                left = np.int64(indices[b]) * bc
                width = min(bc, x.shape[1] - left)
                for i in range(height):
                    total = out[r, first + i]
                    for c in range(width):
                        total = np.int32(total + np.int32(np.int32(data[b, i, c]) * x[r, left + c]))
                    out[r, first + i] = total


@jit
def _csr(
    x: NDArray[np.int16],
    data: NDArray[np.int8],
    indices: NDArray[np.int32],
    indptr: NDArray[np.int32],
    out: NDArray[np.int32],
) -> None:
    for r in range(x.shape[0]):
        for i in range(indptr.size - 1):
            total = np.int32(0)
            for e in range(indptr[i], indptr[i + 1]):
                total = np.int32(total + np.int32(np.int32(data[e]) * x[r, indices[e]]))
            out[r, i] = total
