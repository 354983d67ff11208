"""api.anthropic.com: Messages as JSON and SSE, as strict about requests as the real one."""

from __future__ import annotations

import json
from typing import Any

from tests.internet.http1 import Request, Response
from tests.internet.script import Script, script
from tests.internet.served import SOON, Books, Served, new_id

_FIELDS = {
    "model", "messages", "max_tokens", "system", "stream", "temperature", "top_p", "top_k", "stop_sequences",
    "metadata", "tools", "tool_choice", "thinking", "service_tier", "container", "context_management",
    "mcp_servers", "output_config", "output_format", "cache_control", "inference_geo", "speed",
}  # fmt: skip
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Anthropic:
    def __init__(self, books: Books) -> None:
        self._books = books

    async def __call__(self, request: Request, response: Response) -> None:
        headers = {
            "request-id": new_id("req_011C"),
            "anthropic-organization-id": "00000000-0000-4000-8000-000000000000",
        }
        try:
            key = _authenticate(request)
            match request.path:
                case "/v1/messages":
                    await self._messages(_checked(request), key, response, headers)
                case "/v1/messages/count_tokens":
                    body = _checked(request, needs_limit=False)
                    await response.json(200, {"input_tokens": script(body["model"], None).input}, headers)
                case _:
                    raise Refusal(404, "Not found")
        except Refusal as refusal:
            self._books.refused.append({"api": "anthropic", "status": refusal.status, "message": refusal.message})
            await response.json(
                refusal.status, _error(refusal.status, refusal.message, headers["request-id"]), headers | SOON
            )

    async def _messages(self, body: dict[str, Any], key: str, response: Response, headers: dict[str, str]) -> None:
        plan = script(body["model"], body["max_tokens"])
        if self._books.fails(body["model"], plan):
            raise Refusal(plan.status, "scripted")
        if plan.tool and not body.get("tools"):
            raise Refusal(400, "scripted to call a tool, and the request has none")
        said = _tool(body, plan) if plan.tool else _text(plan)
        stream = body.get("stream", False)
        call = self._books.open("msg_01", "anthropic", key, body["model"], plan, stream=stream)
        if stream:
            await response.start(
                200, headers | {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
            )
            await _stream(plan, said, call, response)
            await response.end()
            call.complete = not plan.error
        else:
            await response.pause(plan.pace * plan.chunks / 1000)
            call.output = plan.output
            message = _message(call, plan) | {
                "content": [said],
                "stop_reason": _stop_reason(plan),
                "usage": _usage(plan, plan.output),
            }
            await response.json(200, message, headers)
            call.complete = True


def _text(plan: Script) -> dict[str, Any]:
    return {"type": "text", "text": "".join(plan.text(i) for i in range(plan.chunks))}


def _tool(body: dict[str, Any], plan: Script) -> dict[str, Any]:
    """A call of the request's first tool, with what looks like usage in its input."""
    lie = {"said": [plan.text(i) for i in range(plan.chunks)], "usage": {"input_tokens": 9_999}}
    return {"type": "tool_use", "id": new_id("toolu_01"), "name": body["tools"][0]["name"], "input": lie}


async def _stream(plan: Script, said: dict[str, Any], call: Served, response: Response) -> None:
    async def event(kind: str, **data: Any) -> None:
        await response.data(
            f"event: {kind}\ndata: {json.dumps({'type': kind} | data, ensure_ascii=False)}\n\n".encode()
        )

    call.output = 1  # what message_start says, a placeholder
    await event("message_start", message=_message(call, plan) | {"usage": _usage(plan, 1)})
    empty = {"text": ""} if said["type"] == "text" else {"input": {}}
    await event("content_block_start", index=0, content_block=said | empty)
    await event("ping")
    for i in range(plan.chunks):
        await response.pause(plan.pace / 1000)
        if plan.drop and i == plan.drop:
            response.abort()
        if plan.error and i == plan.error:
            await event("error", error={"type": "overloaded_error", "message": "Overloaded"})
            return
        await event("content_block_delta", index=0, delta=_delta(plan, said, i))
        call.output = max(1, plan.output_at(i + 1))
    await event("content_block_stop", index=0)
    delta = {"stop_reason": _stop_reason(plan), "stop_sequence": None}
    await event("message_delta", delta=delta, usage=_usage(plan, plan.output))
    call.output = plan.output
    await event("message_stop")


def _delta(plan: Script, said: dict[str, Any], number: int) -> dict[str, Any]:
    """Number `number` of the pieces of what is said; a tool's input is cut anywhere."""
    if said["type"] == "text":
        return {"type": "text_delta", "text": plan.text(number)}
    return {"type": "input_json_delta", "partial_json": plan.piece(json.dumps(said["input"]), number)}


def _authenticate(request: Request) -> str:
    key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
    if not key:
        raise Refusal(401, "x-api-key header is required")
    if key.startswith("invalid"):
        raise Refusal(401, "invalid x-api-key")
    if "anthropic-version" not in request.headers:
        raise Refusal(400, "anthropic-version: header is required")
    return key


def _checked(request: Request, *, needs_limit: bool = True) -> dict[str, Any]:
    """The body, if the real service would take it."""
    if request.method != "POST":
        raise Refusal(405, "Method Not Allowed")
    if len(request.body) > 32 << 20:
        raise Refusal(413, "Request exceeds the maximum size")
    try:
        body = json.loads(request.body)
    except ValueError as error:
        raise Refusal(400, f"The request body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "Input should be a valid dictionary")
    for name in ("model", "messages", *(["max_tokens"] if needs_limit else [])):
        if name not in body:
            raise Refusal(400, f"{name}: Field required")
    for name in body:
        if name not in _FIELDS:
            raise Refusal(400, f"{name}: Extra inputs are not permitted")
    if needs_limit:
        _check_limits(body)
    _check_messages(body["messages"])
    if not isinstance(body["model"], str) or not body["model"].startswith("claude-"):
        raise Refusal(404, f"model: {body['model']}")
    return body


def _check_limits(body: dict[str, Any]) -> None:
    limit, temperature = body["max_tokens"], body.get("temperature")
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise Refusal(400, "max_tokens: Input should be a valid integer")
    if limit < 1:
        raise Refusal(400, "max_tokens: must be greater than or equal to 1")
    if temperature is not None and not 0 <= temperature <= 1:
        raise Refusal(400, "temperature: range: 0..1")
    if not isinstance(body.get("stream", False), bool):
        raise Refusal(400, "stream: Input should be a valid boolean")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise Refusal(400, "messages: Input should be a valid list")
    if not messages:
        raise Refusal(400, "messages: at least one message is required")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise Refusal(400, f'messages.{i}.role: Input should be "user" or "assistant"')
        if "content" not in message:
            raise Refusal(400, f"messages.{i}.content: Field required")
        if not isinstance(message["content"], str | list):
            raise Refusal(400, f"messages.{i}.content: Input should be a valid string or list")
        if not message["content"] and i < len(messages) - 1:
            raise Refusal(
                400,
                "messages: all messages must have non-empty content except for the optional final assistant message",
            )
    if messages[0]["role"] != "user":
        raise Refusal(400, 'messages: first message must use the "user" role')


def _message(call: Served, plan: Script) -> dict[str, Any]:
    return {
        "model": call.model,
        "id": call.id,
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(plan, 0),
    }


def _usage(plan: Script, output: int) -> dict[str, Any]:
    return {
        "input_tokens": plan.input,
        "cache_creation_input_tokens": plan.cache_write,
        "cache_read_input_tokens": plan.cache_read,
        "cache_creation": {"ephemeral_5m_input_tokens": plan.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    }


def _stop_reason(plan: Script) -> str:
    if plan.limited:
        return "max_tokens"
    return "tool_use" if plan.tool else "end_turn"


def _error(status: int, message: str, request_id: str) -> dict[str, Any]:
    kind = _TYPES.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
