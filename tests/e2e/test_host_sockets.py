"""Unix sockets of the host and a bottle: none of those it is shown, only those that its manifest names."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversarial.bypass_bottle import Inside
from tests.support.live import World, until

pytestmark = pytest.mark.e2e


class Host:
    """Sockets of the host, in a directory that a bottle will be shown; `heard`: who was connected to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.heard: list[str] = []
        self._open: list[socket.socket] = []

    def serve(self, path: Path) -> str:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        path.chmod(0o777)
        sock.listen(16)
        self._open.append(sock)
        threading.Thread(target=self._accept, args=(sock, str(path)), daemon=True).start()
        return str(path)

    def _accept(self, sock: socket.socket, name: str) -> None:
        while True:
            try:
                client, _ = sock.accept()
            except OSError:
                return
            self.heard.append(name)
            client.recv(100)
            client.sendall(b"hello")
            client.close()

    def close(self) -> None:
        for sock in self._open:
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("sockets")
    with World(directory, f"bottles_dir: {directory}/bottles\n", internet=False) as made:
        (directory / "bottles").mkdir()
        made.start_daemon()
        yield made


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="am-host-", dir="/var/tmp") as name:
        Path(name).chmod(0o777)
        made = Host(Path(name))
        yield made
        made.close()


def test_none_of_those_that_are_shown(world: World, host: Host) -> None:
    """Those of the start are covered, those made later are refused by their path; what the job makes itself works in
    its own places. A symbolic link to a later one is the limit that docs/policy.md names."""
    early = host.serve(host.directory / "early")
    inside = Inside(world, "shown", "--rw", str(host.directory))
    late = host.serve(host.directory / "late")
    assert inside.tries("unix_stream", early).startswith("refused")
    assert inside.tries("unix_stream", late) == "refused EPERM"
    inside(f"ln -s {early} /tmp/early; ln -s {late} /tmp/late; ln -s {host.directory} /tmp/all")
    assert inside.tries("unix_stream", "/tmp/early").startswith("refused")
    assert inside.tries("unix_stream", "/tmp/all/early").startswith("refused")
    assert inside.tries("unix_stream", f"{host.directory}/../{host.directory.name}/late") == "refused EPERM"
    assert host.heard == []
    event = until(lambda: world.events("shown", reason="unix"))[0]
    assert (event["kind"], event["verdict"], event["path"], event["layer"]) == ("connect", "refused", early, "bpf")
    assert event["syscall"] == "connect" and f"unix: [{early}]" in event["hint"], event
    assert inside.tries("unix_stream", "/tmp/late") == "reached"  # the known limit, held here so that it is known
    assert host.heard == [late]
    serve = "import socket; s = socket.socket(socket.AF_UNIX); s.bind({!r}); s.listen()"
    for own in ("/tmp/mine", "/dev/shm/mine", "$HOME/mine"):
        text = serve.format("PATH") + "; c = socket.socket(socket.AF_UNIX); c.connect('PATH'); print('fine')"
        assert inside(f'python3 -c "{text}"'.replace("PATH", own)) == "fine", own
    inside.job.end()


def test_those_of_the_manifest(world: World, host: Host) -> None:
    """A socket below a shown directory, one in a directory of sockets that are made anew, one elsewhere."""
    shown, served = host.directory / "shown", host.directory / "served"
    for path in (shown, served):
        path.mkdir()
    given, other, elsewhere = (host.serve(p) for p in (shown / "given", shown / "other", host.directory / "elsewhere"))
    manifest = world.tmp / "bottles/sockets.yml"
    manifest.write_text(f"unix: [{given}, {served}/, {elsewhere}, {host.directory}/not-there]\n")
    inside = Inside(world, "given", "--policy", str(manifest), "--rw", str(shown))
    new = host.serve(served / "new")
    for path in (given, elsewhere, new):
        assert inside.tries("unix_stream", path) == "reached", path
    assert inside.tries("unix_stream", other).startswith("refused")
    assert host.heard == [given, elsewhere, new]
    explained = world.agentmon("policy", "explain", "given").stdout
    assert f"sockets of the host: {given}" in explained
    inside.job.end()


def test_a_socket_is_not_shown_as_a_file(world: World, host: Host) -> None:
    path = host.serve(host.directory / "s")
    done = world.agentmon("run", "--name", "file", "--rw", path, "--", "true", check=False)
    assert done.returncode == 125 and "is a socket" in done.stderr and "unix:" in done.stderr


def test_listening_where_the_policy_limits_it(world: World) -> None:
    manifest = world.tmp / "bottles/listening.yml"
    manifest.write_text("listen: [8080]\n")
    inside = Inside(world, "listening", "--policy", str(manifest))
    text = "import socket; s = socket.socket(); s.bind(('127.0.0.1', {})); s.listen(); print('fine')"
    assert inside(f'python3 -c "{text.format(8080)}"') == "fine"
    assert inside(f'python3 -c "{text.format(8081)}" 2>&1 | tail -1').startswith("PermissionError")
    event = until(lambda: world.events("listening", reason="listen"))[0]
    assert (event["kind"], event["verdict"], event["port"]) == ("socket", "refused", 8081)
    assert "listen: [tcp:8081]" in event["hint"]
    inside.job.end()
