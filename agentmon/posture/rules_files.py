"""Rules about files: who may write what root reads, who may read what is secret, and whether there is room. Pure."""

from __future__ import annotations

from agentmon.posture.facts import Authority, Disk, Ledger, Own
from agentmon.posture.model import Check, Verdict, fail, ok, warn

_GROUP_WRITE, _WORLD_WRITE, _GROUP_READ, _WORLD = 0o020, 0o002, 0o040, 0o007
_LOW_BYTES, _OUT_BYTES = 1 << 30, 100 << 20
_SQLITE_BROKEN = ((3, 7, 0), (3, 51, 2))  # the WAL-reset bug, both included
_CA_WARN_DAYS = 30


def _written_by_others(file: Own) -> bool:
    owners = {0} if file.wanted_uid is None else {0, file.wanted_uid}
    return (
        file.uid not in owners or bool(file.mode & _WORLD_WRITE) or (bool(file.mode & _GROUP_WRITE) and file.gid != 0)
    )


def _shown(file: Own) -> str:
    return f"{file.path} (uid {file.uid}, gid {file.gid}, mode {file.mode:04o})"


def _only_root_writes(files: tuple[Own, ...], none: str) -> Verdict:
    loose = [f for f in files if _written_by_others(f)]
    if loose:
        more = f", and {len(loose) - 1} more" if len(loose) > 1 else ""
        remedy = f"chown root:root {loose[0].path}; chmod go-w {loose[0].path}"
        return fail(f"others than root may write {_shown(loose[0])}{more}", remedy)
    return ok(f"{len(files)} looked at; only root writes them" if files else none)


def _settings(files: tuple[Own, ...]) -> Verdict:
    return _only_root_writes(files, "no settings: the defaults")


def _valid(files: tuple[Own, ...]) -> Verdict:
    bad = [f for f in files if f.problem]
    if bad:
        return fail("; ".join(f.problem for f in bad[:3]), "agentmon policy check FILE says what was expected")
    return ok(f"{len(files)} read" if files else "no settings: the defaults")


def _grants(granted: tuple[str, ...]) -> Verdict:
    if granted:
        what = f"members of group agentmon may: {', '.join(granted)}"
        return warn(what, "leave out of grants: what they do not need; what they did is in `agentmon audit`")
    return ok("nothing beyond running and operating bottles of one's own")


def _code(files: tuple[Own, ...]) -> Verdict:
    return _only_root_writes(files, "nothing was found")


def _secret(files: tuple[Own, ...], none: str) -> Verdict:
    loose = [f for f in files if f.uid not in {0, f.wanted_uid} or f.mode & 0o077]
    if loose:
        return fail(
            f"others may read {_shown(loose[0])}", f"chown root:root {loose[0].path}; chmod 0600 {loose[0].path}"
        )
    return ok(f"{len(files)} looked at; only their owner reads them" if files else none)


def _credentials(files: tuple[Own, ...]) -> Verdict:
    return _secret(files, "none is kept in files")


def _ca_key(authority: Authority | None) -> Verdict:
    return ok("none was made yet") if authority is None else _secret((authority.key,), "")


def _ca_life(authority: Authority | None) -> Verdict:
    if authority is None:
        return ok("none was made yet")
    days = authority.days_left
    if days < 0:
        return fail(f"it ended {-days} days ago", "agentmon daemon makes a new one when it starts")
    if days < _CA_WARN_DAYS:
        return warn(f"it ends in {days} days", "a daemon that starts now makes a new one; running bottles keep the old")
    return ok(f"it ends in {days} days")


def _run_files(files: tuple[Own, ...]) -> Verdict:
    open_ = [f for f in files if f.mode & _WORLD]
    if open_:
        return fail(f"everybody may use {_shown(open_[0])}", "restart the daemon; something changed it")
    return ok(f"{len(files)} looked at" if files else "no daemon runs")


def _ledger_files(files: tuple[Own, ...]) -> Verdict:
    loose = [f for f in files if f.mode & 0o077 or f.uid not in {0, f.wanted_uid}]
    if loose:
        remedy = f"chmod go-rwx {loose[0].path}; chown agentmon-ledger {loose[0].path}"
        return fail(f"others than the ledger's user may reach {_shown(loose[0])}", remedy)
    return ok(f"{files[0].path} is its user's alone" if files else "none was made yet")


def _ledger(ledger: Ledger | None) -> Verdict:
    if ledger is None:
        return ok("none was made yet")
    if ledger.problems:
        remedy = "agentmon ledger check says all; agentmon ledger backup FILE before anything else"
        return fail("; ".join(ledger.problems[:3]), remedy)
    return ok("pages, tables, triggers, references and every total are right")


def _sqlite(ledger: Ledger | None) -> Verdict:
    if ledger is None:
        return ok("none was made yet")
    version = ".".join(str(n) for n in ledger.sqlite)
    if _SQLITE_BROKEN[0] <= ledger.sqlite <= _SQLITE_BROKEN[1]:
        return fail(
            f"SQLite {version} can lose a WAL when two checkpoints meet", "sudo make setup: apsw brings its own"
        )
    return ok(f"SQLite {version}")


def _disk(disk: Disk) -> Verdict:
    said = f"{disk.free_bytes >> 20} MiB free at {disk.path}"
    if disk.read_only:
        return fail(f"{disk.path} is read-only", "mount it read-write: what cannot be recorded is refused")
    if disk.free_bytes < _OUT_BYTES:
        return fail(said, "make room: without it metered requests are refused with 503")
    return warn(said, "make room, or lower retention:") if disk.free_bytes < _LOW_BYTES else ok(said)


def _clock(synchronised: bool) -> Verdict:
    if synchronised:
        return ok("the kernel calls it synchronised")
    return warn(
        "nothing keeps the clock right", "enable systemd-timesyncd or chrony: budgets per day follow this clock"
    )


CHECKS = (
    Check("files.settings", "Only root writes settings and manifests", "whoever writes them is the policy", "settings",
          _settings),
    Check("files.valid", "Settings and manifests can be read", "a bad file is not put in force; the old one stays",
          "settings", _valid),
    Check("files.grants", "What the group may do", "grants make every member an operator of that", "grants", _grants),
    Check("files.code", "Only root writes the code that root runs", "whoever writes it is root", "code", _code),
    Check("files.credentials", "Credentials are root's alone", "a key that others read is theirs", "credentials",
          _credentials),
    Check("files.ca_key", "The authority's key is the proxy's alone", "who has it can pose as any host to every bottle",
          "authority", _ca_key),
    Check("files.ca_life", "The authority lives on", "an ended one refuses inspected names", "authority", _ca_life),
    Check("files.run", "Sockets and state are closed to others", "the control socket gives bottles away", "run_files",
          _run_files),
    Check("ledger.files", "The ledger is its writer's alone", "what others write is not what was used", "ledger_files",
          _ledger_files),
    Check("ledger.integrity", "The ledger agrees with itself", "budgets rest on its totals", "ledger", _ledger),
    Check("ledger.sqlite", "SQLite keeps what it committed", "up to 3.51.2 it can lose commits", "ledger", _sqlite),
    Check("host.disk", "There is room to record", "what cannot be recorded is refused", "disk", _disk),
    Check("host.clock", "The clock is right", "certificates and budgets per day follow it", "clock", _clock),
)  # fmt: skip
