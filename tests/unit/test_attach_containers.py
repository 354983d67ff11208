"""Asking an engine for a container's first process: what it answers, and what is said when it does not."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.cli import containers
from agentmon.cli.attach import _made_up, _selected
from agentmon.errors import AgentmonError, BadInput, HostLacks

ANSWERS = {
    "/containers/web/json": (200, {"State": {"Pid": 4711}}),
    "/containers/old/json": (200, {"State": {"Pid": 0}}),
}
ANSWERS["/containers/broken/json"] = (500, {"message": "driver failed"})  # type: ignore[assignment]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, value = ANSWERS.get(self.path, (404, {"message": "No such container"}))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server with Docker's answers; no podman on the PATH."""
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with socketserver.UnixStreamServer(str(path), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A podman that answers so."""
    (tmp_path / "podman").write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")


def test_docker_by_its_socket(docker: Path) -> None:
    assert containers.pid_of("web") == 4711
    with pytest.raises(BadInput, match="not running") as refused:
        containers.pid_of("old")
    assert refused.value.hint == "docker start old"
    with pytest.raises(BadInput, match=r"docker know no container 'a/\.\./b'"):
        containers.pid_of("a/../b")
    with pytest.raises(AgentmonError, match="driver failed"):
        containers.pid_of("broken")


def test_a_docker_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker.sock").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(AgentmonError, match="could not be asked") as refused:
        containers.pid_of("web")
    assert refused.value.hint == "systemctl start docker"


def test_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(HostLacks, match="neither podman nor"):
        containers.pid_of("web")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ('echo "Error: no such container web" >&2; exit 125', BadInput, "podman know no container 'web'"),
        ("echo 0", BadInput, "not running"),
        ('echo "Error: storage is locked" >&2; exit 125', AgentmonError, "storage is locked"),
        ("exit 1", AgentmonError, "it gave no reason"),
    ],
)
def test_podmans_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[AgentmonError], says: str
) -> None:
    script(tmp_path, monkeypatch, text)
    with pytest.raises(error, match=says):
        containers.pid_of("web")


OPTIONS: dict[str, Any] = {
    "pid": None, "netns": None, "cgroup": None, "name": None, "policy": None, "allow": (), "observe": False,
    "provider": None, "agent": None, "budget": (), "shutdown": None,
}  # fmt: skip


def test_a_request_says_what_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, monkeypatch, "echo 12")
    args = _selected("Web.1", {**OPTIONS, "allow": ("a.example",), "budget": ("claude=5",), "observe": True})
    assert args == {
        "pid": "12", "what": "container Web.1", "allow": ["a.example"], "budgets": ["claude=5"], "observe": True,
        "name": "web-1",
    }  # fmt: skip
    for wrong in ({}, {"pid": "1", "netns": "x"}):
        with pytest.raises(BadInput, match="one thing is attached"):
            _selected(None, {**OPTIONS, **wrong})


@pytest.mark.parametrize(
    ("word", "kind", "name"),
    [
        ("4711", "pid", "pid-4711"),
        ("/run/netns/Build_3", "netns", "build-3"),
        ("/sys/fs/cgroup/x.scope/", "cgroup", "x-scope"),
        ("///", "netns", "netns"),
    ],
)
def test_a_bottle_is_called_after_what_it_holds(word: str, kind: str, name: str) -> None:
    assert _made_up(word, kind) == name
