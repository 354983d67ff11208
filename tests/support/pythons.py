"""Another Python with packages of this one: a venv of links, made in a moment, nothing downloaded.

What has only compiled code for this Python does not import there; what falls back to pure Python does.
"""

from __future__ import annotations

import subprocess
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import guarded


def with_packages(version: str, names: tuple[str, ...], directory: Path) -> str:
    """A Python `version` that is present, in a new environment at `directory`, with `names` and what they require."""
    argv = [guarded.interpreters()[version], "-I", "-m", "venv", "--without-pip", str(directory)]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    (site,) = directory.glob("lib/python3*/site-packages")
    for found in _closure(names, version).values():
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            (site / top).symlink_to(str(found.locate_file(top)))
    return str(directory / "bin/python")


def _closure(names: tuple[str, ...], version: str) -> dict[str, Distribution]:
    there = {"extra": "", "python_version": version.rstrip("t"), "python_full_version": f"{version.rstrip('t')}.0"}
    found: dict[str, Distribution] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        key = canonicalize_name(wanted.name)
        if key in found or (wanted.marker is not None and not wanted.marker.evaluate(there)):
            continue
        found[key] = distribution(wanted.name)
        waiting += map(Requirement, found[key].requires or ())
    return found
