"""Write the pages of docs/ that are derived from the sources.

    python docs/generate.py            write them
    python docs/generate.py --check    exit with 1 if one is not current

A page is a function that returns its text; nothing else (no date, no path, no dictionary order that may change) may
go into it, so that the committed file can be compared.
"""

import argparse
import difflib
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent

NOTE = "<!-- Written by docs/generate.py from {source}; change it there and run `make docs`. -->\n\n"

PAGES: dict[str, Callable[[], str]] = {}
"""Generated files, by name in docs/, and what writes them."""


def stale(folder: Path) -> dict[str, str]:
    """Pages whose file in this folder is missing or differs, with their current text."""
    texts = {name: page() for name, page in PAGES.items()}
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
