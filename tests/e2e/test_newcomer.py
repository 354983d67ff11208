"""A newcomer's path: the sessions of README.md and docs/quickstart.md, read out of the pages and run in a fresh clone.

The set-up lines are not run here (scripts/newcomer.py runs them, on a machine to spare); the internet is the stand-in.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import newcomer
from tests.support.live import World, until

pytestmark = pytest.mark.e2e
PAGES = ["README.md", "docs/quickstart.md"]


def test_the_sessions_of_the_pages_in_a_fresh_clone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with World(tmp_path) as world:  # no daemon: the first `run` starts one, as on a new host
        place = world.root / "clone"
        newcomer.clone(place)
        env = world.env | newcomer.in_place_of_set_up(place)
        for page in PAGES:  # as they stand in this checkout, committed or not
            (place / page).write_text((newcomer.ROOT / page).read_text())
        as_they_say = newcomer.walk(PAGES, place, env, {"set-up"})
        until(lambda: not world.run_dir.exists(), 30, "the daemon that `run` started did not end")
    out, err = capsys.readouterr()
    assert as_they_say, out + err
    assert out.count("left out") == 2 and "from the first command" in out
    with capsys.disabled():
        print("\n" + out)
