"""ArchSpec: the one description of an accelerator that compiler, simulator, RTL, area and energy all read.

A spec is a frozen dataclass, validated once when it is made. It is loaded from and saved to TOML; the field table
below (section, unit, bounds, meaning) also gives the JSON Schema for editors and the reference in the docs.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import cached_property
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any, Self

from gossamer.arch.errors import SpecError, reason
from gossamer.arch.rules import RULES

__all__ = ["ArchSpec", "json_schema", "preset_names"]


def _number(section: str, default: int, low: int, high: int, unit: str, doc: str, *, power_of_two: bool = False) -> int:
    """A field of ArchSpec with what editors, docs and validation need to know about it."""
    meta = {"section": section, "low": low, "high": high, "unit": unit, "doc": doc, "power_of_two": power_of_two}
    value: int = field(default=default, metadata=meta)
    return value


def _flag(section: str, default: bool, doc: str) -> bool:
    """A field of ArchSpec that is true or false."""
    value: bool = field(default=default, metadata={"section": section, "unit": "true or false", "doc": doc})
    return value


@dataclass(frozen=True, kw_only=True)
class ArchSpec:
    """An accelerator. Sizes are per lane where the text says so; every latency is in cycles.

    Raises SpecError when a value is out of its bounds or two values do not fit each other.
    """

    name: str = "custom"
    purpose: str = ""

    # The array
    lanes: int = _number("array", 8, 1, 128, "lanes", "R: spatial slices of output positions, one bank each")
    columns: int = _number("array", 16, 1, 128, "columns", "C: output channels computed at once")
    group: int = _number(
        "array", 8, 1, 32, "elements", "M: activations a PE sees at once (the window)", power_of_two=True
    )
    macs: int = _number("array", 2, 1, 32, "MACs", "V: nonzeros a PE takes per cycle, V <= M", power_of_two=True)
    hop: int = _number("array", 8, 1, 32, "elements", "H: unit of a step's offset, H <= M", power_of_two=True)
    depth: int = _number("array", 16, 1, 256, "accumulators", "T: accumulators per PE and bank; there are two banks")

    dynamic_operands: bool = _flag("array", False, "weights may be loaded from activations: products of two of them")

    # On-chip memories
    activation_bytes: int = _number("buffers", 8192, 16, 2**20, "bytes/lane", "activation bank of a lane")
    activation_partitions: int = _number("buffers", 2, 1, 8, "partitions", "physical cuts of the activation bank")
    output_bytes: int = _number("buffers", 4096, 8, 2**20, "bytes/lane", "output buffer of a lane")
    output_partitions: int = _number("buffers", 2, 1, 8, "partitions", "physical cuts of the output buffer")
    weight_steps: int = _number("buffers", 2048, 2, 2**16, "steps", "rows of the weight buffer, one step each")
    offset_steps: int = _number("buffers", 2048, 2, 2**16, "steps", "entries of the offset buffer, one step each")
    parameter_channels: int = _number("buffers", 512, 4, 2**16, "channels", "channels of bias, multiplier and shift")
    tables: int = _number("buffers", 2, 0, 4, "tables", "256-entry tables for pointwise functions; 0 leaves them out")

    # Post-processing unit
    ppu: int = _number(
        "ppu", 1, 1, 32, "columns", "columns each lane's PPU takes per cycle; it divides columns", power_of_two=True
    )

    # Bus and control
    axi_bytes: int = _number("bus", 16, 4, 128, "bytes", "B: width of the AXI data buses, one beat", power_of_two=True)
    queue_depth: int = _number("control", 8, 1, 64, "instructions", "instructions that wait in front of each unit")
    fetch_burst: int = _number(
        "control", 8, 1, 64, "instructions", "instructions per fetch burst; two bursts are buffered", power_of_two=True
    )

    # The memory contract (see arch/memory.py)
    read_latency: int = _number("memory", 40, 1, 4096, "cycles", "from address accepted to first beat")
    beat_interval: int = _number("memory", 1, 1, 64, "cycles", "between beats, in both directions")
    burst_gap: int = _number("memory", 0, 0, 256, "cycles", "lost between two bursts, in both directions")
    write_latency: int = _number("memory", 20, 1, 4096, "cycles", "from last beat of a burst to its response")
    outstanding_reads: int = _number("memory", 8, 1, 64, "bursts", "read bursts in flight")
    outstanding_writes: int = _number("memory", 8, 1, 64, "bursts", "write bursts in flight")
    burst_beats: int = _number("memory", 64, 1, 256, "beats", "longest burst")

    # Physical choices: they change fmax and area, and latency through arch/timing.py
    clock_mhz: int = _number("physical", 500, 1, 5000, "MHz", "clock that cycles are turned into seconds with")
    broadcast_columns: int = _number(
        "physical", 4, 1, 128, "columns", "columns that share an activation word before it is registered again"
    )
    broadcast_lanes: int = _number(
        "physical", 4, 1, 128, "lanes", "lanes that share a weight word before it is registered again"
    )
    multiply_stages: int = _number("physical", 1, 1, 4, "stages", "pipeline registers of select and multiply")
    ppu_stages: int = _number("physical", 2, 1, 6, "stages", "pipeline registers of the PPU's multiply and round")

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SpecError(f"name must be a non-empty string, not {self.name!r}")
        if not isinstance(self.purpose, str):
            raise SpecError(f"purpose must be a string, not {self.purpose!r}")
        for f in _settings():
            _check(f, getattr(self, f.name))
        for rule in RULES:
            if not rule.holds(self):
                raise SpecError(f"spec {self.name!r}: {rule.broken(self)}")

    # ---- derived parameters: computed here and nowhere else ----

    @property
    def select_bits(self) -> int:
        """Bits of a select: log2(group); 0 for group = 1."""
        return self.group.bit_length() - 1

    @property
    def block(self) -> int:
        """Channels of a DRAM channel block (the c of NCHWc): columns, or a beat or a window where that is more."""
        return max(self.columns, self.group, self.axi_bytes)

    @property
    def block_beats(self) -> int:
        """Beats of one pixel of one channel block."""
        return self.block // self.axi_bytes

    @property
    def activation_row_bytes(self) -> int:
        """Physical row of an activation bank: a window or a beat, whichever is wider."""
        return max(self.group, self.axi_bytes)

    @property
    def weight_banks(self) -> int:
        """Cuts of the weight buffer, step by step: the steps that one beat of a transposed operand fills at once."""
        return max(1, self.axi_bytes // self.macs) if self.dynamic_operands else 1

    @property
    def parameter_row_bytes(self) -> int:
        """Physical row of the parameter memory: a beat, or what a PPU reads at once."""
        return max(self.axi_bytes, 8 * self.ppu)

    @property
    def column_groups(self) -> int:
        """Cycles a PPU needs for one position of all columns."""
        return self.columns // self.ppu

    @property
    def pes(self) -> int:
        """Processing elements: lanes x columns."""
        return self.lanes * self.columns

    @property
    def peak_macs(self) -> int:
        """Multiply-accumulates a cycle."""
        return self.pes * self.macs

    @property
    def fetch_bytes(self) -> int:
        """Width of the instruction fetch port in bytes: the data bus, at most one instruction."""
        return min(self.axi_bytes, 32)

    @property
    def fetch_beats(self) -> int:
        """Beats per instruction on the fetch port."""
        return 32 // self.fetch_bytes

    @cached_property
    def buffer_bytes(self) -> dict[str, int]:
        """Bytes of each on-chip memory, all lanes and columns together."""
        word_bits = self.columns * self.macs * (8 + self.select_bits)
        return {
            "activations": self.lanes * self.activation_bytes,
            "outputs": self.lanes * self.output_bytes,
            "weights": self.weight_steps * word_bits // 8,
            "offsets": self.offset_steps * 2,
            "parameters": self.parameter_channels * 8,
            "tables": self.tables * 256 * self.lanes * self.ppu,
            "accumulators": self.pes * self.depth * 2 * 4,
        }

    @property
    def hardware(self) -> dict[str, Any]:
        """The fields that hardware and its Programs depend on: all but the names, and the clock in MHz."""
        return {n: value for n, value in self.to_dict().items() if n not in ("name", "purpose", "clock_mhz")}

    # ---- in and out ----

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """A spec from a TOML file, or a preset by its name.

        Raises SpecError with the field, the value and what is legal, or with the names of the presets.
        """
        if not isinstance(source, str | PathLike):
            raise SpecError(
                f"spec must be an ArchSpec, a TOML file or the name of a preset, not {type(source).__name__}"
                f"{' (ArchSpec.from_dict takes a mapping)' if isinstance(source, Mapping) else ''}"
            )
        path = Path(source)
        try:
            text = path.read_text(encoding="utf-8") if path.suffix == ".toml" or path.exists() else None
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
            raise SpecError(f"cannot read the spec {str(source)!r}: {reason(error)}") from error
        if text is not None:
            return cls.from_toml(text, origin=str(path))
        if str(source) not in preset_names():
            raise SpecError(
                f"{str(source)!r} is neither a TOML file nor a preset; presets are {', '.join(preset_names())}"
            )
        text = resources.files("gossamer.arch.presets").joinpath(f"{source}.toml").read_text(encoding="utf-8")
        return cls.from_toml(text, origin=f"preset {source}")

    @classmethod
    def from_toml(cls, text: str, origin: str = "spec") -> Self:
        """A spec from TOML text; `origin` opens every message. Raises SpecError."""
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # not TOML's alone: a number of 5000 digits, endless brackets
            raise SpecError(f"{origin}: not TOML: {error}") from error
        known = {f.name: f.metadata["section"] for f in _settings()}
        values: dict[str, Any] = {}
        for key, entry in document.items():
            if key in ("name", "purpose"):
                values[key] = entry
            elif key in _sections():
                if not isinstance(entry, dict):
                    raise SpecError(f"{origin}: [{key}] must be a table, not {entry!r}")
                for inner, value in entry.items():
                    if known.get(inner) != key:
                        legal = [n for n, s in known.items() if s == key]
                        raise SpecError(f"{origin}: {key}.{inner} is not a field; {_suggest(inner, legal)}")
                    values[inner] = value
            else:
                legal = ["name", "purpose", *_sections()]
                raise SpecError(f"{origin}: {key!r} is not a section; {_suggest(key, legal)}")
        try:
            return cls(**values)
        except ValueError as error:  # SpecError, or an integer too long to be shown
            raise SpecError(f"{origin}: {error}") from error

    def to_toml(self) -> str:
        """The spec as TOML, every field written out with its meaning; `from_toml` gives an equal spec back."""
        lines = [f"name = {_quote(self.name)}", f"purpose = {_quote(self.purpose)}"]
        for section in _sections():
            lines += ["", f"[{section}]"]
            for f in _settings():
                if f.metadata["section"] == section:
                    value = json.dumps(getattr(self, f.name))
                    lines.append(f"{f.name} = {value}  # {f.metadata['unit']}: {f.metadata['doc']}")
        return "\n".join(lines) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the spec as TOML."""
        Path(path).write_text(self.to_toml(), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, without sections."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises SpecError for a field that does not exist."""
        legal = [f.name for f in fields(cls)]
        for key in values:
            if key not in legal:
                raise SpecError(f"{key!r} is not a field of a spec; {_suggest(key, legal)}")
        return cls(**values)

    def __repr__(self) -> str:
        changed = (f"{f.name}={v!r}" for f in fields(self) if (v := getattr(self, f.name)) != f.default)
        return f"ArchSpec({', '.join(changed)})"

    def evolve(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again; for exploration scripts."""
        legal = [f.name for f in fields(self)]
        for key in changes:
            if key not in legal:
                raise SpecError(f"{key!r} is not a field of a spec; {_suggest(key, legal)}")
        return replace(self, **changes)


def _settings() -> list[Field[Any]]:
    """The fields of ArchSpec that stand in a section, in order."""
    return [f for f in fields(ArchSpec) if f.metadata]


def _sections() -> list[str]:
    """Sections of the TOML file in order."""
    return list(dict.fromkeys(f.metadata["section"] for f in _settings()))


def _check(f: Field[Any], value: object) -> None:
    where = f"{f.metadata['section']}.{f.name}"
    if isinstance(f.default, bool):
        if not isinstance(value, bool):
            raise SpecError(f"{where} must be true or false, not {value!r}")
        return
    low, high = f.metadata["low"], f.metadata["high"]
    legal = f"a power of two from {low} to {high}" if f.metadata["power_of_two"] else f"from {low} to {high}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(f"{where} must be an integer ({legal} {f.metadata['unit']}), not {value!r}")
    if not low <= value <= high or (f.metadata["power_of_two"] and value & (value - 1)):
        raise SpecError(f"{where} must be {legal} {f.metadata['unit']}, not {value}")


def _quote(text: str) -> str:
    """A TOML basic string: JSON's escapes, but for DEL, which only TOML forbids."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _suggest(word: str, legal: list[str]) -> str:
    """Name the closest legal word, or all of them."""
    from difflib import get_close_matches  # only a user's mistake pays for it

    close = get_close_matches(word, legal, n=1)
    return f"did you mean {close[0]!r}?" if close else f"legal are {', '.join(legal)}"


def preset_names() -> list[str]:
    """Names of the presets that ship with the package, simplest first."""
    order = ["tiny", "dense", "nm-2of4", "dbb-4of8", "sat-2of8", "s4-1of32", "edge", "server"]
    found = {p.name.removesuffix(".toml") for p in resources.files("gossamer.arch.presets").iterdir()}
    return [n for n in order if n in found] + sorted(n for n in found if n not in order and not n.startswith("_"))


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the TOML file, for editors."""
    sections: dict[str, Any] = {}
    for f in _settings():
        flag = isinstance(f.default, bool)
        entry: dict[str, Any] = {
            "type": "boolean" if flag else "integer",
            "default": f.default,
            "description": f"{f.metadata['doc']} ({f.metadata['unit']})",
        }
        if not flag:
            entry |= {"minimum": f.metadata["low"], "maximum": f.metadata["high"]}
        if f.metadata.get("power_of_two"):
            powers = (1 << k for k in range(32))
            entry["enum"] = [p for p in powers if f.metadata["low"] <= p <= f.metadata["high"]]
        table = sections.setdefault(
            f.metadata["section"], {"type": "object", "additionalProperties": False, "properties": {}}
        )
        table["properties"][f.name] = entry
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Gossamer architecture spec",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "purpose": {"type": "string"},
            **sections,
        },
    }
