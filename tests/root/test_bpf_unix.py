"""Unix sockets by path on the running kernel, where the policy limits them (v6.7 and newer)."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.spec import Mode
from tests.support.bpf_lab import Bottle, Lab, Process, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab(bpf_lab: Lab) -> Lab:
    if "unix" not in bpf_lab.programs.features():
        pytest.skip(f"needs Linux 6.7 or newer: {bpf_lab.programs.left_out['unix']}")
    return bpf_lab


class Sockets:
    """Listening and receiving sockets below one directory, and a count of what reached them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: list[socket.socket] = []

    def at(self, path: str | bytes, sort: int = socket.SOCK_STREAM) -> str | bytes:
        if isinstance(path, str):
            path = str(self.directory / path)
        made = socket.socket(socket.AF_UNIX, sort)
        self._open.append(made)
        made.bind(path)
        if sort == socket.SOCK_STREAM:
            made.listen()
        made.setblocking(False)
        return path

    def reached(self) -> int:
        count = 0
        for each in self._open:
            try:
                if each.type == socket.SOCK_STREAM:
                    each.accept()[0].close()
                else:
                    each.recv(100)
                count += 1
            except BlockingIOError:
                continue
        return count

    def close(self) -> None:
        for each in self._open:
            each.close()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with tempfile.TemporaryDirectory(prefix="am-", dir="/tmp") as name:
        made = Sockets(Path(name))
        yield made
        made.close()


def refused(lab: Lab, job: Process) -> list[tuple[str, str, str, str]]:
    return [(e.kind, e.proto, e.reason, e.path) for e in lab.events(job)]


def test_unix_paths_of_the_policy_and_no_others(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    directory = sockets.directory
    (directory / "open").mkdir()
    inside, exact, longer, other = (sockets.at(n) for n in ("open/a.sock", "one.sock", "one.sock2", "other.sock"))
    bottle.apply(unix=(f"{directory}/open/", f"{directory}/one.sock"))
    job = bottle.process()
    assert [job.unix(p) for p in (inside, exact)] == [0, 0]
    assert sockets.reached() == 2
    assert [job.unix(p) for p in (longer, other)] == [errno.EPERM, errno.EPERM]
    assert sockets.reached() == 0
    found = refused(lab, job)
    assert found == [("connect", "unix", "unix", str(longer)), ("connect", "unix", "unix", str(other))]


def test_unix_a_closed_directory_in_an_open_one(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    """What a bottle is shown of the host lies in its own places; single sockets in there can still be given."""
    directory = sockets.directory
    (directory / "shown/deep/er").mkdir(parents=True)
    mine, beside, given, below = (sockets.at(n) for n in ("own", "shown2", "shown/given", "shown/deep/er/s"))
    closed = [sockets.at(n) for n in ("shown/s", "shown/given2", "shown/deep/s")]
    bottle.apply(
        unix=(f"{directory}/", str(given), f"{directory}/shown/deep/er/"),
        unix_closed=(f"{directory}/shown/", f"{directory}/shown/deep/"),
    )
    job = bottle.process()
    assert [job.unix(p) for p in (mine, beside, given, below)] == [0, 0, 0, 0]
    assert sockets.reached() == 4
    assert [job.unix(p) for p in closed] == [errno.EPERM] * 3
    assert sockets.reached() == 0


def test_unix_datagrams_too(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    mine, other = sockets.at("mine", socket.SOCK_DGRAM), sockets.at("other", socket.SOCK_DGRAM)
    bottle.apply(unix=(str(mine),))
    job = bottle.process()
    for op in ("unix-send", "unix-connect"):
        assert job.unix(mine, op, sort="dgram") == 0
        assert job.unix(other, op, sort="dgram") == errno.EPERM
    assert sockets.reached() == 1
    assert [(k, r, p) for k, _, r, p in refused(lab, job)] == [
        ("send", "unix", str(other)),
        ("connect", "unix", str(other)),
    ]


@pytest.mark.parametrize(
    "spelling", ["{d}/open/../x", "{d}//x", "{d}/./x", "{d}/open/..//x", "{d}/open/..", "x", "./x"]
)
def test_unix_a_path_that_does_not_say_what_it_means(lab: Lab, bottle: Bottle, sockets: Sockets, spelling: str) -> None:
    (sockets.directory / "open").mkdir()
    sockets.at("x")
    bottle.apply(unix=(f"{sockets.directory}/", f"{sockets.directory}/open/"))
    job = bottle.process()
    assert job.unix(spelling.format(d=sockets.directory)) == errno.EPERM
    assert sockets.reached() == 0
    assert job.unix(f"{sockets.directory}/x") == 0


@pytest.mark.parametrize("name", ["...x", ".hidden", "a..b", "x.", "a.", "x/.y", "é"])
def test_unix_names_with_dots_are_names(lab: Lab, bottle: Bottle, sockets: Sockets, name: str) -> None:
    if "/" in name:
        (sockets.directory / name).parent.mkdir()
    sockets.at(name)
    bottle.apply(unix=(f"{sockets.directory}/",))
    expected = errno.EPERM if name.startswith("..") else 0  # "..x" is refused with "..": the price of a short check
    assert bottle.process().unix(f"{sockets.directory}/{name}") == expected


def test_unix_what_stands_behind_the_address_does_not_count(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    """A NUL ends a path; a permission for the longer text is none for the shorter."""
    directory = sockets.directory
    (directory / "a").mkdir()
    sockets.at("x")
    bottle.apply(unix=(f"{directory}/x\x01/",))
    job = bottle.process()
    assert job.unix(os.fsencode(f"{directory}/x") + b"\0/more") == errno.EPERM
    assert job.unix(os.fsencode(f"{directory}/x")) == errno.EPERM
    bottle.apply(unix=(f"{directory}/x",))
    assert job.unix(os.fsencode(f"{directory}/x") + b"\0") == 0
    assert job.unix(os.fsencode(f"{directory}/x") + b"\0tail") == 0
    assert job.unix(os.fsencode(f"{directory}/x").ljust(107, b"\0")) == 0


def test_unix_abstract_names_and_pairs_pass(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    """Abstract names belong to a network namespace: nobody of the host listens there."""
    bottle.apply(unix=())
    job = bottle.process()
    sockets.at(b"\0agentmon-test-of-the-host")
    assert job.unix(b"\0agentmon-test-of-the-host") == errno.ECONNREFUSED  # not EPERM: it looked in its own namespace
    assert sockets.reached() == 0


def test_unix_is_free_where_the_policy_says_nothing(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    path = sockets.at("x")
    bottle.apply()
    job = bottle.process()
    assert job.unix(path) == 0
    assert lab.events(job) == []


def test_unix_observed_in_observe_mode_and_repeats_counted(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    path = sockets.at("x")
    bottle.apply(unix=(), mode=Mode.OBSERVE)
    job = bottle.process()
    assert job.unix(path) == 0
    assert [(e.verdict, e.path, e.count) for e in lab.events(job)] == [("observed", path, 1)]
    for _ in range(3):
        assert job.unix(path) == 0
    (again,) = until(lambda: lab.events(job))
    assert (again.verdict, again.path, again.count) == ("observed", path, 3)


def test_unix_a_symbolic_link_is_followed_after_the_decision(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    """The known limit of a decision by path; docs/design/ebpf.md says what is done about it."""
    (sockets.directory / "mine").mkdir()
    target = sockets.at("target")
    link = sockets.directory / "mine" / "link"
    link.symlink_to(target)
    bottle.apply(unix=(f"{sockets.directory}/mine/",))
    assert bottle.process().unix(str(link)) == 0
    assert sockets.reached() == 1


def test_unix_after_a_cut_only_its_own_places_are_open(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    mine, hosts = sockets.at("mine"), sockets.at("hosts")
    bottle.apply(unix=(f"{sockets.directory}/", str(hosts)), unix_given=(str(hosts),))
    job = bottle.process()
    assert [job.unix(mine), job.unix(hosts)] == [0, 0]
    lab.programs.set_mode(bottle.slot, Mode.CUT)
    assert [job.unix(mine), job.unix(hosts)] == [0, errno.EPERM]
    lab.programs.set_mode(bottle.slot, Mode.CLOSED)
    assert job.unix(mine) == errno.EPERM
    assert [(e.reason, e.path) for e in lab.events(job)] == [("unix", str(hosts)), ("closed", str(mine))]


def test_unix_of_a_bottle_that_nobody_knows(lab: Lab, bottle: Bottle, sockets: Sockets) -> None:
    """Deleted, or not yet described after an upgrade: refused, as its connects are."""
    path = sockets.at("x")
    job = bottle.process()
    assert job.unix(path) == errno.EPERM
    assert [(e.slot, e.reason) for e in lab.events(job)] == [(0, "unknown")]
    assert sockets.reached() == 0
