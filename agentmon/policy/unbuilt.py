"""Keys that are understood but not enforced, by this version or on this kernel: what relies on them is refused."""

from __future__ import annotations

from agentmon import paths
from agentmon.errors import HostLacks
from agentmon.policy.document import Place
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Settings


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


def lacking(policy: EffectivePolicy, features: frozenset[str]) -> tuple[str, str]:
    """What `refuse_on_kernel` would say of a bottle that runs already, and its hint; ("", "") for nothing."""
    try:
        refuse_on_kernel(policy, features)
    except HostLacks as error:
        return error.message, error.hint
    return "", ""


def refuse_settings(settings: Settings) -> None:
    """:raises BadInput: the settings name a ledger that this version cannot keep."""
    place = settings.places.get("ledger", Place(settings.source or "settings", 1, "ledger"))
    if not settings.ledger_is_shared and settings.ledger != f"sqlite:///{paths.LEDGER}":
        what = f"{settings.ledger!r} is not where this version keeps it"
        raise place.error(what, f"leave the key out, or write sqlite:///{paths.LEDGER}")
