"""What of agentmon and its tests is on this host now, as sets of lines; the difference is what was left behind."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Snapshot = dict[str, frozenset[str]]

_VOLATILE = re.compile(r" (expires|age|used|pref|metric) \S+| (linkdown|dead)\b|packets \d+ bytes \d+")
_OURS = re.compile(rb"agentmon|amnet|bwrap")
_OF_A_TEST = re.compile(r"/agentmon-test-(?:[a-z]+-)?(\d+)")  # its pid
_KERNEL_PINS = frozenset({"/sys/fs/bpf/maps.debug", "/sys/fs/bpf/progs.debug"})
_WATCHED_DIRECTORIES = (
    "/run/agentmon/state", "/run/agentmon/homes", "/run/agentmon/restored", "/run/agentmon/trust",
    "/var/lib/agentmon/saved",
)  # fmt: skip


def snapshot(below: int = 1) -> Snapshot:
    """Namespaces, links, rules, routes, nft tables, pins, cgroups, mounts, processes, state; root sees it all.

    :param below: pid of a subreaper: processes that do not come from it, and cgroups of their tests, are not looked at.
    """
    kinds: dict[str, Iterable[str]] = {kind: lines() for kind, lines in _SOURCES.items()}
    kinds |= {"cgroup": _cgroups(below), "process": _processes(below)}
    return {kind: frozenset(lines) for kind, lines in kinds.items()}


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """One line for every thing that is there now and was not, or was there and is gone."""
    found = []
    for kind, now in after.items():
        found += [f"{kind}: left behind: {line}" for line in sorted(now - before[kind])]
        found += [f"{kind}: removed: {line}" for line in sorted(before[kind] - now)]
    return found


def since(before: Snapshot, within_s: float = 10.0, *, look: Callable[[], Snapshot] = snapshot) -> list[str]:
    """The difference to `before` once it stopped being one, or after `within_s`: cleaning up may take a moment."""
    deadline = time.monotonic() + within_s
    while (found := difference(before, look())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _output(*argv: str) -> Iterator[str]:
    """The lines that a listing command prints; none where the command or the family is missing."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return
    for line in done.stdout.splitlines():
        yield _VOLATILE.sub("", line).strip()


def _namespaces() -> Iterable[str]:
    netns = Path("/run/netns")
    return [entry.name for entry in netns.iterdir()] if netns.is_dir() else []


def _links() -> Iterable[str]:
    return [line.split(":")[1].split("@")[0].strip() for line in _output("ip", "-o", "link")]


def _rules() -> Iterator[str]:
    yield from _output("ip", "-4", "rule")
    yield from _output("ip", "-6", "rule")


def _routes() -> Iterator[str]:
    """Without the kernel's own link-local and multicast routes: they come a moment after their link, and go with it."""
    yield from _output("ip", "-4", "route", "show", "table", "all")
    for line in _output("ip", "-6", "route", "show", "table", "all"):
        if not re.search(r"\b(fe80|ff00)::", line):
            yield line


def _nft() -> Iterator[str]:
    """Every table with the number of its lines: the ruleset itself may be long, and foreign counters move."""
    table, lines = "", 0
    for line in _output("nft", "-s", "-t", "list", "ruleset"):
        if line.startswith("table "):
            if table:
                yield f"{table} ({lines} lines)"
            table, lines = line.removesuffix(" {"), 0
        lines += 1
    if table:
        yield f"{table} ({lines} lines)"


def _pins() -> Iterator[str]:
    """Without the two iterators that the kernel itself puts into the root of a bpffs ("bpf: Add kernel module with user
    mode driver that populates bpffs.", v5.10). Nobody else can: bpffs refuses names with a dot."""
    for directory, _, files in os.walk("/sys/fs/bpf"):
        yield from (path for name in files if (path := f"{directory}/{name}") not in _KERNEL_PINS)


def _mounts() -> Iterator[str]:
    """Mount points; file systems that FACTS say are mounted on demand and stay are left out."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount_point, file_system = line.split()[4], line.partition(" - ")[2].split()[0]
        if file_system not in ("bpf", "tracefs", "securityfs") and mount_point != "/run/netns":
            yield f"{mount_point} ({file_system})"


def _cgroups(below: int) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " not in line:
            continue
        for directory, _, _ in os.walk(line.split()[4]):
            test = _OF_A_TEST.search(directory)
            if "agentmon" in directory and (test is None or not _elsewhere(int(test[1]), below)):
                yield directory


def _elsewhere(pid: int, below: int) -> bool:
    """Whether a process lives and does not come from `below`; all come from 1."""
    try:
        return below != 1 and below not in _ancestors(pid)
    except OSError:
        return False


def _processes(below: int) -> Iterator[str]:
    """Command lines of processes that are ours, by word or by user, the second of the same as "(2)"; not this process
    and its ancestors. No ids: a service that was replaced by its like is not left over."""
    own, services = set(_ancestors(os.getpid())), _service_uids()
    found: Counter[str] = Counter()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own or _elsewhere(int(entry.name), below):
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            uid = entry.stat().st_uid
        except OSError:  # gone meanwhile
            continue
        if command and (
            _OURS.search(command) or uid in services
        ):  # without one: it has ended, and waits to be collected
            line = command.replace(bytes(1), b" ").decode(errors="replace").strip()[:160]
            found[line] += 1
            yield f"{line} ({found[line]})" if found[line] > 1 else line


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 0:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _service_uids() -> frozenset[int]:
    lines = Path("/etc/passwd").read_text().splitlines()
    return frozenset(int(line.split(":")[2]) for line in lines if line.startswith("agentmon-"))


def _saved() -> Iterator[str]:
    for directory in map(Path, _WATCHED_DIRECTORIES):
        if directory.is_dir():
            yield from (str(entry) for entry in directory.iterdir())


def _forwarding() -> Iterator[str]:
    for family in ("ipv4", "ipv6"):
        for switch in ("all", "default"):
            path = Path(f"/proc/sys/net/{family}/conf/{switch}/forwarding")
            if path.exists():
                yield f"net.{family}.conf.{switch}.forwarding = {path.read_text().strip()}"


_SOURCES: dict[str, Callable[[], Iterable[str]]] = {
    "namespace": _namespaces,
    "link": _links,
    "rule": _rules,
    "route": _routes,
    "nft table": _nft,
    "pin": _pins,
    "mount": _mounts,
    "state": _saved,
    "sysctl": _forwarding,
}
