"""The providers of the stand-in internet, by the names that agentmon gives them; one set of books for all.

What codex and vertex serve is another provider's protocol at paths and under keys of their own.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from tests.internet.anthropic_api import Anthropic
from tests.internet.bedrock_api import Bedrock
from tests.internet.chat_variants import ChatVariant
from tests.internet.gemini_api import Gemini
from tests.internet.http1 import App, Request, Response
from tests.internet.openai_api import OpenAI
from tests.internet.served import Books

_VERTEX = re.compile(r"/v1/projects/[^/]+/locations/[^/]+/publishers/(anthropic|google)/models/([^/:]+):(\w+)")


def apps(books: Books) -> dict[str, App]:
    """What answers at each of world.APIS."""
    own: dict[str, App] = {
        "claude": Anthropic(books), "openai": OpenAI(books), "codex": Codex(books), "gemini": Gemini(books),
        "vertex": Vertex(books), "bedrock": Bedrock(books),
    }  # fmt: skip
    return own | {name: ChatVariant(name, books) for name in ("azure", "openrouter", "mistral")}


class Codex:
    """chatgpt.com: responses as SSE that does not say so, and closes right after its last event."""

    def __init__(self, books: Books) -> None:
        self._responses = OpenAI(books)

    async def __call__(self, request: Request, response: Response) -> None:
        if request.path != "/backend-api/codex/responses" or "chatgpt-account-id" not in request.headers:
            await response.json(403, {"detail": "Forbidden"})
            return
        await self._responses(replace(request, target="/v1/responses"), Untyped(response))  # type: ignore[arg-type]


class Untyped:
    """A response whose event streams have no content type."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.json, self.data, self.end = response.json, response.data, response.end
        self.pause, self.abort = response.pause, response.abort

    async def start(self, status: int, headers: dict[str, str]) -> None:
        kept = {name: value for name, value in headers.items() if name != "content-type"}
        await self._response.start(status, kept | {"connection": "close"})


class Vertex:
    """A region of aiplatform.googleapis.com: Anthropic's and Google's own shapes, the model named in the path."""

    def __init__(self, books: Books) -> None:
        self._anthropic, self._gemini = Anthropic(books), Gemini(books)

    async def __call__(self, request: Request, response: Response) -> None:
        found = _VERTEX.fullmatch(request.path)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if found is None or scheme != "Bearer":
            status = 404 if found is None else 401
            await response.json(status, {"error": {"code": status, "message": "scripted", "status": "UNAUTHENTICATED"}})
            return
        publisher, model, verb = found.groups()
        if publisher == "google":
            headers = request.headers | {"x-goog-api-key": key}
            target = request.target.replace(request.path, f"/v1beta/models/{model}:{verb}")
            await self._gemini(replace(request, headers=headers, target=target), response)
            return
        try:
            body = json.loads(request.body)
            version = body.pop("anthropic_version")
        except (ValueError, KeyError):
            await response.json(400, {"error": {"code": 400, "message": "anthropic_version: Field required"}})
            return
        body = {key: value for key, value in body.items() if key != "model"} | {"model": body.get("model", model)}
        headers = request.headers | {"x-api-key": key, "anthropic-version": version}
        path = "/v1/messages/count_tokens" if model == "count-tokens" else "/v1/messages"
        again = replace(request, headers=headers, target=path, body=json.dumps(body).encode())
        await self._anthropic(again, response)
