"""What others do to our rules and devices is noticed, named and undone; live flows and times go on."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

import pytest

from netfilter import heal_rules, nfnetlink, plan, render_bottle, watch
from netfilter.changes import Change, Difference, Kind, Place
from netfilter.errors import KernelRefused
from netfilter.heal import HealingNetfilter
from netfilter.spec import Mode
from tests.support.nf_lab import (
    OTHER4,
    OTHER6,
    POOL4,
    PROXY,
    RELAY,
    WEB4,
    WEB6,
    Lab,
    _sum,
    direct,
    learned,
    net,
    rules,
    until,
)

pytestmark = pytest.mark.root
SEVERAL = (direct(f"{WEB4}/32"), direct("198.51.100.128/25", "tcp", 443, 8443), direct(f"{WEB6}/128"))


class Healing:
    """A lab whose host notices what is done to it; it is put back when a test says so, in the lab's thread."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.nf = lab.nf = lab.run(HealingNetfilter)
        lab.open()
        self.watcher = lab.run(self.nf.watch)

    def told(self) -> list[Change]:
        """The changes that somebody made, when there are any."""
        until(lambda: select.select([self.watcher], [], [], 0)[0], why="nobody told of a change")
        found: list[Change] = self.watcher.changes()
        return found

    def mend(self) -> list[Difference]:
        """Wait for a change, put back what it changed; once more for what our own hand moved."""
        found = self.lab.run(self.nf.restore, self.told())
        assert self.lab.run(self.nf.restore, self.watcher.changes()) == []
        return list(found)

    def whole(self) -> list[Difference]:
        slots = [None, *sorted(self.lab.run(self.nf.slots))]
        return [d for slot in slots for d in self.lab.run(self.nf.check, slot)]

    def refused(self, name: str, address: str) -> None:
        with pytest.raises(OSError):
            self.lab.connect(name, address, timeout=0.3)


@pytest.fixture(scope="module")
def shared() -> Iterator[Healing]:
    """Bottle 16 with rules and learned addresses, 17 cut; both made after the watch."""
    with Lab() as lab:
        healing = Healing(lab)
        lab.bottle(16, *SEVERAL, deny=(direct(f"{OTHER4}/32"),))
        lab.run(lab.nf.learn, 16, [learned(OTHER6, 5432, timeout_s=900)])
        lab.run(lab.nf.permit_service, [learned(WEB4, timeout_s=900)])
        lab.bottle(17, *SEVERAL)
        lab.run(lab.nf.cut, 17)
        lab.receiver("am-svc", [str(POOL4[PROXY])], ports=(443,))
        yield healing


@pytest.fixture
def healing() -> Iterator[Healing]:
    with Lab() as lab:
        yield Healing(lab)


def test_nothing_is_told_of_our_own_doing(shared: Healing) -> None:
    lab = shared.lab
    lab.bottle(18, *SEVERAL)
    lab.run(lab.nf.apply, rules(18, 99, direct(f"{WEB4}/32"), learned=(learned(OTHER6),)))
    lab.run(lab.nf.learn, 18, [learned(WEB6, 443), learned(OTHER6)])
    lab.connect("am-18", WEB4).close()
    assert shared.whole() == []
    lab.run(lab.nf.delete_bottle, 18)
    assert shared.watcher.changes() == []


def test_a_bottle_takes_none_of_the_descriptors_that_libnftables_needs(shared: Healing) -> None:
    """It waits with select(2) and ends the process where its own socket has no number below 1024."""
    lab = shared.lab

    def low() -> set[int]:
        return {number for number in map(int, os.listdir("/proc/self/fd")) if number < 1024}

    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 1100:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    before = low()
    lab.bottle(18, *SEVERAL)
    try:
        assert low() == before
    finally:
        lab.run(lab.nf.delete_bottle, 18)


def test_tables_of_others_are_nobodys_business(shared: Healing) -> None:
    lab = shared.lab
    lab.shell("nft", "add table ip theirs; add chain ip theirs c; add rule ip theirs c accept; delete table ip theirs")
    lab.shell("ip", "netns", "exec", "am-16", "nft", "add table ip mine; delete table ip mine")
    lab.run(lab.ip, "route add 192.0.2.0/24 dev up0", "route del 192.0.2.0/24", "rule add pref 500 lookup main",
            "rule del pref 500", "link add d0 type veth peer name d1", "link del d0")  # fmt: skip
    assert lab.run(shared.nf.restore, shared.watcher.changes()) == []


IN = ("ip", "netns", "exec", "am-16")
TAMPERING = {
    "flush": (("nft", "flush", "ruleset"), Kind.RULES, "table agentmon deleted"),
    "delete": (("nft", "delete table inet agentmon"), Kind.RULES, "table agentmon deleted"),
    "accept": (("nft", "insert rule inet agentmon b16 accept"), Kind.RULES, "rule added to chain b16"),
    "emptied": (("nft", "flush chain inet agentmon b16"), Kind.RULES, "rule removed from chain b16"),
    "pre": (("nft", "flush chain inet agentmon pre"), Kind.RULES, "rule removed from chain pre"),
    "opened": (("nft", f"add element inet agentmon s4_16 {{ {OTHER4} . tcp . 443 }}"), Kind.RULES, "to set s4_16"),
    "narrowed": (("nft", "flush set inet agentmon n4_16"), Kind.RULES, "removed from set n4_16"),
    "learned": (("nft", f"add element inet agentmon l4_16 {{ {OTHER4} . tcp . 443 timeout 1h }}"), Kind.RULES, "l4_16"),
    "undenied": (("nft", "flush set inet agentmon d4_16"), Kind.RULES, "removed from set d4_16"),
    "uncut": (("nft", 'delete element inet agentmon cut { "am17" }'), Kind.RULES, "element removed from set cut"),
    "unled": (("nft", 'delete element inet agentmon bottles { "am16" }'), Kind.RULES, "removed from set bottles"),
    "set": (("nft", "add set inet agentmon more { type ipv4_addr; }"), Kind.RULES, "set more added"),
    "backstop": (("ip", "rule", "del", "pref", "1002"), Kind.ROUTING, "routing rule 1002 from 10.213.0.0/16 missing"),
    "rules": (("sh", "-c", "ip -6 rule flush; ip -6 rule add pref 32766 lookup main"), Kind.ROUTING, "1000 from fd61:"),
    "guard": (("ip", "rule", "del", "pref", "0"), Kind.ROUTING, "routing rule 0 from 10.213.0.0/16 missing"),
    "svc-address": (("ip", "addr", "del", "10.213.0.1/32", "dev", "am-svc"), Kind.DEVICE, "10.213.0.1/32 missing"),
    "svc-gone": (("ip", "-n", "am-svc", "addr", "flush", "dev", "eth0"), Kind.DEVICE, "10.213.0.4/32 missing"),
    "down": (("ip", "link", "set", "am16", "down"), Kind.DEVICE, "down found"),
    "renamed": (("ip", "link", "set", "am16", "name", "foo"), Kind.DEVICE, "device foo"),
    "address": (("ip", "addr", "add", "192.0.2.9/24", "dev", "am16"), Kind.DEVICE, "address 192.0.2.9/24 added"),
    "led-in": (("ip", "route", "add", "192.0.2.0/24", "dev", "am16"), Kind.DEVICE, "route 192.0.2.0/24 added"),
    "in-down": ((*IN, "ip", "link", "set", "eth0", "down"), Kind.DEVICE, "eth0 of am-16: device eth0"),
    "in-renamed": ((*IN, "ip", "link", "set", "eth0", "name", "foo"), Kind.DEVICE, "device foo"),
    "in-mac": ((*IN, "ip", "link", "set", "eth0", "addr", "02:00:00:00:00:09"), Kind.DEVICE, "02:00:00:00:00:09"),
    "in-address": ((*IN, "ip", "addr", "add", "10.213.0.17/32", "dev", "eth0"), Kind.DEVICE, "10.213.0.17/32 added"),
    "in-routes": ((*IN, "ip", "route", "flush", "table", "main"), Kind.DEVICE, "route 0.0.0.0/0 via 10.213.0.1"),
    "in-neighbour": ((*IN, "ip", "neigh", "del", "10.213.0.1", "dev", "eth0"), Kind.DEVICE, "neighbour 10.213.0.1"),
    "in-flush": ((*IN, "nft", "flush", "ruleset"), Kind.RULES, "table agentmon deleted"),
    "in-accept": ((*IN, "nft", "insert rule inet agentmon output accept"), Kind.RULES, "rule added to chain output"),
    "forwarding": (("sysctl", "-qw", "net.ipv4.conf.up0.forwarding=0"), Kind.FORWARDING, "up0.forwarding switched"),
    "own": (("sysctl", "-qw", "net.ipv4.conf.am16.forwarding=0"), Kind.FORWARDING, "am16.forwarding switched"),
    "six": (("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0"), Kind.FORWARDING, "net.ipv6.conf.all.forwarding"),
}  # fmt: skip


@pytest.mark.parametrize("how", TAMPERING)
def test_what_is_changed_is_named_and_put_back(shared: Healing, how: str) -> None:
    argv, kind, words = TAMPERING[how]
    shared.lab.shell(*argv)
    found = shared.mend()
    assert {d.kind for d in found} == {kind}
    assert any(words in d.what for d in found), found
    if kind is Kind.RULES:
        inside = argv[: len(IN)] == IN
        change = found[0]
        assert isinstance(change, Change) and change.comm == "nft" and change.pid > 0
        assert (change.slot, change.place) == ((16, Place.BOTTLE) if inside else (None, Place.HOST))
    assert shared.whole() == []
    for address, port in ((WEB4, 443), (WEB6, 443), (OTHER6, 5432)):
        shared.lab.connect("am-16", address, port).close()
    shared.lab.connect("am-17", str(POOL4[PROXY])).close()
    for name, address in (("am-16", OTHER4), ("am-17", WEB4)):
        shared.refused(name, address)
    assert shared.watcher.changes() == []


def test_root_inside_that_takes_a_port_which_was_ours_is_told_all_the_same(
    shared: Healing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events name a socket by its port: one of ours that has closed can be had by anybody in there."""
    lab = shared.lab

    def bound(port: int, protocol: int) -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        sock.bind((port, 0))
        return sock

    ours = lab.inside("am-16", lambda: nfnetlink.Elements("agentmon"))
    lab.run(ours.run, render_bottle.flushed("x", None), "flush")
    assert shared.watcher.changes() == []
    ours.close()
    monkeypatch.setattr(nfnetlink, "netlink_socket", partial(bound, ours.port))
    theirs = lab.inside("am-16", lambda: nfnetlink.Elements("agentmon"))
    assert theirs.port == ours.port
    theirs.run(render_bottle.flushed("n", None), "flush")  # in another thread than ours
    theirs.close()
    assert [d.what for d in shared.mend()] == ["element removed from set n4, element removed from set n6"]


def test_a_permitted_flow_survives_a_flush_of_every_rule(shared: Healing) -> None:
    """Data is on its way in both directions while there is no table: no reset, and no address untranslated."""
    lab = shared.lab
    flows = [lab.connect("am-16", WEB4), lab.connect("am-16", OTHER6, 5432)]
    for _ in range(20):
        lab.shell("nft", "flush", "ruleset")
        for flow in flows:
            flow.sendall(b"in the gap")
        for server in lab.world.accepted[-2:]:
            server.send(b"and back")
        shared.mend()
    for flow in flows:
        expected, got = 20 * (len(b"in the gap") + len(b"and back")), 0
        flow.settimeout(5)
        while got < expected:
            data = flow.recv(1 << 16)
            assert data, (got, lab.world.resets)
            got += len(data)
        flow.close()


def test_what_is_changed_of_one_bottle_is_put_back_without_a_gap_for_the_others(healing: Healing) -> None:
    lab, over, answers = healing.lab, threading.Event(), list[bytes]()
    for slot in (16, 17):
        lab.bottle(slot, direct(f"{WEB4}/32", "udp"))
    sock = lab.inside("am-17", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.connect((WEB4, 443))
    sock.settimeout(2)

    def ask() -> None:
        while not over.is_set():
            sock.send(b"datagram")
            answers.append(sock.recv(64))  # one that is lost is an error here

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(20):
            lab.shell("nft", "insert rule inet agentmon b16 accept")
            assert [d.what for d in healing.mend()] == ["rule added to chain b16"]
    finally:
        over.set()
        asking.join()
        sock.close()
    assert len(answers) > 100
    assert healing.whole() == []


def test_learned_addresses_come_back_with_the_time_that_is_left(shared: Healing) -> None:
    lab = shared.lab
    lab.run(lab.nf.learn, 16, [learned("198.51.100.99", timeout_s=1000)])
    lab.shell("nft", "flush", "ruleset")
    shared.mend()
    listed = lab.shell("nft", "list", "set", "inet", "agentmon", "l4_16")
    left = listed.partition("198.51.100.99 . tcp . 443 timeout ")[2].split()[0]
    assert left in {f"16m{s}s" for s in range(20, 40)}, listed


def test_what_meets_no_table_puts_it_back_first(healing: Healing) -> None:
    lab = healing.lab
    name = lab.bottle(16, *SEVERAL)

    def flush() -> None:
        lab.shell("nft", "flush", "ruleset")

    flush()
    lab.bottle(17, *SEVERAL)
    flush()
    lab.run(lab.nf.learn, 17, [learned(OTHER4)])
    flush()
    lab.run(lab.nf.permit_service, [learned(OTHER4)])
    for slot in ("am-16", "am-17"):
        lab.connect(slot, WEB4).close()
    lab.connect("am-17", OTHER4).close()
    flush()
    lab.run(lab.nf.apply, rules(17, 18, direct(f"{OTHER4}/32")))
    healing.refused("am-17", WEB4)
    flush()
    lab.run(lab.nf.cut, 16)
    healing.refused(name, WEB4)
    lab.run(lab.nf.restore, healing.watcher.changes())
    healing.refused(name, WEB4)
    assert healing.whole() == []
    with pytest.raises(KernelRefused):
        lab.run(lab.nf.learn, 77, [learned(OTHER4)])  # no such bottle, and the table is there


def test_bottles_that_have_no_rules_yet_are_put_back_closed(healing: Healing) -> None:
    """One made, one cut before its first policy, one whose first policy had to be taken back."""
    lab = healing.lab
    for slot in (16, 17, 18):
        lab.run(lab.nf.create_bottle, net(slot))
    lab.run(lab.nf.cut, 17)
    lab.run(lab.nf.apply, rules(18, 18, *SEVERAL))
    bottle = lab.nf._bottles[18]
    bottle.led = False
    lab.run(bottle.inner.elements.run, plan.whole(bottle, (), 0), "as before")
    lab.run(lab.nf._edges().elements.run, plan.host_side_again(bottle, 0), "undo the first policy")
    for _ in range(2):
        for name in ("am-16", "am-17", "am-18"):
            healing.refused(name, WEB4)
        assert healing.whole() == []
        lab.shell("nft", "flush", "ruleset")
        healing.mend()
    for slot in (16, 17):
        lab.run(lab.nf.apply, rules(slot, 20 + slot, *SEVERAL))
        lab.connect(f"am-{slot}", WEB4).close()
    assert healing.whole() == []


def test_what_cannot_be_put_back_is_said_to_be_lost(healing: Healing) -> None:
    lab = healing.lab
    for slot in (16, 17, 18):
        lab.bottle(slot, *SEVERAL)
    lab.shell("ip", "link", "del", "am16")
    lab.shell("ip", "-n", "am-17", "link", "del", "eth0")
    lab.shell("ip", "netns", "delete", "am-18")
    found = lab.run(healing.nf.restore, healing.told())
    assert {d.slot for d in found if d.lost} == {16, 17, 18}
    assert {d.kind for d in found if d.slot == 18} == {Kind.NAMESPACE}
    for slot in (16, 17, 18):
        lab.run(lab.nf.delete_bottle, slot)
    assert healing.whole() == []
    assert lab.run(healing.nf.restore, [Change(16, Place.HOST, Kind.DEVICE, "late")]) == []


def test_more_changes_than_could_be_told_are_found_by_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_RECEIVE_BYTES", 128)
    with Lab() as lab:
        overrun(Healing(lab))


def overrun(healing: Healing) -> None:
    lab = healing.lab
    lab.bottle(16, *SEVERAL)
    lines = [f"add element inet agentmon n4_16 {{ 203.0.113.{i % 250} . udp . {1000 + i} }}" for i in range(1000)]
    lines.append("insert rule inet agentmon b16 accept")
    lab.run(subprocess.run, ["nft", "-f", "-"], input="\n".join(lines), text=True, check=True)
    changes = healing.told()
    assert Kind.UNKNOWN in {c.kind for c in changes}
    found = lab.run(healing.nf.restore, changes)
    assert {d.what for d in found if d.kind is Kind.RULES} == {"chain b16 changed", "set n4_16 changed"}
    assert healing.whole() == []


def test_a_second_instance_adopts_and_holds_no_second_table(healing: Healing) -> None:
    lab = healing.lab
    lab.bottle(16, *SEVERAL)
    successor = HealingNetfilter()
    lab.run(successor.open_host, lab.spec)
    lab.run(successor.watch)
    assert heal_rules.NAT_HELD in lab.shell("nft", "list", "tables")
    assert lab.run(watch.own_pid) > 0
    lab.run(successor.close_host)


def test_what_was_changed_while_nobody_watched_is_found_by_the_next_instance(shared: Healing) -> None:
    lab, allowed = shared.lab, (learned(OTHER6, 5432, timeout_s=900),)

    def adopted(epoch: int) -> list[Difference]:
        successor = HealingNetfilter()
        lab.run(successor.open_host, lab.spec)
        lab.run(successor.watch)
        for slot, mode in ((16, Mode.ENFORCE), (17, Mode.CUT)):
            lab.run(successor.adopt_bottle, net(slot))
            lab.run(successor.apply, rules(slot, epoch, *SEVERAL, mode=mode, learned=allowed if slot == 16 else ()))
        unknown = [Change(slot, Place.HOST, Kind.UNKNOWN, "") for slot in (None, 16, 17)]
        found = lab.run(successor.restore, unknown)
        assert lab.run(successor.restore, unknown) == []
        return list(found)

    assert adopted(301) == []
    lab.shell("nft", "add chain inet agentmon theirs { type filter hook forward priority 1; }")
    lab.shell("ip", "addr", "add", "192.0.2.9/24", "dev", "am16")
    lab.shell(*IN, "nft", "add chain inet agentmon more")
    lab.shell(*IN, "ip", "route", "add", "192.0.2.0/24", "dev", "eth0")
    found = {(d.slot, d.place, d.what) for d in adopted(302)}
    assert found == {
        (None, Place.HOST, "chain theirs added"),
        (16, Place.HOST, "am16: address 192.0.2.9/24 added"),
        (16, Place.BOTTLE, "chain more added"),
        (16, Place.BOTTLE, "eth0 of am-16: route 192.0.2.0/24 added"),
    }
    lab.connect("am-16", WEB4).close()
    shared.refused("am-17", WEB4)
    lab.run(lab.nf.apply, rules(16, 303, *SEVERAL, deny=(direct(f"{OTHER4}/32"),)))  # the shared one goes on
    lab.run(lab.nf.apply, rules(17, 303, *SEVERAL, mode=Mode.CUT))


def test_refusals_go_on_counting_over_a_restored_table(shared: Healing) -> None:
    lab = shared.lab
    shared.refused("am-17", WEB4)
    before = lab.run(lab.nf.refusals, 17)
    lab.shell("nft", "insert rule inet agentmon b16 accept")
    shared.mend()
    assert lab.run(lab.nf.refusals, 17) == before


DISTURBANCES = {
    "flush": "nft flush ruleset",
    "delete": "nft delete table inet agentmon; for n in 16 17 18; do ip netns exec am-$n nft flush ruleset; done",
    "both": "nft flush ruleset; ip netns exec am-16 nft flush ruleset; "
    "for f in -4 -6; do ip $f rule flush; ip $f rule add pref 32766 lookup main; done",
}


@pytest.mark.parametrize("how", DISTURBANCES)
def test_a_storm_of_packets_gets_nowhere_while_everything_is_flushed(how: str) -> None:
    """Several bottles send to what they may reach and to what they may not; a real receiver and a tap count."""
    with Lab() as lab:
        healing = Healing(lab)
        for slot in (16, 17, 18):
            lab.bottle(slot, *SEVERAL, direct(f"{WEB4}/32", "udp"))
        svc = lab.receiver("am-svc", [str(POOL4[RELAY])], ports=(9999,))
        over, sent = threading.Event(), Counter[str]()
        storms = [threading.Thread(target=storm, args=(lab, slot, over, sent)) for slot in (16, 17, 18)]
        for thread in storms:
            thread.start()
        try:
            weather(healing, DISTURBANCES[how], lambda: min(sent[OTHER4], sent[OTHER6], sent["frame"]) > 1000)
        finally:
            over.set()
            for thread in storms:
                thread.join()
        assert [lab.world.to(a) for a in (OTHER4, OTHER6)] == [0, 0]
        assert svc.total() == 0
        assert healing.whole() == []


def weather(healing: Healing, script: str, enough: Callable[[], bool]) -> None:
    """Disturb and put back until it was put back often and `enough`; afterwards what is allowed goes on by itself."""
    lab, rounds, waiting = healing.lab, 0, list[Change]()

    def mended() -> bool:
        """Nothing is left to be put back. A round that was disturbed is made again, as the daemon does."""
        nonlocal rounds
        if select.select([healing.watcher], [], [], 0.05)[0]:
            waiting.extend(healing.watcher.changes())
        with suppress(KernelRefused):
            rounds += bool(lab.run(healing.nf.restore, waiting))
            waiting.clear()
        return not waiting and not select.select([healing.watcher], [], [], 0)[0]

    loop = lab.run(subprocess.Popen, ["sh", "-c", f"while :; do {script}; done 2>/dev/null"], start_new_session=True)
    try:
        until(lambda: [mended()] and rounds > 20 and enough(), 60, "it was not put back while it was taken away")
    finally:
        os.killpg(loop.pid, signal.SIGKILL)
        loop.wait()
    until(mended, 30, "it does not come to rest")
    before = lab.world.to(WEB4)
    until(lambda: lab.world.to(WEB4) > before + 10, why="what is allowed does not go on")


def storm(lab: Lab, slot: int, over: threading.Event, sent: Counter[str]) -> None:
    """Datagrams by sockets, and frames past every rule of the bottle's own."""
    targets = (WEB4, OTHER4, OTHER6, str(POOL4[RELAY]))
    mine = net(slot)
    frame = bytes.fromhex((mine.mac_host + mine.mac_bottle).replace(":", "")) + b"\x08\x00"
    frame += datagram(str(mine.addr4), OTHER4)

    def sockets() -> tuple[dict[str, socket.socket], socket.socket]:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        raw.bind(("eth0", 0))
        family = {a: socket.AF_INET6 if ":" in a else socket.AF_INET for a in targets}
        return {a: socket.socket(family[a], socket.SOCK_DGRAM) for a in targets}, raw

    by_target, raw = lab.inside(f"am-{slot}", sockets)
    while not over.is_set():
        for address, sock in by_target.items():
            with suppress(OSError):  # refused at once: that is the point
                sock.sendto(b"storm", (address, 9999 if address == str(POOL4[RELAY]) else 443))
            sent[address] += 1
        with suppress(OSError):
            raw.send(frame)
        sent["frame"] += 1
    for sock in (*by_target.values(), raw):
        sock.close()


def datagram(source: str, to: str) -> bytes:
    addresses = ip_address(source).packed + ip_address(to).packed
    head = struct.pack(">BBHHHBBH", 0x45, 0, 33, 1, 0, 64, 17, 0)
    head = head[:10] + struct.pack(">H", _sum(head + addresses))
    return head + addresses + struct.pack(">HHHH", 4444, 443, 13, 0) + b"storm"
