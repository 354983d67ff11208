"""Directories that are followed: every way a file is replaced, directories that come later, storms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.daemon import watched
from agentmon.daemon.watched import Watched, contents


def replaced(file: Path) -> None:
    new = file.with_name(".new")
    new.write_text("new")
    new.replace(file)


def linked(file: Path) -> None:
    """As Kubernetes does: what the name leads to is another directory by now."""
    (file.parent / "v2").mkdir()
    (file.parent / "v2" / file.name).write_text("new")
    link = file.parent / ".link"
    link.symlink_to(Path("v2") / file.name)
    link.replace(file)


def calls(places: list[Path], *changes: Callable[[], object]) -> int:
    """How often it is called for these changes, one after the other, each waited for."""

    async def body() -> int:
        count = 0
        came = asyncio.Event()

        def changed() -> None:
            nonlocal count
            count += 1
            came.set()

        one = Watched(places, changed)
        try:
            for change in changes:
                came.clear()
                change()
                await asyncio.wait_for(came.wait(), 5)
        finally:
            one.close()
        return count

    return asyncio.run(body())


@pytest.mark.parametrize("how", [replaced, linked, Path.unlink, lambda file: file.write_text("new")])
def test_a_file_that_changes_is_noticed(tmp_path: Path, how: Callable[[Path], object]) -> None:
    file = tmp_path / "settings.yml"
    file.write_text("old")
    before = contents([file])
    assert calls([tmp_path], lambda: how(file)) >= 1
    assert contents([file]) != before


def test_a_directory_that_comes_later_is_followed(tmp_path: Path) -> None:
    place = tmp_path / "etc/bottles"
    count = calls(
        [place], (tmp_path / "etc").mkdir, place.mkdir, lambda: (place / "a.yml").write_text("x"),
        lambda: replaced(place / "a.yml"),
    )  # fmt: skip
    assert count >= 4


def test_a_storm_is_one_call_or_few(tmp_path: Path) -> None:
    def storm() -> None:
        for n in range(500):
            replaced(tmp_path / f"{n}.yml")

    assert calls([tmp_path], storm) <= 3


def test_without_inotify_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_FLAGS", -1)

    async def body() -> None:
        with pytest.raises(OSError, match="inotify_init1"):
            Watched([tmp_path], lambda: None)

    asyncio.run(body())


def test_contents_of_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    found = contents([tmp_path, tmp_path / "none", tmp_path / "file"])
    assert [data for _, data in found] == [None, None, b"x"]
