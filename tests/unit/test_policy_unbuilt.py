"""What is promised and not there yet is refused where it protects, and told where it informs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmon import paths
from agentmon.errors import BadInput, HostLacks
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.explain import check
from agentmon.policy.manifest import load_chain
from agentmon.policy.merge import Options, effective
from agentmon.policy.settings import Settings, parse
from agentmon.policy.unbuilt import lacking, refuse, refuse_on_kernel, refuse_settings
from agentmon.providers import registry

ROUTE = "routes:\n  - host: a.example\n    {}\n"
UNBUILT = [
    "outbound: block",
    "outbound: redact",
    "scan_headers: {except: [cookie]}",
]


def manifest(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "m.yml"
    file.write_text(text)
    return file


def test_defaults_pass_without_a_word(tmp_path: Path) -> None:
    file = manifest(tmp_path, ROUTE.format("paths: [/x]\n    auth: none"))
    refuse(Settings(), load_chain(file, tmp_path))
    refuse_settings(Settings(ledger=f"sqlite:///{paths.LEDGER}"))


@pytest.mark.parametrize("written", UNBUILT)
def test_a_protection_that_is_not_there_is_refused_with_its_place(tmp_path: Path, written: str) -> None:
    """By the merge that `run` goes through, and by `policy check`, in the same words."""
    file = manifest(tmp_path, 'allow: ["https://a.example"]\n' + ROUTE.format(written))
    with pytest.raises(BadInput, match="not in this version") as merged:
        effective(Settings(bottles_dir=tmp_path), load_chain(file, tmp_path), Options(name="b"), registry.load())
    assert merged.value.message.startswith(f"{file}:4: routes[0].{written.partition(':')[0]}: ")
    assert merged.value.hint
    with pytest.raises(BadInput) as checked:
        check(file, Settings(bottles_dir=tmp_path), registry.load())
    assert (checked.value.message, checked.value.hint) == (merged.value.message, merged.value.hint)


def test_a_check_refuses_what_stands_in_the_settings(tmp_path: Path) -> None:
    file = manifest(tmp_path, "allow: [a.example]\n")
    with pytest.raises(BadInput, match=r"s\.yml:2: ledger: .*PostgreSQL") as caught:
        check(file, parse("log: full\nledger: postgresql://h/agentmon\n", "s.yml"), registry.load())
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


@pytest.mark.parametrize("ledger", ["postgresql://h/agentmon", "postgres://h/a", "sqlite:////somewhere/else.db"])
def test_another_ledger_is_refused(ledger: str) -> None:
    with pytest.raises(BadInput, match="ledger") as caught:
        refuse_settings(Settings(ledger=ledger, source="/etc/agentmon/settings.yml"))
    assert caught.value.hint and "/etc/agentmon/settings.yml" in caught.value.message
