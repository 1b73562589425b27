"""ArchSpec: loading, validation with its messages, derived numbers, TOML and JSON Schema."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.arch.errors import GossamerError, SpecError
from gossamer.arch.isa import WORD_BYTES
from gossamer.arch.memory import BOUNDARY
from gossamer.arch.rules import RULES
from gossamer.arch.spec import ArchSpec, json_schema, preset_names

PRESETS = ["tiny", "dense", "nm-2of4", "dbb-4of8", "sat-2of8", "s4-1of32", "edge", "server"]


def refused(message: str) -> Any:
    """A SpecError with exactly this message."""
    return pytest.raises(SpecError, match=f"^{re.escape(message)}$")


def powers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.sampled_from([1 << k for k in range(32) if low <= 1 << k <= high])


@st.composite
def legal_specs(draw: st.DrawFn) -> ArchSpec:
    """Any legal spec: sizes are drawn as multiples of what they must be multiples of."""
    group, axi = draw(powers(1, 32)), draw(powers(4, 128))
    wide = max(group, axi)
    columns = draw(st.one_of(powers(1, wide), st.integers(1, 128 // wide).map(lambda k: k * wide)))
    ppu = draw(st.sampled_from([p for p in (1, 2, 4, 8, 16, 32) if columns % p == 0 and 4 * p <= axi]))
    hop = draw(powers(1, group))

    def multiple(unit: int, low: int, high: int) -> int:
        return draw(st.integers(-(-low // unit), min(high // unit, -(-low // unit) + 40))) * unit

    act_parts, out_parts = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    macs, dynamic = draw(powers(1, group)), draw(st.booleans())
    return ArchSpec(
        name=draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)),
        purpose=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        lanes=draw(st.integers(1, 128)),
        columns=columns,
        group=group,
        macs=macs,
        hop=hop,
        depth=draw(st.integers(1, 256)),
        dynamic_operands=dynamic,
        activation_bytes=multiple(wide * act_parts, 16, 65536 * hop),
        activation_partitions=act_parts,
        output_bytes=multiple(axi * out_parts, max(8, columns, wide), 2**20),
        output_partitions=out_parts,
        weight_steps=multiple(max(1, axi // macs) if dynamic else 1, 2, 2**16),
        offset_steps=multiple(max(1, axi // 2), 2, 2**16),
        parameter_channels=multiple(max(axi, 8 * ppu) // 8 or 1, max(4, columns, wide), 2**16),
        tables=draw(st.integers(0, 4)),
        ppu=ppu,
        axi_bytes=axi,
        fetch_burst=draw(powers(1, min(64, 256 // (32 // min(axi, 32))))),
        clock_mhz=draw(st.integers(1, 5000)),
        multiply_stages=draw(st.integers(1, 4)),
    )


# ---- presets ----


def test_presets_are_these_simplest_first() -> None:
    assert preset_names() == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads_and_round_trips(name: str, tmp_path: Path) -> None:
    spec = ArchSpec.load(name)
    assert spec.name == name
    assert spec.purpose.endswith(".")
    assert ArchSpec.from_toml(spec.to_toml()) == spec
    assert ArchSpec.from_dict(spec.to_dict()) == spec
    spec.save(tmp_path / "copy.toml")
    assert ArchSpec.load(tmp_path / "copy.toml") == spec
    assert ArchSpec.load(str(tmp_path / "copy.toml")) == spec


@pytest.mark.parametrize("name", PRESETS)
def test_preset_writes_out_every_section(name: str) -> None:
    """What a preset leaves out takes a default; a preset leaves out nothing."""
    text = (Path(__file__).parents[1] / "arch" / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text)
    written = {key for table in document.values() if isinstance(table, dict) for key in table}
    assert written | {"name", "purpose"} == set(ArchSpec().to_dict())


def test_four_presets_differ_only_in_how_they_feed_the_same_macs() -> None:
    same = [ArchSpec.load(n) for n in ("dense", "nm-2of4", "dbb-4of8", "sat-2of8")]
    assert [s.peak_macs for s in same] == [256] * 4
    assert [s.buffer_bytes["activations"] for s in same] == [128 * 1024] * 4
    assert [s.weight_steps * s.columns * s.macs for s in same] == [64 * 1024] * 4


# ---- round trips ----


@given(legal_specs())
def test_any_legal_spec_round_trips(spec: ArchSpec) -> None:
    assert ArchSpec.from_toml(spec.to_toml()) == spec
    assert ArchSpec.from_dict(spec.to_dict()) == spec
    assert hash(ArchSpec.from_dict(spec.to_dict())) == hash(spec)


@given(legal_specs())
def test_any_legal_spec_is_valid_for_the_schema(spec: ArchSpec) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(tomllib.loads(spec.to_toml()))


@pytest.mark.parametrize("name", ["\U0001f600", 'quote " and \\', "tab\t, DEL\x7f, NUL\0", "# no comment", "Größe"])
def test_any_name_survives_a_file(name: str, tmp_path: Path) -> None:
    spec = ArchSpec(name=name, purpose=name)
    spec.save(tmp_path / "s.toml")
    assert ArchSpec.load(tmp_path / "s.toml") == spec


def test_a_field_left_out_takes_its_default() -> None:
    assert ArchSpec.from_toml("") == ArchSpec()
    assert ArchSpec.from_toml("[array]\ndepth = 5\n") == ArchSpec(depth=5)


def test_evolve_changes_only_what_it_is_given() -> None:
    spec = ArchSpec.load("tiny")
    changed = spec.evolve(depth=5)
    assert changed.to_dict() == {**spec.to_dict(), "depth": 5}
    assert spec.depth == 8
    with refused("array.depth must be from 1 to 256 accumulators, not 0"):
        spec.evolve(depth=0)
    with refused("'dept' is not a field of a spec; did you mean 'depth'?"):
        spec.evolve(dept=5)
    with refused("'lane' is not a field of a spec; did you mean 'lanes'?"):
        ArchSpec.from_dict({"lane": 1})


def test_a_spec_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError, match=r"^cannot assign to field 'lanes'$"):
        ArchSpec().lanes = 3  # type: ignore[misc]


# ---- validation ----

NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"columns": 0}, "array.columns must be from 1 to 128 columns, not 0"),
    ({"columns": 129}, "array.columns must be from 1 to 128 columns, not 129"),
    ({"lanes": -3}, "array.lanes must be from 1 to 128 lanes, not -3"),
    ({"group": 12}, "array.group must be a power of two from 1 to 32 elements, not 12"),
    ({"group": 64}, "array.group must be a power of two from 1 to 32 elements, not 64"),
    ({"hop": 0}, "array.hop must be a power of two from 1 to 32 elements, not 0"),
    ({"axi_bytes": 2}, "bus.axi_bytes must be a power of two from 4 to 128 bytes, not 2"),
    ({"lanes": 8.0}, "array.lanes must be an integer (from 1 to 128 lanes), not 8.0"),
    ({"lanes": float("nan")}, "array.lanes must be an integer (from 1 to 128 lanes), not nan"),
    ({"lanes": True}, "array.lanes must be an integer (from 1 to 128 lanes), not True"),
    ({"lanes": "8"}, "array.lanes must be an integer (from 1 to 128 lanes), not '8'"),
    ({"lanes": None}, "array.lanes must be an integer (from 1 to 128 lanes), not None"),
    ({"macs": [2]}, "array.macs must be an integer (a power of two from 1 to 32 MACs), not [2]"),
    ({"dynamic_operands": 1}, "array.dynamic_operands must be true or false, not 1"),
    ({"dynamic_operands": "yes"}, "array.dynamic_operands must be true or false, not 'yes'"),
    ({"tables": 5}, "buffers.tables must be from 0 to 4 tables, not 5"),
    ({"weight_steps": 1 << 70}, f"buffers.weight_steps must be from 2 to 65536 steps, not {1 << 70}"),
    ({"name": ""}, "name must be a non-empty string, not ''"),
    ({"name": 5}, "name must be a non-empty string, not 5"),
    ({"purpose": None}, "purpose must be a string, not None"),
]


@pytest.mark.parametrize(("values", "message"), NUMBERS)
def test_a_value_out_of_bounds_is_named(values: dict[str, Any], message: str) -> None:
    with refused(message):
        ArchSpec(**values)


RELATIONS: list[tuple[dict[str, int], str]] = [
    ({"macs": 16}, "macs must be at most group (8), not 16"),
    ({"hop": 16}, "hop must be at most group (8), not 16"),
    ({"columns": 24}, "columns (24) must divide, or be a multiple of, both group (8) and axi_bytes (16)"),
    ({"columns": 12}, "columns (12) must divide, or be a multiple of, both group (8) and axi_bytes (16)"),
    ({"columns": 1, "ppu": 2}, "ppu must divide columns (1) and be at most axi_bytes / 4 (4), not 2"),
    ({"ppu": 8}, "ppu must divide columns (16) and be at most axi_bytes / 4 (4), not 8"),
    (
        {"activation_bytes": 8200},
        "activation_bytes must be a multiple of 32 (row of 16 bytes x 2 partitions), not 8200",
    ),
    (
        {"hop": 1, "activation_bytes": 65536 + 32},
        "activation_bytes must be at most 65536 x hop (65536), not 65568",
    ),
    (
        {"output_bytes": 4080},
        "output_bytes must be a multiple of 32 (beat x partitions) and at least one channel block (16), not 4080",
    ),
    (
        {"columns": 128, "output_bytes": 96},
        "output_bytes must be a multiple of 32 (beat x partitions) and at least one channel block (128), not 96",
    ),
    (
        {"dynamic_operands": True, "weight_steps": 2044},
        "weight_steps must be a multiple of 8 (axi_bytes / macs) with dynamic_operands, not 2044",
    ),
    ({"offset_steps": 2044}, "offset_steps must be a multiple of 8 (entries of 2 bytes a beat), not 2044"),
    ({"parameter_channels": 511}, "parameter_channels must be a multiple of 2, not 511"),
    ({"ppu": 4, "parameter_channels": 510}, "parameter_channels must be a multiple of 4, not 510"),
    ({"parameter_channels": 12}, "parameter_channels must be at least a channel block (16), not 12"),
    (
        {"axi_bytes": 4, "fetch_burst": 64},
        "fetch_burst must be at most 32 (256 beats a burst), not 64",
    ),
]


@pytest.mark.parametrize(("values", "message"), RELATIONS)
def test_values_that_do_not_fit_each_other_are_named(values: dict[str, int], message: str) -> None:
    with refused(f"spec 'custom': {message}"):
        ArchSpec(**values)


def unchecked(values: dict[str, int]) -> ArchSpec:
    """A spec that nobody has validated."""
    spec = object.__new__(ArchSpec)
    for name, value in {**ArchSpec().to_dict(), **values}.items():
        object.__setattr__(spec, name, value)
    return spec


def test_every_rule_of_the_reference_is_enforced() -> None:
    """Each row of RULES is the first one that some values above break; so none of them is only words."""
    first = [next(rule for rule in RULES if not rule.holds(unchecked(values))) for values, _ in RELATIONS]
    assert set(first) == set(RULES)
    for rule, (_, message) in zip(first, RELATIONS, strict=True):
        fields = re.findall(r"`(\w+)`", rule.doc)
        assert set(fields) <= set(ArchSpec().to_dict())
        assert any(field in message for field in fields)


def test_no_burst_of_instructions_is_longer_than_a_page() -> None:
    """A bound of fetch_burst, not a rule: bursts do not cross 4 KiB, and FETCH does not cut its own."""
    largest = next(f.metadata["high"] for f in fields(ArchSpec) if f.name == "fetch_burst")
    assert largest * WORD_BYTES <= BOUNDARY


def test_the_numbers_that_messages_offer_are_legal() -> None:
    for legal in (
        {"macs": 8},
        {"ppu": 4},
        {"activation_bytes": 8192 + 32},
        {"hop": 1, "activation_bytes": 65536},
        {"output_bytes": 4096 - 32},
        {"dynamic_operands": True, "weight_steps": 2040},
        {"offset_steps": 2040},
        {"parameter_channels": 16},
        {"axi_bytes": 4, "fetch_burst": 32},
    ):
        ArchSpec(**legal)


TOML: list[tuple[str, str]] = [
    ("[array]\ncolums = 8", "x: array.colums is not a field; did you mean 'columns'?"),
    ("[arrya]\ncolumns = 8", "x: 'arrya' is not a section; did you mean 'array'?"),
    (
        "columns = 8",
        "x: 'columns' is not a section; legal are name, purpose, array, buffers, ppu, bus, control, memory, physical",
    ),
    ("[bus]\ncolumns = 8", "x: bus.columns is not a field; legal are axi_bytes"),
    ("[ppu]\nwidth = 8", "x: ppu.width is not a field; legal are ppu"),
    ("array = 3", "x: [array] must be a table, not 3"),
    ("[[array]]\nlanes = 1", "x: [array] must be a table, not [{'lanes': 1}]"),
    ("[array]\nlanes = 0", "x: array.lanes must be from 1 to 128 lanes, not 0"),
    ("[array]\nlanes = true", "x: array.lanes must be an integer (from 1 to 128 lanes), not True"),
    ("[array]\nlanes = nan", "x: array.lanes must be an integer (from 1 to 128 lanes), not nan"),
    ("[array]\nlanes = 8.0", "x: array.lanes must be an integer (from 1 to 128 lanes), not 8.0"),
    ("[array]\ndynamic_operands = 1", "x: array.dynamic_operands must be true or false, not 1"),
    ("name = 'n'\n[array]\nmacs = 16", "x: spec 'n': macs must be at most group (8), not 16"),
    ("name = ''", "x: name must be a non-empty string, not ''"),
]


@pytest.mark.parametrize(("text", "message"), TOML)
def test_a_mistake_in_toml_is_named_with_its_origin(text: str, message: str) -> None:
    with refused(message):
        ArchSpec.from_toml(text, origin="x")


@pytest.mark.parametrize(
    "text",
    [
        "[array",
        "lanes",
        "[array]\nlanes = 1\nlanes = 2",
        "[array]\nlanes = 99999999999999999999999999999999999999999x",
        "name = '\x00'",
        pytest.param("[array]\nlanes = " + "9" * 5000, id="5000 digits"),
        pytest.param("name = " + "[" * 100_000, id="brackets"),
    ],
)
def test_what_is_not_toml(text: str) -> None:
    with pytest.raises(SpecError, match=r"^my\.toml: not TOML: "):
        ArchSpec.from_toml(text, origin="my.toml")


def test_a_number_too_long_to_be_shown() -> None:
    with pytest.raises(SpecError, match=r"^spec: "):
        ArchSpec.from_toml("[array]\nlanes = 0x" + "f" * 5000)


@given(st.text(max_size=60))
def test_any_text_gives_a_spec_or_a_spec_error(text: str) -> None:
    try:
        ArchSpec.from_toml(text)
    except SpecError as error:
        assert str(error).startswith("spec: ")  # noqa: PT017 - the point is that nothing else comes out


def test_neither_a_file_nor_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(f"'tyni' is neither a TOML file nor a preset; presets are {', '.join(PRESETS)}"):
        ArchSpec.load("tyni")


def test_a_file_wins_over_a_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_text("name = 'mine'")
    assert ArchSpec.load("tiny").name == "mine"


@pytest.mark.parametrize("name", ["no.toml", "nul\0.toml", "folder", "long" * 2000])
def test_what_cannot_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(SpecError, match=f"^cannot read the spec {re.escape(repr(name))}: "):
        ArchSpec.load(name)


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "program.toml"
    path.write_bytes(b"GOSSAMER\x01\x00\x00\x00\xff\xfe")
    with pytest.raises(SpecError, match=f"^cannot read the spec {re.escape(repr(str(path)))}: 'utf-8' codec "):
        ArchSpec.load(path)


def test_a_spec_error_belongs_to_the_family() -> None:
    assert issubclass(SpecError, GossamerError)
    assert issubclass(SpecError, ValueError)


# ---- derived numbers, by hand ----


def test_derived_numbers_of_server() -> None:
    s = ArchSpec.load("server")
    assert (s.select_bits, s.block, s.block_beats, s.activation_row_bytes) == (3, 64, 1, 64)
    assert (s.parameter_row_bytes, s.column_groups, s.pes, s.peak_macs) == (64, 8, 1024, 2048)
    assert (s.fetch_bytes, s.fetch_beats) == (32, 1)
    assert s.buffer_bytes == {
        "activations": 1_048_576,  # 16 lanes x 64 KiB
        "outputs": 262_144,  # 16 lanes x 16 KiB
        "weights": 1_441_792,  # 8192 steps x 64 columns x 2 MACs x 11 bits
        "offsets": 32_768,  # 16384 x 2
        "parameters": 32_768,  # 4096 x 8
        "tables": 65_536,  # 2 tables x 256 x 16 lanes x 8 columns of the PPU
        "accumulators": 524_288,  # 1024 PEs x 64 x 2 banks x 4
    }


def test_derived_numbers_of_tiny_with_a_narrow_bus() -> None:
    s = ArchSpec.load("tiny").evolve(columns=1, group=1, macs=1, hop=1, axi_bytes=8)
    assert (s.select_bits, s.block, s.block_beats, s.activation_row_bytes) == (0, 8, 1, 8)
    assert (s.parameter_row_bytes, s.column_groups, s.pes, s.peak_macs) == (8, 1, 4, 4)
    assert (s.fetch_bytes, s.fetch_beats) == (8, 4)
    s = ArchSpec.load("tiny").evolve(columns=64, axi_bytes=4, offset_steps=2048, parameter_channels=64, output_bytes=64)
    assert (s.block, s.block_beats, s.parameter_row_bytes, s.fetch_beats) == (64, 16, 8, 8)


@pytest.mark.parametrize(("axi", "macs", "banks"), [(16, 2, 8), (16, 8, 2), (4, 8, 1), (4, 4, 1)])
def test_weight_banks_are_the_steps_a_beat_fills(axi: int, macs: int, banks: int) -> None:
    spec = ArchSpec(axi_bytes=axi, macs=macs, columns=16)
    assert spec.weight_banks == 1
    assert spec.evolve(dynamic_operands=True).weight_banks == banks


# ---- JSON Schema ----


def test_schema_is_a_schema_and_has_every_field() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    tables = {k: v["properties"] for k, v in schema["properties"].items() if v["type"] == "object"}
    assert {name for table in tables.values() for name in table} | {"name", "purpose"} == set(ArchSpec().to_dict())
    for table in tables.values():
        for name, entry in table.items():
            assert entry["default"] == getattr(ArchSpec(), name)


@pytest.mark.parametrize("name", PRESETS)
def test_schema_accepts_presets_as_they_stand(name: str) -> None:
    text = (Path(__file__).parents[1] / "arch" / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    jsonschema.Draft202012Validator(json_schema()).validate(tomllib.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        "[array]\ncolums = 8",
        "[arrya]\ncolumns = 8",
        "lanes = 8",
        "name = ''",
        "name = 1",
        "array = 3",
        "[array]\nlanes = 0",
        "[array]\nlanes = 129",
        "[array]\nlanes = true",
        "[array]\ndynamic_operands = 1",
        "[array]\nlanes = '8'",
        "[array]\nlanes = 8.5",
        "[array]\ngroup = 12",
    ],
)
def test_schema_refuses_what_load_refuses(text: str) -> None:
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(tomllib.loads(text))
    with pytest.raises(SpecError, match=r"^spec: "):
        ArchSpec.from_toml(text)
