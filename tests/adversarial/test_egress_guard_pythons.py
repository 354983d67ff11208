"""The guard's adversarial tests, and those of its units that run in their own process, on every other Python present.

The rest of tests/unit/test_guard_*.py starts each Python itself. Python 3.11 to 3.14 are meant to be tried, with and
without the GIL: which were is a passed test each, which were absent is a warning in pytest's summary.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from tests.support import guarded, pythons

pytestmark = pytest.mark.adversarial
HERE = (
    f"{sys.version_info[0]}.{sys.version_info[1]}{'t' if not getattr(sys, '_is_gil_enabled', lambda: True)() else ''}"
)
MEANT = ("3.11", "3.12", "3.13", "3.14", "3.13t", "3.14t")
OTHERS = sorted({*guarded.versions()} - {HERE})
FILES = (
    "tests/adversarial/test_egress_guard.py",
    "tests/adversarial/test_egress_guard_thread_isolation.py",
    "tests/unit/test_guard_capability.py",
    "tests/unit/test_guard_names.py",
)
PACKAGES = ("pytest", "pytest-timeout", "requests", "urllib3", "httpx")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """pytest in each of them, all at once."""
    base = tmp_path_factory.mktemp("pythons")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV", "PYTHON"))}
    environment |= {"PYTHONPATH": str(guarded.ROOT), "PYTHONPYCACHEPREFIX": str(guarded.ROOT / ".cache/pythons")}
    started = {}
    try:
        for version in OTHERS:
            python = pythons.with_packages(version, PACKAGES, base / version)
            argv = [python, "-m", "pytest", "-q", "--noconftest", "-m", "", "-k", "not 3.1", *FILES]
            argv += ["-o", f"cache_dir={base / version}/cache", "--basetemp", f"{base / version}/tmp"]
            started[version] = subprocess.Popen(
                argv, cwd=guarded.ROOT, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True
            )
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.communicate()


def test_the_pythons_that_are_absent_are_told() -> None:
    present = guarded.versions()
    assert HERE in present
    for version in MEANT:
        if version not in present:
            warnings.warn(
                f"no Python {version} here: AGENTMON_PYTHONS=/path/to/python{version} names one", stacklevel=1
            )


@pytest.mark.parametrize("version", OTHERS)
def test_the_guard_holds_on_other_pythons(version: str, runs: dict[str, subprocess.Popen[str]]) -> None:
    told, _ = runs[version].communicate(timeout=170)
    assert runs[version].returncode == 0, told
    found = re.search(r"^(\d+) passed, \d+ deselected", told, re.MULTILINE)
    assert found is not None and int(found[1]) > 100, told
