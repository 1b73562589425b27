"""The Program file: what is saved is loaded, and whatever else stands in a file gives a ProgramError."""

import copy
import hashlib
import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.arch.errors import ProgramError
from gossamer.arch.isa import Instruction, Op, to_matrix
from gossamer.arch.layout import Placement
from gossamer.arch.program import DRAM_MAX, AcceleratorStage, Fill, HostStage, LayerNote, Program, Segment
from gossamer.arch.spec import ArchSpec

Header = dict[str, Any]
TINY = ArchSpec.load("tiny")


def refused(message: str) -> Any:
    """A ProgramError with exactly this message."""
    return pytest.raises(ProgramError, match=f"^{re.escape(message)}$")


def tensor(name: str, address: int, **changes: Any) -> Placement:
    values = {
        "name": name, "address": address, "shape": (1, 5, 2, 3), "block": 8, "border": (1, 1, 1, 1), "scale": 0.5,
        "zero_point": -3, "signed": True, "model_shape": (1, 5, 2, 3),
    }  # fmt: skip
    return Placement(**{**values, **changes})


def sample() -> Program:
    """A Program with something in every field."""
    load = Instruction.make(Op.LOAD, beats=4, rows=2, blocks=1, row_stride=8, tile_beats=4, tile_rows=2)
    drain = Instruction.make(Op.DRAIN, nx=1, ny=1, column_groups=1, lo=-128, hi=127, zero_point=-3)
    end = Instruction.make(Op.END)
    return Program(
        spec=TINY,
        instructions=to_matrix([load, drain, end, load, end]),
        dram_bytes=4096,
        segments=(
            Segment(address=3000, data=np.arange(50, dtype=np.uint8)),
            Segment(address=4090, data=np.full(6, 7, dtype=np.uint8)),
        ),
        fills=(Fill(address=0, size=1000, value=253), Fill(address=2990, size=20, value=9)),
        tensors={t.name: t for t in (tensor("in", 0), tensor("out", 512, scale=1, zero_point=0))},
        stages=(
            AcceleratorStage(name="first", first=0, count=3),
            HostStage(
                name="middle", model=b"\x00onnx\xff", inputs=("out",), outputs=("probability",), reason="Softmax",
                ops=("Softmax",), macs=7,
            ),
            AcceleratorStage(name="second", first=3, count=2),
        ),
        inputs=("in",),
        outputs=("probability", "out"),
        layers=(
            LayerNote(name="fc", kind="conv", pattern="2:4", first=0, count=2, macs=9, useful_macs=4, mac_cycles=2.5,
                      read_beats=3, write_beats=1, mapping="m"),
        ),
        host_types={"probability": ("float32", (1, 5))},
        name="sample",
    )  # fmt: skip


FILE = sample().to_bytes()
LENGTH = struct.unpack_from("<I", FILE, 12)[0]
HEADER: Header = json.loads(FILE[16 : 16 + LENGTH])
BODY = FILE[16 + LENGTH : -32]


def signed(data: bytes) -> bytes:
    """With a correct checksum."""
    return data + hashlib.sha256(data).digest()


def file_of(header: object, body: bytes = BODY) -> bytes:
    """A file with this header and a correct checksum."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return signed(b"GOSSAMER" + struct.pack("<II", 1, len(text)) + text + body)


def changed(change: Callable[[Header], object]) -> bytes:
    """The sample file after a change of its header."""
    header = copy.deepcopy(HEADER)
    change(header)
    return file_of(header)


def same(a: Program, b: Program) -> bool:
    """Field by field; Program itself has no equality, because of its arrays."""
    plain = ("spec", "dram_bytes", "fills", "tensors", "stages", "inputs", "outputs", "layers", "host_types", "name")
    return (
        all(getattr(a, f) == getattr(b, f) for f in plain)
        and np.array_equal(a.instructions, b.instructions)
        and [(s.address, s.data.tolist()) for s in a.segments] == [(s.address, s.data.tolist()) for s in b.segments]
    )


# ---- what is saved is loaded ----


def test_save_and_load(tmp_path: Path) -> None:
    program = sample()
    program.save(tmp_path / "p.gsm")
    loaded = Program.load(tmp_path / "p.gsm")
    assert same(loaded, program)
    assert loaded.instructions.dtype == np.int64
    assert loaded.to_bytes() == (tmp_path / "p.gsm").read_bytes() == FILE, "the same Program gives the same bytes"
    assert [s.name for s in loaded.accelerator_stages] == ["first", "second"]


def test_the_smallest_program() -> None:
    program = Program(spec=TINY, instructions=to_matrix([]), dram_bytes=0)
    loaded = Program.from_bytes(program.to_bytes())
    assert same(loaded, program)
    assert loaded.memory().size == 0


def test_names_may_be_in_any_script() -> None:
    program = replace(sample(), name="Größe \U0001f600", outputs=("выход",))
    assert same(Program.from_bytes(program.to_bytes()), program)


def test_the_file_begins_as_documented() -> None:
    assert FILE[:8] == b"GOSSAMER"
    assert FILE[8:12] == (1).to_bytes(4, "little")
    assert hashlib.sha256(FILE[:-32]).digest() == FILE[-32:]
    assert HEADER["sections"] == [5 * 32, 50, 6, 6]
    assert BODY[160:210] == bytes(range(50))


def test_memory_is_fills_then_segments() -> None:
    memory = sample().memory()
    expected = np.zeros(4096, dtype=np.uint8)
    expected[:1000] = 253
    expected[2990:3010] = 9
    expected[3000:3050] = range(50)
    expected[4090:] = 7
    assert memory.dtype == np.uint8
    assert np.array_equal(memory, expected)
    memory[:] = 1
    assert np.array_equal(sample().memory(), expected)


def test_a_layer_is_bound_by_what_it_needs_most() -> None:
    note = LayerNote(name="", kind="", pattern="", first=0, count=1, mac_cycles=10.5, read_beats=4, write_beats=3)
    assert note.bound(TINY) == 10.5
    assert note.bound(TINY.evolve(beat_interval=3)) == 12
    assert replace(note, write_beats=5).bound(TINY.evolve(beat_interval=3)) == 15


# ---- files that are damaged ----


def test_every_truncation_is_refused() -> None:
    for length in range(len(FILE)):
        with pytest.raises(
            ProgramError, match=r"^(not a Program file \(it does not begin with GOSSAMER\)$|truncated[: ])"
        ):
            Program.from_bytes(FILE[:length])


def test_every_flipped_byte_is_refused() -> None:
    rng = np.random.default_rng(0)
    for at in range(len(FILE)):
        damaged = bytearray(FILE)
        damaged[at] ^= int(rng.integers(1, 256))
        with pytest.raises(
            ProgramError,
            match=r"^(not a Program file|format version \d+ is not 1; compile |truncated or corrupted: the checksum)",
        ):
            Program.from_bytes(bytes(damaged))


@pytest.mark.parametrize("more", [b"\0", b"\0" * 32, FILE])
def test_what_follows_the_end_is_refused(more: bytes) -> None:
    with refused("truncated or corrupted: the checksum does not match"):
        Program.from_bytes(FILE + more)


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_version_is_named(version: int) -> None:
    with refused(f"format version {version} is not 1; compile the model again"):
        Program.from_bytes(signed(FILE[:8] + version.to_bytes(4, "little") + FILE[12:-32]))


@pytest.mark.parametrize("length", [len(FILE) - 16 - 32 + 1, 2**31, 2**32 - 1])
def test_a_header_longer_than_the_file(length: int) -> None:
    with refused(f"the header's length {length} is longer than the file"):
        Program.from_bytes(signed(FILE[:12] + length.to_bytes(4, "little") + FILE[16:-32]))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(data: bytes, head: bool) -> None:
    with pytest.raises(ProgramError):
        Program.from_bytes(signed(b"GOSSAMER\x01\x00\x00\x00" + data) if head else data)


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.gsm"
    path.write_bytes(FILE[:100])
    with refused(f"{path}: truncated or corrupted: the checksum does not match"):
        Program.load(path)
    path.write_bytes(b"")
    with refused(f"{path}: not a Program file (it does not begin with GOSSAMER)"):
        Program.load(str(path))


@pytest.mark.parametrize("name", ["absent", "", "nul\0"])
def test_load_of_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(ProgramError, match=f"^cannot read the Program {re.escape(repr(str(path)))}: "):
        Program.load(path)


# ---- headers that are wrong, with a correct checksum ----


def put(*path: Any, value: object) -> Callable[[Header], None]:
    """Set header[path[0]][path[1]]... to a value."""

    def change(header: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return change


SHAPE = ("tensors", 0, "shape")
HOSTILE: list[tuple[Callable[[Header], object], str]] = [
    (put("dram_bytes", value=2**33 + 8), f"dram_bytes must be an integer from 0 to {2**33}, not {2**33 + 8}"),
    (put("dram_bytes", value=10**30), f"dram_bytes must be an integer from 0 to {2**33}, not {10**30}"),
    (put("dram_bytes", value=-8), f"dram_bytes must be an integer from 0 to {2**33}, not -8"),
    (put("dram_bytes", value=4096.0), f"dram_bytes must be an integer from 0 to {2**33}, not 4096.0"),
    (put("dram_bytes", value=True), f"dram_bytes must be an integer from 0 to {2**33}, not True"),
    (put("dram_bytes", value=4100), "dram_bytes must be a multiple of axi_bytes (8), not 4100"),
    (put("dram_bytes", value=4088), "address of a segment must be an integer from 0 to 4088, not 4090"),
    (put("sections", value=[160, 50, 6]), "sections cover 216 bytes, the file has 222"),
    (put("sections", value=[160, 50, 6, 7]), "sections cover 223 bytes, the file has 222"),
    (put("sections", value=[160, 50, -6, 18]), "sections must be an integer from 0 to 222, not -6"),
    (put("sections", value=[2**62]), f"sections must be an integer from 0 to 222, not {2**62}"),
    (put("sections", value=[161, 49, 6, 6]), "sections do not match instructions and segments"),
    (put("sections", value=[]), "sections cover 0 bytes, the file has 222"),
    (put("sections", value=[192, 30]), "sections do not match instructions and segments"),
    (put("sections", value=[192, 18, 6, 6]), "instruction 5: opcode 0 is not legal (1..5)"),
    (put("segments", 0, value=-1), f"segment address must be an integer from 0 to {2**33}, not -1"),
    (put("segments", 0, value="0"), f"segment address must be an integer from 0 to {2**33}, not '0'"),
    (put("segments", 0, value=4090), "a segment lies at 0xffa..0x102c, beyond the DRAM's 0x1000"),
    (put("fills", 0, "address", value=-1), "address of a fill must be an integer from 0 to 4096, not -1"),
    (put("fills", 0, "size", value=-1), "size of a fill must be an integer from 0 to 4096, not -1"),
    (put("fills", 0, "size", value=2**40), f"size of a fill must be an integer from 0 to 4096, not {2**40}"),
    (put("fills", 0, "address", value=3097), "a fill lies at 0xc19..0x1001, beyond the DRAM's 0x1000"),
    (put("fills", 0, "value", value=256), "value of a fill must be an integer from 0 to 255, not 256"),
    (put("fills", 0, "value", value=1.5), "Fill.value must be int, not 1.5"),
    (put("fills", 0, "more", value=1), "Fill has unknown fields: ['more']"),
    (put("tensors", 0, "address", value=-64), "address of tensor 'in' must be an integer from 0 to 4096, not -64"),
    (put("tensors", 0, "address", value=4096), "tensor 'in' lies at 0x1000..0x10a0, beyond the DRAM's 0x1000"),
    (put("tensors", 0, "address", value="0"), "Placement.address must be int, not '0'"),
    (put(*SHAPE, value=[1, 5, 2]), "shape of tensor 'in' must have 4 numbers, not (1, 5, 2)"),
    (put(*SHAPE, value=[1, 5, 2, 0]), "shape of tensor 'in' must be an integer from 1 to 4096, not 0"),
    (put(*SHAPE, value=[1, 5, 2, 2**32]), f"shape of tensor 'in' must be an integer from 1 to 4096, not {2**32}"),
    (put(*SHAPE, value=[1, 5, 2, "3"]), "Placement.shape must be int, not '3'"),
    (put(*SHAPE, value=[1, 5, 2, True]), "Placement.shape must be int, not True"),
    (put(*SHAPE, value=[1, 5, 2, 2.0]), "Placement.shape must be int, not 2.0"),
    (put(*SHAPE, value="1523"), "Placement.shape must be a list, not '1523'"),
    (put(*SHAPE, value=[4096] * 4), "tensor 'in': (1, 5, 2, 3) and (4096, 4096, 4096, 4096) differ in size"),
    (put(*SHAPE, value=[1, 5, 3, 2]), ""),
    (put("tensors", 0, "model_shape", value=[30]), ""),
    (put("tensors", 0, "model_shape", value=[31]), "tensor 'in': (31,) and (1, 5, 2, 3) differ in size"),
    (put("tensors", 0, "model_shape", value=[]), "tensor 'in': () and (1, 5, 2, 3) differ in size"),
    (put("tensors", 0, "model_shape", value={}), "Placement.model_shape must be a list, not {}"),
    (
        put("tensors", 0, "model_shape", value=[4096] * 100_000),
        "model_shape of tensor 'in' must have at most 64 numbers",
    ),
    (
        put("tensors", 0, "border", value=[0, 0, 4096, 0]),
        "size of tensor 'in' must be an integer from 0 to 4096, not 98352",
    ),
    (put("tensors", 0, "border", 2, value=-1), "border of tensor 'in' must be an integer from 0 to 4096, not -1"),
    (put("tensors", 0, "block", value=0), "block of tensor 'in' must be an integer from 1 to 4096, not 0"),
    (put("tensors", 0, "block", value=4097), "block of tensor 'in' must be an integer from 1 to 4096, not 4097"),
    (put("tensors", 0, "scale", value=float("nan")), "scale of tensor 'in' must be finite and positive, not nan"),
    (put("tensors", 0, "scale", value=float("inf")), "scale of tensor 'in' must be finite and positive, not inf"),
    (put("tensors", 0, "scale", value=0), "scale of tensor 'in' must be finite and positive, not 0"),
    (put("tensors", 0, "scale", value=-0.5), "scale of tensor 'in' must be finite and positive, not -0.5"),
    (put("tensors", 0, "scale", value="1"), "Placement.scale must be float, not '1'"),
    (put("tensors", 0, "scale", value=[0.5]), "Placement.scale must be float, not [0.5]"),
    (put("tensors", 0, "zero_point", value=256),
     "zero_point of tensor 'in' must be an integer from -128 to 255, not 256"),
    (put("tensors", 0, "signed", value=1), "Placement.signed must be bool, not 1"),
    (put("tensors", 0, "signed", value=[]), "Placement.signed must be bool, not []"),
    (put("tensors", 0, "name", value=["in"]), "Placement.name must be str, not ['in']"),
    (put("tensors", 0, value=5), "illegal header: 'int' object is not subscriptable"),
    (put("stages", 0, "first", value=-1), "first of stage 'first' must be an integer from 0 to 5, not -1"),
    (put("stages", 0, "first", value=6), "first of stage 'first' must be an integer from 0 to 5, not 6"),
    (put("stages", 0, "count", value=0), "count of stage 'first' must be an integer from 1 to 5, not 0"),
    (put("stages", 2, "count", value=3), "count of stage 'second' must be an integer from 1 to 2, not 3"),
    (put("stages", 2, "count", value=2**70), f"count of stage 'second' must be an integer from 1 to 2, not {2**70}"),
    (put("stages", 0, "count", value=2), "stage 'first' must end with its only END"),
    (put("stages", 0, "count", value=5), "stage 'first' must end with its only END"),
    (put("stages", 0, "extra", value=5), "AcceleratorStage has unknown fields: ['extra']"),
    (put("stages", 1, "model", value=4), "model must be an integer from 1 to 3, not 4"),
    (put("stages", 1, "model", value=-1), "model must be an integer from 1 to 3, not -1"),
    (put("stages", 1, "model", value="b"), "model must be an integer from 1 to 3, not 'b'"),
    (put("stages", 1, "inputs", value="out"), "HostStage.inputs must be a list, not 'out'"),
    (put("stages", 1, "inputs", value=[1]), "HostStage.inputs must be str, not 1"),
    (put("stages", 1, "macs", value=[1]), "HostStage.macs must be int, not [1]"),
    (put("layers", 0, "first", value=-1), "first of layer 'fc' must be an integer from 0 to 5, not -1"),
    (put("layers", 0, "count", value=6), "count of layer 'fc' must be an integer from 0 to 5, not 6"),
    (put("tensors", 1, "name", value="in"), "two tensors have the same name"),
    (put("layers", 0, "macs", value=None), "LayerNote.macs must be int, not None"),
    (put("layers", 0, "mac_cycles", value="1"), "LayerNote.mac_cycles must be float, not '1'"),
    (put("inputs", value="in"), "inputs must be a list, not 'in'"),
    (put("outputs", value=[["out"]]), "outputs must be str, not ['out']"),
    (put("name", value=None), "name must be str, not None"),
    (put("host_types", "probability", value=["float32", [1, "5"]]),
     f"shape of 'probability' must be an integer from -1 to {2**33}, not '5'"),
    (put("host_types", "probability", value=["float32", "15"]), "shape of 'probability' must be a list, not '15'"),
    (put("host_types", "probability", value=[4, [1]]), "dtype of 'probability' must be str, not 4"),
    (put("spec", "columns", value=0), "illegal header: array.columns must be from 1 to 128 columns, not 0"),
    (put("spec", "colums", value=4), "illegal header: 'colums' is not a field of a spec; did you mean 'columns'?"),
    (put("spec", "hop", value=8), "illegal header: spec 'tiny': hop must be at most group (4), not 8"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_wrong_header_is_named(change: Callable[[Header], object], message: str) -> None:
    data = changed(change)
    if not message:
        Program.from_bytes(data)
        return
    tracemalloc.start()
    try:
        with refused(message):
            Program.from_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("key", HEADER)
def test_a_missing_key_is_named(key: str) -> None:
    with refused(f"illegal header: {key!r} is missing"):
        Program.from_bytes(changed(lambda header: header.pop(key)))


@pytest.mark.parametrize("key", HEADER["spec"])
def test_a_missing_field_of_the_spec_is_named(key: str) -> None:
    """It takes no default: that of today may differ from that of the day the file was written."""
    with refused(f"illegal header: {key!r} is missing"):
        Program.from_bytes(changed(lambda header: header["spec"].pop(key)))


@pytest.mark.parametrize(("section", "at"), [("fills", 0), ("tensors", 1), ("stages", 0), ("stages", 1), ("layers", 0)])
def test_a_missing_field_of_a_record_is_named(section: str, at: int) -> None:
    for key in HEADER[section][at]:
        with pytest.raises(
            ProgramError,
            match=f"^(illegal header: {key!r} is missing|AcceleratorStage has unknown fields: .*|illegal header: .*)$",
        ):
            Program.from_bytes(changed(lambda header, key=key: header[section][at].pop(key)))  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b'"GOSSAMER"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"sections": ' + b"9" * 5000 + b"}",
        b'{"sections": [1e999]}',
    ],
    ids=range(11),
)
def test_a_header_that_is_no_header(text: bytes) -> None:
    with pytest.raises(ProgramError, match=r"^(illegal header: |sections must be an integer from 0 to 222, not inf$)"):
        Program.from_bytes(file_of(text))


@pytest.mark.parametrize("key", HEADER)
def test_a_deep_header(key: str) -> None:
    text = json.dumps({k: v for k, v in HEADER.items() if k != key})[:-1]
    for depth in (500, 100_000):
        data = f'{text}, "{key}": {"[" * depth}{"]" * depth}}}'.encode()
        with pytest.raises(ProgramError):
            Program.from_bytes(file_of(data))


LEAVES = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 7, 255, 4096, 2**31, 2**33, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308,
     float("nan"), float("inf"), "", "in", "x" * 5000, "\ud800", "0", [], {}, [[]], [0], [1, 1, 1, 1], ["a"], {"a": 0}]
)  # fmt: skip


def places(node: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [path] if path else []
    for key, value in items:
        found += places(value, (*path, key))
    return found


@settings(max_examples=300)
@given(st.data())
def test_no_header_does_harm(data: st.DataObject) -> None:
    """A few values anywhere in the header are replaced, removed, doubled or moved: it loads, or it is refused."""
    header = copy.deepcopy(HEADER)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, key = data.draw(st.sampled_from(places(header)))
        parent: Any = header
        for step in path:
            parent = parent[step]
        action = data.draw(st.sampled_from(["set", "set", "remove", "double", "move"]))
        if action == "set":
            parent[key] = copy.deepcopy(data.draw(LEAVES))
        elif action == "remove":
            del parent[key]
        elif action == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            other: Any = header
            for step in data.draw(st.sampled_from(places(header))):
                other = other[step]
            parent[key] = copy.deepcopy(other)
        if not places(header):
            break
    raw = file_of(header)
    tracemalloc.start()
    try:
        program = Program.from_bytes(raw)
    except ProgramError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000
    again = Program.from_bytes(program.to_bytes())
    assert again.to_bytes() == program.to_bytes(), "what is loaded can be saved"


@settings(max_examples=200)
@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_no_body_does_harm(at: int, flip: int) -> None:
    body = bytearray(BODY)
    body[at] ^= flip
    try:
        program = Program.from_bytes(file_of(HEADER, bytes(body)))
    except ProgramError:
        assert at < 160, "only instructions can be illegal"
        return
    assert Program.from_bytes(program.to_bytes()).to_bytes() == program.to_bytes()


# ---- Programs made by hand ----


def test_a_program_is_checked_when_it_is_made() -> None:
    for changes, message in (
        ({"dram_bytes": 4097}, "dram_bytes must be a multiple of axi_bytes (8), not 4097"),
        ({"dram_bytes": DRAM_MAX + 8}, f"dram_bytes must be an integer from 0 to {DRAM_MAX}, not {DRAM_MAX + 8}"),
        (
            {"segments": (Segment(address=4095, data=np.zeros(2, dtype=np.uint8)),)},
            "a segment lies at 0xfff..0x1001, beyond the DRAM's 0x1000",
        ),
        ({"fills": (Fill(address=0, size=1, value=-1),)}, "value of a fill must be an integer from 0 to 255, not -1"),
        (
            {"stages": (AcceleratorStage(name="s", first=3, count=1),)},
            "stage 's' must end with its only END",
        ),
        ({"tensors": {"t": tensor("u", 0)}}, "tensor 'u' stands in the symbol table as 't'"),
        (
            {"tensors": {"t": tensor("t", 0, scale=float("nan"))}},
            "scale of tensor 't' must be finite and positive, not nan",
        ),
    ):
        with refused(message):
            replace(sample(), **changes)
    matrix = sample().instructions.copy()
    matrix[1, 0] = 0
    with refused("instruction 1: opcode 0 is not legal (1..5)"):
        replace(sample(), instructions=matrix)
    matrix = sample().instructions.copy()
    matrix[0, 1] = 1
    with refused("instruction 0: LOAD.wait 0x1 names a semaphore of another unit; legal 0x248"):
        replace(sample(), instructions=matrix)


def test_a_program_may_use_all_of_its_dram() -> None:
    tensors = {"t": tensor("t", 4096 - 160)}
    assert tensors["t"].size == 160
    replace(sample(), tensors=tensors)
    with refused("tensor 't' lies at 0xf68..0x1008, beyond the DRAM's 0x1000"):
        replace(sample(), tensors={"t": tensor("t", 4096 - 152)})
