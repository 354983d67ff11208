"""Routes that are read anew: which files count, what changes with them, what is told when one cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentmon.daemon.reload import rerouted
from agentmon.errors import AgentmonError
from agentmon.policy.effective import EffectivePolicy
from agentmon.policy.manifest import load_chain
from agentmon.policy.merge import Options, effective
from agentmon.policy.settings import Settings
from agentmon.providers import registry

PROVIDERS = registry.load()
ONE = "allow: [a.example, b.example]\nroutes: [{host: a.example, methods: [GET]}]\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "bottles").mkdir()
    return Settings(bottles_dir=tmp_path / "bottles")


def started(settings: Settings, file: Path) -> EffectivePolicy:
    return effective(settings, load_chain(file, settings.bottles_dir), Options(name="b"), PROVIDERS)


def test_routes_and_what_is_decrypted_change_and_nothing_else(settings: Settings) -> None:
    (settings.bottles_dir / "base.yml").write_text(ONE)
    file = settings.bottles_dir / "m.yml"
    file.write_text("extends: base\nbudget: {claude: 5}\n")
    before = started(settings, file)
    assert rerouted(before, settings, PROVIDERS) == before
    (settings.bottles_dir / "base.yml").write_text("allow: [c.example]\nroutes: [{host: b.example, auth: none}]\n")
    after = rerouted(before, settings, PROVIDERS)
    assert [route.host for route in after.routes] == ["b.example"]
    assert "b.example" in after.inspected and "a.example" not in after.inspected
    assert replace(after, routes=before.routes, inspected=before.inspected) == before


def test_a_file_of_elsewhere_and_none_are_left_alone(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "m.yml"
    file.write_text(ONE)
    before = started(settings, file)
    file.write_text("routes: []\n")
    assert rerouted(before, settings, PROVIDERS) is before
    (settings.bottles_dir / "link.yml").symlink_to(file)
    linked = replace(before, sources=(str(settings.bottles_dir / "link.yml"),))
    assert rerouted(linked, settings, PROVIDERS) is linked
    assert rerouted(EffectivePolicy("b", ()), settings, PROVIDERS) == EffectivePolicy("b", ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("allow: [", "m.yml"), ("routes: [{host: a.example, outbound: block}]", "m.yml:1: "), (None, "m.yml"),
        ("extends: ../../elsewhere.yml", "elsewhere.yml"),
        ("allow: []\nroutes: [{host: d.example}]", "d.example"),  # held by name and direct at once
    ],
)  # fmt: skip
def test_what_cannot_be_used_says_where(settings: Settings, text: str | None, said: str) -> None:
    file = settings.bottles_dir / "m.yml"
    file.write_text('allow: [a.example, "tcp://d.example:22"]\n')
    before = started(settings, file)
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises((AgentmonError, OSError)) as caught:
        rerouted(before, settings, PROVIDERS)
    assert said in str(caught.value)
