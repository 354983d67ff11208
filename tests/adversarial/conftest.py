"""What `make adversarial` writes: each technique, from where it was tried, against which layer, and what arrived.

AGENTMON_ADVERSARIAL names the file (CONTRACTS.md, "Data for machines"); without it nothing is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Told = Callable[[str, str, str, int], None]
HELD, OPEN, LIMITATION = "refused", "open", "known_limitation"
_rows: list[dict[str, object]] = []


def told(technique: str, placement: str, layer: str, received: int | None, result: str) -> None:
    _rows.append(
        {
            "technique": technique,
            "placement": placement,
            "layer": layer,
            "result": result,
            "receiver_bytes": received,
        }
    )


@pytest.fixture
def record() -> Told:
    """record(technique, placement, layer, bytes that arrived): of a layer that claims to hold it."""
    return lambda technique, placement, layer, received: told(
        technique, placement, layer, received, OPEN if received else HELD
    )


@pytest.fixture
def record_unclaimed() -> Told:
    """The same of a layer that does not claim it: what arrives is a limitation of that layer; another one holds it."""
    return lambda technique, placement, layer, received: told(
        technique, placement, layer, received, LIMITATION if received else HELD
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """A test of the whole product with counted receivers is one row: all layers, the default user. Where it failed, its
    report has the number."""
    report = yield
    counted = "nothing_leaks" in getattr(item, "fixturenames", ())
    if counted and report.when == "teardown":
        passed = report.passed and getattr(item, "_called", False)
        told(item.name, "user", "all", 0 if passed else None, HELD if passed else OPEN)
    elif report.when == "call":
        item._called = report.passed  # type: ignore[attr-defined]
    return report


def pytest_sessionfinish() -> None:
    if path := os.environ.get("AGENTMON_ADVERSARIAL"):
        Path(path).write_text(json.dumps(_rows, indent=1) + "\n")
