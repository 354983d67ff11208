"""Builds native.c: a shared library, a static program, and where Python's headers are, an extension module."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent / "native.c"


class Built(NamedTuple):
    """`extension` is None without Python.h (apt-get install python3-dev)."""

    library: Path
    program: Path
    extension: Path | None


def compiler() -> str | None:
    """A C compiler; without one: apt-get install gcc libc6-dev linux-libc-dev."""
    return shutil.which("cc") or shutil.which("gcc")


def build(where: Path) -> Built:
    """All three in the directory `where`. No frame pointers, as most packages are built.

    :raises subprocess.CalledProcessError: the compiler refused.
    """
    base = [compiler() or "cc", "-O2", "-Wall", "-fomit-frame-pointer"]
    library, program = where / "libbypass.so", where / "bypass_static"
    subprocess.run([*base, "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    subprocess.run([*base, "-static", "-DAM_PROGRAM", "-o", program, SOURCE], check=True)
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        return Built(library, program, None)
    extension = where / f"bypass_extension{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([*base, "-shared", "-fPIC", "-DAM_EXTENSION", "-I", include, "-o", extension, SOURCE], check=True)
    return Built(library, program, extension)
