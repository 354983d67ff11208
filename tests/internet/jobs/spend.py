"""An agent in a loop: calls until it is refused, with a slow stream going on beside it."""

from __future__ import annotations

import threading
import time
from typing import Any

import anthropic
from calls import ASK, failed

LOOP_MODEL = "claude-scripted-in3000-out10"
SLOW_MODEL = "claude-scripted-in500-out100-chunks1000-pace20"
MOST_CALLS = 50  # a bottle that is never cut must not loop for ever


class SlowStream(threading.Thread):
    """Twenty seconds of a stream, unless somebody ends it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begun = threading.Event()
        self.result: dict[str, Any] = {"type": "", "error": "still running"}
        self.ended_ns = 0  # CLOCK_REALTIME, by which its operator's ledger goes too

    def run(self) -> None:
        deltas = 0
        try:
            with anthropic.Anthropic().messages.stream(model=SLOW_MODEL, max_tokens=100, messages=ASK) as stream:
                for _ in stream.text_stream:
                    deltas += 1
                    self.begun.set()
            self.ended_ns = time.time_ns()
            self.result = {"type": "", "error": "", "deltas": deltas}
        except anthropic.APIError as error:
            self.ended_ns = time.time_ns()
            self.result = failed(error) | {"deltas": deltas}
        except Exception as error:  # noqa: BLE001 - whatever else a client makes of a cut is a finding, not a crash
            self.ended_ns = time.time_ns()
            self.result = {"type": "", "error": f"{type(error).__name__}: {error}", "deltas": deltas}
        finally:
            self.begun.set()

    def seen(self) -> dict[str, Any]:
        return self.result | {"ended_ns": self.ended_ns}


def until_refused() -> dict[str, Any]:
    """How often it worked, what the refusal said, how long the SDK took to give up, and how the stream ended."""
    slow = SlowStream()
    slow.start()
    slow.begun.wait(20)
    client = anthropic.Anthropic()
    for count in range(MOST_CALLS):
        begun = time.monotonic()
        try:
            client.messages.create(model=LOOP_MODEL, max_tokens=10, messages=ASK)
        except anthropic.APIError as error:
            took_ms = round((time.monotonic() - begun) * 1000, 1)
            slow.join(10)
            return failed(error) | {"calls": count, "refused_after_ms": took_ms, "stream": slow.seen()}
    return {"status": 200, "type": "", "calls": MOST_CALLS, "stream": slow.seen(), "error": "never refused"}
