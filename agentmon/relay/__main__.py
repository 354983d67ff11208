"""`python -m agentmon.relay CONFIG`, in the service namespace, started by the daemon as root."""

from __future__ import annotations

import resource
import sys
import time
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import msgspec

from agentmon import service, wire
from agentmon.addresses import Pool
from agentmon.channel import Channel
from agentmon.lookup import Lookups
from agentmon.policy.rules import RuleError
from agentmon.relay.flow import HALF_CLOSED_S, HELLO_S, KEEPALIVE_S, Patience
from agentmon.relay.flows import Flows
from agentmon.relay.server import Server
from agentmon.reporting import Reporter
from agentmon.views import Views

DESCRIPTORS = 65536


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """docs/design/seams.md"""

    socket: str
    lookup_socket: str
    user: str
    listen: tuple[str, ...]
    pool4: str
    pool6: str | None = None
    port: int = 443
    hello_s: float = HELLO_S
    keepalive_s: int = KEEPALIVE_S
    half_closed_s: float = HALF_CLOSED_S

    @property
    def pool(self) -> Pool:
        return Pool(IPv4Network(self.pool4), IPv6Network(self.pool6) if self.pool6 else None)


def main() -> None:
    config = msgspec.convert(service.read_config(sys.argv), Config)
    sockets = [service.listen_tcp(address, config.port) for address in config.listen]
    control = service.listen_unix(Path(config.socket))
    _raise_descriptors()
    service.drop(config.user)

    async def body() -> None:
        relay = Relay(config, control)
        Server(relay.flows, config.pool).serve(sockets)
        await relay.control.start()
        await relay.reporter.run()

    service.run(body)


def _raise_descriptors() -> None:
    """Two descriptors a flow: as many as this host gives without asking it for more than its hard limit."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Relay:
    """The parts, wired; and what the daemon may tell them."""

    def __init__(self, config: Config, control_socket: Any) -> None:
        self.control = service.Control("relay", control_socket, self.told)
        self.views = Views()
        self.reporter = Reporter(self.control.report, self.control.report_of)
        patience = Patience(config.hello_s, config.keepalive_s, config.half_closed_s)
        self.flows = Flows(self.views, Lookups(config.lookup_socket), self.reporter, config.port, patience)

    async def told(self, message: Any, channel: Channel) -> wire.Message | None:
        match message:
            case wire.SetBottle():
                try:
                    self.views.set(message.view)
                except RuleError as e:
                    return wire.Ack(message.id, error=f"rule of bottle {message.view.bottle}: {e.message}")
                closed = self.flows.recheck(message.view.slot)
            case wire.DropBottle():
                self.views.drop(message.slot)
                closed = self.flows.close(message.slot)
                self.reporter.drop(message.slot)
            case wire.CutBottle():
                self.views.cut(message.slot, message.spent)
                closed = self.flows.close(message.slot)
            case _:
                return None
        return wire.Ack(message.id, closed=closed, at_ns=time.monotonic_ns())


if __name__ == "__main__":
    main()
