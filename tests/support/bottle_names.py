"""What resolv.conf and the veth do in a bottle, for a process outside one: names are the proxy's, connections come from
the bottle."""

from __future__ import annotations

import socket
from typing import Any


def inside_a_bottle(proxy: str, source: str) -> None:
    """From now on every name leads to `proxy`, and TCP connections begin at `source`."""
    resolve, connect = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
        return resolve(proxy if str(host).endswith((".com", ".org", ".ai")) else host, *rest, **more)

    def create_connection(address: Any, timeout: Any = None, source_address: Any = None, **more: Any) -> Any:
        return connect(address, timeout, source_address or (source, 0), **more)

    socket.getaddrinfo = getaddrinfo
    socket.create_connection = create_connection
