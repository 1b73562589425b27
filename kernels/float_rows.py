"""A float32 weight laid out for the kernel of rows (kernels/fast.py): `lay_out_rows(...)`.

A float32 is a dword like four codes: the layout is that of kernels dense and blocks (kernels/pack.py), with a fused
multiply-add in the place of dot4. Activations and sums stay rows, which nothing has to turn, and an input is shared by
16 outputs or more: for dense weights and blocks. Where cells of `width` times 16 outputs by `run` inputs have a
nonzero, all of the cell is multiplied; of a few widths and runs the cheapest are taken, zeros counted.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.kernels.choose import Decision
from gossamer.kernels.float_panels import Nonzeros
from gossamer.kernels.pack import Packed
from gossamer.kernels.vectors import LANES, aligned_empty

__all__ = ["lay_out_rows"]

_COSTS = {(4, 4): 1.0, (4, 2): 1.03, (4, 1): 1.05, (2, 4): 1.03, (2, 1): 1.1, (1, 4): 1.05, (1, 1): 1.2}
"""Time of a weight by width and run, against the widest: smaller cells wait for loads."""


def lay_out_rows(weight: Nonzeros, *, length: int, widest: int) -> tuple[float, Packed]:
    """The layout, and what it costs: weights that are multiplied, those of small cells counting more.

    length : inputs that lie side by side, a divisor of K.  widest : vectors of a cell at most.
    """
    (n, inputs), i, k, values = weight.shape, weight.i, weight.k, weight.values
    sixteens = -(-n // LANES)
    mask = np.zeros((sixteens + -sixteens % 4, inputs), dtype=bool)
    mask[i // LANES, k] = True
    costs = {}
    for (width, run), cost in _COSTS.items():
        if width <= widest and length % run == 0:
            cells: NDArray[np.bool_] = np.any(mask.reshape(-1, width, inputs // run, run), axis=(1, 3))
            costs[width, run] = (float(cost * np.count_nonzero(cells) * LANES * width * run), cells)
    (width, run), (cost, cells) = min(costs.items(), key=lambda item: item[1][0])
    groups = -(-sixteens // width)
    cells = cells[:groups]
    group, place = np.nonzero(cells)
    number = np.cumsum(cells.reshape(-1)).reshape(cells.shape) - 1
    data = aligned_empty((place.size, run, width, LANES), np.float32)
    data[...] = 0
    data[number[i // (width * LANES), k // run], k % run, i // LANES % width, i % LANES] = values
    kept = values.size / (n * inputs)
    name, reason = (
        "blocks",
        f"{kept:.0%} is kept, and {values.size / max(1, data.size):.0%} of cells that outputs share",
    )
    if cells.all():
        name, reason = "dense", f"{kept:.0%} is kept, with nothing to leave out"
    return cost, Packed(
        shape=weight.shape,
        decision=Decision(kernel=name, reason=reason),
        inputs=4 * inputs,
        width=width,
        dwords=1,
        run=run,
        share=1,
        pointers=np.concatenate([[0], np.cumsum(np.bincount(group, minlength=groups))]),
        places=place * (4 * run),
        data=data.reshape(-1).view(np.int8),
        outputs=np.arange(groups * width * LANES).reshape(groups, width, LANES),
    )
