"""What a request to attach means, on a /proc and a cgroup tree made of plain files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agentmon import paths
from agentmon.daemon import attach
from agentmon.daemon.cgroups import Tree
from agentmon.errors import BadInput


class Machine:
    """Processes by number, each with a namespace file and a cgroup."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups, self.spaces = root / "proc", root / "cgroup", root / "spaces"
        for path in (self.proc, self.cgroups / "agentmon", self.spaces):
            path.mkdir(parents=True)
        self.tree = Tree(self.cgroups / "agentmon")
        for pid in ("1", "self"):
            self.process(pid, "host", "")

    def process(self, pid: int | str, space: str, cgroup: str, resolv: str = "") -> None:
        (self.spaces / space).touch()
        own = self.proc / str(pid)
        (own / "ns").mkdir(parents=True)
        os.link(self.spaces / space, own / "ns" / "net")
        (own / "cgroup").write_text(f"1:cpu:/\n0::/{cgroup}\n")
        (own / "root/etc").mkdir(parents=True)
        (own / "root/etc/resolv.conf").write_text(resolv)
        directory = self.cgroups / cgroup
        directory.mkdir(parents=True, exist_ok=True)
        if str(pid).isdecimal():
            with (directory / "cgroup.procs").open("a") as file:
                file.write(f"{pid}\n")

    def find(self, **args: Any) -> Any:
        return attach.find(args, self.tree, {}, self.proc)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(paths, "NETNS", made.spaces)
    return made


def test_a_cgroup_that_is_its_alone_is_kept(machine: Machine) -> None:
    machine.process(7, "web", "engine/web", "# x\nnameserver 192.0.2.53\nnameserver bad\nnameserver 127.0.0.11\n")
    machine.process(8, "web", "engine/web/exec")
    found = machine.find(pid=7)
    assert (found.what, found.cgroup, found.came_from) == ("process 7", str(machine.cgroups / "engine/web"), "")
    assert (found.nameservers, found.inode) == (("192.0.2.53",), (machine.spaces / "web").stat().st_ino)
    assert machine.find(cgroup=str(machine.cgroups / "engine/web")).cgroup == found.cgroup
    assert machine.find(pid=7, what="container web").what == "container web"


def test_a_resolver_that_asks_from_outside_is_refused(machine: Machine) -> None:
    machine.process(7, "web", "engine/web")
    (machine.proc / "7/net").mkdir()
    (machine.proc / "7/net/udp").write_text("  sl  local_address\n  12: 0B00007F:9A2C 00000000:0000 07\n")
    with pytest.raises(BadInput, match=r"127\.0\.0\.11") as refused:
        machine.find(pid=7)
    assert "--network bridge" in refused.value.hint


@pytest.mark.parametrize("cgroup", ["", "session", "a/" * 17 + "b"])
def test_one_that_is_shared_or_too_deep_is_left(machine: Machine, cgroup: str) -> None:
    machine.process(7, "web", cgroup)
    if cgroup == "session":
        machine.process(9, "host", cgroup)
    found = machine.find(pid=7)
    assert (found.cgroup, found.came_from) == ("", str(machine.cgroups / cgroup))


def test_a_namespace_by_its_name_or_path(machine: Machine) -> None:
    (machine.spaces / "build").touch()
    found = machine.find(netns="build")
    assert (found.pid, found.named, found.cgroup, found.nameservers) == (0, True, "", ())
    assert machine.find(netns=str(machine.spaces / "build")).inode == found.inode


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({}, "nothing was given"),
        ({"pid": 7, "cgroup": "/x"}, "--pid and --cgroup"),
        ({"pid": "0"}, "not a process number"),
        ({"pid": "12"}, "no process 12"),
        ({"pid": "1"}, "the host's own"),
        ({"pid": "5"}, "does not let itself be looked at"),
        ({"pid": "6"}, "of agentmon's own services"),
        ({"netns": "none"}, "no network namespace"),
        ({"cgroup": "/"}, "not a cgroup v2 directory"),
    ],
)
def test_what_cannot_be_attached(machine: Machine, args: dict[str, Any], says: str) -> None:
    (machine.proc / "5").mkdir()
    machine.process(6, "am-svc", "agentmon-svc")
    with pytest.raises(BadInput, match=says) as refused:
        machine.find(**args)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("where", "says"),
    [("", "holds every process"), ("agentmon/b16", "agentmon's own"), ("none", "has no process"), ("two", "2 network")],
)
def test_cgroups_that_are_not_one_thing(machine: Machine, where: str, says: str) -> None:
    machine.process(7, "a", "two")
    machine.process(8, "b", "two/deeper")
    (machine.cgroups / "none").mkdir()
    (machine.cgroups / "agentmon/b16").mkdir()
    with pytest.raises(BadInput, match=says):
        machine.find(cgroup=str(machine.cgroups / where))


def test_a_resolv_conf_that_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert attach.nameservers(tmp_path) == ()
    os.mkfifo(tmp_path / "etc/resolv.conf")
    assert attach.nameservers(tmp_path) == ()
    (tmp_path / "etc/resolv.conf").unlink()
    (tmp_path / "etc/resolv.conf").symlink_to("/etc/resolv.conf")
    assert attach.nameservers(tmp_path) == ()
