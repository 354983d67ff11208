"""The ledger against the providers' own books: stand-ins that stream each protocol, through a real worker."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from agentmon.providers.registry import load
from tests.internet.model_apis import apps
from tests.internet.served import Books
from tests.support import proxy_rig
from tests.support.provider_calls import CALLS, CONTENTS, HOSTS, WORDS, B, G, headers_of, row_of
from tests.support.proxy_rig import Response, Rig
from tests.support.standin import played

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def books() -> Books:
    return Books()


@pytest.fixture(scope="module")
def rig(books: Books, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = proxy_rig.start(tmp_path_factory.mktemp("proxy"))
    answers = apps(books)
    rig.upstream.script = played({host: answers[name] for name, host in HOSTS.items()})
    inspected = tuple(host for provider in load().values() for host in provider.hosts)
    rig.bottle(*(f"{host}:443" for host in HOSTS.values()), inspected=inspected, budget=1 << 40)
    yield rig
    rig.stop()


def call(rig: Rig, provider: str, path: str, body: dict[str, Any], sock: Any = None) -> Response:
    return rig.request(HOSTS[provider], path, json.dumps(body).encode(), headers=headers_of(provider), sock=sock)


@pytest.mark.parametrize(("provider", "path", "body"), CALLS, ids=[f"{p} {t[-24:]}" for p, t, _ in CALLS])
def test_what_the_provider_bills_is_what_the_ledger_has(
    rig: Rig, books: Books, provider: str, path: str, body: dict[str, Any]
) -> None:
    before, served = len(rig.rows(0)), len(books.calls)
    response = call(rig, provider, path, body)
    assert response.status == 200 and not response.broken, response.body
    rows = rig.rows(before + 1)
    assert len(rows) == before + 1 and len(books.calls) == served + 1
    assert rows[-1] == row_of(provider, path, books.calls[-1])
    assert rig.nothing_held()


def shape(body: bytes) -> list[Any]:
    """The SSE data of a stream, without the ids and times that differ from call to call."""
    events = [line[6:] for line in body.split(b"\n") if line.startswith((b"data: {", b": "))]
    return [line if line[:1] != b"{" else json.loads(line) | {"id": 0, "created": 0} for line in events]


@pytest.mark.parametrize("provider", ["openai", "azure", "openrouter", "mistral"])
def test_a_client_sees_of_a_stand_in_what_it_would_have_seen_itself(rig: Rig, provider: str) -> None:
    _, path, body = next(c for c in CALLS if c[0] == provider and c[2].get("stream"))
    context = ssl.create_default_context(cafile=str(rig.directory / "outside-ca.pem"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    with rig.direct() as raw, context.wrap_socket(raw, server_hostname=HOSTS[provider]) as sock:
        alone = call(rig, provider, path, body, sock)
    through = call(rig, provider, path, body)
    assert shape(through.body) == shape(alone.body) and len(shape(alone.body)) >= 7
    assert len(through.body) == len(alone.body)
    assert rig.nothing_held()


@pytest.mark.parametrize("provider", ["gemini", "bedrock", "mistral", "azure"])
def test_an_upstream_that_dies_is_one_estimate_of_the_provider(rig: Rig, provider: str) -> None:
    before = len(rig.rows(0))
    path, body = next((p, b) for n, p, b in CALLS if n == provider and ("tream" in p or b.get("stream")))
    named = {"model": f"{body['model']}-drop3-pace20"} if "model" in body else {}
    response = call(rig, provider, path.replace(WORDS, f"{WORDS}-drop3-pace20"), body | named)
    assert response.broken
    rows = rig.rows(before + 1)
    assert len(rows) == before + 1 and rows[-1][0] == provider and rows[-1][6:] == ("estimate", 0)
    assert rows[-1][5] >= 80 and rows[-1][2] > 0 and rig.nothing_held()


def test_counting_is_not_billed(rig: Rig, books: Books) -> None:
    before, served = len(rig.rows(0)), len(books.calls)
    assert call(rig, "gemini", f"{G}:countTokens", CONTENTS).json == {"totalTokens": 340}
    assert call(rig, "bedrock", f"{B}/count-tokens", {"input": {}}).json == {"inputTokens": 300}
    assert len(books.calls) == served and len(rig.rows(0)) == before and rig.held() == 0
