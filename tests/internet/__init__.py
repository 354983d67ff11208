"""The stand-in internet: namespaces on this host with DNS, web hosts, model providers, and hosts that nobody may reach.

    with Internet() as net:  settings: upstream: {dns: net.dns, ca: net.ca}
        …                    net.queries(name)  net.bytes_to(address)  net.requests(host)  net.served()

It runs as a process of its own and ends with the one that started it. Only one runs on a host; a second one waits.
world.py says who is there. Root. Not part of the product, which never imports it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

_CHECKOUT = Path(__file__).parents[2]


def untraced() -> dict[str, str]:
    """The environment of a process whose coverage nobody asks for: measuring doubles the time it takes to start."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}


class Internet:
    """Counters are those of the whole run; `ca` and `dns` are what settings need."""

    ca: Path
    dns: list[str]  # addresses, port 53

    def __enter__(self) -> Internet:
        self._directory = Path(tempfile.mkdtemp(prefix="amnet-"))
        self._directory.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.internet", str(self._directory)],
            cwd=_CHECKOUT,
            env=untraced(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C ends its user first
        )
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError("the stand-in internet did not start; its message is above")
            ready = json.loads(line)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.ca = Path(ready["ca"])
        self.dns = [address for address, _ in ready["dns"]]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def counters(self) -> dict[str, Any]:
        """Everything counted so far: dns, requests, connections, forbidden, served."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._directory / "control.sock"))
            value: dict[str, Any] = json.loads(b"".join(iter(lambda: sock.recv(1 << 16), b"")))
        return value

    def queries(self, name: str) -> int:
        """DNS queries for `name`, all types and transports."""
        return sum(count for asked, count in self.counters()["dns"].items() if asked.split()[0] == name)

    def bytes_to(self, *addresses: str) -> int:
        """Bytes of packets that arrived for these forbidden addresses; for all of them when none is named."""
        seen = self.counters()["forbidden"]
        return sum(entry["bytes"] for address, entry in seen.items() if not addresses or address in addresses)

    def requests(self, host: str) -> list[dict[str, Any]]:
        """The HTTP requests that named `host`."""
        return [entry for entry in self.counters()["requests"] if entry["host"] == host]

    def served(self) -> list[dict[str, Any]]:
        """The providers' own books: one entry for every call they would bill."""
        calls: list[dict[str, Any]] = self.counters()["served"]["calls"]
        return calls
