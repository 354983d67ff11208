"""Run in a bottle: every call of both SDKs in every way, the ways at the same time. It knows nothing of agentmon.

python matrix.py WAY…      WAY: "sync HTTP/1.1", "async HTTP/2" …; one JSON line per call on stdout, "end" at the end
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

import anthropic
import claude
import gpt
import openai
from way import Call, Way

try:
    import httpx2
except ModuleNotFoundError:  # for Python 3.11 the locked SDKs still bring httpx
    import httpx as httpx2

SPOKEN = (anthropic.APIError, openai.APIError, httpx2.HTTPError)


async def outcome(way: Way, call: Call, model: str) -> Any:
    """What the call returns, or the name of what it raises."""
    try:
        return await call(way, model)
    except asyncio.CancelledError:
        return "CancelledError"
    except SPOKEN as error:
        status = getattr(error, "status_code", None)
        return f"{type(error).__name__} {status}" if status else type(error).__name__


async def walk(way: Way, number: int) -> None:
    for sdk, calls, named in (("claude", claude, "claude"), ("gpt", gpt, "gpt")):
        chosen = calls.CALLS | (calls.ASYNC_CALLS if way.asynchronous else {})
        for turn, (name, (words, call)) in enumerate(chosen.items()):
            model = f"{named}-scripted-{words}-way{number}-call{turn}"
            said = await outcome(way, call, model)
            line = {"way": way.name, "call": f"{sdk} {name}", "model": model, "said": said}
            print(json.dumps(line) + "\n", end="", flush=True)


def main() -> None:
    def run(number: int, words: str) -> None:
        asyncio.run(walk(Way(*words.split()), number))

    threads = [threading.Thread(target=run, args=(number, words)) for number, words in enumerate(sys.argv[1:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("end", flush=True)
    sys.stdin.readline()  # the bottle stays until its books have been looked at


if __name__ == "__main__":
    main()
