"""Starting and stopping a CI session: what is attached, who watches its steps, what is left for the report."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from agentmon.ci import place, session
from agentmon.ci.session import Process, Session
from agentmon.cli import ci_report, containers
from agentmon.cli.control import ask, connect_or_start, reachable
from agentmon.errors import AgentmonError, BadInput, HostLacks

_WHAT = ("pid", "cgroup", "netns", "container")
_ROOT = str(Path(__file__).resolve().parents[2])


def begin(name: str, enforce: bool, baseline: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """:raises AgentmonError: nothing is held then, and nothing is left."""
    session.checked(name)
    _refuse_running(name)
    if enforce and baseline is not None and not baseline.exists():
        raise BadInput(
            f"--baseline {baseline}: there is no such file", "observe first: agentmon ci start, ci report --update"
        )
    rules = ci_report.rules(baseline) if baseline is not None and baseline.exists() else ()
    args = _arguments(name, enforce, [rule.text for rule in rules], options)
    holder: Process | None = None
    watch: Process | None = None
    cgroup = ""
    attached: dict[str, Any] = {}
    started_ns = time.time_ns()
    try:
        if not any(options[key] for key in _WHAT):
            holder, path = place.make(name)
            cgroup = str(path)
            args |= {"cgroup": cgroup, "what": "the place of its steps"}
        connect_or_start().close()
        inode = _inode(args)
        attached = ask("attach", **args)
        watch = _watch(inode, session.steps_file(name))
        made = Session(
            bottle=name, what=str(attached["attached"]), mode="enforce" if enforce else "observe", inode=inode,
            started_ns=started_ns, baseline=str(baseline.absolute()) if baseline is not None else "", watch=watch,
            holder=holder, cgroup=cgroup,
        )  # fmt: skip
        session.save(made)
    except BaseException as e:
        if attached:
            ask("detach", bottle=name)
        if watch is not None:
            place.end(watch)
        place.remove(holder, cgroup)
        if isinstance(e, OSError):
            raise HostLacks(f"{session.file(name)} cannot be written: {e.strerror}", "free some space") from e
        raise
    told = {"layers": attached["layers"], "notes": attached["notes"], "place": holder is not None}
    return {"bottle": name, "what": made.what, "mode": made.mode, **told}


def finish(name: str) -> dict[str, Any]:
    """:raises BadInput: there is no such session, or it has been stopped. :raises HostLacks: a process does not end."""
    found = session.load(name)
    if found.stopped_ns:
        raise BadInput(f"session {name!r} has been stopped", f"agentmon ci report --name {name}")
    notes = []
    if reachable() and any(row["bottle"] == name for row in ask("ps")):
        ask("detach", bottle=name)
    else:
        notes.append(f"bottle {name!r} had ended before: whatever was in it was let go then")
    stopped_ns = time.time_ns()
    if found.watch is not None:
        place.end(found.watch)
    if left := place.remove(found.holder, found.cgroup):
        notes.append(f"{left} processes that steps had left running were ended")
    session.save(msgspec.structs.replace(found, stopped_ns=stopped_ns, watch=None, holder=None, cgroup=""))
    return {"bottle": name, "what": found.what, "notes": notes}


def _refuse_running(name: str) -> None:
    with contextlib.suppress(BadInput):
        found = session.load(name)
        if not found.stopped_ns:
            raise AgentmonError(f"CI session {name!r} has been started already", f"sudo agentmon ci stop --name {name}")
    session.file(name).unlink(missing_ok=True)
    session.steps_file(name).unlink(missing_ok=True)


def _arguments(name: str, enforce: bool, rules: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Of an `attach` request. Rules of the baseline are given where they are to hold: what a policy allows is not told,
    and an observed job is to be told whole."""
    given = [key for key in _WHAT if options[key]]
    if len(given) > 1:
        raise BadInput(
            f"one thing is held at a time, and {' and '.join('--' + g for g in given)} were given", "leave one"
        )
    args: dict[str, Any] = {key: options[key] for key in ("pid", "netns", "provider")}
    args |= {"name": name, "observe": not enforce, "budgets": list(options["budget"])}
    args["allow"] = [*options["allow"], *(rules if enforce else [])]
    if options["cgroup"]:
        args["cgroup"] = os.path.abspath(options["cgroup"])
    if options["container"]:
        args |= {"pid": str(containers.pid_of(options["container"])), "what": f"container {options['container']}"}
    if options["pid"] and str(options["pid"]).isdecimal():
        _refuse_hosts(int(options["pid"]))
    if options["policy"]:
        from agentmon.cli.run import manifest_arguments

        args |= manifest_arguments(options["policy"])
    return {key: value for key, value in args.items() if value}


def _refuse_hosts(pid: int) -> None:
    """What is not there, or not a namespace of its own, is told by the daemon in its words but for this one."""
    with contextlib.suppress(OSError):
        if place.inode_of(pid) == place.inode_of(1):
            raise BadInput(
                f"process {pid} is in the host's own network namespace: holding it would hold the host",
                "let the job's steps enter a place (agentmon ci start, agentmon ci exec), or start the runner in a"
                " namespace of its own: docs/operations/ci.md",
            )


def _inode(args: dict[str, Any]) -> int:
    """Of the namespace that is about to be attached to; 0 where it cannot be told: the daemon says why."""
    try:
        if "cgroup" in args:
            pids = (Path(args["cgroup"]) / "cgroup.procs").read_text().split()
            return place.inode_of(pids[0]) if pids else 0
        if "pid" in args:
            return place.inode_of(args["pid"])
        path = Path(args["netns"])
        return (path if "/" in args["netns"] else Path("/run/netns") / path).stat().st_ino
    except OSError:
        return 0


def _watch(inode: int, file: Path) -> Process | None:
    """:raises HostLacks: it cannot be started; the runner is held all the same, and let go by who called."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentmon.ci.watch", str(inode), str(file)], cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": _ROOT},
        )  # fmt: skip
    except OSError as e:
        raise HostLacks(f"nobody can watch the steps: {e}") from e
    return place.process_of(process.pid)
