"""The pure judgement: what passes, and the one reason for what does not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from netfilter.spec import Mode
from netfilter.verdict import Judge, Verdict, own_networks
from tests.support.nf_lab import OTHER4, POOL4, PROXY, RELAY, WEB4, WEB6, direct, host_spec, learned, rules

OWN = own_networks(host_spec())
BASE = rules(16, 1, direct(f"{WEB4}/32", "tcp", 443), direct("2001:db8::/32"), deny=(direct("2001:db8:bad::/48"),))


def verdict(address: str, port: int = 443, proto: int = 6, **changes: object) -> Verdict:
    return Judge(replace(BASE, **changes), OWN).verdict(ip_address(address), proto, port)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "port", "proto", "expected"),
    [
        (WEB4, 443, 6, Verdict.ALLOW),
        (WEB4, 444, 6, Verdict.POLICY),
        (WEB4, 443, 17, Verdict.POLICY),
        (WEB4, 0, 1, Verdict.POLICY),
        (WEB6, 1, 6, Verdict.ALLOW),
        ("2001:db8:bad::1", 443, 6, Verdict.DENY),
        (OTHER4, 443, 6, Verdict.POLICY),
        (str(POOL4[PROXY]), 443, 6, Verdict.SURVIVING),
        (str(POOL4[RELAY]), 443, 6, Verdict.SERVICE),
        (str(POOL4[RELAY]), 444, 6, Verdict.PROTECTED),
        (str(POOL4[1]), 22, 6, Verdict.PROTECTED),
        (str(POOL4[17]), 22, 17, Verdict.PROTECTED),
        ("127.0.0.1", 80, 6, Verdict.PROTECTED),
        ("255.255.255.255", 67, 17, Verdict.PROTECTED),
        ("::1", 80, 6, Verdict.PROTECTED),
        ("fe80::1", 80, 17, Verdict.PROTECTED),
    ],
)
def test_enforce(address: str, port: int, proto: int, expected: Verdict) -> None:
    assert verdict(address, port, proto) is expected


def test_modes() -> None:
    assert verdict(WEB4, mode=Mode.CLOSED) is Verdict.CLOSED
    assert verdict(str(POOL4[PROXY]), mode=Mode.CLOSED) is Verdict.CLOSED
    assert verdict(WEB4, mode=Mode.CUT) is verdict(str(POOL4[RELAY]), mode=Mode.CUT) is Verdict.CUT
    assert verdict(str(POOL4[PROXY]), mode=Mode.CUT) is Verdict.SURVIVING
    assert verdict(OTHER4, mode=Mode.OBSERVE) is Verdict.OBSERVED
    assert verdict(OTHER4, 0, 1, mode=Mode.OBSERVE) is Verdict.POLICY
    assert verdict("169.254.169.254", mode=Mode.OBSERVE) is Verdict.PROTECTED


def test_learned_counts_though_its_time_is_over_unless_told_otherwise() -> None:
    judge = Judge(replace(BASE, learned=(learned(OTHER4, timeout_s=0),)), OWN)
    assert judge.verdict(ip_address(OTHER4), 6, 443) is Verdict.LEARNED
    assert judge.verdict(ip_address(OTHER4), 6, 443, ()) is Verdict.POLICY
    assert judge.verdict(ip_address(OTHER4), 6, 80) is Verdict.POLICY


def test_what_passes() -> None:
    assert {v for v in Verdict if v.passes} == {
        Verdict.SURVIVING, Verdict.SERVICE, Verdict.ALLOW, Verdict.LEARNED, Verdict.OBSERVED,
    }  # fmt: skip
