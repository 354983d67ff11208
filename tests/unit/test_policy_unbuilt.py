"""What is promised and not there yet is refused where it protects, and told where it informs."""

from __future__ import annotations

import pytest

from agentmon import paths, wire
from agentmon.errors import BadInput, HostLacks
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.settings import Settings
from agentmon.policy.unbuilt import notices, refuse_on_kernel, refuse_policy, refuse_settings


def test_defaults_pass_without_a_word() -> None:
    refuse_policy(EffectivePolicy("b", (), routes=(wire.Route("a.example", paths=("/x",), auth_none=True),)))
    refuse_settings(Settings())
    refuse_settings(Settings(ledger=f"sqlite:///{paths.LEDGER}"))
    assert notices(Settings()) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"routes": (wire.Route("a.example", outbound="block"),)}, "outbound: block"),
        ({"routes": (wire.Route("a.example", outbound="redact"),)}, "outbound: redact"),
        ({"routes": (wire.Route("a.example", inbound="block"),)}, "inbound: block"),
        ({"routes": (wire.Route("a.example", git_fetch=True),)}, "git_fetch"),
        ({"routes": (wire.Route("a.example", scan_headers_except=("cookie",)),)}, "scan_headers"),
        ({"routes": (wire.Route("a.example", auth_header="x-api-key", auth_credential="k"),)}, "credential k"),
    ],
)
def test_a_protection_that_is_not_there_is_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(BadInput, match="not in this version") as caught:
        refuse_policy(EffectivePolicy("b", (), **changes))  # type: ignore[arg-type]
    assert word in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("changes", "feature"), [({"guard": "strict"}, "vouch"), ({"unix": ("/run/x/y.sock",)}, "unix")]
)
def test_what_the_kernel_does_not_do_is_refused(changes: dict[str, object], feature: str) -> None:
    everything = frozenset(("vouch", "origin", "unix"))
    policy = EffectivePolicy("b", (), **changes)  # type: ignore[arg-type]
    refuse_on_kernel(policy, everything)
    refuse_on_kernel(EffectivePolicy("b", ()), frozenset())
    with pytest.raises(HostLacks, match=next(iter(changes))) as caught:
        refuse_on_kernel(policy, everything - {feature})
    assert caught.value.hint


@pytest.mark.parametrize("ledger", ["postgresql://h/agentmon", "postgres://h/a", "sqlite:////somewhere/else.db"])
def test_another_ledger_is_refused(ledger: str) -> None:
    with pytest.raises(BadInput, match="ledger") as caught:
        refuse_settings(Settings(ledger=ledger, source="/etc/agentmon/settings.yml"))
    assert caught.value.hint and "/etc/agentmon/settings.yml" in caught.value.message


def test_what_only_informs_is_told() -> None:
    told = notices(Settings(alert=("/bin/true",), usage_age_s=5, approvals_timeout_s=1, source="s.yml"))
    assert len(told) == 3 and all(t.startswith("s.yml: ") and t.endswith(", ignoring") for t in told)
