"""LaunchSpec and host layout to bubblewrap's command line. Pure; bwrap(1).

The file system is an allow-list: nothing of the host appears unless a line here names it. bwrap runs as root in the
bottle's network namespace and mounts; then, inside, the order is setsid (own session, controlling terminal) and
setpriv (uid, groups, no capabilities), so that nothing ever runs with the job's identity and privileges together.
The environment waits too: bwrap itself starts with a clean one, and variables that steer the dynamic loader or
libc are set by env(1) after the drop, because setsid and setpriv still have capabilities.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agentmon.errors import BadInput
from agentmon.launch.spec import CA_BUNDLES, LaunchSpec

_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SYSTEM = ("/usr", "/opt", "/nix/store", "/sys/devices/system/cpu", "/sys/devices/system/node")
_ETC = (
    "alternatives", "bash.bashrc", "bindresvport.blacklist", "ca-certificates", "ca-certificates.conf",
    "crypto-policies", "debian_version", "ethertypes", "fonts", "gai.conf", "gitconfig", "host.conf", "inputrc",
    "java-17-openjdk", "java-21-openjdk", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "locale.conf",
    "localtime", "login.defs", "lsb-release", "magic", "magic.mime", "maven", "mime.types", "networks", "os-release",
    "perl", "pki/ca-trust", "pki/tls", "profile", "profile.d", "protocols", "python3", "redhat-release", "rpc",
    "services", "shells", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone", "xattr.conf", "xdg", "xml",
)  # fmt: skip
# Never bound as a whole, neither as the working directory nor by --ro and --rw: private inside, or too much at once.
_PRIVATE = (
    "/", "/proc", "/sys", "/dev", "/run", "/var/run", "/tmp", "/var/tmp", "/dev/shm", "/etc", "/var", "/home", "/boot",
)  # fmt: skip
_HIDDEN = ("/proc", "/sys", "/dev", "/run", "/var/run")  # nor anything below
_LIBC_VARIABLES = frozenset({  # what glibc itself drops for set-uid programs (sysdeps/generic/unsecvars.h), and locales
    "GCONV_PATH", "GETCONF_DIR", "GLIBC_TUNABLES", "HOSTALIASES", "LOCALDOMAIN", "LOCPATH", "NIS_PATH", "NLSPATH",
    "RESOLV_HOST_CONF", "RES_OPTIONS", "TMPDIR", "TZDIR", "TZ", "LANGUAGE", "LANG", "OUTPUT_CHARSET", "POSIXLY_CORRECT",
})  # fmt: skip
_LIBC_PREFIXES = ("LD_", "LC_", "MALLOC_", "GLIBC_")
_Mount = tuple[str, str, str]  # option, source (or mode, or descriptor, or nothing), path inside
BWRAP, SETSID, SETPRIV, ENV = "/usr/bin/bwrap", "/usr/bin/setsid", "/usr/bin/setpriv", "/usr/bin/env"


@dataclass(frozen=True, slots=True)
class HostLayout:
    """What this host has of the paths above. Small files are copied into the bottle's own /etc: a mount each would
    make most of the time that bwrap takes (it reads all mounts again after each)."""

    links: tuple[tuple[str, str], ...]  # (path, target)
    trees: tuple[str, ...]  # bound read-only
    files: tuple[str, ...]  # copied
    bundles: tuple[str, ...]  # of CA_BUNDLES

    @classmethod
    def read(cls) -> HostLayout:
        """Of the running host; unprivileged."""
        wanted = [Path(path) for path in (*(f"/{n}" for n in _TOP), *_SYSTEM, *(f"/etc/{n}" for n in _ETC))]
        links = tuple((str(path), os.readlink(path)) for path in wanted if path.is_symlink())
        rest = [path for path in wanted if not path.is_symlink() and os.access(path, os.R_OK)]
        return cls(
            links,
            tuple(str(path) for path in rest if path.is_dir()),
            tuple(str(path) for path in rest if path.is_file()),
            tuple(path for path in CA_BUNDLES if Path(path).exists()),
        )


def bwrap_argv(
    spec: LaunchSpec,
    layout: HostLayout,
    data: Mapping[str, int],
    seccomp: int,
    status: int,
    covered: Sequence[str] = (),
) -> list[str]:
    """The whole command line.

    :param data: a descriptor for each path of `spec.files` and `layout.files`, read to its end, and for each of
        shown_paths(), opened with the right of whoever asked: what is checked is what is mounted; for those of
        given_paths() that exist.
    :param seccomp: descriptor of the filter.
    :param covered: paths of sockets that are shown with their directories, and are nobody's to connect to.
    :param status: gets JSON lines: {"child-pid": N}, then {"exit-code": N} if the command was executed.
    :raises BadInput: a path of --ro or --rw that may not be shown.
    """
    return [BWRAP, *bwrap_options(spec, layout, data, seccomp, status, covered), "--", *inner_command(spec)]


def bwrap_options(
    spec: LaunchSpec,
    layout: HostLayout,
    data: Mapping[str, int],
    seccomp: int,
    status: int,
    covered: Sequence[str] = (),
) -> list[str]:
    """Options only: the spawner passes them by `--args`, which keeps the environment out of /proc/PID/cmdline."""
    early, _late = split_environment(spec.env)
    chdir = working_directory(spec)
    words = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup", "--new-session"]
    words += ["--hostname", spec.bottle, "--seccomp", str(seccomp), "--json-status-fd", str(status)]
    words += ["--cap-drop", "ALL"]
    for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):  # for setpriv, which then drops them as well
        words += ["--cap-add", capability]
    words += _with_parents(
        [*_system(layout), *_private(spec), *_shown(spec, data), *_trust(spec, layout)]
        + [("--file", str(data[path]), path) for path in sorted({*layout.files, *spec.files} & data.keys())]
        + [("--ro-bind", "/dev/null", path) for path in covered]
        + [("--ro-bind-fd", str(data[path]), path) for path in given_paths(spec) if path in data]
    )
    words += ["--remount-ro", "/", "--remount-ro", "/dev", "--chdir", chdir, "--clearenv"]
    for name, value in sorted(early.items()):
        words += ["--setenv", name, value]
    return words


def inner_command(spec: LaunchSpec) -> list[str]:
    """What bwrap executes, as root with three capabilities, and which ends as the job's own command."""
    _early, late = split_environment(spec.env)
    words = [SETSID, *(["--ctty"] if spec.tty else []), "--", SETPRIV]
    words += ["--reuid", str(spec.uid), "--regid", str(spec.gid)]
    words += ["--groups", ",".join(map(str, spec.groups))] if spec.groups else ["--clear-groups"]
    words += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]
    if late:
        words += [ENV, "--", *(f"{name}={value}" for name, value in sorted(late.items()))]
    return words + list(spec.argv)


def split_environment(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(set by bwrap, set after privileges are dropped)."""
    late = {n: v for n, v in env.items() if n in _LIBC_VARIABLES or n.startswith(_LIBC_PREFIXES)}
    return {n: v for n, v in env.items() if n not in late}, late


def working_directory(spec: LaunchSpec) -> str:
    """Where the command starts: `spec.cwd` where that is visible inside, else HOME."""
    shown = any(_below(spec.cwd, path) for path in (*shown_paths(spec), spec.home, "/tmp", "/usr", "/opt"))
    return spec.cwd if shown or spec.cwd == "/" else spec.home


def _system(layout: HostLayout) -> list[_Mount]:
    mounts: list[_Mount] = [("--ro-bind", path, path) for path in sorted(layout.trees)]
    return mounts + [("--symlink", target, path) for path, target in layout.links]


def _private(spec: LaunchSpec) -> list[_Mount]:
    return [
        ("--proc", "", "/proc"),
        ("--ro-bind", "/proc/sys", "/proc/sys"),
        ("--dev", "", "/dev"),
        ("--tmpfs", "1777", "/dev/shm"),
        ("--bind", spec.tmp_source, "/tmp") if spec.tmp_source else ("--tmpfs", "1777", "/tmp"),
        ("--bind", spec.var_tmp_source, "/var/tmp") if spec.var_tmp_source else ("--tmpfs", "1777", "/var/tmp"),
        ("--tmpfs", "0755", "/run"),
        ("--symlink", "/run", "/var/run"),
        ("--bind", spec.home_source, spec.home),
    ]


def shown_paths(spec: LaunchSpec) -> dict[str, str]:
    """Path to option. The working directory is writable unless `ro` names it; it is left out where showing it would
    show the real HOME, or a directory that is private inside."""
    for path in (*spec.ro, *spec.rw):
        if not bindable(path):
            hint = "name the file or directory below it"
            raise BadInput(f'"{path}" cannot be shown to a bottle: it is private inside', hint)
    shown: dict[str, str] = {}
    if bindable(spec.cwd) and not _below(spec.home, spec.cwd) and not _below(spec.cwd, "/usr"):
        shown[spec.cwd] = "--bind-fd"
    return shown | dict.fromkeys(spec.rw, "--bind-fd") | dict.fromkeys(spec.ro, "--ro-bind-fd")


def _shown(spec: LaunchSpec, data: Mapping[str, int]) -> list[_Mount]:
    shown = sorted(shown_paths(spec).items())  # parents come first
    return [(option, str(data[path]), path) for path, option in shown]


def given_paths(spec: LaunchSpec) -> list[str]:
    """Where the sockets of `spec.unix` are mounted, and directories of sockets, parents first."""
    return sorted({inside(path) for path in spec.unix})


def inside(path: str) -> str:
    """Where a path of `unix:` is mounted: bwrap cannot go through the link that /var/run is in a bottle."""
    return (path.removeprefix("/var") if path.startswith("/var/run/") else path).rstrip("/")


def _trust(spec: LaunchSpec, layout: HostLayout) -> list[_Mount]:
    if not spec.trust:
        return []
    return [("--ro-bind", spec.trust, path) for path in dict.fromkeys((CA_BUNDLES[0], *layout.bundles))]


def _with_parents(mounts: list[_Mount]) -> list[str]:
    """Options for `mounts`, each after its parent directories: those that bwrap makes by itself are closed to
    everyone but root (0.8)."""
    words: list[str] = []
    made: set[str] = {"/"}
    for option, source, target in mounts:
        for parent in reversed(PurePosixPath(target).parents):
            if str(parent) not in made:
                words += ["--perms", "0755", "--dir", str(parent)]
                made.add(str(parent))
        made.add(target)
        if option == "--tmpfs":
            words += ["--perms", source, option, target]
        elif option == "--file":
            words += ["--perms", "0444", option, source, target]
        else:
            words += [option, *([source] if source else []), target]
    return words


def bindable(path: str) -> bool:
    """Whether a host path may be shown at all; asked of what was written, and of where symbolic links led."""
    return str(PurePosixPath(path)) not in _PRIVATE and not any(_below(path, hidden) for hidden in _HIDDEN)


def _below(path: str, parent: str) -> bool:
    """Whether `path` is `parent` or below it."""
    return PurePosixPath(path).is_relative_to(parent)
