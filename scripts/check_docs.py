#!/usr/bin/env python3
"""Check that every relative link in the documentation leads to a file, and to a heading where it names one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)


def pages() -> list[Path]:
    """The Markdown files of the top level and of docs/ and examples/."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def anchors(text: str) -> set[str]:
    """The fragment names that a Markdown renderer gives to the headings."""
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in _HEADING.findall(text)}


def broken(page: Path) -> Iterator[str]:
    """One line for every link of `page` that leads nowhere."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists():
            yield f"{page.relative_to(ROOT)}: {target} does not exist"
        elif fragment and other.suffix == ".md" and fragment not in anchors(other.read_text()):
            yield f"{page.relative_to(ROOT)}: {target}: no such heading"


def main() -> int:
    found = [line for page in pages() for line in broken(page)]
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    print(f"{len(pages())} pages, {len(found)} broken links")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
