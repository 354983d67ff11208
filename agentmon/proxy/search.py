"""Searching what a bottle sends: its scanner, bodies in their codings, uploads piece by piece. Pure, for threads."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from agentmon.dlp.scanner import Detector, Finding, Scanner
from agentmon.providers.decoding import decode_all
from agentmon.proxy.clean import OVERLAP, Clean
from agentmon.proxy.unpacked import DEPTH, Unpacker, Unsearchable

CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "identity"})
DECODED_BYTES = 64 << 20
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # gzip, zstd: RFC 1952, RFC 8878


@dataclass(frozen=True, slots=True)
class Searched:
    """`plain`: the body decoded, None: it does not decode. `findings`: in it. `inside`: in what lies packed in it, or
    beside it, where nothing can be replaced."""

    plain: bytes | None
    findings: tuple[Finding, ...] = ()
    inside: tuple[Finding, ...] = ()


class Searches:
    """The scanners of a worker's bottles. `detector` may be replaced; scanners follow it."""

    def __init__(self, detector: Detector) -> None:
        self.clean = Clean()
        self._detector = detector
        self._known: dict[int, tuple[str, bytes, dict[str, bytes]]] = {}  # slot → run, key, values by name
        self._scanners: dict[int, tuple[str, Scanner]] = {}

    def use(self, detector: Detector) -> None:
        """Other rules, for all that is searched from now on."""
        self._detector = detector
        for run, _ in self._scanners.values():
            self.clean.forget(run)
        self._scanners.clear()

    def give(self, slot: int, run: str, key: bytes, values: Mapping[str, str]) -> None:
        """All values that are known for one run; those of an earlier time are gone.

        :param values: by "env NAME" or "credential NAME"; where two names have one value the first counts.
        """
        self._known[slot] = run, key, {name: value.encode() for name, value in values.items()}
        self._scanners.pop(slot, None)
        self.clean.forget(run)

    def drop(self, slot: int) -> None:
        run, _ = self._scanners.pop(slot, ("", None))
        self.clean.forget(run)
        self._known.pop(slot, None)

    def of(self, slot: int, run: str) -> Scanner:
        """The scanner of this run; until it is told of known values, by rules alone."""
        for_run, scanner = self._scanners.get(slot, ("", None))
        if scanner is None or for_run != run:
            known_run, key, values = self._known.get(slot, ("", b"", {}))
            mine = known_run == run
            scanner = Scanner(self._detector, values if mine else {}, key if mine else secrets.token_bytes(32))
            self._scanners[slot] = run, scanner
        return scanner


def search(scanner: Scanner, clean: Clean, run: str, host: str, raw: bytes, coding: str, form: bool) -> Searched:
    """The whole of a body. Its beginning, where it was searched before in this run, for this host, is not again.

    :param coding: its Content-Encoding. :param form: it is application/x-www-form-urlencoded.
    """
    plain = decoded(raw, coding)
    if plain is None:
        return Searched(None)
    known, digests = clean.until(run, host, b"form" if form else b"", plain)
    found = scanner.scan(plain, "body", form=form, since=max(0, known - OVERLAP))
    findings = tuple(f for f in found if f.end > known)
    told = {f.digest for f in findings}
    inside = [f for f in scanner.scan(raw, "body") if f.digest not in told] if plain is not raw else []
    try:
        for beside in (plain, raw[2:] if plain is not raw else b""):  # in it; behind the file that it came in
            for text in filter(None, Unpacker().feed(beside)):
                inside.extend(f for f in scanner.scan(text, "body") if f.digest not in told)
    except Unsearchable:
        return Searched(None)
    if not findings and not inside:
        clean.remember(run, digests)
    return Searched(plain, findings, tuple(inside))


def decoded(raw: bytes, coding: str) -> bytes | None:
    """The body as a server would read it; None for a coding that nobody here knows, a bomb, or nonsense. `raw` itself
    where nothing had to be done."""
    names = [name for part in coding.split(",") if (name := part.strip().lower())]
    if any(name not in CODINGS for name in names):
        return None
    if not raw or (all(name == "identity" for name in names) and not raw.startswith(_PACKED)):
        return raw
    return decode_all(coding, raw, DECODED_BYTES)


E = TypeVar("E")


class Window(Generic[E]):
    """An upload that passes through while it is searched. Nothing leaves before what follows it, too, was searched.

    take() or end() set `text`, what is to be searched; passed() says that nothing was found; a call releases what may
    leave. `ending`: how it ends where something was found.
    """

    HOLD = 8 << 10  # stays behind until more has come: a secret is not sent by halves
    ENOUGH = 16 << 10  # new bytes that make a search worth it

    def __init__(self, *, holds: bool) -> None:
        """:param holds: False for a dialogue, each side of which waits for the other: its messages leave at once."""
        self.text = b""
        self.ending: E | None = None
        self._holds = holds
        self._kept = b""  # searched; of it `_left` bytes have been released already
        self._left = 0
        self._new = bytearray()
        self._passed = False
        self._ended = False
        self._unpacker = Unpacker()
        self._unpacked = [b""] * DEPTH  # the ends of what was found packed so far

    @property
    def packed(self) -> bool:
        """Whether there may be much more in it than its length says."""
        return self._unpacker.under_way or b"\x1f\x8b" in self._new

    def inside(self) -> list[bytes]:
        """What lies packed in what is new; to be searched as well, once for each `text`.

        :raises Unsearchable:
        """
        texts = []
        for depth, fresh in enumerate(self._unpacker.feed(bytes(self._new))):
            if fresh:
                texts.append(self._unpacked[depth] + fresh)
                self._unpacked[depth] = texts[-1][-self.HOLD :]
        return texts

    def take(self, data: bytes) -> bytes:
        """What is to be searched now that `data` has come."""
        self._new += data
        self._passed = False
        if not self._new or (self._holds and len(self._new) < self.ENOUGH):
            self.text = b""
        else:
            self.text = self._kept + bytes(self._new)
        return self.text

    def end(self) -> bytes:
        """What is to be searched at the end."""
        self._ended, self._passed = True, False
        self.text = self._kept + bytes(self._new) if self._new else b""
        return self.text

    def passed(self) -> None:
        """Nothing was found in `text`."""
        self._passed = True

    @property
    def waits(self) -> bool:
        """Whether what was taken has not been searched yet."""
        return not self._passed

    def __call__(self, data: bytes) -> list[bytes]:
        """What may leave now: mitmproxy's stream callable; `data` was taken already."""
        if not self._passed:
            return []
        whole = self._kept + bytes(self._new)
        keep = 0 if self._ended else min(self.HOLD, len(whole))
        until = len(whole) if self._ended or not self._holds else len(whole) - keep
        out = whole[self._left : until]
        first = len(whole) - keep
        self._kept, self._left = whole[first:], max(0, max(until, self._left) - first)
        self._new.clear()
        self._passed = False
        return [out] if out else []
