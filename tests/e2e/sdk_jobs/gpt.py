"""What the openai SDK is asked to do: words of the stand-in's script, and the call with that model."""

from __future__ import annotations

import asyncio
from typing import Any

from way import Call, Way, done, each, entered, until

LOOK = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
CHAT_TOOLS: list[Any] = [{"type": "function", "function": LOOK}]
TOOLS: list[Any] = [{"type": "function"} | LOOK]
USAGE = {"stream_options": {"include_usage": True}}


def said(model: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Say something."}]
    return {"model": model, "max_completion_tokens": 200, "messages": messages} | more


def put(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "max_output_tokens": 200, "input": "Say something."} | more


def chat_counted(usage: Any) -> list[int]:
    return [usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens]


def counted(usage: Any) -> list[int]:
    return [usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.output_tokens]


async def chat(way: Way, model: str) -> Any:
    return chat_counted((await done(way.gpt.chat.completions.create(**said(model)))).usage)


async def chat_stream(way: Way, model: str) -> Any:
    """It asks for no usage, and gets none."""
    chunks = [c async for c in each(await done(way.gpt.chat.completions.create(**said(model, stream=True))))]
    return [
        sum(1 for c in chunks if c.usage),
        sum(1 for c in chunks if not c.choices),
        chunks[-1].choices[0].finish_reason,
    ]


async def chat_usage(way: Way, model: str) -> Any:
    stream = await done(way.gpt.chat.completions.create(**said(model, stream=True, **USAGE)))
    return [chat_counted(c.usage) async for c in each(stream) if c.usage]


async def chat_helper(way: Way, model: str) -> Any:
    async with entered(way.gpt.chat.completions.stream(**said(model))) as stream:
        last = [event.type async for event in each(stream)][-1]
        return [last, (await done(stream.get_final_completion())).choices[0].finish_reason]


async def chat_tool(way: Way, model: str) -> Any:
    answer = await done(way.gpt.chat.completions.create(**said(model, tools=CHAT_TOOLS)))
    return [answer.choices[0].message.tool_calls[0].function.name, *chat_counted(answer.usage)]


async def chat_tool_stream(way: Way, model: str) -> Any:
    async with entered(way.gpt.chat.completions.stream(**said(model, tools=CHAT_TOOLS))) as stream:
        async for _ in each(stream):
            pass
        answer = await done(stream.get_final_completion())
        return [answer.choices[0].finish_reason, answer.choices[0].message.tool_calls[0].function.name]


async def responses(way: Way, model: str) -> Any:
    return counted((await done(way.gpt.responses.create(**put(model)))).usage)


async def responses_stream(way: Way, model: str) -> Any:
    events = [e async for e in each(await done(way.gpt.responses.create(**put(model, stream=True))))]
    return [events[-1].type, *(counted(events[-1].response.usage) if events[-1].response.usage else ())]


async def responses_helper(way: Way, model: str) -> Any:
    async with entered(way.gpt.responses.stream(**put(model))) as stream:
        async for _ in each(stream):
            pass
        return counted((await done(stream.get_final_response())).usage)


async def tool_stream(way: Way, model: str) -> Any:
    events = [e async for e in each(await done(way.gpt.responses.create(**put(model, stream=True, tools=TOOLS))))]
    item = events[-1].response.output[0]
    return [item.type, item.name, *counted(events[-1].response.usage)]


async def embeddings(way: Way, model: str) -> Any:
    answer = await done(way.gpt.embeddings.create(model=f"text-embedding-{model}", input="hi", encoding_format="float"))
    return answer.usage.prompt_tokens


async def count(way: Way, model: str) -> Any:
    return (await done(way.gpt.responses.input_tokens.count(model=model, input="hi"))).input_tokens


async def raw(way: Way, model: str) -> Any:
    response = await done(way.gpt.responses.with_raw_response.create(**put(model)))
    return [response.http_response.http_version, *counted((await done(response.parse())).usage)]


async def wrong_key(way: Way, model: str) -> Any:
    return await done(way.gpt.with_options(api_key="invalid-1").responses.create(**put(model)))


async def again(way: Way, model: str) -> Any:
    """The SDK tries again by itself."""
    return counted((await done(way.gpt.with_options(max_retries=2).responses.create(**put(model)))).usage)


async def impatient(way: Way, model: str) -> Any:
    return await done(way.gpt.with_options(max_retries=1, timeout=0.5).chat.completions.create(**said(model)))


async def leave(way: Way, model: str) -> Any:
    """Gives up in the middle of a stream."""
    stream = await done(way.gpt.chat.completions.create(**said(model, stream=True)))
    return (await until(stream, lambda c: bool(c.choices[0].delta.content))).object


async def leave_last(way: Way, model: str) -> Any:
    """Gives up when all has come but the end of the body."""
    stream = await done(way.gpt.responses.create(**put(model, stream=True)))
    return (await until(stream, lambda event: event.type == "response.completed")).type


async def cancel(way: Way, model: str) -> Any:
    """Gives up while it waits for the answer."""
    task = asyncio.ensure_future(way.gpt.responses.create(**put(model)))
    await asyncio.wait([task], timeout=0.4)
    task.cancel()
    return await task


CALLS: dict[str, tuple[str, Call]] = {
    "chat": ("in51-read20-out12", chat),
    "chat stream": ("in52-out40", chat_stream),
    "chat stream usage": ("in52-read30-out41", chat_usage),
    "chat helper": ("in52-out42", chat_helper),
    "chat lies": ("in52-out43-fake1", chat_stream),
    "chat tool": ("in53-out20-tool1", chat_tool),
    "chat tool stream": ("in53-out21-tool1-chunks7", chat_tool_stream),
    "responses": ("in54-read10-out12", responses),
    "responses limited": ("in54-out900", responses),
    "responses stream": ("in55-out40", responses_stream),
    "responses helper": ("in55-out41-fake1", responses_helper),
    "responses tool stream": ("in56-out20-tool1-chunks7", tool_stream),
    "embeddings": ("in57", embeddings),
    "count": ("in4321", count),
    "raw": ("in58-out5", raw),
    "wrong key": ("in1", wrong_key),
    **{f"status {status}": (f"status{status}", chat) for status in (400, 404, 429, 500, 503)},
    "again": ("in59-out7-status503-times2", again),
    "again in vain": ("status429", again),
    "impatient": ("in60-out50-chunks1-pace2500", impatient),
    "chat error in the middle": ("in61-out80-chunks8-error4", chat_usage),
    "responses error in the middle": ("in61-out80-chunks8-error4", responses_stream),
    "chat dies in the middle": ("in62-out80-chunks8-drop4-pace10", chat_stream),
    "leave": ("in63-out100-chunks100-pace10", leave),
    "leave at the end": ("in64-out10", leave_last),
}
ASYNC_CALLS: dict[str, tuple[str, Call]] = {"cancel": ("in65-out50-chunks1-pace2500", cancel)}
