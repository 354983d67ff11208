"""Canonical names, A-labels, and the address ranges nobody is given."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.policy.rules import (
    METADATA,
    RuleError,
    a_label,
    canonical_host,
    private_only_exact,
    protected_in,
    stripped,
)
from agentmon.policy.rules.grammar import parse_rule
from agentmon.policy.rules.hosts import reserved


@pytest.mark.parametrize(
    ("name", "ascii_form"),
    [
        ("faß.de", "xn--fa-hia.de"),  # IDNA 2003 would say fass.de
        ("Bücher.Example", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),  # not yet composed
        ("ΒΌΛΟΣ.com", "xn--nxasmq6b.com"),  # a capital sigma at the end is not the final one
        ("βόλος.com", "xn--nxasmm1c.com"),
        ("例え。jp", "xn--r8jz45g.jp"),
        ("Plain.example", "plain.example"),
    ],
)
def test_a_label(name, ascii_form):
    assert a_label(name) == ascii_form


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ﬁle.example", "compatibility"),
        ("☃.example", "may not stand"),
        ("a\u200db.example", "may not stand"),
        ("\u0301a.example", "combining mark"),
        ("aא.example", "directions"),
        ("ü" * 80 + ".example", "longer than 63"),
    ],
)
def test_no_a_label_is_guessed(name, why):
    with pytest.raises(RuleError, match=why):
        a_label(name)
    with pytest.raises(RuleError) as caught:
        canonical_host(name)
    assert "xn--…" in caught.value.hint


@given(st.text())
def test_a_canonical_host_is_its_own_canonical_form(text):
    try:
        host = canonical_host(text)
    except RuleError:
        return
    assert canonical_host(host) == host == host.lower().rstrip(".")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("localhost", "loopback"),
        ("a.localhost", "loopback"),
        ("ip6-localhost", "loopback"),
        ("metadata.google.internal", "metadata"),
        ("agentmon.internal", "agentmon's own"),
        ("x.agentmon.internal", "agentmon's own"),
        ("localhost.example", None),
        ("build.internal", None),
    ],
)
def test_reserved(name, why):
    assert reserved(name) == why


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.1.2.3", "unspecified"),
        ("127.255.255.254", "loopback"),
        ("169.254.169.254", "link-local"),
        ("168.63.129.16", "metadata"),
        ("192.0.0.192", "metadata"),
        ("100.100.100.200", "metadata"),
        ("224.0.0.251", "multicast or reserved"),
        ("255.255.255.255", "multicast or reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("ff02::fb", "multicast or reserved"),
        ("::ffff:198.51.100.1", "IPv4-mapped"),
        ("::198.51.100.1", "embedded IPv4"),
        ("64:ff9b::7f00:1", "embedded IPv4"),
        ("64:ff9b:1::7f00:1", "embedded IPv4"),
        ("2002:7f00:1::", "embedded IPv4"),
        ("2001::1", "embedded IPv4"),
        ("::ffff:0:127.0.0.1", "embedded IPv4"),
        ("2001:db8::5efe:127.0.0.1", "embedded IPv4"),
        ("fd00:ec2::254", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("198.18.0.1", "probe"),
        ("2001:2::1", "probe"),
        ("192.0.2.7", None),  # documentation ranges are ordinary
        ("203.0.113.9", None),
        ("2001:db8::1", None),
        ("10.0.0.1", None),
        ("8.8.8.8", None),
        ("2606:4700::1111", None),
    ],
)
def test_stripped(address, reason):
    assert stripped(ip_address(address)) == reason


@pytest.mark.parametrize("address", ["10.0.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fd00::1", "fc00::1"])
def test_private_addresses_need_an_exact_name(address):
    assert private_only_exact(ip_address(address))


@pytest.mark.parametrize("address", ["172.32.0.1", "100.128.0.1", "11.0.0.1", "192.0.2.1", "2001:db8::1", "fe00::1"])
def test_other_addresses_do_not(address):
    assert not private_only_exact(ip_address(address))


def test_every_metadata_address_is_stripped():
    assert all(stripped(network.network_address) for network in METADATA)


def test_protected_addresses_inside_an_accepted_network():
    cgnat = parse_rule("100.64.0.0/10").network
    assert [str(n) for n in protected_in(cgnat)] == ["100.100.100.200/32"]
    assert protected_in(parse_rule("10.0.0.0/8").network) == ()
    assert "2001:2::1/128" in map(str, protected_in(parse_rule("2000::/3").network))


def test_the_package_imports_nothing_heavy():
    program = (
        "import sys; before = set(sys.modules); import agentmon.policy.rules; new = set(sys.modules) - before;"
        "print(*sorted(m for m in new if m.partition('.')[0] in"
        " {'re', 'typing', 'dataclasses', 'inspect', 'unicodedata', 'yaml', 'msgspec', 'encodings'}))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
