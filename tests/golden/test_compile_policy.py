"""Manifests and what they compile to for netfilter, BPF and the services: NAME.yml → NAME.txt.

`UPDATE_GOLDEN=1 pytest tests/golden` writes the .txt files anew; read the difference before committing it.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ebpf.spec
import netfilter.spec
from agentmon import addresses
from agentmon.addresses import Pool
from agentmon.compile import Compiled, Place, compile_bottle, learned, policy_set
from agentmon.policy import manifest
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.merge import Options, effective
from agentmon.policy.rules import PolicySet, RuleError, parse_rule
from agentmon.policy.settings import Settings
from agentmon.providers.declaration import Provider

DIRECTORY = Path(__file__).parent / "policy"
PROVIDERS = {"claude": Provider("claude", hosts=("api.anthropic.com",), endpoints=())}


def place(pool: Pool | None = None, slot: int = 16, worker: int = 0) -> Place:
    pool = pool or Pool()
    own, gateway = pool.at(slot), pool.gateway
    net = netfilter.spec.BottleNet(
        slot=slot,
        netns=addresses.netns(slot),
        veth=addresses.veth(slot),
        mac_host=addresses.mac(slot, host=True),
        mac_bottle=addresses.mac(slot, host=False),
        addr4=own.v4,
        addr6=own.v6,
        gateway4=gateway.v4,
        gateway6=gateway.v6,
    )
    return Place(slot, net, pool, cgroup_id=4711, worker=worker, netns_cookie=99, policy_id=3)


def policy(name: str) -> EffectivePolicy:
    chain = (manifest.parse((DIRECTORY / f"{name}.yml").read_text(), f"{name}.yml", trusted=True),)
    return effective(Settings(), chain, Options(), providers=PROVIDERS)


def plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, IPv4Address | IPv4Network | IPv6Address | IPv6Network):
        return str(value)
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def compact(compiled: Compiled) -> str:
    """One field a line, one element of a list a line, in JSON."""
    out = []
    for part in ("rules", "bpf", "view"):
        for key, value in plain(getattr(compiled, part)).items():
            if isinstance(value, list):
                out += [f"{part}.{key} {json.dumps(element)}" for element in value]
            else:
                out.append(f"{part}.{key} {json.dumps(value)}")
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("name", sorted(p.stem for p in DIRECTORY.glob("*.yml")))
def test_golden(name):
    compiled = compile_bottle(policy(name), place(), 7, "enforce", run="r1")
    expected = DIRECTORY / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(compact(compiled))
    assert compact(compiled) == expected.read_text()
    assert compiled == compile_bottle(policy(name), place(), 7, netfilter.spec.Mode.ENFORCE, run="r1")


@pytest.mark.parametrize("mode", ["closed", "enforce", "observe", "cut"])
def test_modes_are_the_same_on_every_layer(mode):
    compiled = compile_bottle(policy("empty"), place(), 1, mode)
    assert (compiled.rules.mode.value, compiled.bpf.mode.name.lower(), compiled.view.mode) == (mode,) * 3


def test_what_survives_a_cut():
    services = compile_bottle(policy("empty"), place(worker=2), 1, "cut").rules.services
    pool = Pool()
    surviving = {(e.address, e.proto, e.port) for e in services if e.survives_cut}
    expected = {(a, proto, 53) for a in pool.resolver.all() for proto in ("udp", "tcp")}
    expected |= {(a, "tcp", port) for a in pool.proxy(2).all() for port in (443, 80)}
    assert surviving == expected
    assert {(e.address, e.port) for e in services if not e.survives_cut} == {
        (a, port) for a in pool.relay.all() for port in (443, 80)
    }


def test_a_host_without_ipv6():
    compiled = compile_bottle(policy("names"), place(Pool(v6=None)), 1, "enforce")
    assert all(e.address.version == 4 for e in compiled.rules.services + compiled.bpf.services)
    assert (compiled.view.addr6, compiled.view.relay, compiled.view.proxy) == ("", ("10.213.0.3",), ("10.213.0.4",))


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="open"):
        compile_bottle(policy("empty"), place(), 1, "open")


def test_learned_addresses_open_what_the_rules_of_the_name_say():
    p = policy("direct")
    policies = policy_set(p)
    given = [ip_address("198.51.100.9"), ip_address("2001:db8::9"), ip_address("198.51.100.9")]
    nft, bpf = learned(policies, "git.example.com", given, 5, floor_s=30)
    assert [(str(e.address), e.proto, e.ports, e.timeout_s) for e in nft] == [
        ("198.51.100.9", "tcp", ((22, 22),), 30),
        ("2001:db8::9", "tcp", ((22, 22),), 30),
    ]
    assert [(str(e.network), e.ports, e.timeout_s) for e in bpf] == [
        ("198.51.100.9/32", ((22, 22),), 30),
        ("2001:db8::9/128", ((22, 22),), 30),
    ]
    assert p.rules[bpf[0].rule].text == "tcp://git.example.com:22"
    assert learned(policies, "git.example.com", given[:1], 500, floor_s=30)[0][0].timeout_s == 500
    assert learned(policies, "git.example.com", given, 5, held={given[0]})[0][0].address == given[1]
    assert learned(policies, "other.example.com", given, 5) == ([], [])
    assert learned(policy_set(policy("names")), "a.example.com", given, 5) == ([], [])


def test_several_rules_of_one_name():
    rules = ["h.example:8000-8100", "*.example:8050-9000", "udp://h.example:53", "!h.example:8060"]
    policies = PolicySet([parse_rule(r) for r in rules])
    nft, bpf = learned(policies, "h.example", [ip_address("198.51.100.9")], 60)
    assert [(e.proto, e.ports) for e in nft] == [("tcp", ((8000, 8059), (8061, 9000))), ("udp", ((53, 53),))]
    assert [(e.rule, e.proto, e.ports) for e in bpf] == [
        (0, "tcp", ((8000, 8059), (8061, 8100))),
        (1, "tcp", ((8101, 9000),)),
        (2, "udp", ((53, 53),)),
    ]


# ── the kernel's entries decide as PolicySet does ────────────────────────────

octets = st.sampled_from([0, 1, 2, 64, 100, 128, 200, 255])
rule_texts = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "!", "tcp://", "udp://", "!udp://"]),
    st.one_of(
        st.tuples(
            st.sampled_from(["10", "100"]), octets, octets, octets, st.sampled_from([8, 10, 12, 16, 24, 31, 32])
        ).map(lambda t: str(IPv4Network((".".join(map(str, (t[0], *t[1:4]))), t[4]), strict=False))),
        st.tuples(st.integers(0, 3), st.sampled_from([32, 33, 48, 126, 128])).map(
            lambda t: "[{}]/{}".format(*str(IPv6Network(((0x20010DB8 << 96) + t[0], t[1]), strict=False)).split("/"))
        ),
    ),
    st.sampled_from(["", ":53", ":1-100", ":50-60,443"]),
)


def parsed(text):
    try:
        return parse_rule(text)
    except RuleError:
        return None


def covered(entries, address, port, proto):
    hits = [
        e
        for e in entries
        if e.network.version == address.version
        and address in e.network
        and e.proto == proto
        and any(lo <= port <= hi for lo, hi in e.ports)
    ]
    assert len(hits) <= 1, "entries overlap"
    return bool(hits)


@given(
    st.lists(rule_texts, max_size=8),
    st.one_of(
        st.tuples(st.sampled_from(["10", "100"]), octets, octets, octets).map(
            lambda t: ip_address(".".join(map(str, t)))
        ),
        st.integers(0, 5).map(lambda n: IPv6Address((0x20010DB8 << 96) + n)),
    ),
    st.sampled_from([1, 53, 55, 101, 443]),
    st.sampled_from(["tcp", "udp"]),
)
def test_entries_are_disjoint_and_mean_what_the_rules_mean(texts, address, port, proto):
    rules = tuple(rule for text in texts if (rule := parsed(text)))
    p = replace(policy("empty"), rules=rules, origins=())
    compiled = compile_bottle(p, place(), 1, "enforce")
    for layer in (compiled.rules, compiled.bpf):
        allowed = covered(layer.allow, address, port, proto) and not covered(layer.deny, address, port, proto)
        assert allowed == PolicySet(rules).decide_address(address, port, proto).allowed
    assert compiled == compile_bottle(p, place(), 1, "enforce")


def test_indices_of_bpf_entries_are_those_of_the_view():
    compiled = compile_bottle(policy("protected"), place(), 1, "enforce")
    assert {e.rule for e in compiled.bpf.deny} == {len(compiled.view.rules)}  # agentmon's own protection
    for entry in compiled.bpf.allow:
        assert str(entry.network.network_address) in compiled.view.rules[entry.rule]
    assert ebpf.spec.Mode.ENFORCE is compiled.bpf.mode
