"""The last line of `make test`: what CI reads must be the sum of the lanes, and nothing where nothing ran."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/closing_line.py"


def closing(text: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, SCRIPT], input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip()


def test_lanes_are_added_and_errors_are_failures() -> None:
    lanes = (
        "tests/a.py 7 passed in words",
        "= 3 passed, 1 skipped in 2.1s =",
        "2 failed, 5 passed, 1 error in 3.0s (0:00:03)",
    )
    assert closing("\n".join(lanes)) == (0, "8 passed, 3 failed, 1 skipped")


def test_nothing_passed_is_not_a_success() -> None:
    assert closing("no tests ran in 0.1s\n") == (1, "0 passed, 0 failed, 0 skipped")
