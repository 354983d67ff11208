"""A real proxy worker on loopback, a real ledger process, a strict TLS upstream: what the proxy's tests drive.

    127.A.0.4:443, :80   the worker        127.A.0.16   the bottle (slot 16), as a source address
    127.A.1.1:443, :80   the upstream      A is another one for every rig of every process

Only name resolution is a stand-in: a socket that answers every Lookup with the upstream's address.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from agentmon import trust, wire
from agentmon.channel import BlockingChannel
from tests.support.proxy_upstream import Upstream, own_ca

_NETS = itertools.count(os.getpid() * 7)
SLOT = 16
RULES_KEPT = Path(__file__).parents[2] / ".cache/dlp"  # compiled once for all rigs
WEIGHTS = {"input": 1000, "cache_write": 1000, "cache_read": 100, "output": 1000}


class Lookups:
    """The resolver's lookup socket, answered with one address for every name."""

    def __init__(self, path: Path, address: str) -> None:
        self.address = address
        self.error = ""
        self.asked: list[tuple[int, str, int]] = []
        self._open = threading.Event()
        self._open.set()
        self._waiting = threading.Semaphore(0)
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Answer nothing until go()."""
        self._open.clear()
        while self._waiting.acquire(blocking=False):
            pass

    def go(self) -> None:
        self._open.set()

    def waits(self, count: int) -> None:
        """Until so many questions have come since hold()."""
        for _ in range(count):
            assert self._waiting.acquire(timeout=10)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        channel = BlockingChannel(sock)
        with contextlib.suppress(ConnectionError):
            while True:
                message = channel.recv()
                self.asked.append((message.slot, message.name, message.port))
                self._waiting.release()
                assert self._open.wait(30)
                addresses = () if self.error else (self.address,)
                channel.send(wire.Looked(message.id, addresses, 60, self.error))
        sock.close()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


@dataclass
class Worker:
    address: str
    process: subprocess.Popen[bytes]
    control: BlockingChannel

    def stop(self) -> None:
        self.control.close()
        _end(self.process)


@dataclass
class Rig:
    directory: Path
    upstream: Upstream
    lookups: Lookups
    proxy: subprocess.Popen[bytes]
    ledger: subprocess.Popen[bytes] | None
    ca: Path
    control: BlockingChannel
    books: BlockingChannel | None
    net: str  # "127.A"
    events: list[dict[str, Any]] = field(default_factory=list)
    _runs: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def address(self) -> str:
        return f"{self.net}.0.4"

    @property
    def source(self) -> str:
        return f"{self.net}.0.{SLOT}"

    def ask(self, message: Any) -> Any:
        """Tell the worker something and return its Ack; reports that come meanwhile are kept."""
        self.control.send(message)
        while True:
            answer = self.control.recv()
            if isinstance(answer, wire.Report):
                self.events.append(answer.event)
            elif getattr(answer, "id", None) == message.id:
                return answer

    def bottle(self, *rules: str, budget: int = 1_000_000, **view: Any) -> None:
        """Open a run with a budget and tell the worker of the bottle."""
        run = f"run-{next(self._runs)}"
        self.run = run
        view.setdefault("inspected", ("api.anthropic.com", "api.openai.com", "chatgpt.com"))
        self.view = wire.BottleView(
            SLOT, "crate", run, self.source, rules=rules or ("api.anthropic.com:443", "api.openai.com:443"), **view
        )
        assert self.ask(wire.SetBottle(self.control.next_id(), self.view)).error == ""
        if self.books is not None:
            scope = wire.ScopeDef("bottle", "crate", (wire.BudgetDef("*", budget),))
            message = wire.OpenRun(self.books.next_id(), SLOT, "crate", run, "", (scope,), WEIGHTS)
            assert isinstance(self.books.call(message), wire.Done)

    def cut(self, spent: dict[str, Any]) -> wire.Ack:
        answer = self.ask(wire.CutBottle(self.control.next_id(), SLOT, spent))
        assert isinstance(answer, wire.Ack)
        return answer

    def rows(self, count: int, timeout_s: float = 5.0) -> list[tuple[Any, ...]]:
        """All usage rows, once there are at least `count`.

        (provider, model, input, cache_read, cache_write, output, source, complete)
        """
        end = time.monotonic() + timeout_s
        columns = "provider, model, input, cache_read, cache_write, output, source, complete"
        sql = f"select {columns} from usage_v order by ts"
        while True:
            db = apsw.Connection(str(self.directory / "ledger/ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)
            rows = list(db.execute(sql))
            db.close()
            if len(rows) >= count or time.monotonic() > end:
                return rows
            time.sleep(0.01)

    def held(self) -> int:
        assert self.books is not None
        done = self.books.call(wire.Totals(self.books.next_id(), SLOT))
        return max(int(t["held"]) for t in done.value)

    def nothing_held(self, timeout_s: float = 5.0) -> bool:
        end = time.monotonic() + timeout_s
        while self.held():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def wait_event(self, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        """The first report with these fields."""
        self.control.sock.settimeout(timeout_s)
        try:
            while True:
                for event in self.events:
                    if all(event.get(k) == v for k, v in fields.items()):
                        return event
                message = self.control.recv()
                if isinstance(message, wire.Report):
                    self.events.append(message.event)
        finally:
            self.control.sock.settimeout(None)

    def connect(
        self, sni: str | None, port: int = 443, *, verify: bool = True, alpn: list[str] | None = None, to: str = ""
    ) -> Any:
        """A client socket of the bottle's, after its handshake. `to`: another worker's address."""
        sock = socket.create_connection((to or self.address, port), 10, (self.source, 0))
        sock.settimeout(10)
        if port == 80:
            return sock
        context = ssl.create_default_context(cafile=str(self.ca))
        if not verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(alpn)
        return context.wrap_socket(sock, server_hostname=sni)

    def direct(self) -> socket.socket:
        """A plain socket to the upstream, past the worker."""
        return socket.create_connection((self.upstream.address, 443), 10)

    def request(
        self,
        host: str,
        path: str,
        body: bytes | None = None,
        *,
        method: str = "",
        headers: dict[str, str] | None = None,
        port: int = 443,
        sock: Any = None,
    ) -> Response:
        """One request over HTTP/1.1 and its whole answer."""
        own = sock is None
        sock = sock or self.connect(host, port)
        method = method or ("GET" if body is None else "POST")
        lines = {"Host": host, **({"Content-Length": str(len(body))} if body is not None else {})} | (headers or {})
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        sock.sendall(head.encode() + (body or b""))
        response = Response.read(sock, method)
        if own:
            sock.close()
        return response

    def another_worker(self, number: int) -> Worker:
        """One more worker beside the first, at 127.A.0.(4 + number), with the same ledger; it knows the bottle."""
        config = json.loads((self.directory / "proxy.json").read_text())
        address = f"{self.net}.0.{4 + number}"
        own = {"socket": str(self.directory / f"proxy-{number}.sock"), "worker": number, "listen": [[address, 443]]}
        process, control = _launch(self.directory, "agentmon.proxy", config | own)
        assert isinstance(control.recv(), wire.Ready)
        control.send(wire.SetBottle(control.next_id(), self.view))
        assert control.recv().error == ""
        return Worker(address, process, control)

    def stop(self) -> None:
        self.control.close()
        for process in (self.proxy, self.ledger):
            if process is not None:
                _end(process)
        if self.books is not None:
            self.books.close()
        self.upstream.stop()
        self.lookups.stop()


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    broken: bool = False  # the connection ended before the body did

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @classmethod
    def read(cls, sock: Any, method: str = "GET") -> Response:
        stream = sock.makefile("rb")
        status = int(stream.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := stream.readline()) not in (b"\r\n", b""):
            key, _, value = line.decode("latin1").partition(":")
            headers[key.lower()] = value.strip()
        body, broken = bytearray(), False
        if method == "HEAD" or status in (204, 304):
            return cls(status, headers, b"")
        try:
            if "chunked" in headers.get("transfer-encoding", ""):
                while size := int(stream.readline() or b"x", 16):
                    body += stream.read(size)
                    stream.readline()
                stream.readline()
            elif "content-length" in headers:
                body += stream.read(int(headers["content-length"]))
                broken = len(body) < int(headers["content-length"])
            else:
                body += stream.read()
        except (ValueError, OSError):
            broken = True
        return cls(status, headers, bytes(body), broken)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _wait(path: Path, process: subprocess.Popen[bytes], log: Path) -> BlockingChannel:
    end = time.monotonic() + 20
    while True:
        try:
            return BlockingChannel.connect(str(path))
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"{path.name} never listened: {log.read_text()}"
            time.sleep(0.01)


def _launch(
    directory: Path, module: str, config: dict[str, Any], prelude: str = ""
) -> tuple[subprocess.Popen[bytes], BlockingChannel]:
    """A service in a process of its own, once it listens; its files are named after its socket."""
    code = f"{prelude}\nimport runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    name = Path(config["socket"]).stem
    file, log = directory / f"{name}.json", directory / f"{name}.log"
    file.write_text(json.dumps(config))
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=out, stderr=out)
    try:
        return process, _wait(Path(config["socket"]), process, log)
    except BaseException:
        _end(process)
        raise


def start(directory: Path, *, ledger: bool = True, prelude: str = "", user: str = "") -> Rig:
    """Everything up, no bottle yet. Needs root for the ports.

    :param prelude: Python run in the worker first (faults). :param user: whom it becomes; "" stays root.
    """
    with contextlib.ExitStack() as undo:
        rig = _start(directory, undo, ledger, prelude, user)
        undo.pop_all()
        return rig


def _start(directory: Path, undo: contextlib.ExitStack, ledger: bool, prelude: str, user: str) -> Rig:
    ca_file, context = own_ca(directory)
    authority = trust.ensure_ca(directory / "ca")
    net = f"127.{1 + next(_NETS) % 250}"
    upstream = Upstream(f"{net}.1.1", context)
    undo.callback(upstream.stop)
    lookups = Lookups(directory / "lookup.sock", upstream.address)
    undo.callback(lookups.stop)

    def launch(module: str, config: dict[str, Any], prelude: str) -> tuple[subprocess.Popen[bytes], BlockingChannel]:
        process, channel = _launch(directory, module, config, prelude)
        undo.callback(_end, process)
        return process, channel

    books, book_process = None, None
    if ledger:
        (directory / "ledger").mkdir(mode=0o700)
        book_process, books = launch(
            "agentmon.ledger",
            {
                "socket": str(directory / "ledger.sock"),
                "user": "",
                "path": str(directory / "ledger/ledger.db"),
                "group": "",
                **({"proxy_user": user} if user else {}),
            },
            "",
        )
    if user:
        for name in ("ledger.sock", "lookup.sock"):
            (directory / name).chmod(0o666)
    proxy, control = launch(
        "agentmon.proxy",
        {
            "socket": str(directory / "proxy.sock"), "lookup_socket": str(directory / "lookup.sock"),
            "ledger_socket": str(directory / "ledger.sock"), "user": user, "worker": 0,
            "listen": [[f"{net}.0.4", 443], [f"{net}.0.4", 80]], "pool4": f"{net}.0.0/16", "pool6": None,
            "ca_dir": str(directory / "ca"), "upstream_ca": [str(ca_file)], "upstream_proxy": None, "providers": {},
            "rules_kept": str(RULES_KEPT),
        },
        prelude,
    )  # fmt: skip
    assert isinstance(control.recv(), wire.Ready)
    return Rig(directory, upstream, lookups, proxy, book_process, authority.cert_file, control, books, net)
