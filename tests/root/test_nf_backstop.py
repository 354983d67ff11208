"""The routing backstop: what a bottle reaches when somebody has flushed every nftables rule of the host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.nf_lab import HOST_OWN, OTHER4, OTHER6, POOL4, POOL6, PROXY, WEB4, WEB6, Lab, direct, net

pytestmark = pytest.mark.root
EVERYTHING = tuple(direct(n, p) for n in ("0.0.0.0/0", "::/0") for p in ("tcp", "udp"))
GATEWAYS = (str(POOL4[1]), str(POOL6[1]))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.open()
        yield lab


def flush(lab: Lab, *names: str) -> None:
    lab.shell("nft", "flush", "ruleset")
    for name in names:
        lab.shell("ip", "netns", "exec", name, "nft", "flush", "ruleset")


def test_nothing_is_forwarded_without_our_table(lab: Lab) -> None:
    lab.bottle(16, *EVERYTHING)
    lab.bottle(17, *EVERYTHING)
    alive = lab.connect("am-16", WEB4)
    addresses = [WEB4, WEB6, OTHER4, OTHER6, str(POOL4[PROXY]), str(POOL6[PROXY]), str(POOL4[17]), str(POOL6[17])]
    svc = lab.receiver("am-svc", [a for a in addresses if a.endswith((".4", "::4"))])
    peer = lab.receiver("am-17", [str(POOL4[17]), str(POOL6[17])])
    flush(lab, "am-16", "am-17")
    before = lab.world.to(WEB4)
    alive.sendall(b"still there?")
    for address in addresses:
        with pytest.raises(OSError):
            lab.connect("am-16", address, timeout=0.4)
        with pytest.raises(OSError):
            lab.udp("am-16", address, timeout=0.2)
    assert lab.world.to(WEB4) == before
    assert [lab.world.to(a) for a in (WEB6, OTHER4, OTHER6)] == [0, 0, 0]
    assert svc.total() == peer.total() == 0


def test_the_hosts_own_services_stay_unreachable_without_our_table(lab: Lab) -> None:
    """Local delivery comes before routing: the guard stands before it."""
    lab.bottle(16, *EVERYTHING)
    host = lab.receiver("", (*HOST_OWN, *GATEWAYS))
    flush(lab, "am-16")
    for address in (*HOST_OWN, *GATEWAYS):
        with pytest.raises(OSError):
            lab.connect("am-16", address, timeout=0.4)
        with pytest.raises(OSError):
            lab.udp("am-16", address, timeout=0.2)
    assert host.total() == 0


def test_the_host_still_talks_to_itself_and_the_world(lab: Lab) -> None:
    lab.bottle(16)
    lab.receiver("", (*HOST_OWN, *GATEWAYS))
    for address in (*HOST_OWN, *GATEWAYS, WEB4, WEB6):
        lab.connect("", address).close()
    for address in HOST_OWN[:2]:
        lab.connect("world", address).close()


@pytest.mark.parametrize("source", ["198.51.100.99", "203.0.113.77"])
def test_a_forged_ipv4_source_gets_nowhere_without_our_table(lab: Lab, source: str) -> None:
    """Strict reverse-path checks on the bottle's device hold it. (IPv6 has none: see docs/design/netfilter.md.)"""
    lab.bottle(16, *EVERYTHING)
    host = lab.receiver("", HOST_OWN)
    flush(lab, "am-16")
    mine = net(16)
    for to in (WEB4, HOST_OWN[0]):
        lab.frame("am-16", source=source, to=to, mac=mine.mac_bottle, gateway_mac=mine.mac_host)
    lab.udp("", OTHER4)
    assert lab.world.to(WEB4) == 0
    assert host.total() == 0


def test_opening_again_restores_the_host_and_a_new_bottle_works(lab: Lab) -> None:
    name = lab.bottle(16, direct(f"{WEB4}/32"))
    flush(lab)
    lab.open()
    with pytest.raises(OSError):
        lab.connect(name, WEB4, timeout=0.4)  # its chain has gone: closed until it is made again
    lab.run(lab.nf.delete_bottle, 16)
    name = lab.bottle(16, direct(f"{WEB4}/32"), epoch=20)
    lab.connect(name, WEB4).close()


def test_rules_are_made_once_and_removed_wholly(lab: Lab) -> None:
    def all_rules() -> list[str]:
        return [lab.shell("ip", family, "rule") for family in ("-4", "-6")]

    before = all_rules()
    lab.open()
    lab.open()
    assert all_rules() == before
    first = [line for text in before for line in text.splitlines() if line.startswith("0:")]
    assert len(first) == 6 and "lookup local" in first[2] and "lookup local" in first[5]
    lab.shell("ip", "rule", "add", "pref", "1001", "from", "198.51.100.0/24", "lookup", "main")
    lab.run(lab.nf.close_host)
    left = [line.replace(" proto kernel", "") for text in all_rules() for line in text.splitlines()]
    assert left == [
        "0:\tfrom all lookup local",
        "1001:\tfrom 198.51.100.0/24 lookup main",
        "32766:\tfrom all lookup main",
        "32767:\tfrom all lookup default",
        "0:\tfrom all lookup local",
        "32766:\tfrom all lookup main",
    ]
