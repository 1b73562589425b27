"""Products of rows of codes with a packed weight, by vectors, and what follows them fused: compiled, and trusting.

    out = (x - zero_point) @ weight.T     x : uint8 or int8 codes [rows, K], C-contiguous;  weight : [N, K], packed

The multiplier takes unsigned codes: an int8 code is moved by 128 as it is loaded, as is its zero point, and the zero
point's share, -zero_point times the sum of an output's weights, is what its accumulators start from, with the bias.

Rows are worked on by tiles of `height`; the last tile overlaps the one before it rather than being shorter. A strip of
rows meets one group of outputs after the other, so that the group's weights come from the nearest cache for all of its
tiles but the first.

Arguments of both kernels, after x, out and residual (any array where there is none: see `store_codes`), which a caller
chooses anew for each call:

    data, pointers, places       see kernels/pack.py
    first                        int32 [groups, accumulators of a row, 16]: what they start from
    scale                        None for int32 sums. Else codes come out, and limits, mixing, table are of the
                                 requantisation: see kernels/codes.py
    height, width, panel, ...    tuples whose lengths are what counts, since a length is a type: kernels/intrinsics.py
    strip                        rows of a strip, a multiple of the height of a tile
    mode                         None, or () for portable code: kernels/vectors.py
    begin, end                   groups that are computed
"""

from typing import Any

from numpy.typing import NDArray

from gossamer.arch.jit import jit, parallel_jit, prange
from gossamer.kernels.intrinsics import (
    fold,
    load_int64,
    mac_broadcast,
    mac_select,
    rows,
    start,
    store,
    store_codes,
    weave,
)

__all__ = ["broadcast", "broadcast_lines", "broadcast_parts", "select", "select_lines", "select_parts"]


@jit
def broadcast(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    data: Any,
    pointers: Any,
    places: Any,
    first: Any,
    scale: Any,
    limits: Any,
    mixing: Any,
    table: Any,
    height: Any,
    width: Any,
    panel: Any,
    dwords: Any,
    run: Any,
    strip: int,
    mode: Any,
    begin: int,
    end: int,
) -> None:
    """Kernels dense and blocks. out : int32 or bytes [rows, N], rows >= the height of a tile."""
    count, columns = out.shape
    stride = x.shape[1]
    for top in range(0, count, strip):
        for group in range(begin, end):
            channel = group * 16 * len(panel)
            for tile in range(top, min(top + strip, count), len(height)):
                row = min(tile, count - len(height))
                acc = start(height, width, first, group * 64 * len(width))
                at = load_int64(pointers, group) * len(run) * len(width) * 64
                for entry in range(load_int64(pointers, group), load_int64(pointers, group + 1)):
                    left = row * stride + load_int64(places, entry)
                    for _ in range(len(run)):
                        acc = mac_broadcast(acc, height, width, dwords, x, left, stride, data, at, mode)
                        left += 4 * len(dwords)
                        at += 64 * len(width)
                sums = fold(acc, dwords)
                place, left_over = row * columns + channel, columns - channel
                if scale is None:
                    store(sums, panel, out, place * 4, columns * 4, left_over)
                else:
                    store_codes(
                        sums,
                        panel,
                        out,
                        place,
                        columns,
                        left_over,
                        channel,
                        scale,
                        limits,
                        residual,
                        mixing,
                        table,
                        mode,
                    )


@jit
def select(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    data: Any,
    pointers: Any,
    places: Any,
    first: Any,
    scale: Any,
    limits: Any,
    mixing: Any,
    table: Any,
    height: Any,
    width: Any,
    panel: Any,
    share: Any,
    run: Any,
    strip: int,
    mode: Any,
    begin: int,
    end: int,
) -> None:
    """Kernels select and shared. out : int32 or bytes [rows, N], rows >= the height of a tile."""
    count, columns = out.shape
    stride = x.shape[1]
    for top in range(0, count, strip):
        for group in range(begin, end):
            channel = group * 16 * len(panel)
            for tile in range(top, min(top + strip, count), len(height)):
                row = min(tile, count - len(height))
                acc = start(height, panel, first, group * 64 * len(panel))
                at = load_int64(pointers, group) * len(run) * len(width) * (1 + len(share)) * 64
                for window in range(load_int64(pointers, group), load_int64(pointers, group + 1)):
                    seen = rows(height, x, row * stride + load_int64(places, window), stride)
                    for _ in range(len(run)):
                        acc = mac_select(acc, width, share, seen, data, at, mode)
                        at += len(width) * (1 + len(share)) * 64
                sums = weave(acc, share)
                place, left_over = row * columns + channel, columns - channel
                if scale is None:
                    store(sums, panel, out, place * 4, columns * 4, left_over)
                else:
                    store_codes(
                        sums,
                        panel,
                        out,
                        place,
                        columns,
                        left_over,
                        channel,
                        scale,
                        limits,
                        residual,
                        mixing,
                        table,
                        mode,
                    )


@jit
def _part(count: int, groups: int, height: int, part: int, parts: int) -> tuple[int, int, int, int]:
    """Rows and groups of one of `parts`: some tiles of rows, or where there are too few of them some groups."""
    tiles = count // height
    if tiles < parts:
        return 0, count, groups * part // parts, groups * (part + 1) // parts
    bottom = count if part == parts - 1 else tiles * (part + 1) // parts * height
    return tiles * part // parts * height, bottom, 0, groups


@parallel_jit
def broadcast_parts(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    data: Any,
    pointers: Any,
    places: Any,
    first: Any,
    scale: Any,
    limits: Any,
    mixing: Any,
    table: Any,
    height: Any,
    width: Any,
    panel: Any,
    dwords: Any,
    run: Any,
    strip: int,
    mode: Any,
    parts: int,
) -> None:
    """The same in parts, which threads share."""
    count, groups = x.shape[0], pointers.size - 1
    for part in prange(parts):
        top, bottom, begin, end = _part(count, groups, len(height), part, parts)
        broadcast(
            x[top:bottom], out[top:bottom], residual[top:bottom],
            data, pointers, places, first, scale, limits, mixing, table,
            height, width, panel, dwords, run, strip, mode, begin, end,
        )  # fmt: skip


@parallel_jit
def select_parts(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    data: Any,
    pointers: Any,
    places: Any,
    first: Any,
    scale: Any,
    limits: Any,
    mixing: Any,
    table: Any,
    height: Any,
    width: Any,
    panel: Any,
    share: Any,
    run: Any,
    strip: int,
    mode: Any,
    parts: int,
) -> None:
    """The same in parts, which threads share."""
    count, groups = x.shape[0], pointers.size - 1
    for part in prange(parts):
        top, bottom, begin, end = _part(count, groups, len(height), part, parts)
        select(
            x[top:bottom], out[top:bottom], residual[top:bottom],
            data, pointers, places, first, scale, limits, mixing, table,
            height, width, panel, share, run, strip, mode, begin, end,
        )  # fmt: skip


@jit
def broadcast_lines(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    begins: Any,
    count: int,
    pitch: int,
    data: Any,
    pointers: Any,
    places: Any,
    first: Any,
    scale: Any,
    limits: Any,
    mixing: Any,
    table: Any,
    height: Any,
    width: Any,
    panel: Any,
    dwords: Any,
    run: Any,
    strip: int,
    mode: Any,
) -> None:
    """The same on `count` rows, `pitch` codes apart, from each of begins on: x [codes], out [lines * count, N]."""
    for line in range(begins.size):
        top, begin = line * count, load_int64(begins, line)
        broadcast(
            x[begin : begin + count * pitch].reshape(count, pitch), out[top : top + count],
            residual[top : top + count],
            data, pointers, places, first, scale, limits, mixing, table,
            height, width, panel, dwords, run, strip, mode, 0, pointers.size - 1,
        )  # fmt: skip


@jit
def select_lines(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    begins: Any,
    count: int,
    pitch: int,
    data: Any,
    pointers: Any,
    places: Any,
    first: Any,
    scale: Any,
    limits: Any,
    mixing: Any,
    table: Any,
    height: Any,
    width: Any,
    panel: Any,
    share: Any,
    run: Any,
    strip: int,
    mode: Any,
) -> None:
    """The same on `count` rows, `pitch` codes apart, from each of begins on: x [codes], out [lines * count, N]."""
    for line in range(begins.size):
        top, begin = line * count, load_int64(begins, line)
        select(
            x[begin : begin + count * pitch].reshape(count, pitch), out[top : top + count],
            residual[top : top + count],
            data, pointers, places, first, scale, limits, mixing, table,
            height, width, panel, share, run, strip, mode, 0, pointers.size - 1,
        )  # fmt: skip
