"""Who else speaks chat completions, each with its own stream: Azure OpenAI, OpenRouter, Mistral.

azure       a first frame with empty `choices` and no usage; usage only when asked for, as OpenAI; key in `api-key`
openrouter  comment lines while it waits; usage always comes, unasked, on a last chunk that has a choice
mistral     usage on the chunk that has the finish reason; what it does not know in a request is refused
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.internet.http1 import Request, Response
from tests.internet.script import Script, script
from tests.internet.served import SOON, Books, Served

_AZURE = re.compile(r"/openai/deployments/([^/]+)/chat/completions")
_PATHS = {"openrouter": "/api/v1/chat/completions", "mistral": "/v1/chat/completions"}


class ChatVariant:
    """:param name: azure, openrouter or mistral."""

    def __init__(self, name: str, books: Books) -> None:
        self._name = name
        self._books = books

    async def __call__(self, request: Request, response: Response) -> None:
        body = json.loads(request.body)
        refusal, model = self._refusal(request, body)
        if refusal:
            self._books.refused.append({"api": self._name, "status": refusal, "message": request.target})
            await response.json(refusal, {"error": {"message": "refused", "code": refusal}})
            return
        plan = script(model, body.get("max_tokens"))
        if self._books.fails(model, plan):
            self._books.refused.append({"api": self._name, "status": plan.status, "message": "scripted"})
            await response.json(plan.status, {"error": {"message": "scripted", "code": plan.status}}, SOON)
            return
        call = self._books.open("chat-", self._name, "key", model, plan, stream=bool(body.get("stream")))
        if body.get("stream"):
            await response.start(200, {"content-type": "text/event-stream"})
            await self._stream(
                plan, call, response, asked=bool((body.get("stream_options") or {}).get("include_usage"))
            )
            await response.end()
        else:
            call.output = plan.output
            choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
            await response.json(200, _frame(call) | {"choices": [choice], "usage": _usage(plan)})
        call.complete = True

    def _refusal(self, request: Request, body: dict[str, Any]) -> tuple[int, str]:
        """(status of the refusal or 0, model)."""
        if self._name == "azure":
            found = _AZURE.fullmatch(request.path)
            if found is None or "api-version" not in request.query:
                return 404, ""
            return (0 if request.headers.get("api-key") else 401), found[1]
        if request.path != _PATHS[self._name]:
            return 404, ""
        if not request.headers.get("authorization", "").startswith("Bearer "):
            return 401, ""
        extra = self._name == "mistral" and "stream_options" in body
        return (422 if extra else 0), str(body.get("model"))

    async def _stream(self, plan: Script, call: Served, response: Response, *, asked: bool) -> None:
        null = {"usage": None} if asked and self._name == "azure" else {}

        async def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            await _send(response, _frame(call) | {"choices": [choice]} | null | more)

        if self._name == "azure":
            first = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
            await _send(response, first | {"prompt_filter_results": [{"prompt_index": 0}]})
        for i in range(plan.chunks):
            if self._name == "openrouter":
                await response.data(b": OPENROUTER PROCESSING\n\n")
            await response.pause(plan.pace / 1000)
            if plan.drop and i == plan.drop:
                response.abort()
            await chunk({"content": plan.text(i)})
            call.output = plan.output_at(i + 1)
        await chunk({"content": ""}, "stop", **({"usage": _usage(plan)} if self._name == "mistral" else {}))
        if self._name == "openrouter":
            await chunk({"role": "assistant", "content": ""}, usage=_usage(plan))
        elif asked:
            await _send(response, _frame(call) | {"choices": [], "usage": _usage(plan)})
        await response.data(b"data: [DONE]\n\n")


async def _send(response: Response, value: dict[str, Any]) -> None:
    await response.data(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")


def _frame(call: Served) -> dict[str, Any]:
    return {"id": call.id, "object": "chat.completion.chunk", "created": 1, "model": call.model}


def _usage(plan: Script) -> dict[str, Any]:
    prompt = plan.input + plan.cache_read
    return {
        "prompt_tokens": prompt, "completion_tokens": plan.output, "total_tokens": prompt + plan.output,
        "prompt_tokens_details": {"cached_tokens": plan.cache_read},
    }  # fmt: skip
