"""Find the pattern that is already in a weight.

A pattern is reported when it explains the zeros: N:M not merely because some N holds for random zeros, but because
nearly all of the N are used; a block only when blocks are full or empty.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.compiler.sparsity.patterns import (
    NM,
    VNM,
    Array,
    Block,
    BlockDiagonal,
    Butterfly,
    Combined,
    Dense,
    FanIn,
    Grouped,
    Mask,
    Pattern,
    Taps,
    Transposable,
    Unstructured,
    channel_rows,
)

__all__ = ["classify"]

EXPLAINED = 0.85
"""Share of the places a pattern allows that nonzeros must use. Quantisation adds a few zeros of its own."""

NEARLY_DENSE = 0.01
"""Up to this share of zeros, a weight is called dense."""

_SIDES = (1, 2, 4, 8, 16, 32, 64)


def classify(weight: Array, groups: int = 1) -> Pattern:
    """The pattern of a weight [out_channels, in_channels / groups, *kernel].

    groups : of the convolution. A grouped convolution without zeros of its own is reported as grouped or depthwise.
    """
    used = weight != 0
    share = 1.0 - int(np.count_nonzero(used)) / max(1, used.size)
    if share <= NEARLY_DENSE:
        return Grouped(groups, depthwise=weight.shape[1] == 1) if groups > 1 else Dense()
    if share >= 1.0:
        return Unstructured(1.0)
    rows = np.ascontiguousarray(channel_rows(used))
    density = 1.0 - share
    found = _fixed(used, density) or _block(rows, share) or _vnm(rows, density) or _nm_both(rows, density)
    if found is None and rows.shape[1] > 1:
        found = _nm(used.reshape(len(used), 1, -1), density, flat=True) or _taps(used, density)
    if found is None:
        fan_in = used.reshape(len(used), -1).sum(axis=1)
        found = FanIn(float(1.0 - fan_in[0] / rows[0].size)) if fan_in[0] and (fan_in == fan_in[0]).all() else None
    return found or _blocks_of_nm(rows, density) or Unstructured(share)


def _fixed(used: Mask, density: float) -> Pattern | None:
    """A block-diagonal or butterfly mask that explains the nonzeros."""
    candidates: list[Pattern] = [BlockDiagonal(max(2, round(1.0 / density)))]
    for side in _SIDES[2:]:
        blocks = min(used.shape[:2]) // side
        for stride in (2, 4, 8, 16, 32, 64):
            if blocks >= 4 and stride <= blocks and density <= (stride.bit_length() / blocks) <= density / EXPLAINED:
                candidates.append(Butterfly(side, stride))
    for pattern in candidates:
        if pattern.refusal(used.shape):
            continue
        keep = pattern.mask(used)
        if density >= EXPLAINED * keep.mean() and not (used & ~keep).any():
            return pattern
    return None


def _nm_both(rows: Mask, density: float) -> Pattern | None:
    """N:M, transposable when it holds along the output channels too."""
    found = _nm(rows, density, flat=False)
    if found is None or rows.shape[0] % found.m or rows.shape[2] % found.m:
        return found
    across = rows.reshape(-1, found.m, *rows.shape[1:]).sum(axis=1)
    return Transposable(found.n, found.m) if int(across.max()) <= found.n else found


def _taps(used: Mask, density: float) -> Pattern | None:
    """So many taps of every kernel."""
    kernels = used.reshape(*used.shape[:2], -1)
    n = int(kernels.sum(axis=2).max())
    return Taps(n) if n < kernels.shape[2] and density >= EXPLAINED * n / kernels.shape[2] else None


def _blocks_of_nm(rows: Mask, density: float) -> Pattern | None:
    """Square blocks that are empty or N:M, the largest that explain the nonzeros."""
    for side in (64, 32, 16, 8):
        if rows.shape[0] % side or rows.shape[2] % side:
            continue
        tiles = rows.reshape(rows.shape[0] // side, side, rows.shape[1], rows.shape[2] // side, side)
        busy = float(tiles.any(axis=(1, 4)).mean())
        inner = _nm(rows, density / busy, flat=False) if busy <= 0.95 else None
        if inner is not None:
            return Combined((Block(side, side, 1.0 - busy), inner))
    return None


def _counts(values: NDArray[np.uint16], axis: int) -> NDArray[np.uint16]:
    """Neighbours along an axis added in pairs; a last one without a partner stays."""
    if values.shape[axis] % 2:
        pad = [(0, 0)] * values.ndim
        pad[axis] = (0, 1)
        values = np.pad(values, pad)
    even = [slice(None)] * values.ndim
    odd = [slice(None)] * values.ndim
    even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
    return values[tuple(even)] + values[tuple(odd)]


def _nm(rows: Mask, density: float, *, flat: bool) -> NM | None:
    """The N:M of smallest N/M that explains the nonzeros; of equals the one of smallest M."""
    best: NM | None = None
    counts = rows.astype(np.uint16)
    for m in (2, 4, 8, 16, 32):
        if rows.shape[2] < m:
            break
        counts = _counts(counts, 2)
        n = int(counts.max())
        explained = density >= EXPLAINED * n / m and n < m
        if explained and (best is None or n / m < best.n / best.m):
            best = NM(n, m, flat)
    return best


def _block(rows: Mask, share: float) -> Pattern | None:
    """The largest block (of at least four elements) such that every block is empty or full."""
    best: tuple[int, int] | None = None
    tall = rows.astype(np.uint16)
    for height in _SIDES:
        if rows.shape[0] % height:
            break
        counts = tall
        for width in _SIDES:
            if rows.shape[2] % width:
                break
            area = height * width
            busy = int(np.count_nonzero(counts))
            full = busy * area * (1.0 - NEARLY_DENSE) <= (1.0 - share) * rows.size
            if not full and area > 1:
                break  # a wider block contains this one: it cannot be full either
            if area >= 4 and (best is None or area > best[0] * best[1]):
                best = height, width
            counts = _counts(counts, 2)
        tall = _counts(tall, 0)
    return None if best is None else Block(*best, share)


def _vnm(rows: Mask, density: float) -> Pattern | None:
    """The V:N:M of largest V that explains the nonzeros."""
    for v in (128, 64, 32, 16, 8):
        if rows.shape[0] % v:
            continue
        for m in (8, 16, 32, 64):
            if rows.shape[2] % m:
                break
            tiles = rows.reshape(rows.shape[0] // v, v, rows.shape[1], rows.shape[2] // m, m)
            if int(tiles.any(axis=1).sum(axis=-1).max()) > VNM.shared:
                continue
            n = int(tiles.sum(axis=-1).max())
            if n < VNM.shared and density >= EXPLAINED * n / m:
                return VNM(v, n, m)
    return None
