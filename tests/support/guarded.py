"""Scripts under the guard, in processes of their own, on every Python ≥ 3.11 that is present.

An audit hook cannot be removed, so the test process itself is never guarded. Nothing of a script leaves the machine:
what must be permitted is tried with UDP connect(2), which sends nothing, and what is refused is refused before.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PROBE = "import sys, sysconfig; print(*sys.version_info[:2], sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"

PRELUDE = """
import errno, json, socket, sys
from agentmon.guard import EgressGuard, EgressLocked, EgressViolation, EgressWarning, HostName, RuleError

def attempt(what, *args, **kwargs):
    try:
        value = what(*args, **kwargs)
    except EgressViolation as e:
        return {"refused": e.reason, "host": e.host, "port": e.port, "address": e.address, "rule": e.rule,
                "rules": e.rules, "layer": e.layer, "text": str(e)}
    except BaseException as e:
        return {"error": type(e).__name__, "text": str(e)}
    return {"ok": value if isinstance(value, (str, int, list, tuple, type(None))) else type(value).__name__}

def connect(host, port, family=socket.AF_INET, kind=socket.SOCK_STREAM, proto=0):
    with socket.socket(family, kind, proto) as s:
        s.settimeout(0)
        return attempt(went, s, (host, port))

def went(s, address):
    try: s.connect(address)
    except OSError as e:  # the guard let it go on; whether this host has a route at the moment is no matter
        if e.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN): raise

def udp(host, port, family=socket.AF_INET):
    return connect(host, port, family, socket.SOCK_DGRAM)

def reason(result):
    return result.get("refused") or result.get("error") or "ok"
"""


@functools.cache
def interpreters() -> dict[str, str]:
    """Version ("3.11", "3.14t") → a Python that really runs, this one included; $AGENTMON_PYTHONS names others."""
    found: dict[str, str] = {}
    named = [path for path in os.environ.get("AGENTMON_PYTHONS", "").split(os.pathsep) if path]
    here = [sys.executable, *named, *sorted(Path("/usr/bin").glob("python3.1[1-9]"))]
    for place in (Path.home() / ".pyenv/versions", Path("/root/.pyenv/versions"), Path("/usr/local"), Path("/opt")):
        try:
            here += [*sorted(place.glob("*/bin/python3.1[1-9]*")), *sorted(place.glob("bin/python3.1[1-9]*"))]
        except OSError:
            continue
    for path in map(str, here):
        if path.endswith("-config"):
            continue
        try:
            done = subprocess.run([path, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            major, minor, free = map(int, done.stdout.split())
            if (major, minor) >= (3, 11):
                found.setdefault(f"{major}.{minor}{'t' if free else ''}", path)
    return found


def versions() -> list[str]:
    return sorted(interpreters())


def run(
    body: str,
    version: str | None = None,
    *argv: str,
    env: dict[str, str] | None = None,
    inside: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """PRELUDE and `body`, as a file of its own would be: multiprocessing can import it again."""
    python = sys.executable if version is None else interpreters()[version]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
    return subprocess.run(
        [*inside, python, *options, "-c", PRELUDE + body, *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd="/",
        check=False,
    )


def answer(body: str, version: str | None = None, *argv: str, **more: Any) -> Any:
    """What the script prints as JSON on its last line."""
    done = run(body, version, *argv, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_file(path: Path, version: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """A script of its own, without PRELUDE."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = (interpreters()[version], str(path), *argv)
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment, cwd="/", check=False)


def run_text(text: str, version: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`text` alone, without PRELUDE."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = (interpreters()[version], *options, "-c", text)
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment, cwd="/", check=False)
