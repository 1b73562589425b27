"""What all pictures share: figures without pyplot's state, plain axes, colours of parts, and names in little room."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gossamer.arch.errors import GossamerError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["HATCH", "PARTS", "figure", "frame", "save", "short"]

HATCH = "#b7bbc2"

PARTS = {
    "lanes": ("#cc6677", ""),
    "traffic": ("#ddcc77", ""),
    "ppu": ("#117733", ""),
    "start": ("#88ccee", ""),
    "memory": ("#882255", ""),
    "drain": ("#44aa99", ""),
    "waiting": ("#999933", ""),
    "fetch": ("#aa4499", ""),
    "tail": ("#c9cbd0", "////"),
}
"""Colour and hatch of each part beyond the bound: Tol's muted scheme, which colour-blind eyes tell apart.

Each part has the same colour in every picture, whichever parts a run has."""

_OPERATOR = re.compile(r"(?:[A-Z][a-z]+)+")
"""What exporters put behind the path of a module: /layer1/conv1/Conv."""


def figure(width: float, height: float) -> Figure:
    """An empty figure, size in inches, without the state of pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GossamerError("pictures need matplotlib: pip install 'gossamer[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: str | Path) -> None:
    """Write the figure; the same run gives the same picture."""
    import matplotlib

    suffix = Path(path).suffix.lower()
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
    with matplotlib.rc_context({"hatch.linewidth": 0.35, "svg.fonttype": "none", "svg.hashsalt": "gossamer"}):
        drawn.savefig(path, dpi=150, metadata=metadata)


def frame(axes: Axes, cycles: float) -> None:
    """Thousands separated, no box, faint vertical lines."""
    from matplotlib.ticker import StrMethodFormatter

    axes.set_xlim(0, cycles)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(axis="both", length=0, labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e3e5e8", linewidth=0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def short(name: str, room: int) -> str:
    """A layer's name in at most `room` letters: whole words of it, as many as fit.

    Scopes stand in front, so they go first; what a chain's layers have in between goes before its ends; and a word by
    itself loses its end, not its beginning.

    >>> short("/features/features.3/conv/Conv", 20)
    'features.3/conv'
    >>> short("encoder/mul/rows0 > encoder/add", 12)
    'rows0 > add'
    >>> short("a/first > a/second > a/third", 17)
    'first > … > third'
    >>> short("average", 5)
    'aver…'
    """
    if len(name) <= room:
        return name
    members = [[word for word in member.split("/") if word] or [member] for member in name.split(" > ")]
    members = [words[:-1] if len(words) > 1 and _OPERATOR.fullmatch(words[-1]) else words for words in members]
    fits = [" > ".join("/".join(words[-kept:]) for words in members) for kept in range(max(map(len, members)), 0, -1)]
    first, last = members[0][-1], members[-1][-1]
    if len(members) > 1:
        fits += [f"{first} > … > {last}", f"{first} > …"]
    return next((text for text in fits if len(text) <= room), f"{first[: max(1, room - 1)]}…")
