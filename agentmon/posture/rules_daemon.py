"""Rules about the daemon and its services, as the daemon and /proc tell of them. Pure."""

from __future__ import annotations

from agentmon.posture.facts import Daemon
from agentmon.posture.model import Check, Verdict, fail, ok, warn

_NONE = "no daemon runs"
_AGAIN = "agentmon events --kind tamper says who; it is put back within a second: look again"


def _host(daemon: Daemon) -> Verdict:
    if daemon.pid == 0:
        return ok(_NONE)
    if daemon.host:
        return fail("; ".join(daemon.host[:4]), _AGAIN)
    return ok("table, routing rules, devices and switches are as they would be written now")


def _services(daemon: Daemon) -> Verdict:
    if daemon.pid == 0:
        return ok(_NONE)
    down = [s.name for s in daemon.services if not s.up]
    if down:
        return fail(f"{', '.join(down)} not running", "see /run/agentmon/svc/NAME.log; the daemon starts it again")
    if not daemon.services:
        return fail("the daemon names no services", "command and daemon differ in version: restart the daemon")
    return ok(", ".join(f"{s.name} ({s.pid})" for s in daemon.services))


def _privileges(daemon: Daemon) -> Verdict:
    if daemon.pid == 0:
        return ok(_NONE)
    strong = [s for s in daemon.services if s.uid == 0 or s.capabilities]
    if strong:
        first = strong[0]
        what = f"{first.name} ({first.pid}) runs with uid {first.uid} and capabilities {first.capabilities or 0:#x}"
        return fail(what, f"end it (kill {first.pid}): the daemon starts it anew, and it drops what it does not need")
    if unseen := [s.name for s in daemon.services if s.up and s.uid is None]:
        return warn(f"{', '.join(unseen)}: /proc does not tell", "sudo agentmon posture")
    return ok("each has a user of its own and no capabilities")


def _cores(daemon: Daemon) -> Verdict:
    if daemon.pid == 0:
        return ok(_NONE)
    dumping = [s.name for s in daemon.services if s.name.startswith("proxy") and s.up and s.core_bytes != 0]
    if dumping:
        return warn(f"{', '.join(dumping)} would leave core files", "start the daemon with LimitCORE=0")
    return ok("the proxy leaves no core files")


def _left_out(daemon: Daemon) -> Verdict:
    if daemon.pid == 0:
        return ok(_NONE)
    if daemon.left_out:
        what = "; ".join(f"{name}: {why}" for name, why in sorted(daemon.left_out.items()))
        return warn(what, "a kernel that takes them; without them the other layers hold alone")
    return ok("every group of programs is in force")


def _lost(daemon: Daemon) -> Verdict:
    if daemon.pid == 0:
        return ok(_NONE)
    if daemon.events_lost:
        what = f"{daemon.events_lost} events found no room; what they told of was refused all the same"
        return warn(what, "agentmon events --kind lost says which; a bottle that floods is worth a look")
    return ok("no event was lost")


CHECKS = (
    Check("daemon.host_rules", "The host's own rules are what they should be", "they are the authoritative layer",
          "daemon", _host),
    Check("daemon.services", "Resolver, relay, proxy and ledger run", "they are the only way out; without them nothing "
          "leaves", "daemon", _services),
    Check("daemon.privileges", "Services have no privileges", "they read what bottles send", "daemon", _privileges),
    Check("daemon.cores", "The proxy leaves no core files", "it holds credentials in memory", "daemon", _cores),
    Check("daemon.programs", "Every group of BPF programs is in force", "what is left out is not seen", "daemon",
          _left_out),
    Check("daemon.events", "No event was lost", "a gap in the record hides what filled it", "daemon", _lost),
)  # fmt: skip
