"""docs/providers.md is true: its table has every provider and host, its settings load, its bad ones fail as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentmon.errors import BadInput
from agentmon.policy import settings
from agentmon.providers import counting, estimate, match, openai_usage
from agentmon.providers.declaration import Convention, Metering
from agentmon.providers.registry import load
from agentmon.providers.request import read
from tests.support.provider_cases import CASES

GUIDE = (Path(__file__).parents[2] / "docs/providers.md").read_text()
BLOCKS = re.findall(r"^```yaml(?P<info>[^\n]*)\n(?P<body>.*?)^```$", GUIDE, re.M | re.S)
ROWS = {row[0]: row for row in re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", GUIDE, re.M)}


def test_the_table_has_every_provider_its_hosts_and_its_convention() -> None:
    providers = load()
    assert list(ROWS) == list(providers)
    for name, provider in providers.items():
        assert tuple(re.findall(r"`([^`]+)`", ROWS[name][1])) == provider.hosts
        said = {e.convention for e in provider.endpoints if e.convention is not None}
        assert ROWS[name][3] == (said.pop().value if len(said) == 1 else "by protocol")


def test_every_metered_endpoint_of_a_protocol_has_a_case() -> None:
    """A parser that no case feeds is not tested; the same protocol under another path is."""
    fed = {match.endpoint(load()[c.provider], c.method, c.path).parser for c in CASES.values()}  # type: ignore[union-attr]
    for provider in load().values():
        assert any(case.provider == provider.name for case in CASES.values())
        for endpoint in provider.endpoints:
            assert endpoint.metering is not Metering.METERED or endpoint.parser in fed


@pytest.mark.parametrize(("info", "body"), BLOCKS)
def test_settings_in_it_load_or_fail_as_it_says(info: str, body: str) -> None:
    wanted = info.strip().removeprefix("error:").strip()
    if not wanted:
        providers = load(settings.parse(body, "settings.yml").providers)
        found = match.owner(providers, "a.b.llm.corp.example")
        assert found is providers["house"] is match.owner(providers, "llm-7.eu.corp.example")
        asked = match.endpoint(found, "POST", "/v2/chat")
        assert asked is not None and asked.convention is Convention.INCLUDED
        assert match.endpoint(found, "POST", "/v1/images/generations").metering is Metering.REFUSED  # type: ignore[union-attr]
        return
    with pytest.raises(BadInput, match=re.escape(wanted)) as caught:
        settings.parse(body, "settings.yml")
    assert re.match(r"settings\.yml:\d+: ", caught.value.message) and caught.value.hint


def test_its_numbers_are_those_of_the_code() -> None:
    def output(provider: str, path: str, body: bytes = b"{}") -> int:
        declared = load()[provider]
        endpoint = match.endpoint(declared, "POST", path)
        assert endpoint is not None
        return estimate.of(declared, endpoint, read(path, body)).output

    for number, words in (
        (counting.IMAGE_TOKENS, "a picture {} tokens"),
        (counting.STORED_TOKENS, "context {} each"),
        (output("openai", "/v1/chat/completions"), "without one {}"),
        (output("gemini", "/v1beta/models/m:generateContent"), "invoke {}"),
        (output("bedrock", "/model/m/invoke"), "invoke {}"),
        (output("openai", "/v1/images/generations"), "a picture {}"),
        (output("openai", "/v1/responses", b'{"background": true}'), "background {}"),
        (openai_usage.AUDIO_TOKENS_PER_S, "count {} input tokens"),
        (counting.BYTES_PER_TOKEN, "bytes ÷ {};"),
        (counting.MEDIA_BYTES_PER_TOKEN, "bytes ÷ {};"),
    ):
        assert words.format(f"{number:,}") in " ".join(GUIDE.split()), words
