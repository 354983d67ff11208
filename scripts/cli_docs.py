#!/usr/bin/env python3
"""Write docs/reference/cli.md and docs/man/man1/*.1 from the commands themselves; with --check, say what differs.

One walk over the tree of commands makes both, so that help, reference and manual cannot disagree.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agentmon import __version__  # noqa: E402
from agentmon.cli.main import agentmon  # noqa: E402

_EXITS = (
    ("0", "it was done; for commands that compare or judge: nothing is wrong"),
    ("1", "anything else, and what a command that judges found"),
    ("2", "usage, or a file, option or value that cannot be used"),
    ("3", "refused by policy, budget or permission"),
    ("4", "the host lacks something"),
    ("5", "the daemon does not answer"),
    ("125", "run: every failure of agentmon's own"),
    ("126, 127", "run: the command cannot be executed, is not there"),
)


@dataclass(frozen=True)
class Page:
    """One command: its words ("agentmon policy check"), usage line, text, options and example lines."""

    words: tuple[str, ...]
    usage: str
    text: tuple[str, ...]  # paragraphs
    options: tuple[tuple[str, str], ...]
    examples: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return " ".join(self.words)


def pages() -> Iterator[Page]:
    """Every command, parents first."""
    yield from _pages(agentmon, click.Context(agentmon, info_name="agentmon"))


def _pages(command: click.Command, context: click.Context) -> Iterator[Page]:
    inner = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                inner.append((name, found))
    paragraphs = re.split(r"\n\s*\n", click.unstyle(command.help or "").replace("\b", "").strip())
    yield Page(
        tuple(context.command_path.split()),
        f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}",
        tuple(" ".join(p.split()) for p in paragraphs if p.strip()),
        tuple(_records(command, context)),
        examples(command),
        tuple((name, found.get_short_help_str(200)) for name, found in inner),
    )
    for name, found in inner:
        yield from _pages(found, click.Context(found, info_name=name, parent=context))


def _records(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Options, and those arguments that explain themselves; the others are explained by the text."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and (record[1] or isinstance(parameter, click.Option)):
            yield record


def examples(command: click.Command) -> tuple[str, ...]:
    """The command lines of a help text's end."""
    lines = (command.epilog or "").replace("\b", "").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and line.strip() not in {"Example:", "Examples:"})


# ── Markdown ──


def reference() -> str:
    every = list(pages())
    lines = ["# Commands", "", "Written by `make docs` from the commands themselves. Exit status: ", ""]
    lines += [f"- {status}: {what}" for status, what in _EXITS]
    lines += ["", "| command | |", "|---|---|"]
    lines += [f"| [{p.name}](#{p.name.replace(' ', '-')}) | {_cell(p.text[0]) if p.text else ''} |" for p in every[1:]]
    for page in every:
        lines += ["", f"## {page.name}", "", f"    {page.usage}", ""]
        lines += [line for paragraph in page.text for line in (paragraph, "")]
        if page.options:
            lines += ["| option | |", "|---|---|", *(f"| `{_code(o)}` | {_cell(t)} |" for o, t in page.options), ""]
        if page.examples:
            lines += ["Example:", "", *(f"    {line}" for line in page.examples)]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return text.replace("|", "\\|")


# ── man(7) ──


def manual(page: Page) -> str:
    title = "-".join(page.words)
    brief = (page.text[0] if page.text else "").split(". ")[0].rstrip(".")
    lines = [
        f'.TH "{title.upper()}" 1 "" "agentmon {__version__}" "agentmon"',
        ".SH NAME",
        f"{title} \\- {_roff(brief)}",
    ]
    lines += [".SH SYNOPSIS", f".B {_roff(page.usage)}", ".SH DESCRIPTION"]
    for paragraph in page.text:
        lines += [_roff(paragraph), ".PP"]
    if page.commands:
        lines.append(".SH COMMANDS")
        for name, text in page.commands:
            lines += [".TP", f".B {_roff(name)}", _roff(text)]
    if page.options:
        lines.append(".SH OPTIONS")
        for option, text in page.options:
            lines += [".TP", f".B {_roff(option)}", _roff(text)]
    if page.examples:
        lines += [".SH EXAMPLES", ".nf", *(_roff(line) for line in page.examples), ".fi"]
    lines.append(".SH EXIT STATUS")
    for status, what in _EXITS:
        lines += [".TP", f".B {status}", _roff(what)]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in {".", "'"} else text


def files() -> dict[Path, str]:
    """What there is to be, by path below the checkout."""
    found = {Path("docs/reference/cli.md"): reference()}
    for page in pages():
        found[Path(f"docs/man/man1/{'-'.join(page.words)}.1")] = manual(page)
    return found


def differing() -> list[str]:
    """Files that are missing, stale, or of a command that is gone."""
    wanted = files()
    there = {
        p.relative_to(ROOT) for p in [*ROOT.glob("docs/man/man1/*.1"), ROOT / "docs/reference/cli.md"] if p.exists()
    }
    stale = [p for p, text in wanted.items() if p not in there or (ROOT / p).read_text() != text]
    return sorted(str(p) for p in [*stale, *(there - wanted.keys())])


def main() -> int:
    if "--check" in sys.argv[1:]:
        for path in differing():
            print(f"error: {path} is not what the commands say", file=sys.stderr)
        return 1 if differing() else 0
    wanted = files()
    for old in ROOT.glob("docs/man/man1/*.1"):
        if old.relative_to(ROOT) not in wanted:
            old.unlink()
    for path, text in wanted.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)
    print(f"{len(wanted)} files written: docs/reference/cli.md, docs/man")
    return 0


if __name__ == "__main__":
    sys.exit(main())
