"""Host names in their one canonical form: lower case, A-labels, no trailing dot."""

from __future__ import annotations

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_DOTS = "\u3002\uff0e\uff61"  # what IDNA treats as a dot (RFC 3490 section 3.1)

LOOPBACK_NAMES = frozenset(
    {"localhost", "localhost.localdomain", "localhost6", "localhost6.localdomain6", "ip6-localhost", "ip6-loopback"}
)
METADATA_NAMES = frozenset(
    {
        "metadata.google.internal",
        "metadata.goog",
        "metadata.azure.internal",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
OWN_NAME = "agentmon.internal"


class RuleError(ValueError):
    """A rule or host that cannot be used: `message` says what is wrong, `hint` what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def canonical_host(text: str) -> str:
    """The canonical form of a host name. Not for addresses: what looks like one is refused, however it is spelled.

    Underscores are allowed, as in DNS (RFC 2181 section 11). `127.1`, `0x7f.1` and `2130706433`, which some
    clients read as addresses, are refused because the last label of a real name is never a number (RFC 3696 section 2).

    :raises RuleError: with the A-label to write where the name is not ASCII.
    """
    if not text.isascii():
        raise RuleError(f"host {text!r} is not ASCII", _a_label_hint(text))
    host = text.lower()
    if host.endswith("."):
        host = host[:-1]
    if not host:
        raise RuleError("the host is empty", "write a name such as api.example.com")
    if len(host) > 253:
        raise RuleError(f"host {text[:40] + '…'!r} has {len(host)} characters", "a host name has at most 253")
    labels = host.split(".")
    for label in labels:
        _check_label(label, text)
    if _is_number(labels[-1]):
        raise RuleError(
            f"host {text!r} looks like an address, but is none",
            "write an address in full (192.0.2.7), a network (10.0.0.0/8), or a host name",
        )
    return host


def _check_label(label: str, host: str) -> None:
    if not label:
        raise RuleError(f"host {host!r} has an empty label", "take out the extra dot")
    if len(label) > 63:
        raise RuleError(f"host {host!r}: label {label!r} has {len(label)} characters", "a label has at most 63")
    if not _LETTERS.issuperset(label):
        bad = next(c for c in label if c not in _LETTERS)
        raise RuleError(f"host {host!r} has {bad!r} in it", "host names have letters, digits, hyphens and dots")
    if label[0] == "-" or label[-1] == "-":
        raise RuleError(f"host {host!r}: label {label!r} begins or ends with a hyphen", "take the hyphen out")


def _is_number(label: str) -> bool:
    if label.isdigit():
        return True
    return label.startswith("0x") and all(c in "0123456789abcdef" for c in label[2:])


def reserved(host: str) -> str | None:
    """Why a canonical name is never resolved and may not be allowed: loopback, metadata, or agentmon's own."""
    if host in LOOPBACK_NAMES or host.endswith(".localhost"):
        return "loopback"
    if host in METADATA_NAMES:
        return "metadata"
    if host == OWN_NAME or host.endswith("." + OWN_NAME):
        return "agentmon's own"
    return None


def _a_label_hint(text: str) -> str:
    try:
        return f"write its A-label: {a_label(text)}"
    except RuleError as e:
        return f"write its A-label (xn--…); {e.message}"


def a_label(text: str) -> str:
    """The ASCII form of an internationalised name, after IDNA 2008: `faß.de` is `xn--fa-hia.de`, not `fass.de`.

    Python's own `idna` codec is IDNA 2003, so it is not used. Each character is
    lower-cased by itself (UTS 46 maps a capital sigma to the same letter wherever it stands), the label is put in NFC
    and encoded by `punycode`. A label that needs more than that (compatibility characters, joiners, symbols, mixed
    directions) is not guessed at.

    :raises RuleError: where no A-label can be given with certainty.
    """
    import unicodedata  # 1.6 ms, and only needed to teach

    for dot in _DOTS:
        text = text.replace(dot, ".")
    labels = []
    for label in text.split("."):
        if label.isascii():
            labels.append(label.lower())
            continue
        lower = unicodedata.normalize("NFC", "".join(c.lower() for c in label))
        if unicodedata.normalize("NFKC", lower) != lower:
            raise RuleError(f"{label!r} has compatibility characters", "write the plain characters")
        for c in lower:
            if c != "-" and unicodedata.category(c) not in {"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"}:
                raise RuleError(f"{c!r} may not stand in a host name", "leave it out")
        if len({d for c in lower if (d := unicodedata.bidirectional(c).replace("AL", "R")) in "LR"}) > 1:
            raise RuleError(f"{label!r} mixes writing directions", "")
        if unicodedata.category(lower[0]).startswith("M"):
            raise RuleError(f"{label!r} begins with a combining mark", "leave it out")
        encoded = "xn--" + lower.encode("punycode").decode("ascii")
        if len(encoded) > 63:
            raise RuleError(f"{label!r} is longer than 63 characters as an A-label", "")
        labels.append(encoded)
    return ".".join(labels)
