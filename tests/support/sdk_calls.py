"""Run as a process: the real SDKs, unmodified, default base URL. Only names and the source address are the bottle's.

python sdk_calls.py PROXY_ADDRESS SOURCE_ADDRESS CALL…      one JSON line per call on stdout
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.support.bottle_names import inside_a_bottle

inside_a_bottle(*sys.argv[1:3])

import anthropic  # noqa: E402  after the names are the bottle's
import openai  # noqa: E402

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def claude_plain() -> dict[str, Any]:
    answer = anthropic.Anthropic(api_key="k").messages.create(model="claude-x", max_tokens=50, messages=MESSAGES)
    return {"output": answer.usage.output_tokens, "text": answer.content[0].text}  # type: ignore[union-attr]


def claude_stream() -> dict[str, Any]:
    with anthropic.Anthropic(api_key="k").messages.stream(model="claude-x", max_tokens=50, messages=MESSAGES) as stream:
        text = ""
        for piece in stream.text_stream:
            if not text:
                print(json.dumps({"call": "claude_stream", "first": piece}), flush=True)
            text += piece
        return {"output": stream.get_final_message().usage.output_tokens, "text": text}


def chat_stream() -> dict[str, Any]:
    chunks = list(openai.OpenAI(api_key="k").chat.completions.create(model="gpt-x", messages=MESSAGES, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    return {"text": text, "usage_chunks": sum(1 for c in chunks if c.usage)}


def responses_stream() -> dict[str, Any]:
    events = list(openai.OpenAI(api_key="k").responses.create(model="gpt-x", input="hi", stream=True))
    return {"text": "".join(getattr(e, "delta", "") for e in events), "last": events[-1].type}


CALLS = {f.__name__: f for f in (claude_plain, claude_stream, chat_stream, responses_stream)}

for name in sys.argv[3:]:
    try:
        result = CALLS[name]()
    except (anthropic.APIError, openai.APIError) as e:
        body: Any = getattr(e, "body", None)
        error = body.get("error", body) if isinstance(body, dict) else body
        kind = error.get("type") if isinstance(error, dict) else None
        result = {"error": type(e).__name__, "status": getattr(e, "status_code", None), "type": kind}
    print(json.dumps({"call": name} | result), flush=True)
