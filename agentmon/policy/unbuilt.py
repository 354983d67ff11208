"""Keys that are understood but not enforced, by this version or on this kernel: what protects is refused, the rest is
told."""

from __future__ import annotations

from agentmon import paths
from agentmon.errors import BadInput, HostLacks
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Settings

_HINT = "this version does not enforce it: leave the key out (CHANGELOG.md says what is there)"


def refuse_policy(policy: EffectivePolicy) -> None:
    """:raises BadInput: the policy relies on a protection that would not be there."""
    found: list[str] = []
    for route in policy.routes:
        wanted = {
            f"outbound: {route.outbound}": route.outbound in {"block", "redact"},
            f"inbound: {route.inbound}": route.inbound == "block",
            "scan_headers": bool(route.scan_headers_except),
            "git_fetch": route.git_fetch,
            f"auth: credential {route.auth_credential}": bool(route.auth_credential),
        }
        found += [f"route {route.host}, {key}" for key, written in wanted.items() if written]
    if found:
        raise BadInput(f"{found[0]}: not in this version of agentmon", _HINT)


def refuse_on_kernel(policy: EffectivePolicy, features: frozenset[str]) -> None:
    """:param features: those of ebpf.spec.Bpf.features().
    :raises HostLacks: the policy relies on one that is not there."""
    if policy.guard == "strict" and "vouch" not in features:
        what = "guard: strict needs BPF programs that this kernel does not take"
        raise HostLacks(
            what, "write guard: observe, or boot Linux 6.1 or newer (the daemon's log says what it refused)"
        )
    if policy.unix and "unix" not in features:
        what = f"unix: {policy.unix[0]}: this kernel cannot hold a bottle to the unix sockets of its policy"
        raise HostLacks(what, "leave unix: out, or boot Linux 6.7 or newer (the daemon's log says what it refused)")


def refuse_settings(settings: Settings) -> None:
    """:raises BadInput: the settings name a ledger that this version cannot keep."""
    if settings.ledger.startswith(("postgres://", "postgresql://")):
        what = f"{settings.source or 'settings'}: ledger: a PostgreSQL ledger is not in this version of agentmon"
        raise BadInput(what, "leave the key out: the ledger is SQLite on this host (docs/adr/0009)")
    if settings.ledger != f"sqlite:///{paths.LEDGER}":
        what = f"{settings.source or 'settings'}: ledger: {settings.ledger!r} is not where this version keeps it"
        raise BadInput(what, f"leave the key out, or write sqlite:///{paths.LEDGER}")


def notices(settings: Settings) -> list[str]:
    """Settings that were written and change nothing yet."""
    plain = Settings()
    written = {
        "alert": settings.alert != plain.alert,
        "retention: usage": settings.usage_age_s != plain.usage_age_s,
        "approvals_timeout": settings.approvals_timeout_s != plain.approvals_timeout_s,
    }
    return [
        f"{settings.source}: {key} is not in this version, ignoring"
        for key, is_written in written.items()
        if is_written
    ]
