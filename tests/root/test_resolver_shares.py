"""A resolver whose upstream server is slow for three bottles that ask for ever more names: a fourth is answered."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import dns.message
import dns.rcode
import pytest

from agentmon import wire
from agentmon.channel import BlockingChannel
from agentmon.resolver.resolve import IN_FLIGHT, IN_FLIGHT_EACH
from tests.support import names
from tests.support.hostile_dns import HostileDns
from tests.support.names import WEB, addresses, ask, until
from tests.support.resolver_rig import resolving

pytestmark = pytest.mark.root
LIMITS = {"queries_per_s": 10_000, "name_bytes_per_min": 10**7}
HOSTILE, POLITE = (16, 17, 18), 19
LOOKUPS = 250  # of each hostile bottle by its relay connections, two questions each
ROUNDS = 20


@pytest.fixture
def net() -> Iterator[SimpleNamespace]:
    with resolving(upstream={"servers": [[names.CORP_DNS, 53]]}) as made:
        made.hostile = HostileDns(made.world, names.CORP_DNS)
        try:
            for slot in (*HOSTILE, POLITE):
                made.daemon.set(slot, "*.hostile.example:22", "*.relayed.example:443", limits=LIMITS)
            yield made
        finally:
            made.hostile.close()


class Greedy:
    """Asks for names that the server is silent about: by datagrams of every hostile bottle, and as its relay does."""

    def __init__(self, net: SimpleNamespace) -> None:
        self.outcomes: Counter[str] = Counter()
        self._over = threading.Event()
        self._sockets = [net.world.udp(names.addr4(slot)) for slot in HOSTILE]
        self._channel = BlockingChannel.connect(str(net.dir / "lookup.sock"), 1)
        self._threads = [threading.Thread(target=work) for work in (self._ask, self._look, self._hear)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        number = 0
        while not self._over.wait(0.05):
            for sock in self._sockets:
                for _ in range(8):
                    number += 1
                    query = dns.message.make_query(f"silent-{number}.hostile.example", "A")
                    sock.sendto(query.to_wire(), (names.RESOLVER, 53))
                with contextlib.suppress(BlockingIOError):
                    while True:
                        reply = dns.message.from_wire(sock.recv(4096, socket.MSG_DONTWAIT))
                        self.outcomes[dns.rcode.to_text(reply.rcode())] += 1

    def _look(self) -> None:
        number = 0
        while not self._over.is_set():
            for slot in HOSTILE:
                for _ in range(LOOKUPS):
                    number += 1
                    self._channel.send(wire.Lookup(number, slot, f"silent-{number}.relayed.example", 443))
            self._over.wait(1)

    def _hear(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                self.outcomes[self._channel.recv().error] += 1

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
        self._channel.close()
        for sock in self._sockets:
            sock.close()


def test_slow_names_of_three_bottles_do_not_keep_a_fourth_from_its_answers(net: SimpleNamespace) -> None:
    assert len(HOSTILE) * 2 * LOOKUPS > IN_FLIGHT  # without shares they could have it all
    greedy = Greedy(net)
    try:
        until(lambda: greedy.outcomes["limit"] and greedy.outcomes["SERVFAIL"])
        for number in range(ROUNDS):
            assert addresses(ask(net.world, POLITE, f"fine-{number}.hostile.example", timeout=2)) == [WEB], number
        until(lambda: net.hostile.count("silent") > len(HOSTILE) * IN_FLIGHT_EACH)  # nobody is shut out
    finally:
        greedy.close()
    assert net.daemon.report(bottle="b16", reason="limit")["verdict"] == "allowed"
    assert net.hostile.count("fine") == ROUNDS
