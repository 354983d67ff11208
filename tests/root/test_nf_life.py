"""Opening, closing, adopting, failing halfway: what is there afterwards, and what is not."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from netfilter import forwarding, host
from netfilter.errors import KernelRefused
from netfilter.host import HostNetfilter
from netfilter.netns import links
from netfilter.probe import probe, require
from netfilter.spec import Mode
from tests.support.nf_lab import OTHER4, POOL4, WEB4, WEB6, Lab, direct, host_spec, learned, net, rules, until

pytestmark = pytest.mark.root
SWITCHES = (
    "ipv4/conf/up0/forwarding", "ipv4/conf/up0/src_valid_mark", "ipv4/conf/all/forwarding",
    "ipv6/conf/up0/forwarding", "ipv6/conf/up0/accept_ra", "ipv6/conf/all/forwarding", "ipv6/conf/all/accept_ra",
)  # fmt: skip


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def picture(lab: Lab) -> list[str]:
    """Everything a host would notice."""

    def look() -> list[str]:
        found = [f"{s}={Path('/proc/sys/net', s).read_text().strip()}" for s in SWITCHES]
        found += sorted(p.name for p in Path("/run/netns").iterdir())
        for argv in (("ip", "-o", "link"), ("ip", "addr"), ("ip", "rule"), ("ip", "-6", "rule"),
                     ("ip", "route", "show", "table", "all"), ("ip", "-6", "route", "show", "table", "all"),
                     ("ip", "neigh", "show", "nud", "permanent"), ("nft", "list", "ruleset")):  # fmt: skip
            lines = lab.command(*argv).splitlines()
            found += [line.replace(" proto kernel", "") for line in lines if "expires" not in line]
        return found

    return lab.run(look)


def restored(lab: Lab, before: list[str]) -> None:
    try:
        until(lambda: picture(lab) == before)
    except AssertionError:
        assert picture(lab) == before


def test_closing_leaves_the_host_as_it_was(lab: Lab) -> None:
    lab.shell("sysctl", "-q", "-w", "net.ipv4.conf.up0.rp_filter=1", "net.ipv6.conf.up0.accept_ra=1")
    until(lambda: "tentative" not in lab.shell("ip", "addr"))
    before = picture(lab)
    lab.open()
    for slot in (16, 17):
        lab.bottle(slot, direct(f"{WEB4}/32"))
    changed = picture(lab)
    assert "ipv4/conf/up0/forwarding=1" in changed and "ipv6/conf/all/forwarding=1" in changed
    assert "ipv6/conf/up0/accept_ra=2" in changed and "ipv4/conf/up0/src_valid_mark=1" in changed
    lab.run(lab.nf.close_host)
    restored(lab, before)


def test_a_successor_restores_what_its_predecessor_switched(lab: Lab) -> None:
    """The notes are in the table, not in the process."""
    until(lambda: "tentative" not in lab.shell("ip", "addr"))
    before = picture(lab)
    lab.open()
    lab.bottle(16)
    successor = HostNetfilter()
    lab.run(successor.open_host, lab.spec)
    lab.run(successor.close_host)
    restored(lab, before)


def test_a_host_that_routes_already_stays_one(lab: Lab) -> None:
    lab.shell("sysctl", "-q", "-w", "net.ipv4.conf.all.forwarding=1", "net.ipv6.conf.all.forwarding=1")
    lab.open()
    lab.bottle(16, direct(f"{WEB4}/32"))
    lab.connect("am-16", WEB4).close()
    assert '"up0"' not in lab.shell("nft", "list", "set", "inet", "agentmon", "switched4")
    lab.run(lab.nf.close_host)
    assert {"ipv4/conf/up0/forwarding=1", "ipv6/conf/all/forwarding=1"} < set(picture(lab))


def second_world(lab: Lab) -> None:
    """Another network behind another uplink; the first one's hosts could reach it through us, if we let them."""
    lab.run(
        lab.ip, "netns add far", "link add up1 type veth peer name eth0 netns far",
        "addr add 198.51.101.1/24 dev up1", "link set up1 up",
    )  # fmt: skip
    lab.shell("ip", "-n", "far", "addr", "add", "198.51.101.2/24", "dev", "eth0")
    lab.shell("ip", "-n", "far", "link", "set", "eth0", "up")
    lab.shell("ip", "-n", "far", "route", "add", "default", "via", "198.51.101.1")


def test_an_uplink_that_came_later_works_and_nobody_else_is_routed(lab: Lab) -> None:
    lab.open()
    second_world(lab)
    lab.receiver("far", ["198.51.101.2"])
    lab.bottle(16, direct("198.51.101.2/32"))
    lab.connect("am-16", "198.51.101.2").close()
    with pytest.raises(OSError):
        lab.connect("world", "198.51.101.2", timeout=0.4)
    lab.shell("sysctl", "-q", "-w", "net.ipv4.conf.all.forwarding=1")  # the host decides otherwise
    lab.bottle(17)
    lab.connect("world", "198.51.101.2").close()
    assert "up1" not in lab.shell("nft", "list", "set", "inet", "agentmon", "switched4")


def test_a_taken_slot_is_refused_and_left_alone(lab: Lab) -> None:
    lab.open()
    name = lab.bottle(16, direct(f"{WEB4}/32"))
    before = picture(lab)
    with pytest.raises(KernelRefused) as found:
        lab.run(lab.nf.create_bottle, net(16))
    assert found.value.errno == errno.EEXIST
    assert picture(lab) == before
    lab.connect(name, WEB4).close()


def test_a_bottle_that_cannot_be_made_leaves_nothing(lab: Lab) -> None:
    lab.open()
    lab.shell("ip", "link", "add", "am16", "type", "veth", "peer", "name", "other16")
    before = picture(lab)
    with pytest.raises(KernelRefused) as found:
        lab.run(lab.nf.create_bottle, net(16))
    assert found.value.errno == errno.EEXIST and "am16" in str(found.value)
    after = picture(lab)
    assert after == before
    lab.shell("ip", "link", "del", "am16")
    lab.bottle(16)


def test_names_must_follow_from_the_slot(lab: Lab) -> None:
    lab.open()
    for bad in (replace(net(16), veth="eth7"), replace(net(16), netns="mine")):
        with pytest.raises(ValueError, match="am16 and am-16"):
            lab.run(lab.nf.create_bottle, bad)


def test_addresses_outside_the_pool_are_refused(lab: Lab) -> None:
    for bad in (replace(host_spec(), gateway4=ip_address("198.51.100.1")), replace(host_spec(), pool6=None)):
        with pytest.raises(ValueError, match="outside the pool"):
            lab.run(lab.nf.open_host, bad)


def test_a_change_that_fails_on_the_host_is_taken_back_inside(lab: Lab) -> None:
    lab.open()
    name = lab.bottle(16, direct(f"{WEB4}/32"), epoch=1)
    lab.run(lab.nf.learn, 16, [learned(WEB6)])
    sock = lab.connect(name, WEB4)
    inner = lab.shell("ip", "netns", "exec", name, "nft", "-s", "list", "ruleset")
    lab.shell("nft", "delete", "set", "inet", "agentmon", "marked4")  # unrelated
    lab.shell("nft", "add", "rule", "inet", "agentmon", "forward", "ip", "daddr", ".", "meta", "l4proto", ".", "th",
              "dport", "@s4_16", "accept")  # fmt: skip
    lab.shell("nft", "flush", "ruleset")  # by somebody else, on the host alone
    with pytest.raises(KernelRefused) as found:
        lab.run(lab.nf.apply, rules(16, 2, direct(f"{OTHER4}/32")))
    assert found.value.errno == errno.ENOENT
    again = lab.shell("ip", "netns", "exec", name, "nft", "-s", "list", "ruleset")
    assert [line.split(" timeout ")[0] for line in again.splitlines()] == [
        line.split(" timeout ")[0] for line in inner.splitlines()
    ]
    sock.settimeout(0.3)
    sock.sendall(b"x")
    with pytest.raises(OSError):
        sock.recv(1)
    with pytest.raises(OSError):
        lab.connect(name, WEB4, timeout=0.3)


def test_learning_without_the_hosts_table_says_so(lab: Lab) -> None:
    lab.open()
    lab.bottle(16)
    lab.shell("nft", "flush", "ruleset")
    for call, args in ((lab.nf.learn, (16, [learned(WEB4)])), (lab.nf.cut, (16,)), (lab.nf.refusals, (16,))):
        with pytest.raises(KernelRefused) as found:
            lab.run(call, *args)
        assert found.value.errno == errno.ENOENT
    lab.run(lab.nf.delete_bottle, 16)
    assert lab.run(lab.nf.slots) == frozenset()


def test_a_namespace_that_has_gone_is_said_so(lab: Lab) -> None:
    lab.open()
    lab.bottle(16)
    successor = HostNetfilter()
    lab.run(successor.open_host, lab.spec)
    lab.shell("ip", "netns", "delete", "am-16")
    with pytest.raises(KernelRefused) as found:
        lab.run(successor.adopt_bottle, net(16))
    assert found.value.errno in {errno.ENOENT, errno.ENODEV}
    lab.run(successor.delete_bottle, 16)
    assert lab.run(successor.destroy_flows, 16) == 0
    assert lab.run(successor.slots) == frozenset()


def test_leftovers_are_found_by_name_and_cleaned_by_slot_alone(lab: Lab) -> None:
    lab.open()
    name = lab.bottle(16, direct(f"{WEB4}/32"))
    lab.bottle(17)
    flow = lab.connect(name, WEB4)
    lab.shell("ip", "link", "del", "am17")
    successor = HostNetfilter()
    lab.run(successor.open_host, lab.spec)
    assert lab.run(successor.slots) == {16, 17}
    assert lab.run(successor.destroy_flows, 16) == 2  # its entry and its socket
    with pytest.raises(OSError):
        flow.recv(1)
    for slot in (16, 17):
        lab.run(successor.delete_bottle, slot)
    assert lab.run(successor.slots) == frozenset()
    assert "b16" not in lab.shell("nft", "list", "ruleset")


def test_an_adopted_bottle_can_be_cut_before_it_has_rules(lab: Lab) -> None:
    lab.open()
    name = lab.bottle(16, direct(f"{WEB4}/32"))
    flow = lab.connect(name, WEB4)
    successor = HostNetfilter()
    lab.run(successor.open_host, lab.spec)
    lab.run(successor.adopt_bottle, net(16))
    lab.run(successor.cut, 16)
    with pytest.raises(OSError):
        lab.connect(name, WEB4)
    assert lab.run(successor.end_refused, 16) == 2
    with pytest.raises(OSError):
        flow.recv(1)


def test_modes_within_an_epoch_close_and_open(lab: Lab) -> None:
    lab.open()
    name = lab.bottle(16, direct(f"{WEB4}/32"), epoch=1)
    for mode, passes in ((Mode.CLOSED, False), (Mode.ENFORCE, True), (Mode.CUT, False), (Mode.OBSERVE, True)):
        lab.run(lab.nf.apply, rules(16, 1, direct(f"{WEB4}/32"), mode=mode))
        try:
            lab.connect(name, WEB4, timeout=0.5).close()
            assert passes, mode
        except OSError:
            assert not passes, mode


def test_the_probe_finds_what_this_kernel_has_and_leaves_nothing(lab: Lab) -> None:
    before = picture(lab)
    found = lab.run(probe)
    assert all(f.present for f in found if f.needed), found
    assert all(f.name and f.remedy for f in found)
    lab.run(require)
    assert picture(lab) == before


def test_sysctls_and_devices_that_do_not_exist(lab: Lab) -> None:
    def work() -> None:
        assert host.namespaces.names("nobody") == []
        assert forwarding.sysctl.read("ipv4/conf/none/forwarding") is None
        assert forwarding.sysctl.write("ipv4/conf/none/forwarding", "1") is None
        with pytest.raises(KernelRefused) as found:
            forwarding.sysctl.write("ipv4/conf/up0/rp_filter", "nonsense")
        assert found.value.errno == errno.EINVAL and "net.ipv4.conf.up0.rp_filter" in str(found.value)
        with pytest.raises(KernelRefused):
            links.index("none0")
        assert not forwarding._is_up("none0")

    lab.run(work)
    assert POOL4


def test_a_bottle_more_is_one_chain_more_and_no_rule_elsewhere(lab: Lab) -> None:
    """What a packet of one meets does not grow with the others (50 of them: bench/bottles.py makes a thousand)."""
    lab.open()

    def chains() -> dict[str, int]:
        found: dict[str, int] = {}
        for line in lab.shell("nft", "-s", "-t", "list", "table", "inet", "agentmon").splitlines():
            if line.startswith("\tchain "):
                name = line.split()[1]
                found[name] = 0
            elif line.startswith("\t\t") and found:
                found[name] += 1
        return found

    lab.bottle(16, direct(f"{WEB4}/32"))
    one = chains()
    for slot in range(17, 66):
        lab.bottle(slot, direct(f"{WEB4}/32"))
    many = chains()
    assert {name: n for name, n in many.items() if name in one} == one
    assert len(many) == len(one) + 49
    assert {n for name, n in many.items() if name not in one} == {one["b16"]}
    for slot in range(16, 66):
        lab.run(lab.nf.delete_bottle, slot)
    assert lab.run(lab.nf.slots) == frozenset()
