"""Chat completions: JSON and SSE. A stream has usage only when asked for, in one last chunk without choices."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.internet.http1 import Response
from tests.internet.openai_refusal import Refusal, missing
from tests.internet.script import Script, script
from tests.internet.served import Books, Served, new_id

_FIELDS = {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n",
    "stop", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "user", "seed", "tools",
    "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "store", "metadata", "service_tier",
    "modalities", "audio", "prediction", "functions", "function_call", "verbosity", "web_search_options",
    "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
}  # fmt: skip


async def answer(body: dict[str, Any], key: str, books: Books, response: Response, headers: dict[str, str]) -> None:
    """:raises Refusal: what the real service would not take."""
    _check(body)
    plan = script(body["model"], body.get("max_completion_tokens", body.get("max_tokens")))
    if books.fails(body["model"], plan):
        raise Refusal(plan.status, "scripted")
    called = tool_of(body["tools"][0]["function"] if body.get("tools") else None, plan)
    stream = bool(body.get("stream"))
    call = books.open("chatcmpl-", "openai", key, body["model"], plan, stream=stream)
    if stream:
        await response.start(
            200, headers | {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        )
        include = bool((body.get("stream_options") or {}).get("include_usage"))
        await _stream(plan, called, call, response, include_usage=include)
        await response.end()
        call.complete = not plan.error
    else:
        await response.pause(plan.pace * plan.chunks / 1000)
        call.output = plan.output
        text = "".join(plan.text(i) for i in range(plan.chunks))
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        if called:
            message |= {"content": None, "tool_calls": [called]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(plan)}
        whole = _frame(call, "chat.completion") | {"choices": [choice], "usage": _usage(plan, plan.output)}
        await response.json(200, whole, headers)
        call.complete = True


def tool_of(declared: dict[str, Any] | None, plan: Script) -> dict[str, Any]:
    """The call of the request's first tool, with what looks like usage in its arguments; empty where none is scripted.

    :raises Refusal: a call is scripted and no tool declared.
    """
    if not plan.tool:
        return {}
    if declared is None:
        raise Refusal(400, "scripted to call a tool, and the request has none")
    said = json.dumps({"said": [plan.text(i) for i in range(plan.chunks)], "usage": {"completion_tokens": 9_999}})
    return {"id": new_id("call_"), "type": "function", "function": {"name": declared["name"], "arguments": said}}


async def _stream(
    plan: Script, called: dict[str, Any], call: Served, response: Response, *, include_usage: bool
) -> None:
    frame = _frame(call, "chat.completion.chunk")
    tail = {"usage": None} if include_usage else {}

    async def chunk(delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        await _data(response, frame | {"choices": [choice]} | tail)

    await chunk({"role": "assistant", "content": "", "refusal": None})
    if called:
        await chunk({"tool_calls": [{"index": 0} | called | {"function": called["function"] | {"arguments": ""}}]})
    for i in range(plan.chunks):
        await response.pause(plan.pace / 1000)
        if plan.drop and i == plan.drop:
            response.abort()
        if plan.error and i == plan.error:
            await _data(
                response, {"error": {"message": "scripted", "type": "server_error", "param": None, "code": None}}
            )
            return
        if called:
            said = plan.piece(called["function"]["arguments"], i)
            await chunk({"tool_calls": [{"index": 0, "function": {"arguments": said}}]})
        else:
            await chunk({"content": plan.text(i)})
        call.output = plan.output_at(i + 1)
    await chunk({}, _finish(plan))
    if include_usage:
        await _data(response, frame | {"choices": [], "usage": _usage(plan, plan.output)})
    await response.data(b"data: [DONE]\n\n")


async def _data(response: Response, value: dict[str, Any]) -> None:
    await response.data(f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode())


def _check(body: dict[str, Any]) -> None:
    for name in body:
        if name not in _FIELDS:
            raise Refusal(400, f"Unrecognized request argument supplied: {name}")
    messages = body.get("messages")
    if messages is None:
        raise missing("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(
            400, "Invalid 'messages': empty array. Expected an array with minimum length 1.", param="messages"
        )
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message:
            raise missing(f"messages[{i}].role")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise Refusal(
            400, "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise Refusal(400, "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")


def _frame(call: Served, kind: str) -> dict[str, Any]:
    return {
        "id": call.id,
        "object": kind,
        "created": int(time.time()),
        "model": call.model,
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
    }


def _usage(plan: Script, output: int) -> dict[str, Any]:
    """Cached tokens are inside the prompt's."""
    prompt = plan.input + plan.cache_read
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": plan.cache_read, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": output // 4,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _finish(plan: Script) -> str:
    if plan.limited:
        return "length"
    return "tool_calls" if plan.tool else "stop"
