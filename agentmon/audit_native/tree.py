"""Which files belong to an environment: a directory tree, or a virtual environment with what its interpreter brings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agentmon.audit_native import elf
from agentmon.audit_native.model import Unreadable
from agentmon.errors import BadInput

_SITE = ("site-packages", "dist-packages")


@dataclass
class Tree:
    """`files`: every ELF file, each once. `unread`: (path, why) of what could not be looked at. `elsewhere`:
    directories that are on the environment's path but lie outside (.pth files)."""

    root: str
    files: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    stdlib: tuple[str, str] | None = None


def of_path(path: Path) -> Tree:
    """A file, or everything below a directory.

    :raises BadInput: there is nothing to read.
    """
    if path.is_dir():
        return _walked(Tree(str(path)), [str(path)])
    try:
        os.stat(path)
    except OSError as e:
        raise BadInput(f"{path}: cannot be read: {e.strerror}", "name a native module, or a directory of them") from e
    return Tree(str(path), files=[str(path)])


def of_venv(venv: Path) -> Tree:
    """A virtual environment, and the native modules of the interpreter it was made with.

    :raises BadInput: it is none.
    """
    other = f"agentmon audit-native {venv}: looks at any directory"
    try:
        text = (venv / "pyvenv.cfg").read_text("utf-8", "replace")
    except NotADirectoryError:
        raise BadInput(f"{venv}: is not a directory", "name the directory of a virtual environment") from None
    except OSError as e:
        if not venv.exists():
            raise BadInput(f"{venv}: no such directory", "name the directory of a virtual environment") from e
        raise BadInput(f"{venv}: is not a virtual environment: pyvenv.cfg: {e.strerror}", other) from e
    values = dict(re.findall(r"^\s*([\w-]+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    tree = Tree(str(venv))
    version = values.get("version") or values.get("version_info", "")
    modules = _stdlib(values.get("home", ""), version)
    if modules:
        tree.stdlib = (modules, version)
    return _walked(tree, [str(venv), *([modules] if modules else [])])


def _stdlib(home: str, version: str) -> str:
    """The interpreter's lib-dynload, "" where it cannot be told."""
    short = re.match(r"\d+\.\d+", version)
    if not home or not short:
        return ""
    path = os.path.join(os.path.dirname(os.path.realpath(home)), "lib", f"python{short[0]}", "lib-dynload")
    return path if os.path.isdir(path) else ""


def _walked(tree: Tree, starts: list[str]) -> Tree:
    seen: set[tuple[int, int]] = set()
    waiting = list(reversed(starts))
    while waiting:
        here = waiting.pop()
        try:
            if not _first_visit(here, seen):
                continue
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as e:
            tree.unread.append((here, f"cannot be read: {e.strerror}"))
            continue
        site = os.path.basename(here) in _SITE
        if site:
            tree.sites.append(here)
            tree.elsewhere += [p for entry in entries if entry.name.endswith(".pth") for p in _path_lines(entry.path)]
        below = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=site):  # a package that is linked in belongs to it; other links lead away
                below.append(entry.path)
            elif entry.is_file():
                _take(tree, entry.path, seen)
        waiting += reversed(below)
    return tree


def _take(tree: Tree, path: str, seen: set[tuple[int, int]]) -> None:
    try:
        if elf.is_elf(path) and _first_visit(path, seen):
            tree.files.append(path)
    except Unreadable as e:
        tree.unread.append((path, e.why))
    except OSError as e:
        tree.unread.append((path, f"cannot be read: {e.strerror}"))


def _first_visit(path: str, seen: set[tuple[int, int]]) -> bool:
    found = os.stat(path)
    new = (found.st_dev, found.st_ino) not in seen
    seen.add((found.st_dev, found.st_ino))
    return new


def _path_lines(pth: str) -> Iterator[str]:
    """The directories that a .pth file adds. site.py: a line that begins with import is run, not added."""
    try:
        with open(pth, encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 20).splitlines()
    except OSError:
        return
    for line in lines:
        text = line.strip()
        if text and not text.startswith(("#", "import ", "import\t")):
            path = os.path.normpath(os.path.join(os.path.dirname(pth), text))
            if os.path.isdir(path):
                yield path
