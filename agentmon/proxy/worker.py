"""One proxy process: its parts wired, its listeners, and what the daemon may tell it."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import socket
import sys
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import msgspec

from agentmon import service, trust, wire
from agentmon.addresses import Pool
from agentmon.channel import Channel
from agentmon.dlp import rules
from agentmon.dlp import scanner as dlp
from agentmon.errors import BadInput
from agentmon.events import Event, now_ns
from agentmon.injection import rules as injection_rules
from agentmon.ledger.client import LedgerClient
from agentmon.lookup import Lookups
from agentmon.policy.rules import RuleError
from agentmon.providers import registry
from agentmon.proxy.approvals import Approvals
from agentmon.proxy.bottles import Bottles
from agentmon.proxy.edge import Hooks
from agentmon.proxy.edge_server import Listener
from agentmon.proxy.edge_tls import Tls, make_options
from agentmon.proxy.exchange import Accounts
from agentmon.proxy.search import Searches
from agentmon.proxy.sightings import Sightings
from agentmon.reporting import Reporter

_LAST_SETTLES_S = 3.0
_DESCRIPTORS = 65536


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """docs/design/seams.md"""

    socket: str
    lookup_socket: str
    ledger_socket: str
    user: str
    listen: tuple[tuple[str, int], ...]
    pool4: str
    ca_dir: str
    worker: int = 0
    pool6: str | None = None
    upstream_ca: tuple[str, ...] = ()
    upstream_proxy: str | None = None
    providers: dict[str, Any] = {}
    rules_kept: str = ""  # a directory for what the shipped rules compile to; "": nowhere

    @property
    def pool(self) -> Pool:
        return Pool(IPv4Network(self.pool4), IPv6Network(self.pool6) if self.pool6 else None)


def raise_descriptors() -> None:
    """Two descriptors a flow: as many as the hard limit gives, which not even root may raise in every container."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Worker:
    """Made as root (reads the authority's key, writes the roots file beside its socket); serves after the drop.

    :raises AgentmonError: the authority or a CA file cannot be used; an upstream proxy is asked for.
    """

    def __init__(self, config: Config, control_socket: socket.socket) -> None:
        if config.upstream_proxy:
            raise BadInput("upstream: proxy: is not supported by this version", "remove it from the settings")
        roots = Path(config.socket).with_suffix(".roots.pem")
        trust.upstream_roots([Path(path) for path in config.upstream_ca], roots)
        injection_rules.load()  # while this process may still read its own files
        self._options = make_options(roots)
        self.control = service.Control("proxy", control_socket, self.told)
        self.reporter = Reporter(self.control.report, self.control.report_of)
        self.bottles = Bottles(config.pool)
        kept = Path(config.rules_kept) if config.rules_kept else None
        self._shipped = dlp.detector(keep=kept)
        dlp.warm(self._shipped)
        self._rules_digest = hashlib.sha256(b"").digest()  # of the text in force, b"" for the shipped
        self.searches = Searches(self._shipped)
        self.approvals = Approvals(self.control.daemon)
        self.accounts = Accounts(LedgerClient(config.ledger_socket), self._report)
        self.hooks = Hooks(
            self.bottles, registry.load(config.providers), Lookups(config.lookup_socket), self.accounts,
            Sightings(self.bottles, self.reporter), Tls(Path(config.ca_dir)),
            self.searches, self.approvals,
        )  # fmt: skip
        self._listener = Listener(self.hooks, self.bottles, self._options)

    async def serve(self, listeners: list[tuple[socket.socket, int]]) -> None:
        """Until cancelled; then what is being settled gets a moment to finish."""
        if sys.version_info >= (3, 12):  # hooks that wait for nothing are over without a turn of the loop
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        try:
            for sock, port in listeners:
                await self._listener.listen(sock, port)
            await self.control.start()
            await self.reporter.run()
        finally:
            self._listener.close()
            await self.accounts.settled(_LAST_SETTLES_S)

    async def told(self, message: Any, channel: Channel) -> wire.Message | None:
        match message:
            case wire.SetBottle():
                try:
                    self.bottles.set(message.view)
                except RuleError as e:
                    return wire.Ack(message.id, error=f"rule of bottle {message.view.bottle}: {e.message}")
                self.hooks.rejudge(message.view.slot)
                return wire.Ack(message.id)
            case wire.SetRules():
                return wire.Ack(message.id, error=await asyncio.to_thread(self._rules, message))
            case wire.SetCredentials() | wire.SetSecrets() | wire.SetApprovals() | wire.SetProviders():
                return wire.Ack(message.id, error=self._given(message))
            case wire.DropBottle():
                self.approvals.drop(message.slot)
                self.hooks.close(message.slot)
                self.bottles.drop(message.slot)
                self.searches.drop(message.slot)
                self.reporter.drop(message.slot)
                return wire.Ack(message.id)
            case wire.CutBottle():
                self.bottles.cut(message.slot, message.spent)
                self.approvals.end(message.slot)
                closed, at_ns = await self.hooks.cut(message.slot)
                return wire.Ack(message.id, closed=closed, at_ns=at_ns)
        return None

    def _given(self, message: wire.SetCredentials | wire.SetSecrets | wire.SetApprovals | wire.SetProviders) -> str:
        """Take what belongs beside the views; what is wrong with it, "" for nothing."""
        try:
            match message:
                case wire.SetCredentials():
                    self.bottles.give(message.slot, message.run, message.values)
                case wire.SetSecrets():
                    self.searches.give(message.slot, message.run, message.key, message.values)
                case wire.SetApprovals():
                    self.approvals.give(message.slot, message.run, message.approved, message.wait_s)
                case wire.SetProviders():
                    self.hooks.providers = registry.load(message.providers)
        except BadInput as e:
            return f"{type(message).__name__}: {e.message}"
        return ""

    def _rules(self, message: wire.SetRules) -> str:
        """Search by other rules from now on; what is wrong with them. Made for a thread: it takes half a second."""
        digest = hashlib.sha256(message.text).digest()
        if digest == self._rules_digest:
            return ""
        try:
            detector = dlp.of_rules(rules.parse(message.text, message.source)) if message.text else self._shipped
        except BadInput as e:
            return e.message
        self.searches.use(detector)
        self._rules_digest = digest
        return ""

    def _report(self, event: Event) -> None:
        """An event that is reported every time it happens."""
        self.control.report(msgspec.to_builtins(msgspec.structs.replace(event, ts_ns=now_ns())))
