"""Finding what is to be attached: from a process, a namespace or a cgroup to an Attached value, or why it cannot be.

    pid    ─▶ its network namespace and every process of it ─▶ one cgroup that is theirs alone, or a leaf of ours
    netns  ─▶ the same, from its name or path; there may be no process
    cgroup ─▶ the one namespace that all its processes are in

Needs CAP_SYS_PTRACE (others' /proc/PID/ns). Nothing is changed here.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from agentmon import paths
from agentmon.control.state import Attached, Bottle
from agentmon.daemon.cgroups import Tree
from agentmon.errors import BadInput

MAX_LEVEL = 16  # of a cgroup that programs are attached to (ebpf.abi AM_LEVELS)
_RESOLV_BYTES = 1 << 16
_EMBEDDED = "0B00007F"  # 127.0.0.11 in /proc/net/udp: Docker's resolver, whose sockets are in the container
_SELECTORS = ("pid", "netns", "cgroup")


def find(args: Mapping[str, Any], tree: Tree, bottles: Mapping[int, Bottle], proc: Path = Path("/proc")) -> Attached:
    """What a request means. `what` in `args` is how people named it, where that was otherwise (a container).

    :raises BadInput: there is no such thing, it is the host's own, or a bottle's.
    """
    given = [name for name in _SELECTORS if args.get(name)]
    if len(given) != 1:
        said = " and ".join(f"--{name}" for name in given) or "nothing"
        raise BadInput(
            f"one thing is attached at a time, and {said} was given", "one of --pid, --netns, --cgroup, --container"
        )
    found = _Finder(tree, bottles, proc)
    text = str(args[given[0]])
    attached = {"pid": found.by_pid, "netns": found.by_netns, "cgroup": found.by_cgroup}[given[0]](text)
    return replace(attached, what=str(args["what"])) if args.get("what") else attached


class _Finder:
    def __init__(self, tree: Tree, bottles: Mapping[int, Bottle], proc: Path) -> None:
        self._tree = tree
        self._bottles = bottles
        self._proc = proc
        self._root = tree.parent.parent

    def by_pid(self, text: str) -> Attached:
        if not text.isdecimal() or int(text) == 0:
            raise BadInput(f"--pid {text!r} is not a process number", "ps -e lists them")
        pid = int(text)
        inode = self._namespace(pid)
        if inode is None and (self._proc / text).is_dir():
            raise BadInput(f"process {pid} does not let itself be looked at", "the kernel's own threads cannot be held")
        if inode is None:
            raise BadInput(f"no process {pid} is running", "ps -e lists them")
        return self._attached(f"process {pid}", f"{self._proc}/{pid}/ns/net", inode, pid)

    def by_netns(self, text: str) -> Attached:
        path = Path(text) if "/" in text else Path(paths.NETNS) / text
        try:
            inode = path.stat().st_ino
            is_namespace = path.stat().st_dev == (self._proc / "self/ns/net").stat().st_dev
        except OSError:
            raise BadInput(f"there is no network namespace {text!r}", "ip netns list; or a path to one") from None
        if not is_namespace:
            raise BadInput(f"{text} is not a network namespace", "ip netns list; or a path such as /proc/PID/ns/net")
        pid = next(iter(processes(inode, self._proc)), 0)
        return self._attached(f"namespace {text}", str(path.absolute()), inode, pid, named=True)

    def by_cgroup(self, text: str) -> Attached:
        path = Path(os.path.realpath(text))
        if not path.is_dir() or not path.is_relative_to(self._root):
            raise BadInput(f"{text} is not a cgroup v2 directory", f"name one below {self._root}")
        if path == self._root or path == self._tree.parent or self._tree.parent in path.parents:
            whose = "holds every process of the host" if path == self._root else "is agentmon's own"
            raise BadInput(f"the cgroup {text} {whose}", "name the one that holds the container's processes alone")
        pids = _subtree(path)
        spaces = Counter(inode for pid in pids if (inode := self._namespace(pid)) is not None)
        if len(spaces) != 1:
            how = "has no process" if not spaces else f"has processes in {len(spaces)} network namespaces"
            raise BadInput(
                f"the cgroup {text} {how}", "name one whose processes are all in the same namespace, or --pid"
            )
        (inode,) = spaces
        return self._attached(f"cgroup {text}", f"{self._proc}/{pids[0]}/ns/net", inode, pids[0])

    def _attached(self, what: str, namespace: str, inode: int, pid: int, *, named: bool = False) -> Attached:
        self._refuse_ours(what, inode)
        if pid:
            self._refuse_embedded(what, pid)
        own = self.cgroup_of(pid) if pid else None
        alone = own is not None and self._is_alone(own, inode)
        return Attached(
            what,
            namespace,
            inode,
            pid,
            cgroup=str(own) if alone else "",
            came_from="" if alone or own is None else str(own),
            named=named,
            nameservers=nameservers(self._proc / str(pid) / "root") if pid else (),
        )

    def _refuse_ours(self, what: str, inode: int) -> None:
        if inode in {self._namespace("self"), self._namespace(1)}:
            raise BadInput(
                f"{what} is in the host's own network namespace: holding it would hold the host",
                "start it in a bottle (agentmon run -- COMMAND), or in a namespace of its own (unshare -n)",
            )
        for path in Path(paths.NETNS).glob("am-*"):
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    slot = path.name.removeprefix("am-")
                    bottle = self._bottles.get(int(slot)) if slot.isdecimal() else None
                    whose = f"of bottle {bottle.name!r}" if bottle else "of agentmon's own services"
                    raise BadInput(f"{what} is in the namespace {whose}", "agentmon ps lists what is held already")

    def _refuse_embedded(self, what: str, pid: int) -> None:
        """Docker answers on user-defined networks by sockets of its own inside, and asks the world from outside: no
        rule of a container could hold what its names carry out."""
        with contextlib.suppress(OSError):
            lines = (self._proc / str(pid) / "net/udp").read_text().splitlines()
            if any(f" {_EMBEDDED}:" in line for line in lines):
                raise BadInput(
                    f"{what} has Docker's own resolver at 127.0.0.11, which asks for it outside of every rule",
                    "start it on the default network (docker run --network bridge), or with --network none",
                )

    def _namespace(self, pid: int | str) -> int | None:
        """Inode number of a process's network namespace; None: it has ended."""
        try:
            return os.stat(f"{self._proc}/{pid}/ns/net").st_ino
        except OSError:
            return None

    def cgroup_of(self, pid: int) -> Path | None:
        """Directory of a process's cgroup v2; None: it has ended, or is in none that can be seen."""
        try:
            lines = (self._proc / str(pid) / "cgroup").read_text().splitlines()
        except OSError:
            return None
        own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
        path = self._root / (own or "")
        return path if own is not None and path.is_dir() else None

    def _is_alone(self, cgroup: Path, inode: int) -> bool:
        """Whether programs can be attached to a cgroup without holding processes of another namespace."""
        depth = len(cgroup.relative_to(self._root).parts)
        if not 0 < depth <= MAX_LEVEL or cgroup == self._tree.parent or cgroup in self._tree.parent.parents:
            return False
        return all(self._namespace(pid) in {inode, None} for pid in _subtree(cgroup))


def processes(inode: int, proc: Path = Path("/proc")) -> list[int]:
    """Every process of a network namespace."""
    found = []
    for name in os.listdir(proc):
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.stat(f"{proc}/{name}/ns/net").st_ino == inode:
                found.append(int(name))
    return found


def nameservers(root: Path) -> tuple[str, ...]:
    """Addresses of the resolv.conf below `root`, a process's view of its files. What is no plain file is not read: its
    owner could make us wait."""
    try:
        fd = os.open(root / "etc/resolv.conf", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ()
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ()
        lines = file.read(_RESOLV_BYTES).decode(errors="replace").splitlines()
    found: dict[str, None] = {}
    for words in map(str.split, lines):
        if len(words) > 1 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                address = ip_address(words[1])
                if not address.is_loopback and not address.is_unspecified:
                    found[str(address)] = None
    return tuple(found)[:3]  # resolv.conf(5): MAXNS


def _subtree(cgroup: Path) -> list[int]:
    pids = []
    for path, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError):
            pids += [int(pid) for pid in (Path(path) / "cgroup.procs").read_text().split()]
    return pids
