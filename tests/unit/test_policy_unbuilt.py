"""What is promised and not there yet is refused where it protects, and told where it informs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmon import paths
from agentmon.errors import BadInput, HostLacks
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.explain import check
from agentmon.policy.settings import Settings, parse
from agentmon.policy.unbuilt import lacking, refuse_on_kernel, refuse_settings
from agentmon.providers import registry


def manifest(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "m.yml"
    file.write_text(text)
    return file


def test_defaults_pass_without_a_word() -> None:
    refuse_settings(Settings())
    refuse_settings(Settings(ledger=f"sqlite:///{paths.LEDGER}"))


def test_a_check_refuses_what_stands_in_the_settings(tmp_path: Path) -> None:
    file = manifest(tmp_path, "allow: [a.example]\n")
    with pytest.raises(BadInput, match=r"s\.yml:2: ledger: ") as caught:
        check(file, parse("log: full\nledger: sqlite:////somewhere/else.db\n", "s.yml"), registry.load())
    assert caught.value.hint


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
    assert lacking(policy, everything) == ("", "")
    assert lacking(policy, everything - {feature}) == (caught.value.message, caught.value.hint)


def test_another_file_is_refused_and_a_database_is_not() -> None:
    refuse_settings(Settings(ledger="postgresql://h/agentmon"))
    with pytest.raises(BadInput, match="ledger") as caught:
        refuse_settings(Settings(ledger="sqlite:////somewhere/else.db", source="/etc/agentmon/settings.yml"))
    assert caught.value.hint and "/etc/agentmon/settings.yml" in caught.value.message
