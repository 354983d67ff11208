"""Sets of ports as sorted, disjoint, inclusive (lo, hi) pairs."""

from __future__ import annotations

from agentmon.policy.rules.hosts import RuleError

Ports = tuple[tuple[int, int], ...]

ALL: Ports = ((1, 65535),)


def parse_ports(text: str) -> Ports:
    """`443`, `80,443`, `8000-8100` or a mixture.

    :raises RuleError: for anything else, saying which part.
    """
    pairs = []
    for part in text.split(","):
        lo, dash, hi = part.partition("-")
        first = _port(lo, text)
        last = _port(hi, text) if dash else first
        if last < first:
            raise RuleError(f"ports {part!r} run backwards", f"write {last}-{first}")
        pairs.append((first, last))
    return merged(pairs)


def _port(text: str, whole: str) -> int:
    # isdigit() alone accepts superscripts and other scripts' digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        what = f"port {text!r}" if text == whole else f"port {text!r} in {whole!r}"
        raise RuleError(f"{what} is not a port", "ports are 1 to 65535: 443, 80,443 or 8000-8100")
    return int(text)


def merged(pairs: list[tuple[int, int]]) -> Ports:
    """The same ports, sorted, with overlapping and adjacent pairs joined."""
    out: list[tuple[int, int]] = []
    for lo, hi in sorted(pairs):
        if out and lo <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(hi, out[-1][1]))
        else:
            out.append((lo, hi))
    return tuple(out)


def without(ports: Ports, removed: Ports) -> Ports:
    """`ports` that are not in `removed`."""
    left = list(ports)
    for lo, hi in removed:
        cut: list[tuple[int, int]] = []
        for a, b in left:
            if hi < a or b < lo:
                cut.append((a, b))
                continue
            if a < lo:
                cut.append((a, lo - 1))
            if hi < b:
                cut.append((hi + 1, b))
        left = cut
    return tuple(left)


def contains(ports: Ports, port: int) -> bool:
    return any(lo <= port <= hi for lo, hi in ports)


def text_of(ports: Ports) -> str:
    return ",".join(str(lo) if lo == hi else f"{lo}-{hi}" for lo, hi in ports)
