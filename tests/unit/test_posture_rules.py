"""Every rule of the report against planted facts: what is right is ok, each misconfiguration is found by its check."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmon.posture import canary_facts, facts, judge
from agentmon.posture.facts import (
    Authority,
    Bottle,
    Bypasses,
    CgroupLayout,
    Chain,
    Conntrack,
    Daemon,
    Disk,
    Facts,
    Feature,
    HostSocket,
    Ledger,
    Own,
    Process,
    Service,
)
from agentmon.posture.model import Status, Unseen
from agentmon.render import posture as render

CLEAN_SWITCHES = {
    "ipv4.conf.all.forwarding": "0", "ipv4.conf.all.route_localnet": "0", "ipv4.conf.eth0.route_localnet": "0",
    "ipv4.conf.all.accept_local": "0", "ipv4.conf.all.accept_source_route": "0", "ipv4.conf.all.proxy_arp": "0",
    "ipv6.conf.all.disable_ipv6": "0", "ipv6.conf.all.forwarding": "0", "ipv6.conf.all.accept_source_route": "0",
}  # fmt: skip
BOTTLE = Bottle("build-17", attached=False, processes=(Process(41, "node", 0, python=False, guarded=False),))
DAEMON = Daemon(
    7, left_out={}, services=tuple(Service(n, 20 + i, True, 990 + i, 0, 0) for i, n in enumerate(("ledger", "proxy"))),
    bottles=(BOTTLE,),
)  # fmt: skip
FILE = Own("/etc/agentmon/settings.yml", 0, 0, 0o644)
CLEAN = Facts(
    platform="linux", root=True, nft=(Feature("nftables", True, "", ""), Feature("IPv6", False, "", "")),
    bpf=(Feature("cgroup v2", True, "", ""),),
    cgroups=CgroupLayout("/sys/fs/cgroup", False, frozenset({"pids", "memory"})),
    lockdown="none", unprivileged_bpf=2, lsm=("lockdown", "yama", "apparmor"), bwrap="bubblewrap 0.8.0",
    switches=CLEAN_SWITCHES, conntrack=Conntrack(100, 262144), chains=(), leftovers=(),
    sockets=(HostSocket("/run/docker.sock", 0o660, False),), settings=(FILE,), grants=(),
    credentials=(Own("/etc/agentmon/credentials/anthropic", 0, 0, 0o600),), code=(Own("/opt/agentmon", 0, 0, 0o755),),
    authority=Authority(Own("/var/lib/agentmon/ca/key", 990, 990, 0o600, wanted_uid=990), 900),
    run_files=(Own("/run/agentmon/control.sock", 0, 980, 0o660),),
    ledger_files=(Own("/var/lib/agentmon/ledger", 991, 991, 0o700, wanted_uid=991),), ledger=Ledger((3, 54, 1), ()),
    disk=Disk("/var/lib/agentmon", 50 << 30, False), clock=True, daemon=DAEMON, bypasses=Bypasses({}),
)  # fmt: skip


def bottle(**changes: Any) -> Daemon:
    return replace(DAEMON, bottles=(replace(BOTTLE, **changes),))


def service(**changes: Any) -> Daemon:
    return replace(DAEMON, services=(replace(DAEMON.services[1], **changes),))


def missing(name: str, needed: bool) -> tuple[Feature, ...]:
    return (Feature(name, needed, "Operation not supported", "a kernel that has it"),)


FAIL, WARN = Status.FAIL, Status.WARN
STRONG = Process(42, "sh", 1 << 12, python=False, guarded=False)
PYTHONS = (Process(43, "python3", 0, True, True), Process(44, "python3", 0, True, False))
PLANTED: list[tuple[str, Status, dict[str, Any]]] = [
    ("report.root", WARN, {"root": False}),
    ("kernel.nft", FAIL, {"nft": missing("SOCK_DESTROY", True)}),
    ("kernel.nft_optional", WARN, {"nft": missing("netdev egress hook", False)}),
    ("kernel.bpf", FAIL, {"bpf": missing("bpffs", True)}),
    ("kernel.bpf_optional", WARN, {"bpf": missing("hook am_unix_connect", False)}),
    ("kernel.cgroup", FAIL, {"cgroups": CgroupLayout("", True, frozenset())}),
    ("kernel.controllers", WARN, {"cgroups": CgroupLayout("/sys/fs/cgroup", False, frozenset({"memory"}))}),
    ("kernel.lockdown", WARN, {"lockdown": "confidentiality"}),
    ("kernel.unprivileged_bpf", WARN, {"unprivileged_bpf": 0}),
    ("kernel.lsm", WARN, {"lsm": ("capability", "yama")}),
    ("tools.bwrap", FAIL, {"bwrap": ""}),
    ("net.route_localnet", FAIL, {"switches": CLEAN_SWITCHES | {"ipv4.conf.eth0.route_localnet": "1"}}),
    ("net.accept_local", FAIL, {"switches": CLEAN_SWITCHES | {"ipv4.conf.all.accept_local": "1"}}),
    ("net.source_route", WARN, {"switches": CLEAN_SWITCHES | {"ipv4.conf.all.accept_source_route": "1"}}),
    ("net.source_route", WARN, {"switches": CLEAN_SWITCHES | {"ipv6.conf.all.accept_source_route": "1"}}),
    ("net.proxy_arp", WARN, {"switches": CLEAN_SWITCHES | {"ipv4.conf.all.proxy_arp": "1"}}),
    ("net.forwarding", WARN, {"switches": CLEAN_SWITCHES | {"ipv6.conf.all.forwarding": "1"}}),
    ("net.conntrack", WARN, {"conntrack": Conntrack(80, 100)}),
    ("net.conntrack", FAIL, {"conntrack": Conntrack(99, 100)}),
    ("net.forward_drop", WARN, {"chains": (Chain("ip filter", "FORWARD", "filter", "forward", 0, "drop"),)}),
    ("net.earlier_chains", WARN, {"chains": (Chain("inet x", "mangle", "filter", "prerouting", -160, "accept"),)}),
    ("net.untracked", WARN, {"chains": (Chain("inet x", "early", "filter", "prerouting", -300, "accept"),)}),
    ("net.leftovers", WARN, {"leftovers": ("network namespace am-16",)}),
    ("host.sockets", FAIL, {"sockets": (HostSocket("/run/docker.sock", 0o666, False),)}),
    ("host.sockets", FAIL, {"sockets": (HostSocket("/run/docker.sock", 0o660, True),)}),
    ("files.settings", FAIL, {"settings": (replace(FILE, mode=0o666),)}),
    ("files.settings", FAIL, {"settings": (replace(FILE, uid=1000),)}),
    ("files.settings", FAIL, {"settings": (replace(FILE, gid=100, mode=0o664),)}),
    ("files.valid", FAIL, {"settings": (replace(FILE, problem="settings.yml:3: budgets: unknown key"),)}),
    ("files.grants", WARN, {"grants": ("run with --observe",)}),
    ("files.credentials", FAIL, {"credentials": (Own("/etc/agentmon/credentials/x", 0, 0, 0o644),)}),
    ("files.code", FAIL, {"code": (Own("/home/me/agentmon", 1000, 1000, 0o755),)}),
    ("files.ca_key", FAIL, {"authority": Authority(Own("/k", 990, 990, 0o640, wanted_uid=990), 900)}),
    ("files.ca_life", WARN, {"authority": Authority(Own("/k", 0, 0, 0o600), 10)}),
    ("files.ca_life", FAIL, {"authority": Authority(Own("/k", 0, 0, 0o600), -1)}),
    ("files.run", FAIL, {"run_files": (Own("/run/agentmon/control.sock", 0, 980, 0o666),)}),
    ("ledger.files", FAIL, {"ledger_files": (Own("/var/lib/agentmon/ledger", 991, 991, 0o755, wanted_uid=991),)}),
    ("ledger.integrity", FAIL, {"ledger": Ledger((3, 54, 1), ("totals: host is 7, its rows sum to 8",))}),
    ("ledger.sqlite", FAIL, {"ledger": Ledger((3, 40, 1), ())}),
    ("host.disk", WARN, {"disk": Disk("/var", 500 << 20, False)}),
    ("host.disk", FAIL, {"disk": Disk("/var", 5 << 20, False)}),
    ("host.disk", FAIL, {"disk": Disk("/var", 50 << 30, True)}),
    ("host.clock", WARN, {"clock": False}),
    ("daemon.host_rules", FAIL, {"daemon": replace(DAEMON, host=("table agentmon deleted",))}),
    ("daemon.services", FAIL, {"daemon": service(up=False)}),
    ("daemon.services", FAIL, {"daemon": replace(DAEMON, services=())}),
    ("daemon.privileges", FAIL, {"daemon": service(uid=0)}),
    ("daemon.privileges", FAIL, {"daemon": service(capabilities=1 << 12)}),
    ("daemon.privileges", WARN, {"daemon": service(uid=None)}),
    ("daemon.cores", WARN, {"daemon": service(core_bytes=None)}),
    ("daemon.programs", WARN, {"daemon": replace(DAEMON, left_out={"unix": "the kernel did not take it"})}),
    ("daemon.events", WARN, {"daemon": replace(DAEMON, events_lost=3)}),
    ("bottle.rules", FAIL, {"daemon": bottle(rules=("table agentmon deleted",))}),
    ("bottle.programs", FAIL, {"daemon": bottle(programs=("am_exact: element 00 is gone",))}),
    ("bottle.compared", WARN, {"daemon": bottle(compared=False)}),
    ("bottle.lacks", FAIL, {"daemon": bottle(lacks="guard: strict needs BPF programs")}),
    ("bottle.observe", WARN, {"daemon": bottle(observe=True)}),
    ("bottle.io_uring", WARN, {"daemon": bottle(io_uring=True)}),
    ("bottle.home", WARN, {"daemon": bottle(home="host")}),
    ("bottle.capabilities", FAIL, {"daemon": bottle(processes=(STRONG,))}),
    ("bottle.attached_capabilities", WARN, {"daemon": bottle(attached=True, processes=(STRONG,))}),
    ("bottle.sockets", FAIL, {"daemon": bottle(sockets=("/run/docker.sock",))}),
    ("bottle.metadata", FAIL, {"daemon": bottle(metadata=("169.254.169.254",))}),
    ("bottle.dns", WARN, {"daemon": bottle(direct_dns=("192.0.2.53:53",))}),
    ("bottle.wide", WARN, {"daemon": bottle(wide=("10.0.0.0/8:5432",))}),
    ("bottle.own_keys", WARN, {"daemon": bottle(own_keys=("api.anthropic.com",))}),
    ("bottle.guarded", WARN, {"daemon": bottle(processes=PYTHONS)}),
    ("bottle.guarded", WARN, {"daemon": bottle(guard="strict", processes=PYTHONS[1:])}),
    ("bottle.bypasses", WARN, {"bypasses": Bypasses({"/x/_evil.so": 3})}),
]  # fmt: skip


def found_bad(given: Facts) -> dict[str, Status]:
    return {f.id: f.status for f in judge.findings(given) if f.status is not Status.OK}


def test_a_clean_host_has_nothing_to_report() -> None:
    assert found_bad(CLEAN) == {}
    assert judge.exit_code(judge.findings(CLEAN)) == 0


@pytest.mark.parametrize(("id_", "status", "planted"), PLANTED, ids=[f"{p[0]}-{i}" for i, p in enumerate(PLANTED)])
def test_each_misconfiguration_is_found_and_nothing_else(id_: str, status: Status, planted: dict[str, Any]) -> None:
    given = replace(CLEAN, **planted)
    also = {"kernel.controllers"} if id_ == "kernel.cgroup" else set()
    assert {k: v for k, v in found_bad(given).items() if k not in also} == {id_: status}
    finding = next(f for f in judge.findings(given) if f.id == id_)
    assert finding.remedy and finding.evidence and finding.why
    assert judge.exit_code([finding]) == (2 if status is FAIL else 1)


def test_every_check_can_fail() -> None:
    """A rule that no planted fact trips would be a rule that always says ok."""
    always = {"net.ipv6"}  # says what is there: bottles are held in both families either way
    assert {c.id for c in judge.CHECKS} == {p[0] for p in PLANTED} | always
    assert len(PLANTED) >= 25


@pytest.mark.parametrize("name", [f.name for f in fields(Facts) if f.name != "platform"])
def test_what_could_not_be_seen_is_unknown_never_ok(name: str) -> None:
    given = replace(CLEAN, **{name: Unseen("permission denied", "sudo")})
    bad = found_bad(given)
    assert bad and set(bad.values()) == {Status.UNKNOWN}
    assert judge.exit_code(judge.findings(given)) == 1


def test_another_system_is_one_finding_that_says_what_is_missing() -> None:
    (only,) = judge.findings(replace(CLEAN, platform="darwin"))
    assert only.status is Status.FAIL and "VM" in only.remedy


# ── the canary ──

SAID = [
    {"technique": "connect", "mark": "tcp", "outcome": "Operation not permitted", "dst": "198.18.213.2", "port": "1"},
    {"technique": "bpf(2)", "mark": "bpf", "outcome": "Operation not permitted"},
]
TOLD = [{"dst": "198.18.213.2", "port": 1, "layer": "bpf", "verdict": "refused"}]


def test_the_canary_believes_its_receiver_and_not_its_attacker() -> None:
    held = canary_facts.attempts(SAID, {"control": 7}, TOLD)
    assert [a.refused for a in held] == [True, True] and held[0].layers == ("bpf",)
    assert canary_facts.judge(held, control=True).status is Status.OK
    leaked = canary_facts.attempts(SAID, {"control": 7, "tcp": 3}, TOLD)
    assert not leaked[0].refused and canary_facts.judge(leaked, control=True).status is Status.FAIL
    done = canary_facts.attempts([{**SAID[1], "outcome": "done: a map was made"}], {"control": 7}, [])
    assert canary_facts.judge(done, control=True).status is Status.FAIL


def test_a_canary_whose_own_connection_fails_shows_nothing() -> None:
    assert canary_facts.judge(canary_facts.attempts(SAID, {}, TOLD), control=False).status is Status.FAIL


# ── how it is shown ──


def test_the_report_as_json_keeps_its_schema() -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs/posture.schema.json").read_text())
    assert schema == render.schema()
    given = judge.findings(replace(CLEAN, clock=False, lsm=Unseen("no")))
    for attempts in (None, canary_facts.attempts(SAID, {}, TOLD)):
        value = msgspec.to_builtins(render.as_object(given, attempts, 1_700_000_000_000_000_000, 12))
        msgspec.convert(value, render.Report)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**value, "status": "fine"}, render.Report)


def test_text_and_markdown_say_what_is_wrong_first_and_what_to_do() -> None:
    given = judge.findings(replace(CLEAN, clock=False, bwrap=""))
    said = render.text(given, None)
    assert said.index("fail ") < said.index("warn ") < said.index("ok ")
    assert "apt-get install bubblewrap" in said and said.endswith(f"1 failed, 1 to look at, {len(given) - 2} good")
    table = render.markdown(given, canary_facts.attempts(SAID, {"control": 1}, TOLD))
    assert "| fail | The launcher's sandbox is installed (`tools.bwrap`)" in table
    assert "| refused | connect | Operation not permitted | bpf |" in table


def test_the_list_of_checks_in_the_docs_is_this_one() -> None:
    text = (Path(__file__).parents[2] / "docs/operations/posture.md").read_text()
    for check in judge.CHECKS:
        assert f"| `{check.id}` | {check.title} | {check.why} |" in text
    assert facts.NAMES
