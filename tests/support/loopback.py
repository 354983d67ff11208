"""A web server on this machine's loopback that counts who connects, and the clients that try."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import requests
import urllib3

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Server:
    """`port` on 127.0.0.1; `accepted` counts connections that arrived."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.port = int(listener.getsockname()[1])
        self.accepted = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.recv(65536)
                connection.sendall(ANSWER)


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Runs in a thread of its own until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    served = Server(listener)
    thread = threading.Thread(target=served.serve)
    thread.start()
    try:
        yield served
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def by_socket(port: int, host: str = "127.0.0.1") -> bytes:
    with socket.create_connection((host, port), timeout=5) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return s.recv(65536)[-2:]


def by_requests(port: int, host: str = "127.0.0.1") -> bytes:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"http://{host}:{port}/", timeout=5).content


def by_urllib3(port: int, host: str = "127.0.0.1") -> bytes:
    with urllib3.PoolManager(retries=2) as pool:
        return pool.request("GET", f"http://{host}:{port}/", timeout=5).data


def by_httpx(port: int, host: str = "127.0.0.1") -> bytes:
    with httpx.Client(trust_env=False, verify=False, timeout=5) as client:
        return client.get(f"http://{host}:{port}/").content


CLIENTS: dict[str, Callable[..., bytes]] = {
    "socket": by_socket,
    "requests": by_requests,
    "urllib3": by_urllib3,
    "httpx": by_httpx,
}
