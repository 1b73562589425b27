"""The rules between the fields of a spec: one table, which `ArchSpec` checks and docs/spec.md states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gossamer.arch.spec import ArchSpec

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule between fields, each of which lies within its own bounds.

    doc : the rule for every spec, in Markdown.  holds : whether a spec keeps it.
    broken : for a spec that does not, what is wrong and what would be legal.
    """

    doc: str
    holds: Callable[[ArchSpec], bool]
    broken: Callable[[ArchSpec], str]


RULES = (
    Rule(
        doc="`macs` is at most `group`",
        holds=lambda s: s.macs <= s.group,
        broken=lambda s: f"macs must be at most group ({s.group}), not {s.macs}",
    ),
    Rule(
        doc="`hop` is at most `group`",
        holds=lambda s: s.hop <= s.group,
        broken=lambda s: f"hop must be at most group ({s.group}), not {s.hop}",
    ),
    Rule(
        doc="`columns` divides, or is a multiple of, both `group` and `axi_bytes`",
        holds=lambda s: all(s.block % n == 0 for n in (s.columns, s.group, s.axi_bytes)),
        broken=lambda s: (
            f"columns ({s.columns}) must divide, or be a multiple of, both group ({s.group}) "
            f"and axi_bytes ({s.axi_bytes})"
        ),
    ),
    Rule(
        doc="`ppu` divides `columns` and is at most `axi_bytes` / 4",
        holds=lambda s: s.columns % s.ppu == 0 and 4 * s.ppu <= s.axi_bytes,
        broken=lambda s: (
            f"ppu must divide columns ({s.columns}) and be at most axi_bytes / 4 ({s.axi_bytes // 4}), not {s.ppu}"
        ),
    ),
    Rule(
        doc=(
            "`activation_bytes` is a multiple of `activation_partitions` rows; a row is `group` or `axi_bytes`, "
            "whichever is more"
        ),
        holds=lambda s: s.activation_bytes % (s.activation_row_bytes * s.activation_partitions) == 0,
        broken=lambda s: (
            f"activation_bytes must be a multiple of {s.activation_row_bytes * s.activation_partitions} (row of "
            f"{s.activation_row_bytes} bytes x {s.activation_partitions} partitions), not {s.activation_bytes}"
        ),
    ),
    Rule(
        doc="`activation_bytes` is at most 65536 × `hop`",
        holds=lambda s: s.activation_bytes // s.hop <= 2**16,
        broken=lambda s: f"activation_bytes must be at most 65536 x hop ({65536 * s.hop}), not {s.activation_bytes}",
    ),
    Rule(
        doc=(
            "`output_bytes` is a multiple of `axi_bytes` × `output_partitions`, and at least a channel block: the "
            "largest of `columns`, `group` and `axi_bytes`"
        ),
        holds=lambda s: s.output_bytes % (s.axi_bytes * s.output_partitions) == 0 and s.output_bytes >= s.block,
        broken=lambda s: (
            f"output_bytes must be a multiple of {s.axi_bytes * s.output_partitions} (beat x partitions) and at least "
            f"one channel block ({s.block}), not {s.output_bytes}"
        ),
    ),
    Rule(
        doc="with `dynamic_operands`, `weight_steps` is a multiple of `axi_bytes` / `macs`",
        holds=lambda s: s.weight_steps % s.weight_banks == 0,
        broken=lambda s: (
            f"weight_steps must be a multiple of {s.weight_banks} (axi_bytes / macs) with dynamic_operands, "
            f"not {s.weight_steps}"
        ),
    ),
    Rule(
        doc="`offset_steps` is a multiple of `axi_bytes` / 2",
        holds=lambda s: s.offset_steps * 2 % s.axi_bytes == 0,
        broken=lambda s: (
            f"offset_steps must be a multiple of {max(1, s.axi_bytes // 2)} (entries of 2 bytes a beat), "
            f"not {s.offset_steps}"
        ),
    ),
    Rule(
        doc="`parameter_channels` is a multiple of `ppu` and of `axi_bytes` / 8",
        holds=lambda s: s.parameter_channels * 8 % s.parameter_row_bytes == 0,
        broken=lambda s: (
            f"parameter_channels must be a multiple of {s.parameter_row_bytes // 8}, not {s.parameter_channels}"
        ),
    ),
    Rule(
        doc="`parameter_channels` is at least a channel block",
        holds=lambda s: s.parameter_channels >= s.block,
        broken=lambda s: f"parameter_channels must be at least a channel block ({s.block}), not {s.parameter_channels}",
    ),
    Rule(
        doc="a fetch burst is at most 256 beats: `fetch_burst` × 32 / `axi_bytes`, where a beat is at most 32 bytes",
        holds=lambda s: s.fetch_burst * s.fetch_beats <= 256,
        broken=lambda s: f"fetch_burst must be at most {256 // s.fetch_beats} (256 beats a burst), not {s.fetch_burst}",
    ),
)
"""In the order in which they are checked: a rule may rely on those before it."""
