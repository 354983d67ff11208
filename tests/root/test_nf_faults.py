"""What breaks under a running bottle: each time less passes than before, never more, and somebody is told why."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from netfilter.errors import KernelRefused
from netfilter.spec import Direct, Mode
from tests.golden.test_compile_policy import PROVIDERS, place
from tests.support.nf_lab import OTHER4, PORTS, WEB4, WEB6, Lab, direct, learned, net, rules

pytestmark = pytest.mark.root
LIMIT = Path("/proc/sys/net/netfilter/nf_conntrack_max")
LINES = 100_000


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.open()
        yield lab


def refused(lab: Lab, address: str, port: int = 443) -> bool:
    try:
        lab.connect("am-16", address, port, timeout=0.4).close()
    except OSError:
        return True
    return False


def test_a_device_deleted_under_a_bottle_leaves_it_alone_in_there(lab: Lab) -> None:
    lab.bottle(16, direct(f"{WEB4}/32"), epoch=1)
    lab.shell("ip", "link", "del", "am16")
    assert refused(lab, WEB4)
    lab.run(lab.nf.apply, rules(16, 2, direct(f"{OTHER4}/32")))  # tables have no need of it
    lab.run(lab.nf.learn, 16, [learned(WEB6)])
    lab.run(lab.nf.cut, 16)
    assert lab.run(lab.nf.end_refused, 16) == 0
    lab.run(lab.nf.delete_bottle, 16)
    lab.bottle(16, direct(f"{WEB4}/32"), epoch=3)
    lab.connect("am-16", WEB4).close()


def test_a_namespace_that_loses_its_name_is_held_all_the_same(lab: Lab) -> None:
    """Its processes and our sockets keep it alive; what they may do goes on being changed and counted."""
    lab.bottle(16, direct(f"{WEB4}/32"), direct(f"{OTHER4}/32"), epoch=1)
    good, bad = lab.connect("am-16", WEB4), lab.connect("am-16", OTHER4)
    lab.shell("ip", "netns", "delete", "am-16")
    lab.run(lab.nf.apply, rules(16, 2, direct(f"{WEB4}/32")))
    with pytest.raises(OSError):
        bad.sendall(b"x")
        bad.settimeout(1)
        bad.recv(1)
    good.sendall(b"hello")
    assert good.recv(5) == b"hello"
    with pytest.raises(KernelRefused) as found:
        lab.run(lab.nf.create_bottle, net(16))
    assert found.value.errno == errno.EEXIST and "am16" in str(found.value)
    lab.run(lab.nf.delete_bottle, 16)
    assert lab.run(lab.nf.slots) == frozenset()


def test_forwarding_switched_off_closes_and_opening_again_mends_it(lab: Lab) -> None:
    lab.bottle(16, direct(f"{WEB4}/32"), direct(f"{WEB6}/128"))
    switches = [f"net.ipv4.conf.{device}.forwarding=0" for device in ("am16", "am-svc", "up0")]
    lab.shell("sysctl", "-qw", *switches, "net.ipv6.conf.all.forwarding=0")
    assert refused(lab, WEB4) and refused(lab, WEB6)
    lab.shell("sysctl", "-qw", "net.ipv4.conf.am16.forwarding=1")
    lab.nf = type(lab.nf)()
    lab.open()
    for address in (WEB4, WEB6):
        lab.connect("am-16", address).close()


@pytest.mark.e2e  # for the lane on the host: only there the limit can be written
def test_a_full_conntrack_table_refuses_what_is_new_and_keeps_what_is_there(lab: Lab) -> None:
    """The limit is the machine's, the count is each namespace's own: lowered for a moment to a little above it."""
    lab.bottle(16, direct(f"{WEB4}/32"), direct(f"{OTHER4}/32"), epoch=1)
    kept, doomed = lab.connect("am-16", WEB4), lab.connect("am-16", OTHER4)
    before = LIMIT.read_text()
    count = int((LIMIT.parent / "nf_conntrack_count").read_text())
    opened: list[socket.socket] = []
    LIMIT.write_text(str(count + 24))
    try:
        for _ in range(count + 40):
            try:
                opened.append(lab.connect("am-16", WEB4, timeout=0.3))
            except OSError:
                break
        else:
            pytest.fail("the table never was full")
        seen = lab.world.to(OTHER4)
        assert refused(lab, OTHER4, PORTS[0]) and refused(lab, "203.0.113.2")
        assert lab.world.to(OTHER4) == seen
        kept.sendall(b"hello")
        assert kept.recv(5) == b"hello"
        lab.run(lab.nf.apply, rules(16, 2, direct(f"{WEB4}/32")))  # a removal is in force all the same
        doomed.settimeout(1)
        with pytest.raises(OSError):
            doomed.recv(1)
        lab.run(lab.nf.cut, 16)
        assert lab.run(lab.nf.end_refused, 16) >= len(opened)
    finally:
        LIMIT.write_text(before)
        for sock in (kept, doomed, *opened):
            sock.close()
    lab.run(lab.nf.apply, rules(16, 3, direct(f"{WEB4}/32")))
    lab.connect("am-16", WEB4).close()


def test_a_transaction_refused_in_the_middle_leaves_every_set_as_it_was(lab: Lab) -> None:
    """Of thousands of elements one is there already, as part of something wider that somebody else put there."""
    many = [Direct(IPv4Network((0x14000000 + n, 32)), "tcp", ((443, 444),)) for n in range(3000)]
    lab.bottle(16, direct(f"{WEB4}/32"), epoch=1)
    lab.shell("nft", "add", "element", "inet", "agentmon", "n4_16", "{ 20.0.8.0/24 . tcp . 440-450 }")
    before = lab.shell("nft", "-s", "list", "table", "inet", "agentmon")
    with pytest.raises(KernelRefused) as found:
        lab.run(lab.nf.apply, rules(16, 1, direct(f"{WEB4}/32"), *many))
    assert found.value.errno in {errno.EEXIST, errno.ENOTEMPTY} and found.value.operation == "rules of bottle 16"
    assert lab.shell("nft", "-s", "list", "table", "inet", "agentmon") == before
    assert "20.0.0.0" not in lab.shell("ip", "netns", "exec", "am-16", "nft", "list", "set", "inet", "agentmon", "n4")
    lab.connect("am-16", WEB4).close()
    lab.shell("nft", "delete", "element", "inet", "agentmon", "n4_16", "{ 20.0.8.0/24 . tcp . 440-450 }")
    lab.run(lab.nf.apply, rules(16, 1, direct(f"{WEB4}/32"), *many))


def test_no_memory_for_the_whole_of_a_change_is_said_so(lab: Lab) -> None:
    """A set that may hold no more: ENOSPC for what is beyond it, nothing of the transaction stays."""
    from netfilter.batch import Batch, Members
    from netfilter.elements import Element
    from netfilter.nfnetlink import Elements

    def work() -> None:
        Lab.command("nft", "add set inet agentmon few { typeof ip daddr . meta l4proto . th dport; size 5; }")
        elements = [Element.of(IPv4Network((0x14000000 + n, 32)), "tcp", 443, 443) for n in range(9)]
        raw = Elements("agentmon")
        with pytest.raises(KernelRefused) as found:
            raw.run([Members("add", "few", Batch(elements), False)], "fill the set")
        assert found.value.errno == errno.ENFILE and found.value.operation == "fill the set"
        assert "elements" not in Lab.command("nft", "list", "set", "inet", "agentmon", "few")
        raw.run([Members("add", "few", Batch(elements[:5]), False)], "fill the set")
        raw.close()

    lab.run(work)


def test_a_very_long_manifest_is_in_force_or_refused_whole(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    from agentmon.compile import compile_bottle
    from agentmon.policy import manifest
    from agentmon.policy.merge import Options, effective
    from agentmon.policy.settings import Settings

    began = time.monotonic()
    lines = [f"20.{n >> 16}.{n >> 8 & 255}.{n & 255}:5432" for n in range(LINES)]
    text = "".join(["allow:\n", *(f"  - {line}\n" for line in (*lines, "198.51.100.6/31:5432"))])
    policy = effective(Settings(), (manifest.parse(text, "long.yml", trusted=True),), Options(), providers=PROVIDERS)
    compiled = compile_bottle(policy, place(), 7, Mode.ENFORCE.value).rules
    lab.run(lab.nf.create_bottle, net(16))
    told = time.monotonic()
    lab.run(lab.nf.apply, compiled)
    record_property("compile_ms", (told - began) * 1000)
    record_property("apply_ms", (time.monotonic() - told) * 1000)
    lab.connect("am-16", WEB4, 5432).close()
    assert refused(lab, WEB4) and refused(lab, OTHER4, 5432)
