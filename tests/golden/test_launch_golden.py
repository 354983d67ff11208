"""LaunchSpec → bubblewrap's command line, byte for byte. AGENTMON_GOLDEN=write renews the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agentmon.errors import BadInput
from agentmon.launch.argv import (
    HostLayout,
    bwrap_argv,
    inner_command,
    shown_paths,
    split_environment,
    working_directory,
)
from agentmon.launch.spec import LaunchSpec

HERE = Path(__file__).parent / "launch"
LAYOUT = HostLayout(
    links=(("/bin", "usr/bin"), ("/lib64", "usr/lib64"), ("/etc/localtime", "/usr/share/zoneinfo/UTC")),
    trees=("/etc/alternatives", "/etc/ssl/certs", "/usr"),
    files=("/etc/services",),
    bundles=("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"),
)
BASE: dict[str, Any] = {
    "slot": 16,
    "bottle": "build-17",
    "run": "r1",
    "argv": ("make", "test"),
    "cwd": "/srv/project",
    "uid": 1000,
    "gid": 1000,
    "env": {"PATH": "/usr/bin:/bin", "HOME": "/home/u", "API_KEY": "secret"},
    "home": "/home/u",
    "home_source": "/run/agentmon/homes/16",
    "netns": "am-16",
    "cgroup": "/sys/fs/cgroup/agentmon/b16/job",
    "files": {"/etc/resolv.conf": "nameserver 10.213.0.2\n"},
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "terminal": {"tty": True, "groups": (27, 1001)},
    "trust": {"trust": "/run/agentmon/trust/16.pem"},
    "paths": {
        "ro": ("/root/.pyenv/versions/3.13.0", "/srv/project/vendor"),
        "rw": ("/srv/cache", "/home/u/.claude"),
        "cwd": "/home/u/src/deep/project",
        "tmp_source": "/var/lib/agentmon/saved/16/tmp",
    },
    "loader-variables": {"env": {"LD_PRELOAD": "/x.so", "LANG": "C", "LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin"}},
}


def spec(**changes: Any) -> LaunchSpec:
    return LaunchSpec(**BASE | changes)


def data(this: LaunchSpec) -> dict[str, int]:
    shown = {path: 20 + i for i, path in enumerate(sorted(shown_paths(this)))}
    return {"/etc/resolv.conf": 10, "/etc/services": 11} | shown


def rendered(case: str) -> str:
    this = spec(**CASES[case])
    words = bwrap_argv(this, LAYOUT, data(this), 12, 13)
    lines: list[str] = []
    for word in words:  # one option with its operands on a line
        if word.startswith("--") or not lines or word.startswith("/usr/bin/set"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_command_line_is_the_golden_one(case: str) -> None:
    file = HERE / f"{case}.txt"
    if os.environ.get("AGENTMON_GOLDEN") == "write":
        file.write_text(rendered(case))
    assert rendered(case) == file.read_text()


def test_the_same_spec_gives_the_same_bytes_whatever_the_order_of_its_mappings() -> None:
    turned = dict(reversed(list(BASE["env"].items())))
    assert bwrap_argv(spec(env=turned), LAYOUT, data(spec()), 3, 4) == bwrap_argv(spec(), LAYOUT, data(spec()), 3, 4)


def test_variables_of_loader_and_libc_wait_for_the_drop() -> None:
    early, late = split_environment(
        {"LD_X": "", "GLIBC_TUNABLES": "", "MALLOC_ARENA_MAX": "", "LANG": "", "LDAP": "", "A": ""}
    )
    assert sorted(early) == ["A", "LDAP"]
    assert sorted(late) == ["GLIBC_TUNABLES", "LANG", "LD_X", "MALLOC_ARENA_MAX"]
    words = inner_command(spec(env={"LD_PRELOAD": "/x.so"}))
    assert words.index("LD_PRELOAD=/x.so") > words.index("--no-new-privs")


@pytest.mark.parametrize(
    ("cwd", "starts_in", "bound"),
    [
        ("/srv/project", "/srv/project", True),
        ("/home/u/project", "/home/u/project", True),
        ("/home/u", "/home/u", False),  # the private HOME is what stands there
        ("/home", "/home/u", False),
        ("/", "/", False),
        ("/tmp", "/tmp", False),
        ("/tmp/work", "/tmp/work", True),
        ("/etc", "/home/u", False),
        ("/run/user/1000", "/home/u", False),
        ("/usr/share", "/usr/share", False),
        ("/proc/1", "/home/u", False),
    ],
)
def test_where_a_command_starts_and_whether_that_is_the_hosts(cwd: str, starts_in: str, bound: bool) -> None:
    this = spec(cwd=cwd)
    assert working_directory(this) == starts_in
    words = bwrap_argv(this, LAYOUT, data(this), 3, 4)
    assert any(words[i : i + 3] == ["--bind-fd", "20", cwd] for i in range(len(words))) is bound


@pytest.mark.parametrize(
    "path", ["/", "/run", "/proc/sys", "/etc", "/dev/shm", "/var/run/docker.sock", "/sys/fs/cgroup"]
)
@pytest.mark.parametrize("option", ["ro", "rw"])
def test_what_is_private_inside_cannot_be_shown(path: str, option: str) -> None:
    with pytest.raises(BadInput, match="private inside"):
        bwrap_argv(spec(**{option: (path,)}), LAYOUT, {}, 3, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"uid": 0}, "uid or gid 0"),
        ({"gid": 0}, "uid or gid 0"),
        ({"groups": (0,)}, "uid or gid 0"),
        ({"argv": ()}, "no command"),
        ({"argv": ("",)}, "no command"),
        ({"argv": ("a\0b",)}, "NUL"),
        ({"cwd": "here"}, "not absolute"),
        ({"ro": ("/a/../b",)}, "not absolute"),
        ({"env": {"A=B": ""}}, "not a name"),
        ({"env": {"A": "\0"}}, "NUL"),
    ],
)
def test_specs_that_could_never_be_launched_safely(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        spec(**changes).check()


def test_an_ordinary_spec_passes() -> None:
    spec().check()


def test_layout_of_this_host_is_readable_and_leaves_secrets_out() -> None:
    layout = HostLayout.read()
    assert "/usr" in layout.trees
    everything = " ".join([*layout.trees, *layout.files, *(path for path, _ in layout.links)])
    for secret in ("shadow", "ssl/private", "ssh", "sudoers", "pip.conf", "npmrc", "passwd", "/etc/hosts"):
        assert secret not in everything
