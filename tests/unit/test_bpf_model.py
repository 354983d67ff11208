"""The verdict in Python: order of questions, and what is protected."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ebpf import model
from ebpf.spec import BottlePolicy, Mode
from tests.support.bpf_lab import endpoint, entry

POLICY = BottlePolicy(
    16, 4711, 1, 1, Mode.ENFORCE,
    services=(endpoint("10.213.0.2", 53, "udp"), endpoint("10.213.0.3", 443, survives_cut=False)),
    allow=(entry("198.51.100.7/32", 443, rule=1), entry("10.0.0.0/8", 80, rule=2)),
    deny=(entry("10.9.0.0/16", (1, 65535), rule=3),),
    netns_cookie=77,
)  # fmt: skip


def decide(address: str, port: int, mode: Mode = Mode.ENFORCE, proto: str = "tcp", cookie: int = 77) -> model.Verdict:
    made = BottlePolicy(16, 4711, 1, 1, mode, POLICY.services, POLICY.allow, POLICY.deny, POLICY.netns_cookie)
    return model.decide(made, (), cookie, proto, (ip_address(address), port), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "port", "mode", "expected"),
    [
        ("198.51.100.7", 443, Mode.ENFORCE, ("allowed", "rule", 1)),
        ("::ffff:198.51.100.7", 443, Mode.ENFORCE, ("allowed", "rule", 1)),
        ("198.51.100.7", 443, Mode.CUT, ("refused", "cut", 0)),
        ("198.51.100.7", 443, Mode.CLOSED, ("refused", "closed", 0)),
        ("10.9.1.1", 80, Mode.ENFORCE, ("refused", "deny", 3)),
        ("10.9.1.1", 80, Mode.OBSERVE, ("refused", "deny", 3)),
        ("203.0.113.5", 80, Mode.OBSERVE, ("observed", "default", 0)),
        ("10.213.0.3", 443, Mode.CUT, ("refused", "cut", 0)),
        ("10.213.0.3", 443, Mode.ENFORCE, ("allowed", "service", 0)),
        ("127.0.0.1", 80, Mode.CUT, ("allowed", "loopback", 0)),
        ("169.254.169.254", 80, Mode.OBSERVE, ("refused", "protected", 0)),
    ],
)
def test_bpf_model_order(address: str, port: int, mode: Mode, expected: tuple[str, str, int]) -> None:
    assert decide(address, port, mode) == expected


def test_bpf_model_namespace_and_bottle_come_first() -> None:
    assert decide("10.213.0.3", 443, cookie=78) == ("refused", "netns", 0)
    assert model.decide(None, (), 77, "tcp", (ip_address("127.0.0.1"), 80), 0) == ("refused", "unknown", 0)


def test_bpf_model_learned_entries_end() -> None:
    to = (ip_address("203.0.113.5"), 443)
    learned = [model.Learned(entry("203.0.113.5/32", 443, rule=9), 100)]
    assert model.decide(POLICY, learned, 77, "tcp", to, 99) == ("allowed", "rule", 9)
    assert model.decide(POLICY, learned, 77, "tcp", to, 100) == ("refused", "expired", 0)


@pytest.mark.parametrize(
    ("address", "protected"),
    [
        ("0.1.2.3", True), ("127.9.9.9", True), ("169.254.0.1", True),
        ("168.63.129.16", True), ("168.63.129.17", False), ("223.255.255.255", False),
        ("224.0.0.0", True), ("255.255.255.255", True), ("::", True),
        ("::1", True), ("::198.51.100.7", True), ("::1:0:0:0", False),
        ("fe80::1", True), ("fec0::1", False), ("ff02::1", True),
        ("fd00:ec2::254", True), ("fd00:ec2::253", False), ("64:ff9b::a9fe:1", True),
        ("64:ff9b::c633:6407", False), ("::ffff:169.254.169.254", True), ("2001:db8::1", False),
    ],
)  # fmt: skip
def test_bpf_model_protected(address: str, protected: bool) -> None:
    assert model.is_protected(ip_address(address)) is protected
