"""Which mirror and which packages hold a kernel, read from what apt says. Pure.

No mirror is named here: it is that of the host's own sources.list(5), with another suite.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

META = "linux-image-{}"  # Debian's "newest kernel of this suite", by architecture
SHELL = "busybox-static"
# What a kernel consists of: one package up to 6.19, several since.
_PART = re.compile(r"\blinux-(?:image|binary|modules|base)-\d[\w.+~-]*")


class Source(NamedTuple):
    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def sources(text: str) -> list[Source]:
    """The binary package sources of one file below /etc/apt, in either format of sources.list(5)."""
    return [*_stanzas(text)] if re.search(r"^\s*Types:", text, re.MULTILINE) else [*_lines(text)]


def mirror(found: Iterable[Source], codename: str) -> str | None:
    """The address from which this host gets the suite `codename` itself (not its security updates)."""
    return next((s.uri for s in found if codename in s.suites and "main" in s.components), None)


def suites(suite: str) -> list[str]:
    """`suite`, and the one that it adds to: a backports suite holds kernels, but not what goes with them."""
    return list(dict.fromkeys((suite, suite.removesuffix("-backports"))))


def parts(show: str) -> list[str]:
    """The packages that the `Depends` of an `apt-cache show` name as parts of a kernel, each once."""
    depends = " ".join(re.findall(r"^Depends: (.*)$", show, re.MULTILINE))
    return list(dict.fromkeys(_PART.findall(depends)))


def _stanzas(text: str) -> Iterator[Source]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = {}
        for line in re.sub(r"^#.*\n?", "", stanza, flags=re.MULTILINE).splitlines():
            key, colon, value = line.partition(":")
            if colon and not line[:1].isspace():
                fields[key.lower()] = value.split()
        if "deb" in fields.get("types", ()) and fields.get("enabled", ["yes"]) != ["no"]:
            for uri in fields.get("uris", ()):
                yield Source(uri, tuple(fields.get("suites", ())), tuple(fields.get("components", ())))


def _lines(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        words = re.sub(r"^deb\s+\[[^]]*\]", "deb ", line.partition("#")[0].strip()).split()
        if len(words) > 3 and words[0] == "deb":
            yield Source(words[1], (words[2],), tuple(words[3:]))
