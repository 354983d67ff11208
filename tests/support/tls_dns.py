"""A DNS server over TLS in a World: one port for each certificate, and its manners by the name asked."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import dns.message
import dns.rrset

from tests.support.names import World

ADDRESS = "203.0.113.66"  # what every name has


class TlsDns:
    """`asked` by port, in order; `connections` by port. Manners: a first label of "close" closes instead of answering
    (once), "silent" says nothing, "lie" answers another question, "pair" waits for another "pair" and answers both
    the other way round."""

    def __init__(self, world: World, address: str, contexts: dict[int, ssl.SSLContext]) -> None:
        self.asked: dict[int, list[str]] = {port: [] for port in contexts}
        self.connections = dict.fromkeys(contexts, 0)
        self._closed: set[str] = set()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        for port, context in contexts.items():
            listener = world.listen(address, port)
            self._open.append(listener)
            self._start(self._accept, listener, port, context)

    def _start(self, *work: object) -> None:
        run, *args = work
        thread = threading.Thread(target=run, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, port: int, context: ssl.SSLContext) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                self._start(self._serve, plain, port, context)

    def _serve(self, plain: socket.socket, port: int, context: ssl.SSLContext) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as sock:
            self._open.append(sock)
            self.connections[port] += 1
            kept: list[bytes] = []
            while size := sock.recv(2):
                data = sock.recv(int.from_bytes(size, "big"))
                query = dns.message.from_wire(data)
                name = query.question[0].name.to_text(omit_final_dot=True).lower()
                self.asked[port].append(name)
                first = name.partition(".")[0]
                if first == "close" and name not in self._closed:
                    self._closed.add(name)
                    return
                if first == "pair" or first.startswith("pair-"):
                    kept.insert(0, _reply(query))
                    if len(kept) < 2:
                        continue
                elif first != "silent":
                    kept = [
                        _reply(dns.message.make_query("wrong.example", "A", id=query.id) if first == "lie" else query)
                    ]
                for reply in kept:
                    sock.sendall(len(reply).to_bytes(2, "big") + reply)
                kept = []

    def close(self) -> None:
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)


def _reply(query: dns.message.Message) -> bytes:
    reply = dns.message.make_response(query)
    reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", ADDRESS))
    return reply.to_wire()
