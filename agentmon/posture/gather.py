"""Every probe at the same time, each with its share of DEADLINE_S; what fails or is late is Unseen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from typing import Any

from agentmon.errors import AgentmonError
from agentmon.posture import probe_daemon, probe_files, probe_kernel, probe_network
from agentmon.posture.facts import Facts
from agentmon.posture.model import Unseen

DEADLINE_S = 2.5
LAST_S = 0.5  # for what can only be asked once the daemon has answered

PROBES: dict[str, Callable[[], Any]] = {
    "platform": probe_kernel.platform, "root": probe_kernel.root, "nft": probe_kernel.nft, "bpf": probe_kernel.bpf,
    "cgroups": probe_kernel.cgroups, "lockdown": probe_kernel.lockdown, "lsm": probe_kernel.lsm,
    "unprivileged_bpf": probe_kernel.unprivileged_bpf, "bwrap": probe_kernel.bwrap,
    "switches": probe_network.switches, "conntrack": probe_network.conntrack, "chains": probe_network.chains,
    "sockets": probe_network.sockets, "settings": probe_files.settings_files, "grants": probe_files.grants,
    "credentials": probe_files.credentials, "code": probe_files.code, "authority": probe_files.authority,
    "run_files": probe_files.run_files, "ledger_files": probe_files.ledger_files, "ledger": probe_files.ledger,
    "disk": probe_files.disk, "clock": probe_files.clock, "bypasses": probe_daemon.bypasses,
}  # fmt: skip


def gather(ask: probe_daemon.Ask, deadline_s: float = DEADLINE_S) -> Facts:
    """Look at everything. Needs root for most of it; without, what needs it is Unseen.

    :param ask: see probe_daemon.daemon.
    """
    probes = {**PROBES, "daemon": lambda: probe_daemon.daemon(ask)}
    end = time.monotonic() + deadline_s
    running = {name: _started(probe) for name, probe in probes.items()}
    found = {name: _result(future, end - time.monotonic()) for name, future in running.items()}
    running_daemon = not isinstance(found["daemon"], Unseen) and found["daemon"].pid != 0
    leftovers = () if running_daemon else _result(_started(probe_network.leftovers), LAST_S)
    return Facts(**found, leftovers=leftovers)


def _started(probe: Callable[[], Any]) -> Future[Any]:
    """In a thread that the process does not wait for at its end: a probe may hang for good (a dead mount)."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(probe())
        except Exception as error:  # noqa: BLE001 - handed on: _result knows which are expected, and raises the others
            future.set_exception(error)

    threading.Thread(target=run, name="posture", daemon=True).start()
    return future


def _result(future: Future[Any], left_s: float) -> Any:
    try:
        return future.result(max(0.0, left_s))
    except Late:
        return Unseen("it did not answer in time", "look again when the host is less busy")
    except (OSError, AgentmonError, ValueError, KeyError) as error:
        return Unseen(f"looking at it failed: {error}", getattr(error, "hint", ""))
