"""Write the pages of docs/ that are derived from the sources.

    python docs/generate.py            write them
    python docs/generate.py --check    exit with 1 if one is not current

A page is a function that returns its text; nothing else (no date, no path, no dictionary order that may change) may
go into it, so that the committed file can be compared.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from enum import IntEnum
from pathlib import Path

from gossamer.arch import isa
from gossamer.arch.rules import RULES
from gossamer.arch.spec import ArchSpec, preset_names

DOCS = Path(__file__).resolve().parent


def page(title: str, source: str, *parts: str) -> str:
    """A page of Markdown from its parts."""
    note = f"<!-- Written by docs/generate.py from {source}: change it there, then run `make docs`. -->"
    return "\n\n".join((note, f"# {title}", *parts)) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table of Markdown."""
    names = list(head)
    cells = ([str(cell).replace("|", "\\|").replace("**", "\\*\\*") for cell in row] for row in rows)
    lines = [names, ["---"] * len(names), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def codes(kind: type[IntEnum]) -> str:
    """The members of an enumeration, as a table."""
    return table(("value", "name"), ((member.value, f"`{member.name}`") for member in kind))


def first_line(kind: type) -> str:
    """The first line of a docstring."""
    return (kind.__doc__ or "").strip().splitlines()[0]


def bits(field: isa.Field) -> str:
    """Where a field lies: `15:4`, or `28` for a single bit."""
    last = field.start + field.bits - 1
    return f"{last}:{field.start}" if field.bits > 1 else str(last)


def instruction_fields(rows: Iterable[isa.Field]) -> str:
    """The fields of an instruction, as a table."""
    return table(
        ("bits", "field", "width", "legal", "meaning"),
        ((bits(f), f"`{f.name}`", f.bits, f"{f.minimum} .. {f.maximum}", f.doc) for f in rows),
    )


def isa_page() -> str:
    """docs/isa.md, from the tables of arch/isa.py."""
    parts = [
        (isa.__doc__ or "").split("\n\n", 1)[1].strip(),
        "## Every instruction",
        instruction_fields(isa.COMMON),
        "`wait` and `post` are masks: bit k stands for semaphore k.",
    ]
    for op, rows in isa.FORMATS.items():
        unit = isa.UNIT_OF[op].name
        parts.append(f"## {op.name}\n\nOpcode {op.value}, unit {unit}.")
        if rows:
            parts.append(instruction_fields(rows))
            parts.append(f"Bits 255:{rows[-1].start + rows[-1].bits} are zero.")
    parts += [
        "## Semaphores",
        f"Counting semaphores; the largest count is {isa.SEMAPHORE_MAX}.",
        table(
            ("bit", "name", "posted by", "waited on by"),
            ((s.index, f"`{s.name}`", s.poster.name, s.waiter.name) for s in isa.SEMAPHORES),
        ),
    ]
    for title, kind in (
        ("Units", isa.Unit),
        ("Kinds of LOAD", isa.LoadKind),
        ("Encodings of weight steps", isa.Encoding),
        ("Modes of MATMUL", isa.MatmulMode),
        ("Error codes", isa.ErrorCode),
    ):
        parts += [f"## {title}", first_line(kind), codes(kind)]
    return page("Instruction set", "arch/isa.py", *parts)


def spec_page() -> str:
    """docs/spec.md, from the field table of arch/spec.py, the rules of arch/rules.py and the presets."""
    parts = [
        (
            "An accelerator is a TOML file. Every number may be left out: its default then holds. `gossamer inspect "
            "FILE` checks a file and names what is not legal; `gossamer schema` prints these tables as JSON Schema."
        ),
        "`name` and `purpose`, two strings, stand at the top of the file.",
    ]
    sections: dict[str, list[tuple[object, ...]]] = {}
    for f in fields(ArchSpec):
        if meta := f.metadata:
            if isinstance(f.default, bool):
                row: tuple[object, ...] = (f"`{f.name}`", str(f.default).lower(), "true, false", "", meta["doc"])
            else:
                legal = f"{meta['low']} .. {meta['high']}" + (", a power of two" if meta["power_of_two"] else "")
                row = (f"`{f.name}`", f.default, legal, meta["unit"], meta["doc"])
            sections.setdefault(meta["section"], []).append(row)
    for section, rows in sections.items():
        parts += [f"## [{section}]", table(("field", "default", "legal", "unit", "meaning"), rows)]
    parts += [
        "## Rules between fields",
        "Values within bounds must also fit each other. A spec that breaks a rule is refused, and told what is legal.",
        "\n".join(f"- {rule.doc}." for rule in RULES),
    ]
    specs = [(name, ArchSpec.load(name)) for name in preset_names()]
    presets = ((f"`{name}`", s.purpose, f"{s.lanes} × {s.columns}", s.group, s.macs, s.peak_macs) for name, s in specs)
    if specs:
        head = ("name", "purpose", "lanes × columns", "group", "macs", "MACs per cycle")
        parts += ["## Presets", table(head, presets)]
    return page("Architecture spec", "arch/spec.py, arch/rules.py and arch/presets/", *parts)


PAGES: dict[str, Callable[[], str]] = {"isa.md": isa_page, "spec.md": spec_page}
"""Generated files, by name in docs/, and what writes them."""


def stale(folder: Path) -> dict[str, str]:
    """Pages whose file in this folder is missing or differs, with their current text."""
    texts = {name: write() for name, write in PAGES.items()}
    return {
        name: text
        for name, text in texts.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    }


def main(argv: list[str] | None = None) -> int:
    """Write or check the pages; the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated pages of docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not current")
    check = parser.parse_args(argv).check
    pages = stale(DOCS)
    for name, text in pages.items():
        path = DOCS / name
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
            continue
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        diff = difflib.unified_diff(old.splitlines(), text.splitlines(), f"docs/{name}", "generated", lineterm="", n=1)
        print(f"docs/{name} is not current: run `make docs` and commit it", *list(diff)[:20], sep="\n", file=sys.stderr)
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
