"""api.openai.com: which endpoint answers, who may ask, and how errors look."""

from __future__ import annotations

import json
from typing import Any

from tests.internet import openai_chat, openai_responses
from tests.internet.http1 import Request, Response
from tests.internet.openai_refusal import Refusal
from tests.internet.script import script
from tests.internet.served import SOON, Books, new_id

_MODELS = ("gpt-", "o1", "o3", "o4", "codex-", "text-embedding-")


class OpenAI:
    def __init__(self, books: Books) -> None:
        self._books = books

    async def __call__(self, request: Request, response: Response) -> None:
        headers = {"x-request-id": new_id("req_"), "openai-processing-ms": "1", "openai-version": "2020-10-01"}
        try:
            key = _authenticate(request)
            match request.path:
                case "/v1/chat/completions":
                    await openai_chat.answer(_body(request), key, self._books, response, headers)
                case "/v1/responses":
                    await openai_responses.answer(_body(request), key, self._books, response, headers)
                case "/v1/responses/input_tokens":
                    count = {
                        "object": "response.input_tokens",
                        "input_tokens": script(_body(request)["model"], None).input,
                    }
                    await response.json(200, count, headers)
                case "/v1/embeddings":
                    await self._embeddings(_body(request), key, response, headers)
                case path:
                    raise Refusal(404, f"Invalid URL ({request.method} {path})")
        except Refusal as refusal:
            self._books.refused.append({"api": "openai", "status": refusal.status, "message": refusal.message})
            await response.json(refusal.status, refusal.body(), headers | SOON)

    async def _embeddings(self, body: dict[str, Any], key: str, response: Response, headers: dict[str, str]) -> None:
        if "input" not in body:
            raise Refusal(400, "'input' is a required property")
        plan = script(body["model"], 0)
        call = self._books.open("emb_", "openai", key, body["model"], plan, stream=False)
        usage = {"prompt_tokens": plan.input, "total_tokens": plan.input}
        data = [{"object": "embedding", "index": 0, "embedding": [0.0, 0.5, 1.0]}]
        await response.json(200, {"object": "list", "data": data, "model": body["model"], "usage": usage}, headers)
        call.complete = True


def _authenticate(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme != "Bearer" or not key:
        raise Refusal(401, "You didn't provide an API key.", kind="invalid_request_error")
    if key.startswith("invalid"):
        raise Refusal(401, f"Incorrect API key provided: {key}.", code="invalid_api_key")
    return key


def _body(request: Request) -> dict[str, Any]:
    if request.method != "POST":
        raise Refusal(405, f"Not allowed to {request.method} on {request.path}.", code="method_not_supported")
    try:
        body = json.loads(request.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "We could not parse the JSON body of your request.")
    if "model" not in body:
        raise Refusal(400, "you must provide a model parameter")
    if not isinstance(body["model"], str) or not body["model"].startswith(_MODELS):
        raise Refusal(404, f"The model `{body['model']}` does not exist", code="model_not_found")
    return body
