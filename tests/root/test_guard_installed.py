"""The guard out of an installed wheel, without any other package, in an environment of its own for each Python present.

Marked root only because building and installing takes seconds: it needs neither root nor a network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import guarded

pytestmark = pytest.mark.root
PYTHONS = guarded.versions()
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # each call leaves words of its own there
build_meta.build_wheel(out)
build_meta.build_sdist(out)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist of a copy of this checkout."""
    base = tmp_path_factory.mktemp("wheel")
    source, out = base / "source", base / "out"
    out.mkdir()
    for name in ("agentmon", "netfilter", "ebpf"):
        shutil.copytree(guarded.ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(guarded.ROOT / name, source)
    argv = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(argv, cwd=source, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_bootstrap_of_children_is_in_wheel_and_sdist(built: Path) -> None:
    bootstrap = "agentmon/guard/bootstrap/sitecustomize.py"
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as packed:
        assert {bootstrap, "agentmon/ledger/schema.sql", "agentmon/py.typed"} <= set(packed.namelist())
        (entry_points,) = (name for name in packed.namelist() if name.endswith("entry_points.txt"))
        assert "agentmon.pytest_plugin = agentmon.pytest_plugin" in packed.read(entry_points).decode()
    with tarfile.open(sdist) as packed_source:
        assert any(name.endswith(bootstrap) for name in packed_source.getnames())


INSTALLED = """
import json, socket, subprocess, sys
OWN = {"__main__", "agentmon", "sitecustomize"}  # the last may be the distribution's
import agentmon.guard
from agentmon.guard import EgressGuard
EgressGuard.install(["udp://198.51.100.1"])
foreign = sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names - OWN)
CODE = '''
import socket
out = []
for address in ("198.51.100.1", "192.0.2.9"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try: s.connect((address, 53)); out.append("ok")
        except RuntimeError as e: out.append(e.reason)
        except OSError: out.append("ok")  # let through to the kernel, which has no route in a namespace of its own
print(*out)
'''
def child(*argv): return subprocess.run([sys.executable, *argv], env=EgressGuard.child_env(), stdout=-1, text=True)
checked = child("-m", "agentmon.guard", "check", "--json")
print(json.dumps([agentmon.guard.__file__, foreign, child("-c", CODE).stdout.split(), checked.returncode]))
"""


@pytest.mark.parametrize("version", PYTHONS)
def test_the_guard_works_from_a_wheel_alone(version: str, built: Path, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*argv: str) -> str:
        done = subprocess.run(argv, cwd="/", env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(guarded.interpreters()[version], "-I", "-m", "venv", "--without-pip", str(tmp_path / "bare"))
    python = str(tmp_path / "bare/bin/python")
    (wheel,) = built.glob("*.whl")
    pip = ("-m", "pip", "--python", python, "install", "-q", "--no-compile", "--no-deps", "--no-index", str(wheel))
    run(sys.executable, *pip, "--disable-pip-version-check")
    found = json.loads(run(python, "-c", INSTALLED))
    assert found[0].startswith(str(tmp_path / "bare"))
    assert found[1:] == [[], ["ok", "default"], 0]
