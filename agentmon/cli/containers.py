"""The first process of a container, by podman's command or by Docker's socket: with the configuration of who asks."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

from agentmon.errors import AgentmonError, BadInput, HostLacks

DOCKER = Path("/var/run/docker.sock")
_WAIT_S = 20.0


def pid_of(container: str) -> int:
    """:raises HostLacks: no engine is here. :raises BadInput: there is no such container, or it does not run."""
    engines = []
    if shutil.which("podman"):
        engines.append("podman")
        if (found := _podman(container)) is not None:
            return _running(container, "podman", found)
    docker = _docker_socket()
    if docker.exists():
        engines.append("docker")
        if (found := _docker(docker, container)) is not None:
            return _running(container, "docker", found)
    if not engines:
        raise HostLacks(
            f"no container engine was found: neither podman nor {docker}",
            "apt-get install podman; or name the container's first process with --pid",
        )
    raise BadInput(f"{' and '.join(engines)} know no container {container!r}", f"{engines[0]} ps --all")


def _running(container: str, engine: str, pid: int) -> int:
    if pid <= 0:
        raise BadInput(f"the container {container!r} is not running", f"{engine} start {container}")
    return pid


def _podman(container: str) -> int | None:
    """None: podman knows none of that name."""
    argv = ["podman", "container", "inspect", "--format", "{{.State.Pid}}", "--", container]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_WAIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise AgentmonError(f"podman could not be asked: {e}", f"podman container inspect {container}") from None
    if done.returncode != 0:
        if "no such container" in done.stderr.lower():
            return None
        last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise AgentmonError(f"podman could not be asked: {last}", f"podman container inspect {container}")
    return int(done.stdout.strip() or 0)


def _docker_socket() -> Path:
    host = os.environ.get("DOCKER_HOST", "")
    return Path(host.removeprefix("unix://")) if host.startswith("unix://") else DOCKER


def _docker(path: Path, container: str) -> int | None:
    """Docker Engine API, "Inspect a container"; None: it knows none of that name."""
    try:
        status, answer = _get(path, f"/containers/{urllib.parse.quote(container, safe='')}/json")
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise AgentmonError(f"Docker could not be asked at {path}: {e}", "systemctl start docker") from None
    if status == 404:
        return None
    if status != 200:
        raise AgentmonError(f"Docker answered {status}: {answer.get('message', '')}", f"docker inspect {container}")
    return int(answer["State"]["Pid"])


def _get(path: Path, target: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("docker", timeout=_WAIT_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(_WAIT_S)
        connection.sock.connect(str(path))
        connection.request("GET", target)
        answer = connection.getresponse()
        value = json.loads(answer.read() or b"{}")
        return answer.status, value if isinstance(value, dict) else {}
    finally:
        connection.close()
