"""The Program: instructions, a DRAM image and a symbol table, in memory and as one file.

File layout, little-endian:
    8 bytes   magic "GOSSAMER"
    4 bytes   format version
    4 bytes   length of the header
    header    JSON, UTF-8: spec, symbol table, stages, and where each section lies
    sections  instructions (32 bytes each), DRAM segments, host models, one after the other
    32 bytes  SHA-256 of everything before

There is no pickle and nothing to evaluate. A file that is truncated, corrupted or made to harm gives a ProgramError.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gossamer.arch import isa
from gossamer.arch.errors import GossamerError, ProgramError, reason
from gossamer.arch.layout import Placement
from gossamer.arch.spec import ArchSpec

__all__ = ["DRAM_MAX", "UNKNOWN_MACS", "AcceleratorStage", "Fill", "HostStage", "LayerNote", "Program", "Segment"]

MAGIC = b"GOSSAMER"
VERSION = 1
UNKNOWN_MACS = -1
"""What a host stage says when its multiply-accumulates depend on what only a run shows."""
DRAM_MAX = 1 << 33
"""Largest DRAM a Program may ask for, in bytes."""
_RANK_MAX = 64  # what NumPy can hold; the product of a longer shape could take for ever


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Bytes that stand in DRAM before the start: uint8 at a byte address."""

    address: int
    data: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Fill:
    """A stretch of DRAM filled with one byte before the start (padding around activations)."""

    address: int
    size: int
    value: int


@dataclass(frozen=True, kw_only=True)
class AcceleratorStage:
    """Instructions first .. first + count - 1, the last of them END; cycles count from 0 in each stage."""

    name: str
    first: int
    count: int


@dataclass(frozen=True, kw_only=True)
class HostStage:
    """A part of the model that onnxruntime runs (see compiler.layers.HostSegment).

    macs : multiply-accumulates, UNKNOWN_MACS if they depend on what only a run shows.
    """

    name: str
    model: bytes = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reason: str
    ops: tuple[str, ...] = ()
    macs: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerNote:
    """What a layer is, for reports. Every number but the instruction range is zero in a Program made by hand.

    first, count : its instructions.  macs : multiply-accumulates of the dense layer;  useful_macs : of its nonzeros.
    mac_cycles : sum over column tiles of steps * positions / lanes, the bound of the array.
    read_beats, write_beats : every operand moved once, the bound of the bus.
    """

    name: str
    kind: str
    pattern: str
    first: int
    count: int
    macs: int = 0
    useful_macs: int = 0
    mac_cycles: float = 0.0
    read_beats: int = 0
    write_beats: int = 0
    mapping: str = ""

    def bound(self, spec: ArchSpec) -> float:
        """Lower bound in cycles of the layer by itself: the array, the read bus or the write bus needs most."""
        return max(self.mac_cycles, self.read_beats * spec.beat_interval, self.write_beats * spec.beat_interval)


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """Everything a simulator or an accelerator needs to run a network. Two are equal when their files are.

    instructions : int64 [count, isa.MATRIX_COLUMNS], the matrix form of arch.isa.
    dram_bytes : size of the memory;  segments, fills : what stands in it at the start (segments win).
    tensors : symbol table.  inputs, outputs : names; a name that is not a tensor belongs to a host stage.
    host_types : dtype and shape of what is not a tensor, and of the model's own inputs and outputs.
    """

    spec: ArchSpec
    instructions: NDArray[np.int64]
    dram_bytes: int
    segments: tuple[Segment, ...] = ()
    fills: tuple[Fill, ...] = ()
    tensors: Mapping[str, Placement] = field(default_factory=dict)
    stages: tuple[AcceleratorStage | HostStage, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    layers: tuple[LayerNote, ...] = ()
    host_types: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    name: str = "program"

    def __post_init__(self) -> None:
        _validate(self)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self.to_bytes() == other.to_bytes())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        host = len(self.host_stages)
        parts = [f"{len(self.layers)} layers", f"{len(self.instructions):,} instructions"]
        parts += [f"{host} host stages"] if host else []
        return f"<Program {self.name!r} for {self.spec.name}: {', '.join(parts)}>"

    def memory(self) -> NDArray[np.uint8]:
        """A fresh DRAM: fills, then segments; everything else is zero. uint8 [dram_bytes]."""
        dram = np.zeros(self.dram_bytes, dtype=np.uint8)
        for fill in self.fills:
            dram[fill.address : fill.address + fill.size] = fill.value
        for segment in self.segments:
            dram[segment.address : segment.address + segment.data.size] = segment.data
        return dram

    def quantise_input(self, name: str, values: NDArray[np.generic], *, codes: bool = False) -> NDArray[np.int16]:
        """An input that is a tensor, in the model's shape, to codes [N, C, H, W].

        Integers are real values to a model whose input is of floats, as they are in its calibration; with `codes`, to
        an input of integers, and in a Program made from no model, they are codes. Raises ModelError as
        Placement.quantise does.
        """
        real = name in self.host_types and "float" in self.host_types[name][0]
        return self.tensors[name].quantise(values, codes=codes or not real)

    @property
    def accelerator_stages(self) -> tuple[AcceleratorStage, ...]:
        """The stages that run on the array."""
        return tuple(s for s in self.stages if isinstance(s, AcceleratorStage))

    @property
    def host_stages(self) -> tuple[HostStage, ...]:
        """The stages that run on the host."""
        return tuple(s for s in self.stages if isinstance(s, HostStage))

    @property
    def bound(self) -> float:
        """Lower bound in cycles of all accelerator stages.

        In each stage the array, the read bus or the write bus needs most for all layers together. It is less than
        the sum of the layers' own bounds, since what one layer loads can hide behind another's work.
        """
        total, interval = 0.0, self.spec.beat_interval
        for stage in self.accelerator_stages:
            notes = [n for n in self.layers if stage.first <= n.first < stage.first + stage.count]
            total += max(
                sum(n.mac_cycles for n in notes),
                sum(n.read_beats for n in notes) * interval,
                sum(n.write_beats for n in notes) * interval,
            )
        return total

    # ---- the file ----

    def to_bytes(self) -> bytes:
        """The Program file. The same Program gives the same bytes."""
        words = isa.encode(self.instructions).tobytes()
        blobs = [words, *(s.data.tobytes() for s in self.segments)]
        stages: list[dict[str, Any]] = []
        for stage in self.stages:
            entry = asdict(stage)
            if isinstance(stage, HostStage):
                entry["model"] = len(blobs)
                blobs.append(stage.model)
            stages.append(entry)
        header = {
            "name": self.name,
            "spec": self.spec.to_dict(),
            "dram_bytes": self.dram_bytes,
            "sections": [len(b) for b in blobs],
            "segments": [s.address for s in self.segments],
            "fills": [asdict(f) for f in self.fills],
            "tensors": [asdict(t) for t in self.tensors.values()],
            "stages": stages,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "layers": [asdict(note) for note in self.layers],
            "host_types": self.host_types,
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        body = MAGIC + struct.pack("<II", VERSION, len(text)) + text + b"".join(blobs)
        return body + hashlib.sha256(body).digest()

    def save(self, path: str | Path) -> None:
        """Write the Program file."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> "Program":
        """Read a Program file. Raises ProgramError, and nothing else, for a file that is not one."""
        try:
            data = Path(path).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise ProgramError(f"cannot read the Program {str(path)!r}: {reason(error)}") from error
        try:
            return cls.from_bytes(data)
        except ProgramError as error:
            raise ProgramError(f"{path}: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> "Program":
        """The inverse of `to_bytes`. Raises ProgramError."""
        if data[: len(MAGIC)] != MAGIC:
            raise ProgramError("not a Program file (it does not begin with GOSSAMER)")
        if len(data) < len(MAGIC) + 8 + 32:
            raise ProgramError(f"truncated: {len(data)} bytes are less than the smallest Program")
        version, length = struct.unpack_from("<II", data, len(MAGIC))
        if version != VERSION:
            raise ProgramError(f"format version {version} is not {VERSION}; compile the model again")
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise ProgramError("truncated or corrupted: the checksum does not match")
        begin = len(MAGIC) + 8
        if begin + length > len(data) - 32:
            raise ProgramError(f"the header's length {length} is longer than the file")
        try:
            header = json.loads(data[begin : begin + length].decode("utf-8"))
            return _from_header(header, data[begin + length : -32])
        except ProgramError:
            raise
        except GossamerError as error:
            raise ProgramError(f"illegal header: {error}") from error
        except KeyError as error:
            raise ProgramError(f"illegal header: {error} is missing") from error
        except (TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise ProgramError(f"illegal header: {error}") from error


def _from_header(header: dict[str, Any], body: bytes) -> Program:
    sizes = [_integer(n, "sections", 0, len(body)) for n in header["sections"]]
    if sum(sizes) != len(body):
        raise ProgramError(f"sections cover {sum(sizes)} bytes, the file has {len(body)}")
    starts = np.cumsum([0, *sizes])
    blobs = [body[a:b] for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    if len(blobs) < 1 + len(header["segments"]) or len(blobs[0]) % isa.WORD_BYTES:
        raise ProgramError("sections do not match instructions and segments")
    words = np.frombuffer(blobs[0], dtype=np.uint8).reshape(-1, isa.WORD_BYTES)
    segments = tuple(
        Segment(address=_integer(a, "segment address", 0, DRAM_MAX), data=np.frombuffer(blob, dtype=np.uint8))
        for a, blob in zip(header["segments"], blobs[1:], strict=False)
    )
    stages: list[AcceleratorStage | HostStage] = []
    for entry in header["stages"]:
        if "model" in entry:
            entry = {**entry, "model": blobs[_integer(entry["model"], "model", 1, len(blobs) - 1)]}
            stages.append(_record(HostStage, entry))
        else:
            stages.append(_record(AcceleratorStage, entry))
    placements = [_record(Placement, entry) for entry in header["tensors"]]
    if len({p.name for p in placements}) < len(placements):
        raise ProgramError("two tensors have the same name")
    for f in fields(ArchSpec):  # a default of today may differ from that of the day the file was written
        header["spec"][f.name]
    types = {}
    for name, (dtype, shape) in header["host_types"].items():
        numbers = tuple(_integer(n, f"shape of {name!r}", -1, DRAM_MAX) for n in _list(shape, f"shape of {name!r}"))
        types[name] = (_text(dtype, f"dtype of {name!r}"), numbers)
    return Program(
        name=_text(header["name"], "name"),
        spec=ArchSpec.from_dict(header["spec"]),
        instructions=isa.decode(words),
        dram_bytes=_integer(header["dram_bytes"], "dram_bytes", 0, DRAM_MAX),
        segments=segments,
        fills=tuple(_record(Fill, f) for f in header["fills"]),
        tensors={p.name: p for p in placements},
        stages=tuple(stages),
        inputs=tuple(_text(n, "inputs") for n in _list(header["inputs"], "inputs")),
        outputs=tuple(_text(n, "outputs") for n in _list(header["outputs"], "outputs")),
        layers=tuple(_record(LayerNote, n) for n in header["layers"]),
        host_types=types,
    )


_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "bytes": bytes,
}


def _record(kind: type[Any], entry: dict[str, Any]) -> Any:
    """A frozen record from JSON, every field present, of its type, lists as tuples."""
    values = {}
    for f in fields(kind):
        value = entry[f.name]
        where = f"{kind.__name__}.{f.name}"
        text = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        if text in _TYPES:
            if not isinstance(value, _TYPES[text]) or (text != "bool" and isinstance(value, bool)):
                raise ProgramError(f"{where} must be {text}, not {value!r}")
        else:  # a tuple of integers or of strings
            strings = str in get_args(f.type)
            value = tuple(_text(v, where) if strings else _whole(v, where) for v in _list(value, where))
        values[f.name] = value
    if len(entry) != len(values):
        raise ProgramError(f"{kind.__name__} has unknown fields: {sorted(set(entry) - set(values))}")
    return kind(**values)


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ProgramError(f"{what} must be a list, not {value!r}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ProgramError(f"{what} must be str, not {value!r}")
    return value


def _whole(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProgramError(f"{what} must be int, not {value!r}")
    return value


def _integer(value: object, what: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ProgramError(f"{what} must be an integer from {low} to {high}, not {value!r}")
    return value


def _inside(what: str, address: object, size: object, limit: int) -> None:
    begin = _integer(address, f"address of {what}", 0, limit)
    length = _integer(size, f"size of {what}", 0, limit)
    if begin + length > limit:
        raise ProgramError(f"{what} lies at {begin:#x}..{begin + length:#x}, beyond the DRAM's {limit:#x}")


def _validate(program: Program) -> None:
    """Everything that can be said of a Program without running it (ProgramError)."""
    limit = _integer(program.dram_bytes, "dram_bytes", 0, DRAM_MAX)
    if limit % program.spec.axi_bytes:
        raise ProgramError(f"dram_bytes must be a multiple of axi_bytes ({program.spec.axi_bytes}), not {limit}")
    isa.check(program.instructions)
    for segment in program.segments:
        _inside("a segment", segment.address, segment.data.size, limit)
    for fill in program.fills:
        _inside("a fill", fill.address, fill.size, limit)
        _integer(fill.value, "value of a fill", 0, 255)
    for name, tensor in program.tensors.items():
        if name != tensor.name:
            raise ProgramError(f"tensor {tensor.name!r} stands in the symbol table as {name!r}")
        _check_tensor(tensor, limit)
    count = len(program.instructions)
    for stage in program.stages:
        if isinstance(stage, AcceleratorStage):
            _integer(stage.first, f"first of stage {stage.name!r}", 0, count)
            _integer(stage.count, f"count of stage {stage.name!r}", 1, count - stage.first)
            rows = program.instructions[stage.first : stage.first + stage.count, 0]
            if rows[-1] != isa.Op.END or np.any(rows[:-1] == isa.Op.END):
                raise ProgramError(f"stage {stage.name!r} must end with its only END")
    for note in program.layers:
        _integer(note.first, f"first of layer {note.name!r}", 0, count)
        _integer(note.count, f"count of layer {note.name!r}", 0, count - note.first)


def _check_tensor(tensor: Placement, limit: int) -> None:
    for what, numbers, length in (
        ("shape", tensor.shape, 4),
        ("border", tensor.border, 4),
        ("model_shape", tensor.model_shape, None),
    ):
        if length is not None and len(numbers) != length:
            raise ProgramError(f"{what} of tensor {tensor.name!r} must have {length} numbers, not {numbers!r}")
        if len(numbers) > _RANK_MAX:
            raise ProgramError(f"{what} of tensor {tensor.name!r} must have at most {_RANK_MAX} numbers")
        for n in numbers:
            _integer(n, f"{what} of tensor {tensor.name!r}", 0 if what == "border" else 1, limit)
    _integer(tensor.block, f"block of tensor {tensor.name!r}", 1, 4096)
    if not np.isfinite(tensor.scale) or tensor.scale <= 0:
        raise ProgramError(f"scale of tensor {tensor.name!r} must be finite and positive, not {tensor.scale!r}")
    _integer(tensor.zero_point, f"zero_point of tensor {tensor.name!r}", -128, 255)
    n, c, h, w = tensor.shape
    if c % _integer(tensor.heads, f"heads of tensor {tensor.name!r}", 1, c):
        raise ProgramError(f"heads of tensor {tensor.name!r} must divide its {c} channels, not {tensor.heads}")
    if int(np.prod([int(x) for x in tensor.model_shape], dtype=object)) != n * c * h * w:
        raise ProgramError(f"tensor {tensor.name!r}: {tensor.model_shape} and {tensor.shape} differ in size")
    _inside(f"tensor {tensor.name!r}", tensor.address, tensor.size, limit)
