"""The demo's agent: an ordinary program in a bottle. Works, tries what it may not, spends its budget, goes on when let.

Every step is one line of JSON on stdout; a line on stdin says that its operator has resumed the bottle, its end that
nobody needs it any more. It knows nothing of agentmon.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import attempts
import calls
import spend


def say(step: str, **data: Any) -> None:
    print(json.dumps({"step": step} | data), flush=True)


def main() -> None:
    say("started")
    for call in calls.ALL:
        say("call", **call())
    for attempt in attempts.ALL:
        say("attempt", **attempt())
    say("cut", **spend.until_refused())
    sys.stdin.readline()
    say("resumed", **calls.anthropic_plain())
    say("done")
    sys.stdin.read()


if __name__ == "__main__":
    main()
