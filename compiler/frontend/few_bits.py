"""Weights of 2 to 8 bits in blocks, as language models store them: com.microsoft's MatMulNBits as a MatMul.

A scale for every block along the reduction is more than the array has, so the weight is taken for what it is worth,
and the quantise pass gives it 8 bits a channel anew.
"""

import numpy as np

from gossamer.compiler.frontend.nodes import Nodes
from gossamer.compiler.frontend.ops import Array

__all__ = ["unfold_few_bits"]


def unfold_few_bits(nodes: Nodes) -> str | None:
    """MatMulNBits(x, codes, scales, zero points, group index, bias); returns why one stays as it is."""
    bits, block = nodes.attributes.get("bits", 4), nodes.attributes["block_size"]
    k, n = nodes.attributes["K"], nodes.attributes["N"]
    codes, scales, zeros = (nodes.value(i) for i in (1, 2, 3))
    if codes is None or scales is None or (nodes.input(3) and zeros is None):
        return "weights that are computed at run time"
    if nodes.input(4) or bits not in (2, 4, 8):
        return "a group index" if nodes.input(4) else f"{bits} bits"
    blocks = -(-k // block)
    unpacked = _unpacked(codes.reshape(n, -1), bits)[:, : blocks * block].reshape(n, blocks, block)
    middle: Array = np.full((n, blocks), float(1 << (bits - 1)))
    if zeros is not None:
        middle = zeros.reshape(n, -1) if zeros.dtype.kind == "f" else _unpacked(zeros.reshape(n, -1), bits)
    weight = (unpacked - middle[:, :blocks, np.newaxis].astype(np.float64)) * scales.reshape(n, blocks, 1)
    matrix = nodes.constant("weight", weight.reshape(n, -1)[:, :k].T)
    biased = nodes.input(5)
    y = nodes.add("MatMul", (nodes.input(0), matrix), main=True, outputs=() if biased else nodes.op.outputs)
    if biased:
        nodes.add("Add", (y, biased), outputs=nodes.op.outputs)
    nodes.graph.notes.append(
        f"{nodes.op.name}: its weight has {bits} bits with a scale for every {block} inputs; it is quantised anew, to "
        "8 bits a channel"
    )
    return None


def _unpacked(packed: Array, bits: int) -> Array:
    """uint8 [rows, bytes] to codes [rows, bytes * 8 / bits], the lowest bits of a byte first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, :, np.newaxis] >> shifts) & ((1 << bits) - 1)).reshape(len(packed), -1).astype(np.float64)
