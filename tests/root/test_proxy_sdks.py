"""The real anthropic and openai SDKs through a real worker: plain, streamed, refused, cut in mid-stream."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agentmon import trust
from tests.support import proxy_rig
from tests.support.proxy_rig import Rig
from tests.support.proxy_upstream import chunked, reply

pytestmark = pytest.mark.root

SCRIPT = Path(proxy_rig.__file__).with_name("sdk_calls.py")
SPENT = {"scope": "bottle", "name": "crate", "provider": "claude", "tokens": 5, "used": 6, "per": "run"}


def launch(rig: Rig, *calls: str) -> subprocess.Popen[str]:
    bundle = rig.directory / "bundle.pem"
    trust.bundle(rig.directory / "ca", [], bundle)
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(p for p in sys.path if p),
        "HOME": str(rig.directory),
    }
    command = [sys.executable, str(SCRIPT), rig.address, rig.source, *calls]
    return subprocess.Popen(
        command, env=environment | trust.environment(str(bundle)), stdout=subprocess.PIPE, text=True
    )


def results(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, _ = process.communicate(timeout=60)
    return [line for line in map(json.loads, out.splitlines()) if "first" not in line]


def sse(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n".encode()


def message(**more: Any) -> dict[str, Any]:
    return {
        "id": f"msg_{time.monotonic_ns()}", "type": "message", "role": "assistant", "model": "claude-x", "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 12, "output_tokens": 1},
    } | more  # fmt: skip


def opening() -> bytes:
    return (
        sse("message_start", message=message())
        + sse("content_block_start", index=0, content_block={"type": "text", "text": ""})
        + sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "hello 🙂"})
    )


def closing(tokens: int) -> bytes:
    return (
        sse("content_block_stop", index=0)
        + sse(
            "message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": tokens}
        )
        + sse("message_stop")
    )


def chat() -> list[bytes]:
    def chunk(**data: Any) -> bytes:
        base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x"}
        return b"data: " + json.dumps(base | data).encode() + b"\n\n"

    say = [{"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": None}]
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    return [chunk(choices=say, usage=None), chunk(choices=[], usage=usage), b"data: [DONE]\n\n"]


def responses() -> bytes:
    response = {"id": "resp_1", "object": "response", "model": "gpt-x", "output": [], "usage": None}
    usage = {"input_tokens": 6, "input_tokens_details": {"cached_tokens": 2}, "output_tokens": 3, "total_tokens": 9}
    delta = {
        "item_id": "i",
        "output_index": 0,
        "content_index": 0,
        "delta": "hello",
        "sequence_number": 1,
        "logprobs": [],
    }
    return (
        sse("response.created", response=response, sequence_number=0)
        + sse("response.output_text.delta", **delta)
        + sse("response.completed", response=response | {"usage": usage}, sequence_number=2)
    )


async def provider(seen: Any, writer: Any) -> None:
    body = json.loads(seen.body)
    if seen.target == "/v1/messages" and not body.get("stream"):
        whole = message(content=[{"type": "text", "text": "hello"}], usage={"input_tokens": 10, "output_tokens": 5})
        script = reply(200, json.dumps(whole).encode())
    elif seen.target == "/v1/messages":
        script = chunked([opening(), 0.01, closing(7)])
    elif seen.target == "/v1/chat/completions":
        script = chunked(list(chat()))
    else:
        script = chunked([responses()])
    await script(seen, writer)


def test_every_call_works_and_is_metered(rig: Rig) -> None:
    before = len(rig.rows(0))
    rig.upstream.script = provider
    got = results(launch(rig, "claude_plain", "claude_stream", "chat_stream", "responses_stream"))
    assert got == [
        {"call": "claude_plain", "output": 5, "text": "hello"},
        {"call": "claude_stream", "output": 7, "text": "hello 🙂"},
        {"call": "chat_stream", "text": "hello", "usage_chunks": 0},
        {"call": "responses_stream", "text": "hello", "last": "response.completed"},
    ]
    assert [row[:6] for row in rig.rows(before + 4)[before:]] == [
        ("claude", "claude-x", 10, 0, 0, 5),
        ("claude", "claude-x", 12, 0, 0, 7),
        ("openai", "gpt-x", 9, 0, 0, 4),
        ("openai", "gpt-x", 4, 2, 0, 3),
    ]


def test_a_spent_budget_is_not_retried(rig: Rig) -> None:
    rig.bottle(budget=15)
    rig.upstream.script = provider
    got = results(launch(rig, "claude_plain", "claude_plain", "chat_stream"))
    assert got[0]["output"] == 5
    refused = {"status": 403, "type": "budget_exhausted", "error": "PermissionDeniedError"}
    assert got[1:] == [{"call": "claude_plain"} | refused, {"call": "chat_stream"} | refused]
    assert len(rig.upstream.seen) == 1  # nothing reached the provider, nothing was tried again


def test_a_cut_in_mid_stream_is_a_typed_error_of_the_sdk(rig: Rig) -> None:
    never = threading.Event()
    rig.upstream.script = chunked([opening(), never])
    process = launch(rig, "claude_stream", "claude_plain")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["first"] == "hello 🙂"  # it is in the SDK's loop now
    assert rig.cut(SPENT).closed == 1
    got = results(process)
    never.set()
    assert (got[0]["error"], got[0]["type"]) == ("APIStatusError", "budget_exhausted")
    assert (got[1]["status"], got[1]["type"]) == (403, "budget_exhausted")
