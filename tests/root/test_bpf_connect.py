"""Verdicts of the cgroup programs on the running kernel: real processes, real system calls, receivers that count."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from ebpf.spec import Mode
from tests.support.bpf_lab import Bottle, Lab, endpoint, entry, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    return bpf_lab


def test_bpf_exact_entries_in_both_families(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 443), entry("2001:db8::7/128", 443)))
    job = bottle.process()
    assert job.connect("198.51.100.7", 443) == 0
    assert job.connect("2001:db8::7", 443) == 0
    assert sorted(lab.received()) == ["tcp 198.51.100.7 443", "tcp 2001:db8::7 443"]
    for address, port in (("198.51.100.7", 80), ("198.51.100.8", 443), ("2001:db8::8", 443), ("2001:db8::7", 80)):
        assert job.connect(address, port) == errno.EPERM
    assert lab.received() == []
    found = lab.events(job)
    assert [(str(e.dst), e.port, e.verdict, e.reason) for e in found] == [
        ("198.51.100.7", 80, "refused", "default"),
        ("198.51.100.8", 443, "refused", "default"),
        ("2001:db8::8", 443, "refused", "default"),
        ("2001:db8::7", 80, "refused", "default"),
    ]
    one = found[0]
    assert (one.kind, one.proto, one.slot, one.epoch, one.pid, one.count) == (
        "connect",
        "tcp",
        bottle.slot,
        1,
        job.pid,
        1,
    )
    assert one.comm.startswith("python")
    assert one.ppid > 0


@pytest.mark.parametrize("open_", [True, False])
def test_bpf_a_mapped_address_is_decided_as_ipv4(lab: Lab, bottle: Bottle, open_: bool) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 443),) if open_ else (entry("::/0", (1, 65535)),))
    job = bottle.process()
    expected = 0 if open_ else errno.EPERM
    assert job.do("connect", version="6", to=["::ffff:198.51.100.7", 443]) == expected
    assert lab.received() == (["tcp 198.51.100.7 443"] if open_ else [])
    if not open_:  # an IPv6 rule, however wide, opens no IPv4 address
        assert job.connect("198.51.100.7", 443) == errno.EPERM
        assert [str(e.dst) for e in lab.events(job)] == ["198.51.100.7"]


def test_bpf_udp_without_connect(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 53, proto="udp"), entry("2001:db8::7/128", 53, proto="udp")))
    job = bottle.process()
    assert job.sendto("198.51.100.7", 53) == 0
    assert job.sendto("2001:db8::7", 53) == 0
    assert job.do("sendmsg", sort="dgram", to=["198.51.100.7", 53]) == 0
    assert len(until(lambda: lab.received())) == 3
    for op in ("sendto", "sendmsg", "unspec-send"):
        assert job.do(op, sort="dgram", to=["198.51.100.8", 53]) == errno.EPERM
    assert job.sendto("2001:db8::8", 53) == errno.EPERM
    assert job.do("sendto", sort="dgram", version="6", to=["::ffff:198.51.100.8", 53]) == errno.EPERM
    assert job.connect("198.51.100.7", 53) == errno.EPERM  # the rule says UDP
    assert lab.received() == []
    kinds = [(e.kind, e.proto, str(e.dst)) for e in lab.events(job)]
    assert kinds == [
        ("send", "udp", "198.51.100.8"),
        ("send", "udp", "2001:db8::8"),
        ("connect", "tcp", "198.51.100.7"),
    ]


def test_bpf_a_connected_udp_socket_cannot_be_pointed_elsewhere(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 53, proto="udp"),))
    job = bottle.process()
    assert job.connect("198.51.100.7", 53, sort="dgram", keep="u") == 0
    assert job.do("send", use="u") == 0
    assert job.do("sendto", use="u", to=["198.51.100.8", 53]) == errno.EPERM
    assert job.do("connect", use="u", to=["198.51.100.8", 53]) == errno.EPERM
    assert until(lambda: lab.received()) == ["udp 198.51.100.7 53"]


def test_bpf_disconnecting_is_allowed_in_every_mode(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 53, proto="udp"),))
    job = bottle.process()
    assert job.connect("198.51.100.7", 53, sort="dgram", keep="u") == 0
    lab.programs.set_mode(bottle.slot, Mode.CLOSED)
    assert job.do("disconnect", use="u") == 0
    assert job.do("sendto", use="u", to=["198.51.100.7", 53]) == errno.EPERM


def test_bpf_fast_open_and_mptcp_are_connects(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    job = bottle.process()
    assert job.do("fastopen", to=["198.51.100.8", 443]) == errno.EPERM
    refused = job.do("connect", to=["198.51.100.8", 443], proto=262)
    if refused not in (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT):
        assert refused == errno.EPERM
        assert job.do("connect", to=["198.51.100.7", 443], proto=262) == 0
    assert "tcp 198.51.100.8 443" not in lab.received()


@pytest.mark.parametrize(
    ("sort", "version", "proto", "name"),
    [("raw", "4", 1, "raw"), ("raw", "6", 58, "raw"), ("raw", "4", 255, "raw"), ("dgram", "4", 1, "icmp")],
)
def test_bpf_only_tcp_and_udp_sockets_exist(
    lab: Lab, bottle: Bottle, sort: str, version: str, proto: int, name: str
) -> None:
    """UDP-Lite and the rest go the same way; the kernel under test may not have them at all."""
    bottle.apply(mode=Mode.OBSERVE)
    job = bottle.process()
    refused = job.do("socket", sort=sort, version=version, proto=proto)
    if sort == "dgram" and refused == errno.EACCES:  # ping sockets are off in this namespace: refused before us
        assert lab.events(job) == []
        return
    assert refused == errno.EPERM
    (event,) = lab.events(job)
    assert (event.kind, event.verdict, event.reason, event.proto, event.dst) == (
        "socket",
        "refused",
        "family",
        name,
        None,
    )


def test_bpf_modes_are_one_element(lab: Lab, bottle: Bottle) -> None:
    services = (endpoint("203.0.113.5", 443), endpoint("203.0.113.5", 80, survives_cut=False))
    bottle.apply(services=services, allow=(entry("198.51.100.7/32", 443),))
    job = bottle.process()

    def verdicts() -> dict[str, int]:
        return {
            "proxy": job.connect("203.0.113.5", 443),
            "relay": job.connect("203.0.113.5", 80),
            "allowed": job.connect("198.51.100.7", 443),
            "other": job.connect("198.51.100.8", 443),
            "loopback": job.connect("127.0.0.1", 80),
            "metadata": job.connect("169.254.169.254", 80),
        }

    no = errno.EPERM
    table = {
        Mode.ENFORCE: {"proxy": 0, "relay": 0, "allowed": 0, "other": no, "loopback": 0, "metadata": no},
        Mode.CUT: {"proxy": 0, "relay": no, "allowed": no, "other": no, "loopback": 0, "metadata": no},
        Mode.OBSERVE: {"proxy": 0, "relay": 0, "allowed": 0, "other": 0, "loopback": 0, "metadata": no},
        Mode.CLOSED: {"proxy": no, "relay": no, "allowed": no, "other": no, "loopback": no, "metadata": no},
    }
    for mode, expected in table.items():
        lab.programs.set_mode(bottle.slot, mode)
        assert verdicts() == expected, mode
        assert lab.programs.modes()[bottle.slot] is mode
    assert {(e.verdict, e.reason) for e in lab.events(job)} == {
        ("refused", "default"),
        ("refused", "protected"),
        ("refused", "cut"),
        ("observed", "default"),
        ("refused", "closed"),
    }


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.OBSERVE])
def test_bpf_protected_destinations_stay_refused_whatever_the_policy_says(lab: Lab, bottle: Bottle, mode: Mode) -> None:
    everything = (entry("0.0.0.0/0", (1, 65535)), entry("::/0", (1, 65535)))
    bottle.apply(mode=mode, allow=(*everything, entry("169.254.169.254/32", 80)))
    job = bottle.process()
    assert job.connect("198.51.100.8", 80) == 0
    assert job.connect("2001:db8:1::9", 80) == 0
    lab.received()
    for address in (
        "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "168.63.129.16",
        "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "240.0.0.1", "fe80::1", "ff02::1", "::198.51.100.7",
    ):  # fmt: skip
        assert job.connect(address, 80) == errno.EPERM, address
        assert job.sendto(address, 80) == errno.EPERM, address
    assert lab.received() == []
    assert {e.reason for e in lab.events(job)} == {"protected"}


def test_bpf_loopback_is_the_bottles_own_or_refused(lab: Lab, bottle: Bottle) -> None:
    bottle.apply()
    job = bottle.process()
    for address in ("127.0.0.1", "::1"):
        assert job.connect(address, 80) == 0
    assert job.do("connect", version="6", to=["::ffff:127.0.0.1", 80]) == 0
    bottle.apply(netns_cookie=0)  # not known: nobody can say whose loopback it is
    assert job.connect("127.0.0.1", 80) == errno.EPERM
    assert job.connect("::1", 80) == errno.EPERM
    assert {e.reason for e in lab.events(job)} == {"protected"}


def test_bpf_a_foreign_namespace_is_an_escape(lab: Lab, bottle: Bottle) -> None:
    elsewhere, cookie = lab.namespace()
    assert cookie != lab.cookie
    bottle.apply(services=(endpoint("203.0.113.5", 443),), allow=(entry("198.51.100.7/32", 443),), mode=Mode.OBSERVE)
    stray = lab.process(bottle.directory, elsewhere)
    for address, port in (("127.0.0.1", 80), ("198.51.100.7", 443), ("203.0.113.5", 443)):
        assert stray.connect(address, port) == errno.EPERM
    assert {(e.kind, e.verdict, e.reason) for e in lab.events(stray)} == {("escape", "refused", "netns")}
    assert bottle.process().connect("198.51.100.7", 443) == 0


def test_bpf_child_cgroups_change_nothing(lab: Lab, bottle: Bottle) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    (bottle.directory / "a").mkdir()
    job = bottle.process("a/b")
    assert job.connect("198.51.100.7", 443) == 0
    assert job.connect("198.51.100.8", 443) == errno.EPERM
    assert [e.slot for e in lab.events(job)] == [bottle.slot]


@pytest.mark.parametrize("where", ["parent", "unknown"])
def test_bpf_below_the_parent_but_in_no_bottle_is_refused(lab: Lab, bottle: Bottle, where: str) -> None:
    job = lab.process(lab.parent) if where == "parent" else bottle.process()
    assert job.connect("198.51.100.7", 443) == errno.EPERM
    assert job.sendto("2001:db8::7", 53) == errno.EPERM
    assert job.connect("127.0.0.1", 80) == errno.EPERM
    assert {(e.reason, e.slot, e.verdict) for e in lab.events(job)} == {("unknown", 0, "refused")}


@pytest.mark.parametrize(
    ("request_", "silent"),
    [
        ({"to": ["198.51.100.8", 0]}, True),  # glibc, no service
        ({"to": ["198.51.100.8", 9]}, True),  # Go
        ({"to": ["198.51.100.8", 65535]}, True),  # musl
        ({"to": ["198.51.100.7", 443]}, True),  # glibc: the address and port that TCP may reach
        ({"to": ["198.51.100.8", 443]}, False),
        ({"to": ["198.51.100.7", 4433]}, False),
    ],
)
def test_bpf_address_sorting_is_refused_silently(
    lab: Lab, bottle: Bottle, request_: dict[str, Any], silent: bool
) -> None:
    bottle.apply(allow=(entry("198.51.100.7/32", 443),))
    job = bottle.process()
    assert job.do("connect", sort="dgram", **request_) == errno.EPERM
    assert [e.proto for e in lab.events(job)] == ([] if silent else ["udp"])


@pytest.mark.parametrize("port", [443, None])
def test_bpf_libc_sorts_its_answers_without_an_event(
    lab: Lab, bottle: Bottle, tmp_path: Path, port: int | None
) -> None:
    """The C library's own getaddrinfo on a name of four addresses, each of them open by TCP only."""
    addresses = ("198.51.100.7", "198.51.100.8", "2001:db8::7", "2001:db8::8")
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{a} many.example\n" for a in addresses))
    bottle.apply()
    lab.programs.learn(bottle.slot, [entry(a, 443, timeout_s=300) for a in addresses])
    job = lab.process(bottle.directory, hosts=hosts)
    assert job.do("look-up", name="many.example", port=port) == 4
    assert lab.events(job) == []
    lab.programs.delete_bottle(bottle.slot)  # the sorting did reach the hook: without a policy it is reported
    job.do("look-up", name="many.example", port=443)
    assert {(e.proto, e.reason) for e in lab.events(job)} == {("udp", "unknown")}
