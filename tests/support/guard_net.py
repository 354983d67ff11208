"""A namespace with servers on ordinary addresses, for clients under the guard to reach, or not to.

    198.51.100.7   api.example.com, api.anthropic.com, api.openai.com, web.example.com, mail.example.com: permitted
    203.0.113.5    evil.example.com: never; what arrives there is counted
    198.51.100.53  a name server to be asked by hand

Names are in the namespace's own /etc/hosts; there is no way out of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support import guarded

GOOD, EVIL, DNS = "198.51.100.7", "203.0.113.5", "198.51.100.53"
GOOD6 = "2001:db8::7"
HTTP, OTHER, SMTP, FTP = 8080, 8081, 2525, 2121
HOSTS = f"""{GOOD} api.example.com api.anthropic.com api.openai.com web.example.com mail.example.com ftp.example.com
{GOOD6} six.example.com
{EVIL} evil.example.com
127.0.0.1 localhost rebound.example.com
"""
_SHELL = """
mount --bind "$0" /etc/hosts && mount --bind "$1" /etc/resolv.conf && ip link set lo up || exit 1
for a in 198.51.100.7 203.0.113.5 198.51.100.53; do ip addr add $a/32 dev lo || exit 1; done
ip -6 addr add 2001:db8::7/128 dev lo nodad
echo in; exec sleep 600
"""


class Net:
    """Use as a context manager. `inside` is what a command line begins with to run there."""

    def __init__(self, directory: Path) -> None:
        self.hosts = directory / "hosts"
        self.hosts.write_text(HOSTS)
        (directory / "resolv.conf").write_text("# nobody\n")
        argv = ["unshare", "-n", "-m", "sh", "-c", _SHELL, str(self.hosts), str(directory / "resolv.conf")]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self._servers: subprocess.Popen[str] | None = None

    def __enter__(self) -> Net:
        try:
            assert self._holder.stdout is not None and self._holder.stdout.readline() == "in\n"
            ns = f"/proc/{self._holder.pid}/ns"
            self.inside = ("nsenter", f"--net={ns}/net", f"--mount={ns}/mnt")
            argv = [*self.inside, sys.executable, str(Path(__file__).parent / "guard_servers.py")]
            self._servers = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=guarded.ROOT
            )
            assert self._servers.stdout is not None and self._servers.stdout.readline() == "ready\n"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._servers, self._holder):
            if process is None:
                continue
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def received(self) -> list[str]:
        """`tcp ADDRESS:PORT` or `udp …` of everything that arrived since the last call."""
        assert self._servers is not None and self._servers.stdin is not None and self._servers.stdout is not None
        self._servers.stdin.write("\n")
        self._servers.stdin.flush()
        found: list[str] = json.loads(self._servers.stdout.readline())
        return found
