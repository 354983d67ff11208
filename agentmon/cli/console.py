"""How the command line speaks: data on stdout, messages on stderr, colour only for terminals that want it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click


def complain(message: str, hint: str = "") -> None:
    """`error:` and `hint:` on stderr."""
    _say("error", "red", message)
    if hint:
        _say("hint", "yellow", hint)


def notice(message: str) -> None:
    """Something a person should know; the command goes on."""
    _say("note", "cyan", message)


def _say(word: str, colour: str, text: str) -> None:
    label = click.style(f"{word}:", fg=colour, bold=True) if coloured(sys.stderr) else f"{word}:"
    click.echo(f"{label} {text}", err=True, color=True)


def coloured(stream: Any) -> bool:
    """no-color.org: NO_COLOR set and not empty means none."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def emit_json(value: Any) -> None:
    """One object on one line, at once: streams are read while they come."""
    sys.stdout.write(json.dumps(value, separators=(", ", ": "), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def emit(text: str) -> None:
    """Text for people."""
    if text:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()


def example(*lines: str) -> str:
    """The epilogue of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
