"""Run the stand-in internet on this host until the end of stdin, SIGTERM or SIGINT: `python -m tests.internet DIR [h2]`

With `h2` the providers speak HTTP/2 with who likes it. DIR gets ca.pem and control.sock, on which every connection
reads the counters as one JSON object. When everything answers, one line of JSON on stdout says where. Needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.internet import ca, links, model_apis, sinks, web, world
from tests.internet.dns_server import DnsServer
from tests.internet.http1 import HttpServer
from tests.internet.served import Books

_WAIT_FOR_OTHERS_S = 300


class Signals:
    """The first SIGTERM or SIGINT ends the servers, or unwinds what is being made; later ones disturb no cleaning up.

    Not the event loop's handlers: it puts back the default action when it closes, and that kills the cleaning up."""

    def __init__(self) -> None:
        self.end: Callable[[], object] = lambda: sys.exit(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._arrived)

    def _arrived(self, _number: int, _frame: object) -> None:
        end, self.end = self.end, lambda: None
        end()


async def serve(directory: Path, apis_speak: tuple[str, ...], signals: Signals) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals.end = lambda: loop.call_soon_threadsafe(stop.set)
    books, dns_server = Books(), DnsServer()
    apps = model_apis.apps(books)
    http = HttpServer({address: apps[name] for name, pair in world.APIS.items() for address in pair}, web.site)
    authority = ca.Authority(directory)
    tls = ca.server_context(authority, apis_speak)
    for port in world.TLS_PORTS:
        await http.listen(port, tls)
    for port in world.HTTP_PORTS:
        await http.listen(port, None)
    await dns_server.start()
    await sinks.start()

    def counters() -> dict[str, Any]:
        return {
            "dns": dict(dns_server.queries),
            "requests": http.log,
            "connections": http.connections,
            "forbidden": links.counted(),
            "served": books.as_json(),
        }

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(counters()).encode())
        writer.close()

    await asyncio.start_unix_server(tell, directory / "control.sock")
    ready = {"ca": str(authority.path), "dns": [[address, 53] for address in world.DNS]}
    print(json.dumps(ready), flush=True)
    await _end_of_stdin(stop)
    signals.end = lambda: None


async def _end_of_stdin(stop: asyncio.Event) -> None:
    """Whoever started this is gone when stdin ends; a terminal and /dev/null are no such sign."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, ValueError):  # a regular file or nothing at all cannot be waited for
        if not sys.stdin.isatty() and os.fstat(0).st_mode & 0o170000 == 0o010000:
            loop.add_reader(0, lambda: None if os.read(0, 4096) else stop.set())
    await stop.wait()
    with contextlib.suppress(OSError, ValueError):
        loop.remove_reader(0)


def main() -> int:
    if sys.argv[2:] not in ([], ["h2"]) or len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print(
            "error: the stand-in internet is namespaces and routes on this host; only root can make them",
            file=sys.stderr,
        )
        return 4
    signals = Signals()
    try:
        with links.only_one(_WAIT_FOR_OTHERS_S), links.joined():
            asyncio.run(serve(Path(sys.argv[1]), (*sys.argv[2:], "http/1.1"), signals))
    except (links.Busy, links.Failed, OSError) as e:  # OSError: DIR is gone, an address or a port is taken
        print(f"error: the stand-in internet cannot run: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
