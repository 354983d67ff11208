"""Runs the matrix: python -m tests.kernel [NAME…]. Exits 0 if all kernels passed, 1 if not, 4 if one cannot be had."""

from __future__ import annotations

import argparse
import fcntl
import json
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kernel import boot, config, fetch, table

CACHE = boot.ROOT / ".cache/kernels"
NOT_COPIED = (".git", ".venv", ".cache", "__pycache__", "results", ".hypothesis")


def main(argv: list[str]) -> int:
    names = [k.name for k in config.KERNELS]
    parser = argparse.ArgumentParser(prog="make test-kernels KERNELS=", description="the kernel matrix")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(names)} (default: all)")
    parser.add_argument("--update", action="store_true", help="fetch the newest kernel of each suite again")
    parser.add_argument("--tests", action="append", metavar="PATH", help="instead of config.TESTS; may be repeated")
    parser.add_argument("--append", default="", metavar="WORDS", help="more words for the kernel's command line")
    chosen = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # QEMU ends with us
    if unknown := [n for n in chosen.names if n not in names]:
        parser.error(f"no kernel is called {', '.join(unknown)}; there are: {', '.join(names)}")
    rows = []
    try:
        for kernel in config.KERNELS:
            if kernel.name in (chosen.names or names):
                with alone(kernel):
                    files = ready(kernel, update=chosen.update)
                    rows.append(trial(kernel, files, chosen.tests or config.TESTS, chosen.append))
    except fetch.Unavailable as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 4
    text = "\n".join(table.render(rows))
    (CACHE / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(row.good for row in rows) else 1


@contextmanager
def alone(kernel: config.Kernel) -> Iterator[None]:
    """While nobody else uses the files of this kernel.

    :raises Unavailable: somebody does.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{kernel.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise fetch.Unavailable(f"{kernel.name} is being tested by another run", "wait for its end") from error
        yield


def ready(kernel: config.Kernel, *, update: bool) -> fetch.Files:
    """The kernel's files, downloaded if they are not there or `update` is asked for."""
    directory = CACHE / kernel.name
    files = None if update else fetch.have(directory)
    if files is None:
        say(f"{kernel.name}: getting the newest kernel of {kernel.suite} into {directory.relative_to(boot.ROOT)}")
        files = fetch.fetch(kernel, directory, fetch.debian_mirror())
    return files


def trial(kernel: config.Kernel, files: fetch.Files, tests: Sequence[str], words: str) -> table.Row:
    """Boot it, run `tests` of the checkout as it is now."""
    shared = CACHE / kernel.name / "run"
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir(parents=True)
    tree = snapshot(CACHE / kernel.name / "tree")
    (shared / "tree").write_text(f"{tree}\n", encoding="utf-8")
    say(f"{kernel.name}: booting {files.release}; log: {(shared / 'log').relative_to(boot.ROOT)}")
    came = boot.run(files, job(tests), shared, words)
    return row(kernel.name, files.release, came, shared)


def job(tests: Sequence[str]) -> str:
    """What the guest does: probe, then pytest, whose status is the job's. Pure."""
    python = ".venv/bin/python"
    pytest = [
        *(python, "-m", "pytest", "-v", "--color=no", "--tb=short", "-m", "not e2e and not adversarial"),
        *("-o", f"timeout={config.TEST_S}", "-o", f"faulthandler_timeout={config.TEST_S - 10}"),
        *("--junitxml=/mnt/out/junit.xml", *tests),
    ]
    return f"{python} -m tests.kernel.inside >/mnt/out/findings.json || exit\n{shlex.join(pytest)}"


def row(name: str, release: str, came: boot.Boot, shared: Path) -> table.Row:
    """What `came` of a boot, from the files that it left."""
    findings, junit = shared / "findings.json", shared / "junit.xml"
    features = json.loads(findings.read_text())["features"] if findings.exists() and findings.stat().st_size else {}
    tests = table.read(junit.read_text()) if junit.exists() else table.Tests()
    if not came.up_s:
        trouble = f"did not boot in {config.BOOT_S:.0f} s"
    elif came.status is None:
        trouble = f"did not end in {config.TESTS_S:.0f} s, or crashed"
    elif came.status and not tests.failed:
        trouble = f"ended with status {came.status}"
    else:
        trouble = ""
    return table.Row(name, release, came.up_s, tests, features, trouble and f"{trouble}; see {shared}/log")


def snapshot(directory: Path) -> Path:
    """A copy of the checkout for the guests to read: what changes here meanwhile is not seen there."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(boot.ROOT, directory, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
    (directory / ".venv").mkdir()
    return directory


def say(text: str) -> None:
    print(f"test-kernels: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
