"""Which distribution installed a file: the RECORD of each *.dist-info beside it, and the interpreter's own modules."""

from __future__ import annotations

import csv
import os
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from agentmon.audit_native.model import Owner

_NOBODY = Owner()


class Owners:
    """Answers by real path. A directory's distributions are read once, when the first file below it is asked for.

    :param stdlib: (directory, version) of an interpreter's own modules, which no distribution claims.
    """

    def __init__(self, stdlib: tuple[str, str] | None = None) -> None:
        self._files: dict[str, Owner] = {}
        self._read: set[str] = set()
        self._stdlib = stdlib

    def of(self, path: str) -> Owner:
        """The owner of a file; an empty one where nobody claims it."""
        above = os.path.dirname(os.path.abspath(path))
        if os.path.basename(above) == "lib-dynload":  # of an interpreter: …/lib/python3.13/lib-dynload
            known = self._stdlib and above == self._stdlib[0]
            version = self._stdlib[1] if self._stdlib and known else os.path.basename(os.path.dirname(above))
            return Owner("python", version.removeprefix("python"), _stdlib_modules(os.path.basename(path)))
        real = os.path.realpath(path)
        for parent in Path(path).absolute().parents:
            self._learn(str(parent))
            if real in self._files:
                return self._files[real]
        return _NOBODY

    def learn(self, site: str) -> None:
        """Read the distributions of a directory. Also for files that lie elsewhere: programs in bin/."""
        self._learn(site)

    def _learn(self, site: str) -> None:
        if site in self._read:
            return
        self._read.add(site)
        try:
            if not any(name.endswith(".dist-info") for name in os.listdir(site)):
                return
        except OSError:
            return
        for distribution in distributions(path=[site]):
            owner, files = _record(distribution, site)
            for file in files:
                self._files.setdefault(os.path.realpath(file), owner)


def _record(distribution: Distribution, site: str) -> tuple[Owner, list[str]]:
    """(owner, absolute files). A distribution without a name or with a damaged RECORD owns nothing."""
    try:
        metadata = distribution.metadata
        name, version = metadata.get("Name") or "", metadata.get("Version") or ""
        listed = [str(file) for file in distribution.files or ()]
    except (KeyError, ValueError, TypeError, OSError, csv.Error):
        return _NOBODY, []
    files = [os.path.normpath(os.path.join(site, file)) for file in listed]
    return Owner(name, version, _modules(listed)), files


def _modules(listed: list[str]) -> tuple[str, ...]:
    """Top-level import names: what lies in site-packages itself. `foo.libs` and `foo-1.dist-info` are none."""
    names = {file.split("/")[0].split(".")[0] for file in listed if _importable(file)}
    return tuple(sorted(name for name in names if name.isidentifier() and name != "__pycache__"))


def _importable(file: str) -> bool:
    top, _, rest = file.partition("/")
    return file.endswith((".py", ".so")) and (not rest or "." not in top)


def _stdlib_modules(file: str) -> tuple[str, ...]:
    """`_ctypes.cpython-313-x86_64-linux-gnu.so` is what `ctypes` is built on."""
    name = file.split(".")[0]
    public = name.lstrip("_")
    return tuple(dict.fromkeys((name, *((public,) if public in sys.stdlib_module_names else ()))))
