"""Looking at the host's network: switches, conntrack, chains of others, what is left without a daemon."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from agentmon import paths
from agentmon.posture.facts import Chain, Conntrack, HostSocket, Seen
from agentmon.posture.model import Unseen
from netfilter.errors import Missing
from netfilter.probe import foreign_chains

JOB_USER = "agentmon-job"
CONTROL_SOCKETS = (
    "/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock",
    "/run/libvirt/libvirt-sock", "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/snapd.socket",
)  # fmt: skip
_OPEN_BY_DESIGN = frozenset({"/run/dbus/system_bus_socket", "/run/snapd.socket"})  # they ask who it is
_SWITCHES = ("forwarding", "route_localnet", "accept_local", "accept_source_route", "proxy_arp", "disable_ipv6")


def switches(root: Path = Path("/proc/sys/net")) -> Seen[Mapping[str, str]]:
    """sysctl(8) below net, per device; those of agentmon's own devices left out where the device needs them."""
    found: dict[str, str] = {}
    for family in ("ipv4", "ipv6"):
        for directory in sorted((root / family / "conf").glob("*")):
            for name in _SWITCHES:
                file = directory / name
                if file.is_file():
                    found[f"{family}.conf.{directory.name}.{name}"] = file.read_text().strip()
    return found or Unseen(f"{root} cannot be read")


def conntrack(root: Path = Path("/proc/sys/net/netfilter")) -> Seen[Conntrack]:
    try:
        return Conntrack(int((root / "nf_conntrack_count").read_text()), int((root / "nf_conntrack_max").read_text()))
    except FileNotFoundError:
        return Conntrack(0, 0)  # the module comes with the first rule that needs it


def chains() -> Seen[tuple[Chain, ...]]:
    """Base chains of tables that are not agentmon's."""
    if os.geteuid() != 0:
        return Unseen("only root can list chains", "sudo agentmon posture")
    try:
        return tuple(Chain(*found) for found in foreign_chains())
    except Missing as error:
        return Unseen(f"{error.what} is missing", error.remedy)


def leftovers() -> Seen[tuple[str, ...]]:
    """Kernel objects of agentmon's; asked only where no daemon answers."""
    if paths.CONTROL_SOCKET.exists() and _locked(paths.LOCK):
        return ()
    found = [f"network namespace {path.name}" for path in _glob(paths.NETNS, "am-*")]
    found += [f"device {path.name}" for path in _glob(Path("/sys/class/net"), "am-*")]
    if os.geteuid() == 0 and paths.BPFFS.is_dir():
        found.append(f"programs pinned at {paths.BPFFS}")
    return tuple(found)


def _locked(lock: Path) -> bool:
    """Whether somebody holds the daemon's lock (flock(2)), by /proc/locks: taking it would be in a daemon's way."""
    try:
        inode = lock.stat().st_ino
    except OSError:
        return False
    return any(line.split()[5].endswith(f":{inode}") for line in Path("/proc/locks").read_text().splitlines())


def _glob(directory: Path, pattern: str) -> Iterable[Path]:
    return sorted(directory.glob(pattern)) if directory.is_dir() else []


def sockets(names: Iterable[str] = CONTROL_SOCKETS) -> Seen[tuple[HostSocket, ...]]:
    """Those that are there, but for the ones that ask every caller who it is."""
    found = []
    for name in names:
        try:
            status = Path(name).stat()
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode) and name not in _OPEN_BY_DESIGN:
            found.append(HostSocket(name, stat.S_IMODE(status.st_mode), _job_may_write(status)))
    return tuple(found)


def _job_may_write(status: os.stat_result) -> bool:
    try:
        user = pwd.getpwnam(JOB_USER)
    except KeyError:
        return False
    if status.st_uid == user.pw_uid:
        return True
    member = status.st_gid == user.pw_gid or JOB_USER in _members(status.st_gid)
    return member and bool(status.st_mode & 0o020)


def _members(gid: int) -> list[str]:
    try:
        return grp.getgrgid(gid).gr_mem
    except KeyError:
        return []
