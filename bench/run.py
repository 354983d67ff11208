"""Measure agentmon beside its peers on this machine: a table on stdout, bench/results/latest.json. Root.

    .venv/bin/python bench/run.py [--only GROUP]... [--quick] [--markdown]

Every ratio comes from one run, rounds interleaved. With --only, the figures of other groups in latest.json stay.
--quick writes quick.json instead: it says whether measuring works, not what things cost.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.figure import Figure, show  # noqa: E402

GROUPS = (
    "start", "cutoff", "proxy", "checks", "dlp", "bulk", "relay", "connect", "live", "ledger", "hosts", "admission",
    "nft", "heal", "bottles", "guard", "ebpf", "posture", "top",
)  # fmt: skip
RESULTS = ROOT / "bench/results"


def main() -> int:
    words = argparse.ArgumentParser(prog="bench/run.py", description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--only", action="append", choices=GROUPS, help="measure this group; repeatable")
    words.add_argument("--quick", action="store_true", help="fewer rounds: whether it works, not what it costs")
    words.add_argument("--markdown", action="store_true", help="measure nothing; print latest.json as a table")
    chosen = words.parse_args()
    if chosen.markdown:
        print("\n".join(_rows(_kept(RESULTS / "latest.json"))))
        return 0
    if os.geteuid() != 0:
        print("error: namespaces, cgroups and BPF programs are measured; only root can make them", file=sys.stderr)
        print("hint: sudo make bench", file=sys.stderr)
        return 4
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    results = RESULTS / ("quick.json" if chosen.quick else "latest.json")
    kept = _kept(results) if chosen.only else []
    done: list[dict[str, Any]] = []
    failed = 0
    for group in chosen.only or GROUPS:
        try:
            figures = _measure(group, chosen.quick)
        except Exception as error:  # noqa: BLE001 - one group that fails must not cost the others
            print(f"error: {group}: {type(error).__name__}: {error}", file=sys.stderr)
            failed = 1
            continue
        done += [figure.as_json() | {"group": group} for figure in figures]
        new = {f["id"] for f in done}
        _write(results, [f for f in kept if f["id"] not in new and f.get("group") != group] + done)
    missed = [f["id"] for f in done if f["met"] is False]
    print(f"\n{len(done)} figures, {len(missed)} below their goal{': ' + ', '.join(missed) if missed else ''}")
    return failed


def _measure(group: str, quick: bool) -> list[Figure]:
    began = time.monotonic()
    print(f"── {group}", flush=True)
    with tempfile.TemporaryDirectory(prefix=f"agentmon-bench-{group}-") as tmp:
        figures: list[Figure] = importlib.import_module(f"bench.{group}").measure(Path(tmp), quick)
    for figure in figures:
        figure.command = figure.command or f".venv/bin/python bench/run.py --only {group}"
        print(figure.as_line())
    print(f"   {time.monotonic() - began:.0f} s", flush=True)
    return figures


def _rows(figures: list[dict[str, Any]]) -> list[str]:
    """The table of docs/benchmarks.md."""
    rows = ["| figure | value | min..max | goal | beside it |", "|---|---|---|---|---|"]
    for f in sorted(figures, key=lambda f: GROUPS.index(f["group"])):
        goal = f"{f['goal']}, {'met' if f['met'] else '**missed**'}" if f["goal"] else ""
        beside = ", ".join(f"{name} {show(value)}" for name, value in f["peers"].items())
        spread = "..".join(show(v) for v in f["spread"])
        rows.append(f"| `{f['id']}` | {show(f['value'])} {f['unit']} | {spread} | {goal} | {beside} |")
    return rows


def _kept(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    figures: list[dict[str, Any]] = json.loads(results.read_text())["figures"]
    return figures


def _write(results: Path, figures: list[dict[str, Any]]) -> None:
    results.parent.mkdir(exist_ok=True)
    value = {"machine": _machine(), "figures": figures}
    results.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _machine() -> dict[str, Any]:
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.partition(":")[2].strip() for x in cpus if x.startswith("model name")), "")
    memory = int(Path("/proc/meminfo").read_text().split()[1])  # MemTotal comes first
    return {
        "cpu": cpu, "cores": os.cpu_count(), "memory_mb": memory >> 10, "kernel": platform.release(),
        "python": platform.python_version(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load": os.getloadavg()[0],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
