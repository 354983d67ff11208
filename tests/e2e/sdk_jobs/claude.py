"""What the anthropic SDK is asked to do: words of the stand-in's script, and the call with that model."""

from __future__ import annotations

import asyncio
from typing import Any

from way import Call, Way, done, each, entered, until

TOOLS: list[Any] = [{"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}]


def asked(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 200, "messages": [{"role": "user", "content": "Say something."}]} | more


def counted(message: Any) -> list[Any]:
    u = message.usage
    return [u.input_tokens, u.cache_read_input_tokens, u.cache_creation_input_tokens, u.output_tokens]


async def plain(way: Way, model: str) -> Any:
    return counted(await done(way.claude.messages.create(**asked(model))))


async def stream(way: Way, model: str) -> Any:
    """The helper that puts a message together."""
    async with entered(way.claude.messages.stream(**asked(model))) as stream:
        pieces = [text async for text in each(stream.text_stream)]
        return [len(pieces), *counted(await done(stream.get_final_message()))]


async def events(way: Way, model: str) -> Any:
    return [event.type async for event in each(await done(way.claude.messages.create(**asked(model, stream=True))))][-1]


async def raw(way: Way, model: str) -> Any:
    response = await done(way.claude.messages.with_raw_response.create(**asked(model)))
    return [response.http_response.http_version, *counted(await done(response.parse()))]


async def body(way: Way, model: str) -> Any:
    async with entered(way.claude.messages.with_streaming_response.create(**asked(model))) as response:
        return len(await done(response.read())) > 100


async def tool(way: Way, model: str) -> Any:
    message = await done(way.claude.messages.create(**asked(model, tools=TOOLS)))
    return [message.stop_reason, message.content[0].name, *counted(message)]


async def tool_stream(way: Way, model: str) -> Any:
    async with entered(way.claude.messages.stream(**asked(model, tools=TOOLS))) as stream:
        message = await done(stream.get_final_message())
        return [message.stop_reason, len(message.content[0].input["said"]), *counted(message)]


async def count(way: Way, model: str) -> Any:
    question = {key: value for key, value in asked(model).items() if key != "max_tokens"}
    return (await done(way.claude.messages.count_tokens(**question))).input_tokens


async def wrong_key(way: Way, model: str) -> Any:
    return await done(way.claude.with_options(api_key="invalid-1").messages.create(**asked(model)))


async def again(way: Way, model: str) -> Any:
    """The SDK tries again by itself."""
    return counted(await done(way.claude.with_options(max_retries=2).messages.create(**asked(model))))


async def impatient(way: Way, model: str) -> Any:
    return await done(way.claude.with_options(max_retries=1, timeout=0.5).messages.create(**asked(model)))


async def leave(way: Way, model: str) -> Any:
    """Gives up in the middle of a stream."""
    stream = await done(way.claude.messages.create(**asked(model, stream=True)))
    return (await until(stream, lambda event: event.type == "content_block_delta")).type


async def leave_last(way: Way, model: str) -> Any:
    """Gives up when all has come but the end of the body."""
    stream = await done(way.claude.messages.create(**asked(model, stream=True)))
    return (await until(stream, lambda event: event.type == "message_stop")).type


async def leave_head(way: Way, model: str) -> Any:
    """Gives up before the body."""
    async with entered(way.claude.messages.with_streaming_response.create(**asked(model, stream=True))) as response:
        return response.status_code


async def cancel(way: Way, model: str) -> Any:
    """Gives up while it waits for the answer."""
    task = asyncio.ensure_future(way.claude.messages.create(**asked(model)))
    await asyncio.wait([task], timeout=0.4)
    task.cancel()
    return await task


async def cancel_first(way: Way, model: str) -> Any:
    """Gives up before anything is sent."""
    task = asyncio.ensure_future(way.claude.messages.create(**asked(model)))
    await asyncio.sleep(0)
    task.cancel()
    return await task


CALLS: dict[str, tuple[str, Call]] = {
    "plain": ("in31-out12", plain),
    "cached": ("in31-read400-write50-out12", plain),
    "limited": ("in31-out900", plain),
    "stream": ("in32-read100-out40-chunks9", stream),
    "events": ("in33-out40", events),
    "lies": ("in33-out40-fake1", stream),
    "raw": ("in34-out5", raw),
    "body": ("in34-out6", body),
    "tool": ("in35-out20-tool1", tool),
    "tool stream": ("in35-out20-tool1-chunks7", tool_stream),
    "count": ("in4321", count),
    "wrong key": ("in1", wrong_key),
    **{f"status {status}": (f"status{status}", plain) for status in (400, 404, 413, 429, 500, 503, 529)},
    "again": ("in36-out7-status529-times2", again),
    "again in vain": ("status429", again),
    "impatient": ("in37-out50-chunks1-pace2500", impatient),
    "error in the middle": ("in38-out80-chunks8-error4", stream),
    "dies in the middle": ("in39-out80-chunks8-drop4-pace10", stream),
    "leave": ("in40-out100-chunks100-pace10", leave),
    "leave at the end": ("in41-out10", leave_last),
    "leave at the head": ("in42-out100-chunks100-pace10", leave_head),
}
ASYNC_CALLS: dict[str, tuple[str, Call]] = {
    "cancel": ("in43-out50-chunks1-pace2500", cancel),
    "cancel at once": ("in44-out50-chunks1-pace2500", cancel_first),
}
