"""The relay's listeners: accepts, and names the bottle by its source address."""

from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import ip_address

from agentmon.addresses import Pool
from agentmon.relay.flows import Flows

_BATCH = 64  # connections accepted before others have their turn
_PAUSE_S = 0.2  # when descriptors are used up
_OUT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Server:
    def __init__(self, flows: Flows, pool: Pool) -> None:
        self._flows = flows
        self._pool = pool

    def serve(self, sockets: list[socket.socket]) -> None:
        for sock in sockets:
            asyncio.get_running_loop().add_reader(sock, self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                client, source = sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as e:
                if e.errno in _OUT_OF:
                    self._pause(sock)
                    return
                continue  # that connection was gone before it was taken: accept(2)
            client.setblocking(False)
            slot = self._pool.slot_of(ip_address(source[0].partition("%")[0]))
            if slot is None:
                client.close()
            else:
                self._flows.accept(client, slot, source[1])

    def _pause(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock)
        loop.call_later(_PAUSE_S, loop.add_reader, sock, self._accept, sock)
