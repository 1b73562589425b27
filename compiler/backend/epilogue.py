"""What follows a layer's sums: fields of its DRAINs, the parameters of its channels, its table."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.arch.errors import CapacityError, ModelError
from gossamer.arch.numerics import SHIFT_MIN, make_requant
from gossamer.compiler.backend.problem import Problem
from gossamer.compiler.layers import MaxPool

__all__ = ["Epilogue", "make_epilogue"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Epilogue:
    """drain : fields that all DRAINs of the layer share.

    parameters : uint8 [output blocks, 8 * block], as they lie in DRAM;  table : uint8 [256] or None.
    """

    drain: dict[str, int]
    parameters: NDArray[np.uint8]
    table: NDArray[np.uint8] | None


def make_epilogue(problem: Problem) -> Epilogue:
    """A layer's epilogue. Raises ModelError for scales that cannot be held, CapacityError without a table to use."""
    layer, spec = problem.layer, problem.spec
    channels, residual = problem.output.shape[1], problem.residual
    table: NDArray[np.uint8] | None = None
    if isinstance(layer, MaxPool):  # codes pass unchanged
        scale, bias = np.ones(channels), np.zeros(channels, dtype=np.int64)
        zero_point, ratio = problem.inputs[0].zero_point, None
    else:
        scale, bias, zero_point = layer.scale, layer.bias.astype(np.int64), layer.zero_point
        ratio = layer.residual_ratio if residual else None
        table = layer.table
    if table is not None and spec.tables == 0:
        raise CapacityError(
            f"layer {layer.name!r} needs a table, and spec {spec.name!r} has buffers.tables = 0; 1 to 4 are legal"
        )
    try:
        q = make_requant(scale, zero_point=zero_point, lo=layer.lo, hi=layer.hi, residual_ratio=ratio)
    except ValueError as error:
        raise ModelError(f"layer {layer.name!r}: {error}") from error
    drain = {
        "column_groups": spec.column_groups,
        "zero_point": zero_point,
        "lo": layer.lo,
        "hi": layer.hi,
        "table_enable": int(table is not None),
    }
    if residual is not None:
        drain |= {
            "residual": 1,
            "residual_signed": int(residual.signed),
            "residual_zero": residual.zero_byte,
            "residual_multiplier": q.residual_multiplier,
            "residual_shift": q.residual_shift,
        }
    padded = problem.output.blocks * spec.block
    multiplier_of = np.zeros(padded, dtype=np.int64)
    shift_of = np.full(padded, max(q.residual_shift, SHIFT_MIN), dtype=np.int64)
    bias_of = np.zeros(padded, dtype=np.int64)
    multiplier_of[:channels], shift_of[:channels], bias_of[:channels] = q.multiplier, q.shift, bias
    words = np.stack([bias_of & 0xFFFFFFFF, multiplier_of | shift_of << 24], axis=1).astype("<u4")
    return Epilogue(drain=drain, parameters=words.view(np.uint8).reshape(-1, spec.block * 8), table=table)
