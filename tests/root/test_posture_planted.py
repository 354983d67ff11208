"""Misconfigurations planted in a real namespace, on real files, in a real ledger: each found by its probe and rule."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from agentmon import paths, trust
from agentmon.errors import Refused
from agentmon.ledger import migrations
from agentmon.posture import gather, judge, probe_files, probe_kernel, probe_network
from agentmon.posture.facts import Facts
from agentmon.posture.model import Status, Unseen
from netfilter.language import Part
from netfilter.netns import namespaces, sysctl
from netfilter.nft import Nft

pytestmark = pytest.mark.root


def seen(**found: Any) -> dict[str, Status]:
    """What the checks say of these facts alone."""
    given = replace(Facts(platform="linux"), **found)
    return {f.id: f.status for f in judge.findings(given) if f.status is not Status.UNKNOWN}


def bad(**found: Any) -> set[str]:
    return {id_ for id_, status in seen(**found).items() if status is not Status.OK}


# ── the network: in a namespace that ends with the test ──


def fresh(work: Callable[[], Any]) -> Any:
    def there() -> Any:
        namespaces.unshare()
        return work()

    return namespaces.in_thread(there)


@pytest.mark.parametrize(
    ("path", "value", "check"),
    [
        ("ipv4/conf/lo/route_localnet", "1", "net.route_localnet"),
        ("ipv4/conf/all/accept_local", "1", "net.accept_local"),
        ("ipv4/conf/all/accept_source_route", "1", "net.source_route"),
        ("ipv6/conf/all/accept_source_route", "1", "net.source_route"),
        ("ipv4/conf/all/proxy_arp", "1", "net.proxy_arp"),
        ("ipv4/conf/all/forwarding", "1", "net.forwarding"),
        ("ipv6/conf/all/forwarding", "1", "net.forwarding"),
    ],
)
def test_a_switch_of_the_network(path: str, value: str, check: str) -> None:
    def plant() -> tuple[set[str], set[str]]:
        here = Path("/proc/thread-self/root/proc/sys/net")
        for name in ("all", "lo"):  # a new namespace copies what this host's first one has
            for switch in ("route_localnet", "accept_local", "accept_source_route", "proxy_arp", "forwarding"):
                for family in ("ipv4", "ipv6"):
                    if sysctl.read(f"{family}/conf/{name}/{switch}") is not None:
                        sysctl.write(f"{family}/conf/{name}/{switch}", "0")
        before = bad(switches=probe_network.switches(here))
        sysctl.write(path, value)
        return before, bad(switches=probe_network.switches(here))

    before, after = fresh(plant)
    assert before == set() and after == {check}


@pytest.mark.parametrize(
    ("chain", "check"),
    [
        ("type filter hook forward priority 0; policy drop;", "net.forward_drop"),
        ("type filter hook prerouting priority -160;", "net.earlier_chains"),
        ("type filter hook prerouting priority -300;", "net.untracked"),
    ],
)
def test_a_chain_of_somebody_else(chain: str, check: str) -> None:
    def plant() -> tuple[set[str], set[str]]:
        before = bad(chains=probe_network.chains())
        lines = f"add table inet other\nadd chain inet other c {{ {chain} }}"
        Nft().run([Part(lines, None)], "plant a chain")
        return before, bad(chains=probe_network.chains())

    assert fresh(plant) == (set(), {check})


def test_a_namespace_left_without_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "NETNS", tmp_path)
    monkeypatch.setattr(paths, "BPFFS", tmp_path / "none")
    monkeypatch.setattr(paths, "CONTROL_SOCKET", tmp_path / "none")
    (tmp_path / "am-20").touch()
    assert "network namespace am-20" in probe_network.leftovers()
    assert "net.leftovers" in bad(leftovers=probe_network.leftovers())


# ── files ──


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installation of its own below `tmp_path`, as it should be."""
    etc, lib, run = tmp_path / "etc", tmp_path / "lib", tmp_path / "run"
    for directory in (etc, etc / "bottles", etc / "credentials", lib, lib / "ledger", run, run / "state"):
        directory.mkdir(mode=0o755)
    (lib / "ledger").chmod(0o700)
    (run / "state").chmod(0o700)
    for name, value in {
        "ETC": etc, "SETTINGS": etc / "settings.yml", "CREDENTIALS": etc / "credentials", "LIB": lib,
        "LEDGER": lib / "ledger/ledger.db", "CA_DIR": lib / "ca", "RUN": run, "STATE": run / "state",
        "CONTROL_SOCKET": run / "control.sock", "LOCK": run / "daemon.lock", "EVENTS": lib / "none.db",
    }.items():  # fmt: skip
        monkeypatch.setattr(paths, name, value)
    monkeypatch.setenv("AGENTMON_SETTINGS", str(etc / "settings.yml"))
    (etc / "settings.yml").write_text(f"bottles_dir: {etc / 'bottles'}\n")
    (etc / "settings.yml").chmod(0o644)
    (etc / "bottles/base.yml").write_text("allow: [api.example.com]\n")
    (etc / "credentials/anthropic").write_text("not-a-real-key\n")
    (etc / "credentials/anthropic").chmod(0o600)
    trust.ensure_ca(lib / "ca", "")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(run / "control.sock"))
        (run / "control.sock").chmod(0o660)
        yield tmp_path


def files() -> set[str]:
    """What is wrong with the files, and only of checks that could be made."""
    return bad(
        settings=probe_files.settings_files(), grants=probe_files.grants(), credentials=probe_files.credentials(),
        authority=probe_files.authority(), run_files=probe_files.run_files(), ledger_files=probe_files.ledger_files(),
        ledger=probe_files.ledger(),
    )  # fmt: skip


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda host: ((host / name).write_text(text) and None) or None


def mode(name: str, bits: int) -> Callable[[Path], None]:
    return lambda host: (host / name).chmod(bits)


def owner(name: str, uid: int) -> Callable[[Path], None]:
    return lambda host: os.chown(host / name, uid, -1)


def make_ledger(host: Path) -> apsw.Connection:
    db = apsw.Connection(str(host / "lib/ledger/ledger.db"))
    migrations.migrate(db)
    (host / "lib/ledger/ledger.db").chmod(0o600)
    return db


def wrong_total(host: Path) -> None:
    db = make_ledger(host)
    db.execute(
        "INSERT INTO totals (scope, name, provider, per, \"window\", used) VALUES ('host','','claude','day','x',9)"
    )
    db.close()


def broken_page(host: Path) -> None:
    make_ledger(host).close()
    with (host / "lib/ledger/ledger.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


FILES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("settings that anybody writes", mode("etc/settings.yml", 0o666), "files.settings"),
    ("settings of another user", owner("etc/settings.yml", 65534), "files.settings"),
    ("a directory of settings that anybody writes", mode("etc", 0o777), "files.settings"),
    ("a manifest that anybody writes", mode("etc/bottles/base.yml", 0o666), "files.settings"),
    ("settings with an unknown key", write("etc/settings.yml", "budgets: {}\n"), "files.valid"),
    ("a manifest that is no YAML", write("etc/bottles/base.yml", "allow: [\n"), "files.valid"),
    ("a manifest whose parent is missing", write("etc/bottles/base.yml", "extends: nobody\n"), "files.valid"),
    ("grants", write("etc/settings.yml", "grants: {observe: true}\n"), "files.grants"),
    ("a credential that others read", mode("etc/credentials/anthropic", 0o644), "files.credentials"),
    ("a credential of another user", owner("etc/credentials/anthropic", 65534), "files.credentials"),
    ("the authority's key read by others", mode(f"lib/ca/{trust.KEY_FILE}", 0o644), "files.ca_key"),
    ("a control socket for everybody", mode("run/control.sock", 0o666), "files.run"),
    ("state that everybody reads", mode("run/state", 0o755), "files.run"),
    ("a ledger that others reach", mode("lib/ledger", 0o755), "ledger.files"),
    ("a total that its rows do not sum to", wrong_total, "ledger.integrity"),
    ("a ledger with a broken page", broken_page, "ledger.integrity"),
]  # fmt: skip


def test_an_installation_as_it_should_be(host: Path) -> None:
    make_ledger(host).close()
    assert files() == set()


@pytest.mark.parametrize(("what", "plant", "check"), FILES, ids=[what for what, _, _ in FILES])
def test_a_planted_file(host: Path, what: str, plant: Callable[[Path], Any], check: str) -> None:
    plant(host)
    assert files() == {check}


def test_an_authority_that_ends_soon(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    shutil.rmtree(paths.CA_DIR)
    monkeypatch.setattr(trust, "LIFE", datetime.timedelta(days=20))
    trust.ensure_ca(paths.CA_DIR, "")
    assert files() == {"files.ca_life"}


def test_code_that_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "opt/agentmon/agentmon/posture"
    place.mkdir(parents=True)
    for name in ("agentmon", "netfilter", "ebpf"):
        (tmp_path / "opt/agentmon" / name).mkdir(exist_ok=True)
    monkeypatch.setattr(probe_files, "__file__", str(place / "probe_files.py"))
    (tmp_path / "opt").chmod(0o777)
    assert bad(code=probe_files.code()) == {"files.code"}


def test_a_control_socket_of_the_host_that_everybody_writes(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "docker.sock"))
        (tmp_path / "docker.sock").chmod(0o660)
        assert bad(sockets=probe_network.sockets([str(tmp_path / "docker.sock")])) == set()
        (tmp_path / "docker.sock").chmod(0o666)
        assert bad(sockets=probe_network.sockets([str(tmp_path / "docker.sock")])) == {"host.sockets"}


# ── the kernel's own words, from files that say otherwise ──


def test_what_the_kernel_says_of_itself(tmp_path: Path) -> None:
    (tmp_path / "lockdown").write_text("none integrity [confidentiality]\n")
    assert bad(lockdown=probe_kernel.lockdown(tmp_path / "lockdown")) == {"kernel.lockdown"}
    (tmp_path / "bpf").write_text("0\n")
    assert bad(unprivileged_bpf=probe_kernel.unprivileged_bpf(tmp_path / "bpf")) == {"kernel.unprivileged_bpf"}
    (tmp_path / "lsm").write_text("capability,yama")
    assert bad(lsm=probe_kernel.lsm(tmp_path / "lsm")) == {"kernel.lsm"}
    (tmp_path / "mounts").write_text("30 1 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")
    assert bad(cgroups=probe_kernel.cgroups(tmp_path / "mounts")) == {"kernel.cgroup", "kernel.controllers"}
    (tmp_path / "nf_conntrack_count").write_text("99\n")
    (tmp_path / "nf_conntrack_max").write_text("100\n")
    assert bad(conntrack=probe_network.conntrack(tmp_path)) == {"net.conntrack"}


# ── gathering ──


def test_a_probe_that_fails_or_is_late_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    never = threading.Event()

    def raises() -> Any:
        raise PermissionError(13, "Permission denied", "/x")

    def refuse(op: str) -> Any:
        raise Refused(f"uid 65534 may not use {op} here", "use sudo")

    monkeypatch.setattr(gather, "PROBES", {"clock": raises, "disk": never.wait, "root": probe_kernel.root})
    found = gather.gather(refuse, deadline_s=0.2)
    never.set()
    assert isinstance(found.clock, Unseen) and "Permission denied" in found.clock.why
    assert isinstance(found.disk, Unseen) and "in time" in found.disk.why
    assert isinstance(found.daemon, Unseen) and "may not use posture" in found.daemon.why
    assert found.root is True


def test_without_root_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    for probe in (probe_kernel.nft, probe_kernel.bpf, probe_network.chains):
        assert isinstance(probe(), Unseen)


def test_a_probe_that_hangs_does_not_keep_the_report_from_ending() -> None:
    code = """
import threading
from agentmon.posture import gather
gather.PROBES = {"disk": threading.Event().wait}
print(gather.gather(lambda op: {}["no daemon"], 0.1).disk.why)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert "in time" in done.stdout
