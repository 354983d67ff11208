"""Living with other firewalls: their tables stay theirs; a drop of theirs is found, and explained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentmon.cli import setup_docker
from netfilter.blockers import Blocker, blockers
from netfilter.heal import HealingNetfilter
from netfilter.spec import PASS_MARK
from tests.support.nf_lab import OTHER4, WEB4, WEB6, Lab, direct

pytestmark = pytest.mark.root
WEBS = (direct(f"{WEB4}/32"), direct(f"{WEB6}/128"))
# As Docker leaves a host: bridged networks behind NAT, FORWARD dropping but for its own.
DOCKER = """
{tool} -P FORWARD DROP
{tool} -N DOCKER-USER
{tool} -A DOCKER-USER -j RETURN
{tool} -A FORWARD -j DOCKER-USER
{tool} -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{tool} -A FORWARD -i docker0 -j ACCEPT
"""
# In the shape of firewalld's: a chain for each zone, all of it behind one policy-accept chain that ends with a reject.
FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_ZONES {
        iifname "docker0" goto filter_FWD_trusted
        goto filter_FWD_public
    }
    chain filter_FWD_public { meta l4proto { icmp, ipv6-icmp } accept; }
    chain filter_FWD_trusted { accept; }
    chain nat_POSTROUTING {
        type nat hook postrouting priority srcnat + 10; policy accept;
    }
}
"""
SITE = """
table ip site {
    set s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }
    chain c { type filter hook forward priority 10; ip saddr @s counter drop; }
}
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.nf = lab.run(HealingNetfilter)
        yield lab


def ours(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agentmon.cli", "setup", "docker", *words]
    return lab.run(subprocess.run, argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def docker(lab: Lab) -> None:
    for tool in ("iptables", "ip6tables"):
        lab.shell("sh", "-ec", DOCKER.format(tool=tool))


def saved(lab: Lab) -> str:
    lines = [line for tool in ("iptables-save", "ip6tables-save") for line in lab.shell(tool).splitlines()]
    return "\n".join(line.split(" [")[0] for line in lines if not line.startswith("#"))


def works(lab: Lab) -> list[bool]:
    found = []
    for address in (WEB4, WEB6):
        try:
            lab.connect("am-16", address, timeout=0.4).close()
            found.append(True)
        except OSError:
            found.append(False)
    return found


def test_dockers_drop_is_found_and_one_rule_passes_what_is_permitted(lab: Lab) -> None:
    docker(lab)
    lab.open()
    lab.bottle(16, *WEBS)
    before = saved(lab)
    assert works(lab) == [False, False]
    found = lab.run(lab.nf.blockers)
    assert [(b.family, b.chain, b.why, b.docker) for b in found] == [
        ("ip", "FORWARD", "policy drop", True), ("ip6", "FORWARD", "policy drop", True),
    ]  # fmt: skip
    assert found[0].remedy(()) == "sudo agentmon setup docker"

    asked = ours(lab)
    assert asked.returncode == 2 and "--yes" in asked.stderr and saved(lab) == before
    done = ours(lab, "--yes")
    assert done.returncode == 0, done.stderr
    assert "iptables -I DOCKER-USER 1 -m mark --mark 0x1000000/0x1000000" in done.stdout and "ip6tables" in done.stdout
    assert works(lab) == [True, True]
    with pytest.raises(OSError):
        lab.connect("am-16", OTHER4, timeout=0.4)
    assert "nothing to do: the rule is there" in ours(lab, "--yes").stdout
    assert saved(lab).count("agentmon") == 2  # one a family

    assert ours(lab, "--undo", "--yes").stdout.endswith("removed\n")
    assert saved(lab) == before
    assert "nothing to do: the rule is not there" in ours(lab, "--undo", "--yes").stdout
    assert works(lab) == [False, False]


def test_without_docker_it_says_so_and_changes_nothing(lab: Lab) -> None:
    done = ours(lab, "--yes")
    assert done.returncode == 4 and "there is no chain DOCKER-USER" in done.stderr and "start Docker" in done.stderr


def test_an_undo_takes_every_copy_of_the_rule_and_only_that(lab: Lab) -> None:
    lab.shell("iptables", "-N", "DOCKER-USER")
    lab.shell("iptables", "-A", "DOCKER-USER", "-m", "mark", "--mark", setup_docker.MARK, "-j", "ACCEPT")  # theirs
    before = saved(lab)
    for _ in range(2):
        lab.shell("iptables", "-A", "DOCKER-USER", *setup_docker.RULE)
    assert ours(lab, "--undo", "--yes").returncode == 0
    assert saved(lab) == before


def test_a_firewall_that_refuses_is_reported_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.shell("iptables", "-N", "DOCKER-USER")
    with pytest.raises(setup_docker.AgentmonError, match="Bad rule"):
        lab.run(setup_docker._run, "iptables", "-D", "NONE", "-j", "ACCEPT")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(setup_docker.HostLacks, match="iptables is missing"):
        setup_docker._available()


def test_the_mark_is_ours() -> None:
    assert f"{PASS_MARK:#x}/{PASS_MARK:#x}" == setup_docker.MARK


@pytest.mark.parametrize("kind", ["firewalld", "plain"])
def test_another_firewalls_drop_is_explained_by_a_command_that_helps(lab: Lab, kind: str) -> None:
    plain = "table inet site {\nchain way { type filter hook forward priority 0; policy drop; }\n}"
    lab.run(
        subprocess.run, ["nft", "-f", "-"], input=FIREWALLD if kind == "firewalld" else plain, text=True, check=True
    )
    before = lab.shell("nft", "list", "ruleset")
    lab.open()
    lab.bottle(16, *WEBS)
    assert works(lab) == [False, False]
    (found,) = lab.run(lab.nf.blockers)
    if kind == "firewalld":
        assert found.describe() == (
            "chain filter_FORWARD of table inet firewalld drops what is forwarded (its last rule: reject)"
        )
        assert "--zone=trusted --add-source=10.213.0.0/16" in found.remedy(["10.213.0.0/16"])
        lab.shell(
            "nft", "insert rule inet firewalld filter_FORWARD_ZONES ip saddr 10.213.0.0/16 goto filter_FWD_trusted"
        )
        lab.shell("nft", "insert rule inet firewalld filter_FORWARD_ZONES ip6 saddr fd61::/16 goto filter_FWD_trusted")
    else:
        lab.shell("sh", "-c", found.remedy([]).removeprefix("sudo "))
    assert works(lab) == [True, True]
    lab.run(lab.nf.delete_bottle, 16)
    lab.run(lab.nf.close_host)
    after = lab.shell("nft", "list", "ruleset")
    assert [
        line for line in after.splitlines() if "10.213" not in line and "fd61" not in line and "mark" not in line
    ] == (before.splitlines())


def test_tables_of_others_are_the_same_byte_by_byte_after_a_life_of_bottles(lab: Lab) -> None:
    lab.run(subprocess.run, ["nft", "-f", "-"], input=SITE, text=True, check=True)
    docker(lab)
    lab.shell("iptables", "-P", "FORWARD", "ACCEPT")
    lab.shell("ip6tables", "-P", "FORWARD", "ACCEPT")
    before = [lab.shell("nft", "-a", "-s", "list", "ruleset"), saved(lab)]
    lab.open()
    watcher = lab.run(lab.nf.watch)
    for slot in (16, 17):
        lab.bottle(slot, *WEBS)
    assert works(lab) == [True, True]
    lab.shell("nft", "delete", "table", "inet", "agentmon")
    lab.run(lab.nf.restore, watcher.changes())
    assert works(lab) == [True, True]
    lab.run(lab.nf.close_host)
    assert [lab.shell("nft", "-a", "-s", "list", "ruleset"), saved(lab)] == before


def test_a_drop_with_conditions_blocks_nobody() -> None:
    def chain(name: str, **more: str) -> dict[str, object]:
        return {"chain": {"family": "inet", "table": "x", "name": name, **more}}

    def rule(name: str, *statements: dict[str, object]) -> dict[str, object]:
        return {"rule": {"family": "inet", "table": "x", "chain": name, "expr": list(statements)}}

    some = [
        chain("a", hook="forward", policy="accept"), rule("a", {"drop": None}), rule("a", {"accept": None}),
        chain("b", hook="forward", policy="accept"), rule("b", {"match": {}}, {"drop": None}),
        chain("c", hook="input", policy="drop"), chain("d"), rule("d", {"drop": None}),
        chain("e", hook="forward", policy="accept"), rule("e", {"counter": None}, {"drop": None}),
    ]  # fmt: skip
    assert blockers(some) == [Blocker("inet", "x", "e", "its last rule: drop")]
