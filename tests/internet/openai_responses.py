"""Responses: JSON, and SSE with named, numbered events and no [DONE]; usage is in the last event's response."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.internet.http1 import Response
from tests.internet.openai_chat import tool_of
from tests.internet.openai_refusal import Refusal, missing, unknown
from tests.internet.script import Script, script
from tests.internet.served import Books, Served, new_id

_FIELDS = {
    "model", "input", "instructions", "stream", "stream_options", "max_output_tokens", "max_tool_calls",
    "temperature", "top_p", "tools", "tool_choice", "parallel_tool_calls", "previous_response_id", "conversation",
    "reasoning", "store", "metadata", "include", "text", "truncation", "user", "service_tier", "background",
    "prompt", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "top_logprobs",
    "context_management",
}  # fmt: skip


async def answer(body: dict[str, Any], key: str, books: Books, response: Response, headers: dict[str, str]) -> None:
    """:raises Refusal: what the real service would not take."""
    _check(body)
    plan = script(body["model"], body.get("max_output_tokens"))
    if books.fails(body["model"], plan):
        raise Refusal(plan.status, "scripted")
    called = tool_of(body["tools"][0] if body.get("tools") else None, plan)
    stream = bool(body.get("stream"))
    call = books.open("resp_", "openai", key, body["model"], plan, stream=stream)
    if stream:
        await response.start(
            200, headers | {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        )
        await _stream(plan, called, call, response)
        await response.end()
        call.complete = not plan.error
    else:
        await response.pause(plan.pace * plan.chunks / 1000)
        call.output = plan.output
        await response.json(200, _finished(call, plan, _said(called, new_id("msg_"), plan)), headers)
        call.complete = True


async def _stream(plan: Script, called: dict[str, Any], call: Served, response: Response) -> None:
    number = 0

    async def event(kind: str, **data: Any) -> None:
        nonlocal number
        value = {"type": kind} | data | {"sequence_number": number}
        await response.data(f"event: {kind}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n".encode())
        number += 1

    item = _said(called, new_id("msg_"), plan)
    begun = {"status": "in_progress"} | ({"arguments": ""} if called else {"content": []})
    where = {"item_id": item["id"], "output_index": 0} | ({} if called else {"content_index": 0})
    await event("response.created", response=_response(call, "in_progress"))
    await event("response.in_progress", response=_response(call, "in_progress"))
    await event("response.output_item.added", output_index=0, item=item | begun)
    if not called:
        await event("response.content_part.added", **where, part=_part(""))
    for i in range(plan.chunks):
        await response.pause(plan.pace / 1000)
        if plan.drop and i == plan.drop:
            response.abort()
        if plan.error and i == plan.error:
            failed = _response(call, "failed") | {"error": {"code": "server_error", "message": "scripted"}}
            await event("response.failed", response=failed)
            return
        if called:
            await event("response.function_call_arguments.delta", **where, delta=plan.piece(item["arguments"], i))
        else:
            await event("response.output_text.delta", **where, delta=plan.text(i), logprobs=[])
        call.output = plan.output_at(i + 1)
    if called:
        await event("response.function_call_arguments.done", **where, **{k: item[k] for k in ("name", "arguments")})
    else:
        await event("response.output_text.done", **where, text=_text(plan), logprobs=[])
        await event("response.content_part.done", **where, part=_part(_text(plan)))
    await event("response.output_item.done", output_index=0, item=item)
    whole = _finished(call, plan, item)
    await event(f"response.{whole['status']}", response=whole)


def _check(body: dict[str, Any]) -> None:
    for name in body:
        if name not in _FIELDS:
            raise unknown(name)
    if "include_usage" in (body.get("stream_options") or {}):
        raise unknown("stream_options.include_usage")
    if body.get("input") is None and body.get("prompt") is None and body.get("conversation") is None:
        raise missing("input")
    limit = body.get("max_output_tokens")
    if limit is not None and limit < 16:
        raise Refusal(400, "Invalid 'max_output_tokens': integer below minimum value.", param="max_output_tokens")


def _response(call: Served, status: str) -> dict[str, Any]:
    return {
        "id": call.id,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": call.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "auto",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
    }


def _finished(call: Served, plan: Script, item: dict[str, Any]) -> dict[str, Any]:
    status = "incomplete" if plan.limited else "completed"
    return _response(call, status) | {
        "incomplete_details": {"reason": "max_output_tokens"} if plan.limited else None,
        "output": [item],
        "usage": {
            "input_tokens": plan.input + plan.cache_read,
            "input_tokens_details": {"cached_tokens": plan.cache_read},
            "output_tokens": plan.output,
            "output_tokens_details": {"reasoning_tokens": plan.output // 4},
            "total_tokens": plan.input + plan.cache_read + plan.output,
        },
    }


def _said(called: dict[str, Any], item_id: str, plan: Script) -> dict[str, Any]:
    """The one item of the output: the call of a tool, or a message."""
    if called:
        call = {"type": "function_call", "call_id": called["id"], "status": "completed"}
        return call | called["function"] | {"id": item_id.replace("msg_", "fc_")}
    status = "incomplete" if plan.limited else "completed"
    return {"id": item_id, "type": "message", "status": status, "content": [_part(_text(plan))], "role": "assistant"}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _text(plan: Script) -> str:
    return "".join(plan.text(i) for i in range(plan.chunks))
