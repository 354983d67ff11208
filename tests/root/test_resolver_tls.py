"""Upstream over TLS: one connection for many questions, a certificate for the right name or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import dns.rcode
import pytest

from tests.internet import world as internet
from tests.internet.ca import Authority
from tests.support import names
from tests.support.names import addresses, ask
from tests.support.resolver_rig import A, resolving
from tests.support.tls_dns import ADDRESS, TlsDns

pytestmark = pytest.mark.root
DOT = names.CORP_DNS
GOOD, BY_ADDRESS, UNKNOWN = 853, 8853, 9853
SERVERS = {
    "good.example": [DOT, GOOD, "dns.example"],
    "address.example": [DOT, BY_ADDRESS, DOT],
    "misnamed.example": [DOT, GOOD, "other.example"],
    "noaddress.example": [DOT, GOOD, DOT],
    "unknown.example": [DOT, UNKNOWN, internet.SELF_SIGNED],
}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with names.directory() as directory:
        authority = Authority(directory)
        contexts = {GOOD: "dns.example", BY_ADDRESS: DOT, UNKNOWN: internet.SELF_SIGNED}
        upstream = {
            "servers": [[names.OUTSIDE_DNS, 53]],
            "suffixes": {suffix: [server] for suffix, server in SERVERS.items()},
            "ca": [str(authority.path)],
        }
        with resolving(upstream=upstream) as made:
            made.tls = TlsDns(made.world, DOT, {port: authority.context(name) for port, name in contexts.items()})
            try:
                made.daemon.set(A, *(f"*.{suffix}:22" for suffix in SERVERS))
                yield made
            finally:
                made.tls.close()


def test_one_connection_carries_the_questions(net: SimpleNamespace) -> None:
    before = net.tls.connections[GOOD]
    for number in range(20):
        assert addresses(ask(net.world, A, f"n{number}.good.example")) == [ADDRESS]
    assert net.tls.connections[GOOD] - before <= 1
    assert len(net.tls.asked[GOOD]) >= 20
    assert net.dns.asked == []


def test_questions_are_under_way_side_by_side_and_answered_in_any_order(net: SimpleNamespace) -> None:
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(ask, net.world, A, f"pair-{n}.good.example") for n in (1, 2)]
        for number, future in enumerate(both, 1):
            reply = future.result(10)
            assert addresses(reply) == [ADDRESS]
            assert reply.question[0].name.to_text() == f"pair-{number}.good.example."


def test_a_certificate_for_the_address(net: SimpleNamespace) -> None:
    assert addresses(ask(net.world, A, "a.address.example")) == [ADDRESS]


@pytest.mark.parametrize("suffix", ["misnamed.example", "noaddress.example", "unknown.example"])
def test_a_certificate_for_something_else_is_no_answer_and_nothing_goes_out_in_clear(
    net: SimpleNamespace, suffix: str
) -> None:
    assert ask(net.world, A, f"secret.{suffix}").rcode() == dns.rcode.SERVFAIL
    assert not [name for asked in net.tls.asked.values() for name in asked if name.endswith(suffix)]
    assert net.dns.asked == []


def test_a_connection_that_ends_is_made_anew(net: SimpleNamespace) -> None:
    ask(net.world, A, "warm.good.example")
    before = net.tls.connections[GOOD]
    assert addresses(ask(net.world, A, "close.good.example")) == [ADDRESS]
    assert net.tls.connections[GOOD] == before + 1
    assert net.tls.asked[GOOD].count("close.good.example") == 2


@pytest.mark.parametrize("manner", ["lie", "silent"])
def test_a_server_that_lies_or_says_nothing_is_left_and_asked_anew(net: SimpleNamespace, manner: str) -> None:
    ask(net.world, A, f"warm-{manner}.good.example")
    before = net.tls.connections[GOOD]
    assert ask(net.world, A, f"{manner}.good.example").rcode() == dns.rcode.SERVFAIL
    assert addresses(ask(net.world, A, f"after-{manner}.good.example")) == [ADDRESS]
    assert net.tls.connections[GOOD] > before
    assert net.dns.asked == []
