"""The edges' own refusals: each says what was tried and keeps the kernel's errno."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from netfilter.elements import Element, Timed
from netfilter.errors import KernelRefused
from netfilter.language import TABLE, add_set, device, elements, table
from netfilter.netns import links, namespaces
from netfilter.netns.wire import NETFILTER, ROUTE, Netlink, Request
from netfilter.nfnetlink import Elements
from netfilter.nft import Nft
from netfilter.render import CUT, host_table, renewed
from netfilter.render_bottle import set_name
from tests.support.nf_lab import Lab, host_spec, net

pytestmark = pytest.mark.root


def alone(work: Callable[[], None]) -> None:
    def body() -> None:
        namespaces.unshare()
        work()

    namespaces.in_thread(body)


def test_a_batch_goes_on_after_a_refusal_and_names_the_first() -> None:
    def work() -> None:
        route = Netlink(ROUTE)
        with pytest.raises(KernelRefused) as found:
            route.run([links.up(4711), links.up(4712), links.up(1)])
        assert found.value.errno == errno.ENODEV and "4711" in str(found.value)
        assert route.run([links.delete("none0")]) == 0
        assert route.run([]) == 0
        route.close()

    alone(work)


def test_long_batches_are_divided() -> None:
    def work() -> None:
        route = Netlink(ROUTE)
        assert route.run([links.up(1)] * 5000) == 5000
        route.close()

    alone(work)


def test_refused_listings_and_questions() -> None:
    def work() -> None:
        netlink = Netlink(NETFILTER)
        nothing = Request("ask for nothing", bytes.fromhex("14000000 ff7f 0100 00000000 00000000 02000000"))
        for how in (netlink.dump, netlink.ask):
            with pytest.raises(KernelRefused) as found:
                how(nothing)
            assert found.value.operation == "ask for nothing"
        netlink.close()

    alone(work)


def test_elements_need_their_set() -> None:
    def work() -> None:
        raw, nft = Elements(TABLE), Nft()
        one = Timed(Element.of(ip_network("198.51.100.7"), "tcp", 443, 443), 60)
        with pytest.raises(KernelRefused) as found:
            raw.run(renewed("l4_16", [one]), "add elements to l4_16")
        assert found.value.errno == errno.ENOENT and "l4_16" in str(found.value)
        nft.run(host_table(host_spec()), "host")
        with pytest.raises(KernelRefused):
            raw.packets(["nobody"])
        many = [Timed(Element.of(ip_network(f"198.51.{n >> 8}.{n & 255}"), "udp", 53, 53), 60) for n in range(1000)]
        raw.run(renewed("dial4", [*many, one]), "dial")
        raw.run([*renewed("dial4", many), *renewed("dial6", [])], "dial again")
        raw.run([], "nothing")
        raw.put_device(CUT, "am16")
        raw.put_device(CUT, "am16")
        listed = next(o["set"] for o in nft.listing("list set inet agentmon dial4") if "set" in o)
        assert len(listed["elem"]) == 1001
        assert "am16" in str(nft.listing("list set inet agentmon cut"))
        raw.close()

    alone(work)


def test_a_namespace_whose_first_work_fails_is_not_there() -> None:
    name = "amnf-first"

    def fails() -> None:
        raise KernelRefused(errno.EBUSY, "first")

    def work() -> None:
        with pytest.raises(KernelRefused, match="first"):
            namespaces.create(name, fails)
        assert not namespaces.exists(name)

    with Lab() as lab:
        lab.run(work)


def test_a_host_opened_otherwise_is_opened_anew() -> None:
    with Lab() as lab:
        lab.open()
        from dataclasses import replace

        lab.run(lab.nf.open_host, replace(host_spec(), upstream_dns=()))
        assert "53" not in lab.shell("nft", "list", "set", "inet", "agentmon", "dns4")


def test_something_else_under_a_sets_name_is_an_error_not_a_silence() -> None:
    """Removing goes on past what is not there, and only past that."""
    with Lab() as lab:
        lab.open()
        lab.run(lab.nf.create_bottle, net(16))
        name = set_name("s", 4, 16)
        lab.shell("nft", "add", "rule", "inet", "agentmon", "forward", "ip daddr . meta l4proto . th dport", f"@{name}")
        with pytest.raises(KernelRefused) as found:
            lab.run(lab.nf.delete_bottle, 16)
        assert found.value.errno == errno.EBUSY
        lab.shell("nft", "flush", "chain", "inet", "agentmon", "forward")
        lab.run(lab.nf.delete_bottle, 16)
        assert lab.run(lab.nf.slots) == frozenset()


def test_the_language_of_a_set() -> None:
    def work() -> None:
        nft = Nft()
        nft.run([table("add"), add_set("x", ("ifname",)), *elements("add", "x", [device("a"), device("b")])], "x")
        nft.run([], "nothing")
        assert "elem" in str(nft.listing("list set inet agentmon x"))

    alone(work)
