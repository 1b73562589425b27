"""Products of rows with a packed weight, by vectors, and what follows them fused: compiled, and trusting.

    out = (x - zero_point) @ weight.T     x : uint8 or int8 codes [rows, K], C-contiguous;  weight : [N, K], packed

The multiplier takes unsigned codes: an int8 code is moved by 128 as it is loaded, as is its zero point, and the zero
point's share, -zero_point times the sum of an output's weights, is what its accumulators start from, with the bias.

Rows are worked on by tiles of `height`; the last tile overlaps the one before it rather than being shorter. A strip of
rows meets one group of outputs after the other, so that the group's weights come from the nearest cache for all of its
tiles but the first.

    product          a range of rows and of groups
    product_parts    all of them in parts, which threads share

Arguments, after x and out, which a caller chooses anew for each call:

    residual         any array where there is none
    begins           None, or int64 [rows]: at which of its bytes each row begins in x, which then is [1, anything]
    packed           (data, pointers, places) of kernels/pack.py, and first, int32 [groups, accumulators of a row, 16]:
                     what they start from
    after            None for int32 sums. Else what follows them: see `finish`
    height, width,   tuples whose lengths are what counts, since a length is a type: kernels/intrinsics.py. by : dwords
    by, run          with kernels dense and blocks, share with select and shared; run : steps of an entry
    picked           None with kernels dense and blocks, () with select and shared
    outputs          of a group
    strip            about how many rows are a strip, at least the height of a tile
    mode             None, or () for portable code: kernels/vectors.py

What is None is not compiled.
"""

from typing import Any

from numpy.typing import NDArray

from gossamer.arch.jit import jit, parallel_jit, prange
from gossamer.kernels.intrinsics import finish, load_int64, look, multiply, row_starts, settle, start

__all__ = ["product", "product_parts"]


@jit
def product(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    begins: Any,
    packed: Any,
    after: Any,
    height: Any,
    width: Any,
    by: Any,
    run: Any,
    picked: Any,
    outputs: int,
    strip: int,
    mode: Any,
    top: int,
    bottom: int,
    begin: int,
    end: int,
) -> None:
    """out : [rows, N], of which rows [top, bottom), at least a tile, and outputs of groups [begin, end) are written."""
    data, pointers, places, first = packed
    columns, step = out.shape[1], strip // len(height) * len(height)
    for upper in range(top, bottom, step):
        for group in range(begin, end):
            channel = group * outputs
            for tile in range(upper, min(upper + step, bottom), len(height)):
                row = min(tile, bottom - len(height))
                starts = row_starts(height, begins, row, x.strides[0])
                acc = start(starts, width, by, picked, first, group)
                number = load_int64(pointers, group) * len(run)
                for entry in range(load_int64(pointers, group), load_int64(pointers, group + 1)):
                    seen = look(x, starts, load_int64(places, entry), picked)
                    for piece in range(len(run)):
                        acc = multiply(acc, width, by, picked, x, seen, piece, data, number, mode)
                        number += 1
                sums, place = settle(acc, by, picked), row * columns + channel
                finish(sums, starts, out, place, columns, columns - channel, channel, residual, after, mode)


@parallel_jit
def product_parts(
    x: NDArray[Any],
    out: NDArray[Any],
    residual: NDArray[Any],
    begins: Any,
    packed: Any,
    after: Any,
    height: Any,
    width: Any,
    by: Any,
    run: Any,
    picked: Any,
    outputs: int,
    strip: int,
    mode: Any,
    parts: int,
) -> None:
    """parts : how many; some tiles of rows each, or where there are too few of them some groups."""
    count, groups = out.shape[0], packed[1].size - 1
    tiles = count // len(height)
    for part in prange(parts):
        top, bottom, begin, end = 0, count, 0, groups
        if tiles < parts:
            begin, end = groups * part // parts, groups * (part + 1) // parts
        else:
            top = tiles * part // parts * len(height)
            bottom = count if part == parts - 1 else tiles * (part + 1) // parts * len(height)
        product(
            x, out, residual, begins, packed, after, height, width, by, run, picked, outputs, strip, mode,
            top, bottom, begin, end,
        )  # fmt: skip
