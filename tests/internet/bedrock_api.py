"""bedrock-runtime.REGION.amazonaws.com: converse and Anthropic's invoke, plain and as binary event streams.

A request must carry a bearer token, or a signature that names its signed headers, all of which have to be there.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import unquote

from tests.internet.eventstream import message
from tests.internet.http1 import Request, Response
from tests.internet.script import Script, script
from tests.internet.served import Books, Served

_PATH = re.compile(r"/model/([^/]+)/(converse|converse-stream|invoke|invoke-with-response-stream|count-tokens)")
_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=\S+, SignedHeaders=([a-z0-9;-]+), Signature=[0-9a-f]+")
_BINARY = "application/vnd.amazon.eventstream"


class Refusal(Exception):
    def __init__(self, status: int, kind: str, text: str) -> None:
        super().__init__(text)
        self.status, self.kind, self.text = status, kind, text


class Bedrock:
    def __init__(self, books: Books) -> None:
        self._books = books

    async def __call__(self, request: Request, response: Response) -> None:
        try:
            key = _authenticate(request)
            found = _PATH.fullmatch(request.path)
            if found is None or request.method != "POST":
                raise Refusal(404, "UnknownOperationException", "")
            await self._answer(unquote(found[1]), found[2], key, _checked(request, found[2]), response)
        except Refusal as refusal:
            self._books.refused.append({"api": "bedrock", "status": refusal.status, "message": refusal.text})
            await response.json(refusal.status, {"message": refusal.text}, {"x-amzn-errortype": refusal.kind})

    async def _answer(self, model: str, verb: str, key: str, body: dict[str, Any], response: Response) -> None:
        converse = verb.startswith("converse")
        limit = body.get("inferenceConfig", {}).get("maxTokens") if converse else body.get("max_tokens")
        plan = script(model, limit)
        if self._books.fails(model, plan):
            raise Refusal(plan.status, "ThrottlingException", "scripted")
        if verb == "count-tokens":
            await response.json(200, {"inputTokens": plan.input})
            return
        call = self._books.open("msg_bdrk_", "bedrock", key, model, plan, stream="stream" in verb)
        headers = {"x-amzn-requestid": call.id}
        if "stream" in verb:
            await response.start(200, headers | {"content-type": _BINARY})
            await (_converse_stream if converse else _invoke_stream)(plan, call, response)
            await response.end()
        else:
            call.output = plan.output
            await response.json(200, (_converse if converse else _invoke)(plan, call), headers)
        call.complete = True


def _tokens(plan: Script) -> dict[str, int]:
    total = plan.input + plan.cache_read + plan.cache_write + plan.output
    return {
        "inputTokens": plan.input, "outputTokens": plan.output, "totalTokens": total,
        "cacheReadInputTokens": plan.cache_read, "cacheWriteInputTokens": plan.cache_write,
    }  # fmt: skip


def _text(plan: Script) -> str:
    return "".join(plan.text(i) for i in range(plan.chunks))


def _converse(plan: Script, call: Served) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": [{"text": _text(plan)}]}}
    return {"output": said, "stopReason": "end_turn", "usage": _tokens(plan), "metrics": {"latencyMs": 1}}


def _usage(plan: Script, output: int) -> dict[str, int]:
    return {
        "input_tokens": plan.input, "cache_read_input_tokens": plan.cache_read,
        "cache_creation_input_tokens": plan.cache_write, "output_tokens": output,
    }  # fmt: skip


def _invoke(plan: Script, call: Served) -> dict[str, Any]:
    content = [{"type": "text", "text": _text(plan)}]
    return {
        "id": call.id,
        "type": "message",
        "model": call.model,
        "content": content,
        "usage": _usage(plan, plan.output),
    }


async def _converse_stream(plan: Script, call: Served, response: Response) -> None:
    async def event(kind: str, value: dict[str, Any]) -> None:
        await response.data(message(json.dumps(value | {"p": "abcdefghijkl"}).encode(), kind))

    await event("messageStart", {"role": "assistant"})
    async for text in _deltas(plan, call, response):
        await event("contentBlockDelta", {"delta": {"text": text}, "contentBlockIndex": 0})
    await event("contentBlockStop", {"contentBlockIndex": 0})
    await event("messageStop", {"stopReason": "end_turn"})
    await event("metadata", {"usage": _tokens(plan), "metrics": {"latencyMs": 1}})


async def _invoke_stream(plan: Script, call: Served, response: Response) -> None:
    async def chunk(kind: str, **value: Any) -> None:
        inner = base64.b64encode(json.dumps({"type": kind} | value).encode()).decode()
        await response.data(message(json.dumps({"bytes": inner, "p": "abcdef"}).encode(), "chunk"))

    begun = {"id": call.id, "type": "message", "model": call.model, "content": [], "usage": _usage(plan, 1)}
    await chunk("message_start", message=begun)
    async for text in _deltas(plan, call, response):
        await chunk("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    await chunk("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": plan.output})
    metrics = {"inputTokenCount": plan.input, "outputTokenCount": plan.output, "invocationLatency": 1}
    await chunk("message_stop", **{"amazon-bedrock-invocationMetrics": metrics})


async def _deltas(plan: Script, call: Served, response: Response) -> Any:
    for i in range(plan.chunks):
        await response.pause(plan.pace / 1000)
        if plan.drop and i == plan.drop:
            response.abort()
        call.output = plan.output_at(i + 1)
        yield plan.text(i)


def _authenticate(request: Request) -> str:
    said = request.headers.get("authorization", "")
    if said.startswith("Bearer ") and len(said) > 7:
        return said[7:]
    signed = _SIGNED.fullmatch(said)
    if signed is None:
        raise Refusal(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    for name in signed[1].split(";"):
        if name not in request.headers:
            raise Refusal(403, "InvalidSignatureException", f"The header {name} was signed and is not there.")
    if "accept-encoding" in signed[1].split(";") and request.headers["accept-encoding"] == "identity":
        raise Refusal(403, "InvalidSignatureException", "The request signature we calculated does not match.")
    return said[-4:]


def _checked(request: Request, verb: str) -> dict[str, Any]:
    try:
        body = json.loads(request.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "SerializationException", "")
    if verb.startswith("invoke") and "anthropic_version" not in body:
        raise Refusal(400, "ValidationException", "anthropic_version: Field required")
    if verb != "count-tokens" and not body.get("messages"):
        raise Refusal(400, "ValidationException", "messages: Field required")
    return body
