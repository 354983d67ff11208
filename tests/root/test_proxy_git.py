"""git over HTTPS through a real worker: the real client against git http-backend; push, fetch, dumb, LFS."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon import wire
from tests.support import proxy_rig
from tests.support.proxy_rig import Response, Rig
from tests.support.proxy_talk import fresh
from tests.support.proxy_upstream import Seen, reply

pytestmark = pytest.mark.root

HOST = "git.example.org"
OPEN = wire.Route(HOST, git_fetch=True)
BACKEND = "/usr/lib/git-core/git-http-backend"
PUSH = "push is not possible from inside this bottle"
UPLOAD, DOWNLOAD = b'{"operation": "upload", "objects": []}', b'{"operation": "download", "objects": []}'


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = proxy_rig.start(tmp_path_factory.mktemp("proxy"), ledger=False)
    forwarder = Forwarder(rig)
    yield rig
    forwarder.stop()
    rig.stop()


@pytest.fixture
def rig(running: Rig) -> Rig:
    running.ask(wire.DropBottle(running.control.next_id(), proxy_rig.SLOT))  # what was reported is reported again
    fresh(running)
    running.bottle(f"{HOST}:443", inspected=(HOST,), routes=(OPEN,))
    return running


class Forwarder:
    """127.A.2.1:443, from where connections go on to the worker with the bottle's source address."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._sock = socket.create_server((f"{rig.net}.2.1", 443))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                came, _ = self._sock.accept()
            except OSError:
                return
            on = socket.create_connection((self._rig.address, 443), 10, (self._rig.source, 0))
            for pair in ((came, on), (on, came)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


@pytest.fixture
def repository(rig: Rig, tmp_path: Path) -> Path:
    """A bare repository that the stand-in server gives out, and takes pushes for."""
    work, bare = tmp_path / "work", tmp_path / "srv/r.git"
    local("init", "-q", "-b", "main", str(work))
    (work / "f").write_text("39\n")
    local("-C", str(work), "add", "f")
    local("-C", str(work), "commit", "-q", "-m", "first")
    branches(work, 40)  # so many want lines that git compresses the request
    local("clone", "-q", "--bare", str(work), str(bare))
    local("-C", str(bare), "config", "http.receivepack", "true")
    local("-C", str(bare), "update-server-info")
    rig.upstream.script = backend(tmp_path / "srv")
    return work


def branches(work: Path, count: int) -> None:
    """So many, with an empty commit each, by git fast-import(1)."""
    one = "commit refs/heads/b{n}\ncommitter a <a@example> {n} +0000\ndata 1\nx\nfrom refs/heads/main^0\n"
    text = "".join(one.format(n=n) for n in range(1, count + 1))
    subprocess.run(["git", "-C", str(work), "fast-import", "--quiet"], input=text.encode(), check=True)


def local(*words: str, **env: str) -> str:
    own = {
        "PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
        **{f"GIT_{who}_{what}": "a@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }  # fmt: skip
    done = subprocess.run(["git", *words], env=own | env, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise GitFailed(done.stderr)
    return done.stdout + done.stderr


class GitFailed(Exception):
    pass


def git(rig: Rig, *words: str, **env: str) -> str:
    """The real client, as if in the bottle."""
    at = ("-c", f"http.sslCAInfo={rig.ca}", "-c", f"http.curloptResolve={HOST}:443:{rig.net}.2.1")
    return local(*at, *words, **env)


def backend(root: Path) -> Any:
    """git http-backend(1) as CGI behind the stand-in server."""

    async def script(seen: Seen, writer: asyncio.StreamWriter) -> None:
        path, _, query = seen.target.partition("?")
        env = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
            "QUERY_STRING": query, "REQUEST_METHOD": seen.method, "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": seen.headers.get("content-type", ""), "CONTENT_LENGTH": str(len(seen.body)),
            "HTTP_CONTENT_ENCODING": seen.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": seen.headers.get("git-protocol", ""), "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            BACKEND, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate(seen.body)
        head, _, body = out.partition(b"\r\n\r\n")
        lines = [line for line in head.decode().split("\r\n") if line]
        status = next((line[8:] for line in lines if line.startswith("Status: ")), "200 OK")
        kept = "".join(f"{line}\r\n" for line in lines if not line.startswith(("Status: ", "Content-Length: ")))
        writer.write(f"HTTP/1.1 {status}\r\n{kept}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    return script


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_a_clone_and_a_fetch_pass_and_a_push_does_not(rig: Rig, repository: Path, tmp_path: Path, version: str) -> None:
    mine = tmp_path / "mine"
    speak = ("-c", f"protocol.version={version}")
    git(rig, *speak, "clone", "-q", f"https://{HOST}/r.git", str(mine))
    assert (mine / "f").read_text() == "39\n"
    (mine / "f").write_text("changed\n")
    git(rig, "-C", str(mine), "commit", "-q", "-a", "-m", "mine")
    assert "POST" in {seen.method for seen in rig.upstream.seen}
    before = len(rig.upstream.seen)
    with pytest.raises(GitFailed, match="403"):
        git(rig, *speak, "-C", str(mine), "push", "-q", "origin", "HEAD:refs/heads/new")
    assert len(rig.upstream.seen) == before and not (tmp_path / "srv/r.git/refs/heads/new").exists()
    assert rig.wait_event(kind="request", reason="git-push")["verdict"] == "refused"
    (repository / "f").write_text("newer\n")
    local("-C", str(repository), "commit", "-q", "-a", "-m", "newer")
    local("-C", str(repository), "push", "-q", str(tmp_path / "srv/r.git"), "main")
    git(rig, *speak, "-C", str(mine), "fetch", "-q", "origin")
    assert git(rig, "-C", str(mine), "show", "origin/main:f") == "newer\n"
    assert any(seen.headers.get("content-encoding") == "gzip" for seen in rig.upstream.seen)


def test_without_git_fetch_nothing_of_git_passes(rig: Rig, repository: Path, tmp_path: Path) -> None:
    for routes in ((wire.Route(HOST),), ()):
        rig.bottle(f"{HOST}:443", inspected=(HOST,), routes=routes)
        for smart in ("1", "0"):
            with pytest.raises(GitFailed, match="403"):
                git(rig, "clone", "-q", f"https://{HOST}/r.git", str(tmp_path / "m"), GIT_SMART_HTTP=smart)
    assert rig.upstream.seen == []
    said = rig.request(HOST, "/r.git/info/refs").json["error"]
    assert "not allowed here" in said["message"] and "git_fetch: true" in said["hint"]


def test_a_dumb_clone_passes_and_a_dumb_push_does_not(rig: Rig, repository: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    git(rig, "clone", "-q", f"https://{HOST}/r.git", str(mine), GIT_SMART_HTTP="0")
    assert (mine / "f").read_text() == "39\n" and {seen.method for seen in rig.upstream.seen} == {"GET"}
    git(rig, "-C", str(mine), "commit", "-q", "--allow-empty", "-m", "mine")
    with pytest.raises(GitFailed):
        git(rig, "-C", str(mine), "http-push", "--all", f"https://{HOST}/r.git/", "main")
    assert {seen.method for seen in rig.upstream.seen} == {"GET"}
    assert rig.wait_event(kind="request", reason="git-push")["detail"]["method"] in {"PROPFIND", "LOCK", "MKCOL"}


def test_a_push_is_told_what_to_do_instead(rig: Rig) -> None:
    said = rig.request(HOST, "/r.git/git-receive-pack", b"0000").json["error"]
    assert said["type"] == "egress_denied" and PUSH in said["message"] and "git bundle" in said["message"]
    assert rig.upstream.seen == []


def batch(rig: Rig, body: bytes, **headers: str) -> Response:
    kind = {"Content-Type": "application/vnd.git-lfs+json"}
    return rig.request(HOST, "/r.git/info/lfs/objects/batch", body, headers=kind | headers)


def test_an_lfs_download_passes_and_an_upload_does_not(rig: Rig) -> None:
    rig.upstream.script = reply(200, b"{}")
    assert batch(rig, DOWNLOAD).status == 200
    assert rig.upstream.seen[-1].body == DOWNLOAD
    packed = {"Content-Encoding": "gzip"}
    assert batch(rig, gzip.compress(DOWNLOAD), **packed).status == 200
    assert len(rig.upstream.seen) == 2
    refused = [
        batch(rig, UPLOAD), batch(rig, gzip.compress(UPLOAD), **packed), batch(rig, DOWNLOAD, **packed),
        batch(rig, UPLOAD, **{"Content-Encoding": "unheard-of"}), batch(rig, b""),
    ]  # fmt: skip
    assert [r.status for r in refused] == [403] * 5 and all(PUSH in r.json["error"]["message"] for r in refused)
    assert len(rig.upstream.seen) == 2
    assert rig.wait_event(kind="request", reason="git-push")["detail"]["path"] == "/r.git/info/lfs/objects/batch"
