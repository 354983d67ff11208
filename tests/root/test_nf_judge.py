"""The chain on the kernel and verdict.py give one answer: random rules, every destination of the lab."""

from __future__ import annotations

import random
from ipaddress import ip_address
from itertools import product

import pytest

from netfilter.spec import BottleRules, Direct, Endpoint, Learned, Mode
from netfilter.verdict import Judge, own_networks
from tests.support.nf_lab import OTHER4, OTHER6, PORTS, WEB4, WEB6, Lab, direct, learned, net, rules

pytestmark = pytest.mark.root
ADDRESSES = (WEB4, WEB6, OTHER4, OTHER6)
NETWORKS = (
    *(f"{a}/{'128' if ':' in a else '32'}" for a in ADDRESSES),
    *("198.51.100.0/29", "198.51.100.8/30", "2001:db8::/124", "2001:db8::8/125", "0.0.0.0/0", "::/0"),
)
RANGES = (((443, 443),), ((5432, 5432),), ((1, 65535),), ((400, 500), (5000, 6000)), ((444, 5431),))
MODES = (Mode.ENFORCE, Mode.ENFORCE, Mode.ENFORCE, Mode.OBSERVE, Mode.CUT)
PROTOS = (("tcp", 6), ("udp", 17))


def random_rules(dice: random.Random, epoch: int) -> BottleRules:
    def some(most: int) -> tuple[Direct, ...]:
        return tuple(
            Direct(direct(dice.choice(NETWORKS)).network, dice.choice(("tcp", "udp")), dice.choice(RANGES))
            for _ in range(dice.randint(0, most))
        )

    known = tuple(
        Learned(ip_address(dice.choice(ADDRESSES)), dice.choice(("tcp", "udp")), dice.choice(RANGES), 60)
        for _ in range(dice.randint(0, 3))
    )
    services = (Endpoint(ip_address(WEB4), "udp", 5432, bool(epoch % 2)),)
    return BottleRules(16, epoch, dice.choice(MODES), services, some(3), some(2), known)


@pytest.mark.parametrize("host_side_alone", [False, True])
def test_the_kernel_decides_as_the_judge_does(host_side_alone: bool) -> None:
    dice = random.Random(20 + host_side_alone)
    with Lab() as lab:
        lab.open()
        lab.run(lab.nf.create_bottle, net(16))
        for epoch in range(1, 13):
            wanted = random_rules(dice, epoch)
            lab.run(lab.nf.apply, wanted)
            if host_side_alone:
                lab.shell("ip", "netns", "exec", "am-16", "nft", "flush", "ruleset")
            judge = Judge(wanted, own_networks(lab.spec))
            for address, (proto, number), port in product(ADDRESSES, PROTOS, PORTS):
                said = judge.verdict(ip_address(address), number, port)
                patience = 3.0 if said.passes else 0.3
                assert reaches(lab, proto, address, port, patience) is said.passes, (wanted, address, proto, port, said)


def reaches(lab: Lab, proto: str, address: str, port: int, timeout: float) -> bool:
    try:
        if proto == "udp":
            lab.udp("am-16", address, port, timeout)
        else:
            lab.connect("am-16", address, port, timeout).close()
    except OSError:
        return False
    return True


def test_ending_what_is_refused_spares_flows_to_learned_addresses() -> None:
    """Learned after the rules were applied, so only the sets and our memory know of them."""
    with Lab() as lab:
        lab.open()
        name = lab.bottle(16)
        lab.run(lab.nf.learn, 16, [learned(WEB4), learned(WEB6)])
        socks = [lab.connect(name, a) for a in (WEB4, WEB6)]
        assert lab.run(lab.nf.end_refused, 16) == 0
        lab.run(lab.nf.apply, rules(16, 16))
        assert lab.run(lab.nf.end_refused, 16) == 0
        for sock in socks:
            sock.sendall(b"again")
            assert sock.recv(5) == b"again"
