"""`python -m agentmon.resolver CONFIG`, in the service namespace, started by the daemon as root."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from agentmon import service, wire
from agentmon.channel import Channel
from agentmon.dlp.names import Known
from agentmon.policy.rules import RuleError
from agentmon.reporting import Reporter
from agentmon.resolver.commits import Commits
from agentmon.resolver.config import Config, convert
from agentmon.resolver.desk import Desk
from agentmon.resolver.fences import Fences
from agentmon.resolver.labels import Labels
from agentmon.resolver.lookups import LookupDesk, LookupServer
from agentmon.resolver.resolve import Resolve
from agentmon.resolver.server import Server, listen
from agentmon.resolver.strip import Strip
from agentmon.resolver.tls import context
from agentmon.resolver.upstream import Upstream
from agentmon.views import Views


def main() -> None:
    config = convert(service.read_config(sys.argv))
    sockets = listen(list(config.listen), config.port)
    control = service.listen_unix(Path(config.socket))
    lookup = service.listen_unix(Path(config.lookup_socket), group=config.lookup_group)
    uids = config.lookup_uids
    tls = context(config.upstream.ca) if config.upstream.over_tls else None
    service.drop(config.user)

    async def body() -> None:
        if sys.version_info >= (3, 12):  # a question goes out in the turn of the loop in which it came
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        resolver = Resolver(config, control, tls)
        await Server(resolver.desk, config.pool).serve(sockets)
        await LookupServer(resolver.lookups, uids).serve(lookup)
        await resolver.control.start()
        await resolver.reporter.run()

    service.run(body)


class Resolver:
    """The parts, wired; and what the daemon may tell them."""

    def __init__(self, config: Config, control_socket: Any, tls: ssl.SSLContext | None) -> None:
        now_ns = time.monotonic_ns
        self.control = service.Control("resolver", control_socket, self.told)
        self.views = Views()
        self.reporter = Reporter(self.control.report, self.control.report_of)
        resolve = Resolve(Upstream(config.upstream.servers, config.upstream.suffixes, tls), now_ns)
        commits = Commits(self.control, now_ns, self.reporter)
        strip, labels = Strip(config.own), Labels()
        self.lookups = LookupDesk(self.views, resolve, commits, strip, self.reporter, labels, now_ns)
        self.fences = Fences(self.lookups.looked)
        self.desk = Desk(
            self.views, resolve, commits, strip, self.reporter, config.internal, labels, now_ns, self.fences.known
        )

    async def told(self, message: Any, channel: Channel) -> wire.Message | None:
        match message:
            case wire.SetBottle():
                try:
                    self.fences.set(self.views.set(message.view))
                except RuleError as e:
                    return wire.Ack(message.id, error=f"rule of bottle {message.view.bottle}: {e.message}")
            case wire.DropBottle():
                self.views.drop(message.slot)
                self.fences.drop(message.slot)
                self.desk.forget(message.slot)
                self.reporter.drop(message.slot)
            case wire.SetNames():
                self.desk.labels.know(message.slot, message.run, Known(message.key, message.digests))
            case wire.CutBottle():
                self.views.cut(message.slot, message.spent)
            case _:
                return None
        return wire.Ack(message.id, at_ns=time.monotonic_ns())


if __name__ == "__main__":
    main()
