"""Where the canary's packets would arrive: a namespace beside the host that ends with the report, and what it counted.

Addresses are of 198.18.0.0/15 (benchmarks, RFC 2544) and a ULA. Needs root; uses ip(8) and nsenter(1).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType

from agentmon import paths
from agentmon.errors import HostLacks

ALLOWED, CLOSED, HOST_PORT = 18443, 18444, 18445
_HOST4, _FAR4 = "198.18.213.1", "198.18.213.2"
_HOST6, _FAR6 = "fd61:ca11::1", "fd61:ca11::2"
_DEVICE, _FAR = "amcanary0", "amcanary1"
_RECEIVER_S = 30.0


class Yard:
    """A context manager. `facts` is what the attacker is told; `received()` bytes by mark, after it ended.

    :raises HostLacks: the namespace or its device cannot be made, or another canary is at work.
    """

    def __init__(self) -> None:
        self._netns = f"amcanary-{os.getpid()}"
        self._receiver: subprocess.Popen[bytes] | None = None
        self._host: socket.socket | None = None
        self._at_host: Counter[str] = Counter()
        self._six = Path("/proc/sys/net/ipv6").is_dir()

    @property
    def facts(self) -> dict[str, object]:
        return {
            "address4": _FAR4, "address6": _FAR6 if self._six else "", "host": _HOST4, "allowed": ALLOWED,
            "closed": CLOSED, "host_port": HOST_PORT, "name": f"canary-{os.getpid()}.example",
            "control_socket": str(paths.CONTROL_SOCKET),
        }  # fmt: skip

    def rule(self) -> str:
        """The one thing that the canary's policy allows."""
        return f"tcp://{_FAR4}:{ALLOWED}"

    def __enter__(self) -> Yard:
        try:
            self._make()
        except (OSError, subprocess.SubprocessError) as error:
            self._remove()
            said = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip() or str(error)
            hint = "as root; if another canary is at work, wait for it"
            raise HostLacks(f"no place for the canary's packets can be made: {said}", hint) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _make(self) -> None:
        _ip("netns", "add", self._netns)
        _ip("link", "add", _DEVICE, "type", "veth", "peer", "name", _FAR, "netns", self._netns)
        inside = ("-n", self._netns)
        _ip("address", "add", f"{_HOST4}/30", "dev", _DEVICE)
        _ip(*inside, "address", "add", f"{_FAR4}/30", "dev", _FAR)
        if self._six:
            _ip("address", "add", f"{_HOST6}/126", "dev", _DEVICE, "nodad")
            _ip(*inside, "address", "add", f"{_FAR6}/126", "dev", _FAR, "nodad")
        _ip("link", "set", _DEVICE, "up")
        _ip(*inside, "link", "set", _FAR, "up")
        _ip(*inside, "route", "add", "default", "via", _HOST4)
        for family in ("ipv4", "ipv6") if self._six else ("ipv4",):
            Path(f"/proc/sys/net/{family}/conf/{_DEVICE}/forwarding").write_text("1")
        self._receiver = subprocess.Popen(
            ["nsenter", f"--net={paths.NETNS / self._netns}", sys.executable, "-m", "agentmon.posture.canary_receiver",
             str(_RECEIVER_S), _FAR4, *([_FAR6] if self._six else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
            env={"PYTHONPATH": _root(), "PATH": os.environ.get("PATH", "")},
        )  # fmt: skip
        assert self._receiver.stdout is not None
        if self._receiver.stdout.readline() != b"ready\n":
            raise OSError("its receiver did not start")
        self._host = socket.create_server((_HOST4, HOST_PORT))
        threading.Thread(target=self._accept, args=(self._host,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(1)
                    self._at_host["host"] += len(connection.recv(100)) or 1

    def received(self) -> dict[str, int]:
        """Ends the receiver; empty where it does not say: then the control did not arrive either."""
        if self._receiver is None:
            return {}
        try:
            out, _ = self._receiver.communicate(b"", timeout=5)
            return {**json.loads(out or b"{}"), **self._at_host}
        except (subprocess.TimeoutExpired, ValueError):
            return {}

    def _remove(self) -> None:
        if self._host is not None:
            with contextlib.suppress(OSError):
                self._host.shutdown(socket.SHUT_RDWR)
            self._host.close()
        if self._receiver is not None and self._receiver.poll() is None:
            self._receiver.kill()
            self._receiver.wait()
        for words in (("link", "delete", _DEVICE), ("netns", "delete", self._netns)):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                _ip(*words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=5)


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])
