"""Which of the host's Unix sockets a bottle is given, which are covered, and where its own places end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentmon.errors import BadInput
from agentmon.launch import argv, host_sockets
from agentmon.launch.spec import LaunchSpec


def spec(**changes: object) -> LaunchSpec:
    found: dict[str, object] = {
        "slot": 16, "bottle": "b", "run": "r", "argv": ("true",), "env": {}, "cwd": "/", "uid": 1000, "gid": 1000,
        "home": "/home/u", "home_source": "/run/agentmon/homes/16", "netns": "am16", "cgroup": "/c",
    }  # fmt: skip
    return LaunchSpec(**(found | changes))  # type: ignore[arg-type]


def test_its_own_places_and_what_is_shown_in_them() -> None:
    found = host_sockets.places(spec(cwd="/home/u/project", ro=("/srv/data",), rw=("/tmp/x",)), home_is_private=True)
    assert found.open == (*host_sockets.OWN, "/home/u/")
    assert found.closed == ("/home/u/project/", "/srv/data/", "/tmp/x/")


def test_the_real_home_is_the_hosts() -> None:
    found = host_sockets.places(spec(home_source="/home/u"), home_is_private=False)
    assert found.open == host_sockets.OWN and found.closed == ("/home/u/",)


def test_what_the_policy_names_is_open_wherever_it_is() -> None:
    named = ("/home/u/project/run/s.sock", "/srv/data/", "/run/nscd/socket")
    found = host_sockets.places(spec(cwd="/home/u/project", ro=("/srv/data",), unix=named), home_is_private=True)
    assert set(named) <= set(found.open) and found.closed == ("/home/u/project/",)


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[dict[str, int]]:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with ExitStack() as stack:
        fds = {}
        for name, path in (("/seen", "real"), ("/other", "other")):
            fds[name] = os.open(tmp_path / path, os.O_PATH)
            stack.callback(os.close, fds[name])
        yield fds


def bound(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    return made


def test_sockets_below_what_is_shown_are_covered(tmp_path: Path, shown: dict[str, int]) -> None:
    names = ("real/a b", "link/deep/linked", "outside", "other/c", "other/gone")
    made = [bound(tmp_path / name) for name in names]
    (tmp_path / "other/gone").unlink()
    (tmp_path / "other/file").touch()
    assert host_sockets.covered(shown, ()) == ["/other/c", "/seen/a b", "/seen/deep/linked"]
    assert host_sockets.covered(shown, ("/seen/deep/", "/other/c")) == ["/seen/a b"]
    for each in made:
        each.close()
    assert host_sockets.covered(shown, ()) == []


def test_too_many_to_cover_and_a_socket_that_is_shown(tmp_path: Path, shown: dict[str, int]) -> None:
    (tmp_path / "other/s").touch()
    table = "Num\n" + "".join(
        f"0000: 00000002 00000000 00010000 0001 01 {n} {tmp_path}/other/s{n}\n" for n in range(300)
    )
    assert host_sockets.covered(shown, (), table) == []  # none of them is there
    with bound(tmp_path / "other/t") as made:
        fd = os.open(made.getsockname(), os.O_PATH)
        with pytest.raises(BadInput, match="is a socket") as caught:
            host_sockets.covered({"/x": fd}, ())
        os.close(fd)
        assert "unix:" in caught.value.hint
    many = [bound(tmp_path / f"other/m{n}") for n in range(host_sockets.MAX_COVERED + 1)]
    with pytest.raises(BadInput, match="257 sockets"):
        host_sockets.covered(shown, ())
    for each in many:
        each.close()


def test_sockets_and_directories_that_are_given(tmp_path: Path) -> None:
    with bound(tmp_path / "s"):
        found = host_sockets.given((f"{tmp_path}/s", f"{tmp_path}/", f"{tmp_path}/not-there", f"{tmp_path}/s/x/"))
        assert list(found) == [f"{tmp_path}/s", str(tmp_path)]
        for fd in found.values():
            os.close(fd)
        with pytest.raises(BadInput, match="is no socket"):
            host_sockets.given((str(tmp_path),))
        with pytest.raises(BadInput, match="is no directory"):
            host_sockets.given((f"{tmp_path}/s/",))


def test_where_they_are_mounted() -> None:
    given = spec(unix=("/var/run/x/s.sock", "/run/y/", "/srv/z"))
    assert argv.given_paths(given) == ["/run/x/s.sock", "/run/y", "/srv/z"]
    layout = argv.HostLayout((), (), (), ())
    data = {"/run/y": 7, "/srv/z": 8}
    words = argv.bwrap_options(given, layout, data, 3, 4, ["/seen/a"])
    joined = " ".join(words)
    assert "--ro-bind-fd 7 /run/y" in joined and "--ro-bind-fd 8 /srv/z" in joined and "s.sock" not in joined
    assert "--ro-bind /dev/null /seen/a" in joined
