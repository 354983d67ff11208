"""Who made the call that an origin record is about: record and process put together (edge: reads /proc)."""

from __future__ import annotations

from typing import NamedTuple

from ebpf.culprit import Culprit, Evidence, culprit, is_address_sorting
from ebpf.origin import Origin, syscall_name
from ebpf.process import Facts, Gone, Process, TooMany


class Maker(NamedTuple):
    """`facts` is None when the process was gone before it could be asked; then the culprit's evidence is `gone`."""

    syscall: str
    culprit: Culprit
    facts: Facts | None
    sorting: bool  # getaddrinfo's own connect; says something of UDP connects only


def maker_of(origin: Origin) -> Maker:
    """Who made the call. Some 0.5 ms, where the kernel can be asked for single mappings (v6.11); else up to 25 ms, in
    proportion to their number.

    Privilege: CAP_SYS_PTRACE and CAP_SYS_ADMIN, except for one's own processes.
    """
    syscall = syscall_name(origin)
    facts = None
    evidence: Evidence = "gone"
    try:
        with Process(origin.tgid, origin.ts_ns, origin.pid) as process:
            facts, memory = process.facts(), process.memory()
            found = culprit(origin, memory, process.code)
            sorting = found.evidence != "ip" and is_address_sorting(origin, memory, process.code, process.getaddrinfo)
            return Maker(syscall, found, facts, sorting)
    except (TooMany, PermissionError):
        evidence = "busy"
    except (Gone, ProcessLookupError):
        pass
    return Maker(syscall, Culprit("", 0, evidence), facts, False)


def facts_at(tgid: int, ts_ns: int, pid: int = 0) -> Facts | None:
    """Facts of the process of an event without a record of its origin; None: gone."""
    try:
        with Process(tgid, ts_ns, pid) as process:
            return process.facts()
    except Gone:
        return None
