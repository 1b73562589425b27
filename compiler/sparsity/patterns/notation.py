"""How a user writes a pattern."""

import re
from typing import Any

from gossamer.arch.errors import ModelError
from gossamer.compiler.sparsity.patterns.coarse import VNM, Block, BlockDiagonal, Butterfly
from gossamer.compiler.sparsity.patterns.combined import Combined
from gossamer.compiler.sparsity.patterns.fine import NM, Dense, FanIn, Grouped, Taps, Transposable, Unstructured
from gossamer.compiler.sparsity.patterns.pattern import Pattern
from gossamer.compiler.sparsity.patterns.rebuilt import Channels, LowRank, Monarch, PlusLowRank

__all__ = ["FORMS", "parse_pattern"]

_NUMBER = r"(\d+(?:\.\d+)?)\s*%"


def _share(percent: str) -> float:
    return round(float(percent) / 100, 10)  # 21.1% is 0.211, not its neighbour


FORMS: tuple[tuple[str, str, Any], ...] = (
    ("dense", r"dense", Dense),
    ("N:M (2:8)", r"(\d+):(\d+)(\s+flat)?", lambda n, m, flat: NM(int(n), int(m), bool(flat))),
    ("N:M transposable", r"(\d+):(\d+)\s+transposable", lambda n, m: Transposable(int(n), int(m))),
    ("vnm V:N:M (vnm 16:2:8)", r"vnm\s+(\d+):(\d+):(\d+)", lambda v, n, m: VNM(int(v), int(n), int(m))),
    (
        "block RxC P% (block 16x16 70%)",
        rf"block\s+(\d+)x(\d+)\s+{_NUMBER}",
        lambda r, c, p: Block(int(r), int(c), _share(p)),
    ),
    ("fanin P%", rf"fan-?in\s+{_NUMBER}", lambda p: FanIn(_share(p))),
    ("unstructured P%", rf"unstructured\s+{_NUMBER}", lambda p: Unstructured(_share(p))),
    ("taps N", r"taps\s+(\d+)", lambda n: Taps(int(n))),
    ("blockdiag BLOCKS", r"blockdiag\s+(\d+)", lambda b: BlockDiagonal(int(b))),
    ("butterfly SIDE STRIDE", r"butterfly\s+(\d+)\s+(\d+)", lambda s, k: Butterfly(int(s), int(k))),
    ("channels P%", rf"channels\s+{_NUMBER}", lambda p: Channels(_share(p))),
    ("monarch BLOCKS", r"monarch\s+(\d+)", lambda b: Monarch(int(b))),
    ("lowrank RANK", r"low-?rank\s+(\d+)", lambda r: LowRank(int(r))),
    ("", r"grouped\s+(\d+)", lambda g: Grouped(int(g))),
    ("", r"depthwise\s+(\d+)", lambda g: Grouped(int(g), depthwise=True)),
)
"""What the user is told (nothing for patterns that are only found), the form, and what it makes."""


def parse_pattern(text: str | Pattern) -> Pattern:
    """Read a pattern, or several joined by " + ". Percentages are the share of zeros.

    Patterns of zeros come one after the other; a low rank at the end stands beside them.

    >>> parse_pattern("block 16x16 50% + 2:4")
    Combined(parts=(Block(rows=16, cols=16, sparsity=0.5), NM(n=2, m=4, flat=False)))
    >>> parse_pattern("butterfly 32 8 + lowrank 64")
    PlusLowRank(sparse=Butterfly(side=32, stride=8), rank=64)

    Raises ModelError for anything else, naming what is known.
    """
    if isinstance(text, Pattern):
        return text
    parts = [_single(part) for part in text.split("+")]
    *sparse, last = parts
    if sparse and isinstance(last, LowRank):
        return PlusLowRank(_together(sparse), last.rank)
    return _together(parts)


def _together(parts: list[Pattern]) -> Pattern:
    return parts[0] if len(parts) == 1 else Combined(tuple(parts))


def _single(text: str) -> Pattern:
    for _, form, make in FORMS:
        match = re.fullmatch(form, text.strip().lower())
        if match:
            found: Pattern = make(*match.groups())
            return found
    known = ", ".join(name for name, _, _ in FORMS if name)
    raise ModelError(f"sparsity pattern {text.strip()!r} is not known; must be {known}, or several joined by +")
