"""What the proxy and the resolver are told of a bottle's secrets, and how a bad rule file is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentmon.control.state import Bottle, Job, Phase
from agentmon.credentials.sources import Store
from agentmon.daemon.secrets import Secrets, name_digests, rule_text
from agentmon.dlp.names import Known
from agentmon.errors import BadInput
from agentmon.events import Event, to_dict
from agentmon.policy import settings
from agentmon.policy.effective import EffectivePolicy
from agentmon.proxy.outbound import Decision, Outcome
from agentmon.render.events import paragraph
from agentmon.render.secrets import _ENDS

ENV = {"API_TOKEN": "planted-token-4711", "PATH": "/usr/bin:/bin", "SHORT_KEY": "abc"}
JOB = Job(("job",), tuple(ENV.items()), "/", 1000, 1000, (), tty=False)
BOTTLE = Bottle(16, "b", "run-1", Phase.RUNNING, EffectivePolicy("b", ()), JOB, 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    directory = tmp_path / "credentials"
    directory.mkdir(mode=0o700)
    for name, mode in (("house", 0o600), ("other", 0o600), ("open", 0o644), (".new", 0o600)):
        (directory / name).write_text(f"value-of-{name}-0815\n")
        (directory / name).chmod(mode)
    return Store(directory=directory, owner=directory.stat().st_uid)


def test_the_environments_secrets_and_the_hosts_credentials_are_known(store: Store) -> None:
    made = Secrets()
    key, known = made.of(BOTTLE, store, {"house": "value-by-command-0815"})
    assert known == {
        "env API_TOKEN": "planted-token-4711", "credential other": "value-of-other-0815",
        "credential house": "value-by-command-0815",
    }  # fmt: skip
    assert made.of(BOTTLE, store, {})[0] == key, "a worker that comes back is told the same"
    assert made.of(replace(BOTTLE, run="run-2"), store, {})[0] != key
    assert Secrets().of(BOTTLE, store, {})[0] != key, "who knows a run's name knows no key"
    assert next(iter(known)).startswith("env "), "what the job was given is its own, also where the host has it"


def test_names_are_held_to_passwords_and_not_to_hosts() -> None:
    known = Known(b"k", name_digests({"env DB_URL": "postgres://app:pass-word-0815@database.corp.example/x"}, b"k"))
    assert known.is_in("pass-word-0815.x.example") and not known.is_in("database.corp.example")


def test_a_rule_file_of_the_settings(tmp_path: Path) -> None:
    assert rule_text(settings.Settings()) == b""
    file = tmp_path / "own.toml"
    found = settings.parse(f"log: full\ndlp: {{rules: {file}}}\n", "s.yml")
    with pytest.raises(BadInput, match=rf"s\.yml:2: {file}: No such file") as caught:
        rule_text(found)
    assert caught.value.hint
    file.write_text("[[rules]]\nid = 'a'\nregex = '('\n")
    with pytest.raises(BadInput, match=rf"s\.yml:2: {file}:3: regex: ") as caught:
        rule_text(found)
    assert caught.value.hint
    file.write_text("[[rules]]\nid = 'a'\nregex = 'a'\n")
    assert rule_text(found) == file.read_bytes()


@pytest.mark.parametrize("reason", [*Decision, *Outcome])
def test_every_end_has_its_words(reason: Decision | Outcome) -> None:
    detail = {"detector": "github-pat", "where": "body", "context": '{"a": "[…]"}', "action": reason.value}
    verdict = "allowed" if reason in {Decision.APPROVED, Outcome.REDACTED} else "refused"
    event = Event("secret", verdict, "b", reason.value, "proxy", host="x.example", port=443, detail=detail, comm="curl")
    text = paragraph(to_dict(event))
    assert "curl tried to send" in text and "to x.example:443: " in text and _ENDS[reason.value] in text
