"""What runs inside the bottle: `python3 -I bypass_attempts.py NAME [ARG]...` tries one technique and prints one word;
without a name it does the same for each line of stdin, a JSON list.

refused: the kernel or a service said no, or nothing came back. reached: an answer, or a door that opened. Stdlib only.
"""

from __future__ import annotations

import errno
import importlib
import json
import sys
from pathlib import Path

MODULES = ("bypass_sockets", "bypass_frames", "bypass_host", "bypass_services")


def main(argv: list[str]) -> None:
    sys.path.append(str(Path(__file__).parent))  # -I leaves it out
    for module in MODULES:
        importlib.import_module(module)
    for words in [argv[1:]] if argv[1:] else map(json.loads, sys.stdin):
        print(tried(words), flush=True)


def tried(words: list[str]) -> str:
    from bypass_table import TABLE, Refused

    try:
        return str(TABLE[words[0]](*words[1:]) or "reached")
    except Refused:
        return "refused silence"
    except OSError as e:
        return f"refused {errno.errorcode.get(e.errno or 0, type(e).__name__)}"


if __name__ == "__main__":
    main(sys.argv)
