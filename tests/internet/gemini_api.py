"""generativelanguage.googleapis.com: generateContent as JSON, SSE and JSON array; countTokens; as strict as real.

Usage is cumulative on every chunk of a stream; thoughts are a quarter of the output and come in the total only.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.internet.http1 import Request, Response
from tests.internet.script import Script, script
from tests.internet.served import Books, Served

_PATH = re.compile(r"/v1(?:beta)?/models/([^/:]+):(\w+)")
_FIELDS = {
    "contents", "systemInstruction", "tools", "toolConfig", "safetySettings", "generationConfig", "cachedContent",
    "labels",
}  # fmt: skip
_STATUS = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Gemini:
    def __init__(self, books: Books) -> None:
        self._books = books

    async def __call__(self, request: Request, response: Response) -> None:
        try:
            key = request.headers.get("x-goog-api-key") or request.query.get("key", "")
            if not key:
                raise Refusal(403, "Method doesn't allow unregistered callers. Please use API Key.")
            found = _PATH.fullmatch(request.path)
            if found is None or request.method != "POST":
                raise Refusal(404, "Not found.")
            await self._answer(found[1], found[2], key, request, response)
        except Refusal as refusal:
            self._books.refused.append({"api": "gemini", "status": refusal.status, "message": refusal.message})
            error = {
                "code": refusal.status,
                "message": refusal.message,
                "status": _STATUS.get(refusal.status, "INTERNAL"),
            }
            await response.json(refusal.status, {"error": error})

    async def _answer(self, model: str, verb: str, key: str, request: Request, response: Response) -> None:
        body = _checked(request)
        if not model.startswith("gemini-"):
            raise Refusal(404, f"models/{model} is not found for API version v1beta.")
        plan = script(model, body.get("generationConfig", {}).get("maxOutputTokens"))
        if self._books.fails(model, plan):
            raise Refusal(plan.status, "scripted")
        if verb == "countTokens":
            await response.json(200, {"totalTokens": plan.input + plan.cache_read})
            return
        if verb not in ("generateContent", "streamGenerateContent"):
            raise Refusal(404, "Not found.")
        stream = verb == "streamGenerateContent"
        call = self._books.open("gem", "gemini", key, model, plan, stream=stream)
        if not stream:
            call.output = plan.output
            text = "".join(plan.text(i) for i in range(plan.chunks))
            await response.json(200, _chunk(call, plan, text, plan.output, last=True))
        elif request.query.get("alt") == "sse":
            await response.start(200, {"content-type": "text/event-stream"})
            await _stream(plan, call, response, "data: {}\r\n\r\n", "data: {}\r\n\r\n", "")
            await response.end()
        else:
            await response.start(200, {"content-type": "application/json; charset=UTF-8"})
            await _stream(plan, call, response, "[{}\n", ",\r\n{}\n", "]")
            await response.end()
        call.complete = True


async def _stream(plan: Script, call: Served, response: Response, first: str, next_: str, end: str) -> None:
    for i in range(plan.chunks):
        await response.pause(plan.pace / 1000)
        if plan.drop and i == plan.drop:
            response.abort()
        call.output = plan.output_at(i + 1)
        text = json.dumps(_chunk(call, plan, plan.text(i), call.output, last=i == plan.chunks - 1), ensure_ascii=False)
        await response.data((first if i == 0 else next_).replace("{}", text).encode())
    if end:
        await response.data(end.encode())


def _chunk(call: Served, plan: Script, text: str, output: int, *, last: bool) -> dict[str, Any]:
    thoughts = output // 4
    prompt = plan.input + plan.cache_read
    usage = {"promptTokenCount": prompt, "candidatesTokenCount": output - thoughts, "totalTokenCount": prompt + output}
    usage |= {"thoughtsTokenCount": thoughts} if thoughts else {}
    usage |= {"cachedContentTokenCount": plan.cache_read} if plan.cache_read else {}
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if last:
        candidate["finishReason"] = "MAX_TOKENS" if plan.limited else "STOP"
    return {
        "candidates": [candidate], "usageMetadata": usage, "modelVersion": call.model, "responseId": call.id,
    }  # fmt: skip


def _checked(request: Request) -> dict[str, Any]:
    """The body, if the real service would take it."""
    try:
        body = json.loads(request.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "Invalid JSON payload received.")
    for name in body:
        if name not in _FIELDS:
            raise Refusal(400, f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.')
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        raise Refusal(400, "* GenerateContentRequest.contents: contents is not specified")
    for content in contents:
        if not isinstance(content, dict) or not isinstance(content.get("parts"), list):
            raise Refusal(400, "* GenerateContentRequest.contents[0].parts: contents.parts must not be empty.")
    return body
