"""Rules about running bottles: what holds each, and what its policy leaves open. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agentmon.posture.facts import Bottle, Bypasses, Daemon, Process
from agentmon.posture.model import Check, Status, Verdict, ok

# linux/capability.h: those with which a process could change what holds it
_STRONG = {12: "NET_ADMIN", 13: "NET_RAW", 16: "SYS_MODULE", 19: "SYS_PTRACE", 21: "SYS_ADMIN", 39: "BPF"}


def _each(status: Status, wrong: Callable[[Bottle], str], remedy: str, good: str, bottles: Iterable[Bottle]) -> Verdict:
    """The bottles that something is wrong with, by name."""
    bottles = tuple(bottles)
    found = [(b.name, said) for b in bottles if (said := wrong(b))]
    if not found:
        return ok(f"{len(bottles)} running: {good}" if bottles else "no bottle is running")
    shown = "; ".join(f"{name}: {said}" for name, said in found[:4])
    more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
    return Verdict(status, shown + more, remedy)


def _check(id: str, title: str, why: str, wrong: Callable[[Bottle], str], remedy: str, good: str,
           status: Status = Status.WARN) -> Check:  # fmt: skip
    def judge(daemon: Daemon) -> Verdict:
        return _each(status, wrong, remedy, good, daemon.bottles)

    return Check(id, title, why, "daemon", judge)


def strong_names(capabilities: int) -> list[str]:
    """Of those with which a process could change what holds it."""
    return [name for bit, name in _STRONG.items() if capabilities >> bit & 1]


def _strong(bottle: Bottle) -> str:
    for process in bottle.processes:
        if names := strong_names(process.capabilities):
            return f"{process.comm} ({process.pid}) has {', '.join(names)}"
    return ""


def _own_strong(bottle: Bottle) -> str:
    return "" if bottle.attached else _strong(bottle)


def _foreign_strong(bottle: Bottle) -> str:
    return _strong(bottle) if bottle.attached else ""


def _unguarded(bottle: Bottle) -> str:
    """Only where a process of the bottle is guarded at all, or the policy asks for it."""
    pythons = [p for p in bottle.processes if p.python]
    without = [p for p in pythons if not p.guarded]
    wanted = bottle.guard == "strict" or any(p.guarded for p in bottle.processes)
    return _named(without) if wanted else ""


def _named(processes: Iterable[Process]) -> str:
    return ", ".join(f"{p.comm} ({p.pid})" for p in list(processes)[:5])


def _bypasses(found: Bypasses) -> Verdict:
    if not found.libraries:
        return ok("no guarded process connected behind its guard's back in the last day")
    most = sorted(found.libraries.items(), key=lambda item: (-item[1], item[0]))
    what = ", ".join(f"{name or 'unknown code'} ({n} times)" for name, n in most[:5])
    return Verdict(
        Status.WARN, f"connected behind the guard's back: {what}",
        "agentmon events --kind bypass; agentmon audit-native --venv DIR lists what could; guard: strict refuses it",
    )  # fmt: skip


CHECKS = (
    _check(
        "bottle.rules", "Tables, namespaces and devices are what the policy compiles to",
        "what differs is not held as the policy says", lambda b: ", ".join(b.rules[:4]),
        "agentmon events --kind tamper says who; it is put back within a second: look again",
        "as they would be written now", Status.FAIL,
    ),
    _check(
        "bottle.programs", "BPF programs and maps are what the policy compiles to", "a connect would not be judged",
        lambda b: ", ".join(b.programs[:4]), "restart the daemon (agentmon daemon): it puts them in force anew",
        "in force, with the policy's entries", Status.FAIL,
    ),
    _check(
        "bottle.compared", "Every bottle was compared with the kernel", "what was not compared may differ",
        lambda b: "" if b.compared else "not compared this time", "look again: others are compared then",
        "all compared",
    ),
    _check(
        "bottle.lacks", "This kernel holds every part of the policy", "a part of the policy is not in force",
        lambda b: b.lacks, "it stays cut; boot the kernel it was made on, or change its policy",
        "nothing is missing", Status.FAIL,
    ),
    _check(
        "bottle.observe", "No bottle runs in observe mode", "its allowlist refuses nothing",
        lambda b: "observe" if b.observe else "", "agentmon policy learn BOTTLE writes the manifest to enforce",
        "all enforce",
    ),
    _check(
        "bottle.io_uring", "io_uring is closed", "its operations are judged, but its kernel code has a history",
        lambda b: "io_uring: true" if b.io_uring else "", "leave io_uring: out unless the job needs it", "all closed",
    ),
    _check(
        "bottle.home", "No bottle has a host's home directory", "keys, tokens and shell profiles are in it",
        lambda b: "home: host" if b.home == "host" else "", "home: private, and ro: or rw: for what the job needs",
        "all private",
    ),
    _check(
        "bottle.capabilities", "No process of a bottle has capabilities", "NET_ADMIN can undo inner layers",
        _own_strong, "agentmon kill BOTTLE: jobs are started without any", "none has any", Status.FAIL,
    ),
    _check(
        "bottle.attached_capabilities", "Attached containers have no capabilities over their network",
        "their root can change what is inside; the host's side holds it, and it is put back", _foreign_strong,
        "start the container with --cap-drop NET_ADMIN,NET_RAW,SYS_ADMIN", "none has",
    ),
    _check(
        "bottle.sockets", "No control socket of the host is inside a bottle", "docker.sock and its kin are root",
        lambda b: ", ".join(b.sockets[:4]), "leave it out of unix:, and out of the container's mounts", "none",
        Status.FAIL,
    ),
    _check(
        "bottle.metadata", "Metadata addresses are refused", "they hand out credentials of the whole machine",
        lambda b: ", ".join(b.metadata), "agentmon policy explain BOTTLE ADDRESS says which rule", "refused",
        Status.FAIL,
    ),
    _check(
        "bottle.dns", "Names are resolved by agentmon only", "a rule for port 53 or 853 lets names carry data out",
        lambda b: ", ".join(b.direct_dns[:4]), "leave the rule out: allowed names resolve without it", "no rule for it",
    ),
    _check(
        "bottle.wide", "No direct rule is wider than 65,536 addresses", "direct rules hold addresses and ports only",
        lambda b: ", ".join(b.wide[:4]), "write names, or the prefixes that are needed", "none is",
    ),
    _check(
        "bottle.own_keys", "Providers get the host's credential", "with its own key, an attacker's key works too",
        lambda b: ", ".join(b.own_keys[:4]), "auth: {header: …, credential: …} in the host's route",
        "no bottle uses its own key",
    ),
    _check(
        "bottle.guarded", "Python processes are guarded where one is", "an unguarded one gets no readable refusal",
        _unguarded, "install agentmon in that environment: docs/guard.md", "guarded, or no guard is used",
    ),
    Check(
        "bottle.bypasses", "Nothing connected behind a guard's back", "native code does not ask the guard", "bypasses",
        _bypasses,
    ),
)  # fmt: skip
