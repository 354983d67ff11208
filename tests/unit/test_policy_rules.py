"""The grammar: canonical forms, what each form opens, what is refused and what to write instead; and its properties."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmon.policy.rules import Depth, Rule, RuleError, covers, overlaps, parse_rule, path_matches
from agentmon.policy.rules.ports import contains, merged, parse_ports, text_of, without

TCP_ALL = ("tcp", ((1, 65535),), Depth.DIRECT)
UDP_ALL = ("udp", ((1, 65535),), Depth.DIRECT)
BY_NAME = ("tcp", ((443, 443),), Depth.NAME)
PLAIN_HTTP = ("tcp", ((80, 80),), Depth.INSPECTED)


@pytest.mark.parametrize(
    ("text", "canonical", "parts"),
    [
        ("api.example.com:443", "api.example.com:443", (BY_NAME,)),
        ("example.com", "example.com", (BY_NAME, PLAIN_HTTP)),
        ("example.com:80,443", "example.com", (BY_NAME, PLAIN_HTTP)),
        ("API.Example.COM.:443", "api.example.com:443", (BY_NAME,)),
        ("*.example.com:443", "*.example.com:443", (BY_NAME,)),
        ("https://h.example", "https://h.example", (BY_NAME,)),
        ("HTTPS://h.example:443", "https://h.example", (BY_NAME,)),
        ("https://h.example/v1/*", "https://h.example/v1/*", (("tcp", ((443, 443),), Depth.INSPECTED),)),
        ("http://h.example", "http://h.example", (PLAIN_HTTP,)),
        ("h.example:80", "h.example:80", (PLAIN_HTTP,)),
        ("tcp://h.example:443", "tcp://h.example:443", (("tcp", ((443, 443),), Depth.DIRECT),)),
        (
            "h.example:9000,8000-8100",
            "h.example:8000-8100,9000",
            (("tcp", ((8000, 8100), (9000, 9000)), Depth.DIRECT),),
        ),
        ("udp://10.0.0.1:514", "udp://10.0.0.1:514", (("udp", ((514, 514),), Depth.DIRECT),)),
        ("10.0.0.0/8:5432", "10.0.0.0/8:5432", (("tcp", ((5432, 5432),), Depth.DIRECT),)),
        ("10.0.0.0/8", "10.0.0.0/8", (TCP_ALL, UDP_ALL)),
        ("tcp://10.0.0.0/8", "tcp://10.0.0.0/8", (TCP_ALL,)),
        ("[2001:db8::]/32", "[2001:db8::]/32", (TCP_ALL, UDP_ALL)),
        ("2001:DB8:0::/32", "[2001:db8::]/32", (TCP_ALL, UDP_ALL)),
        ("[2001:db8::]/32:443", "[2001:db8::]/32:443", (("tcp", ((443, 443),), Depth.DIRECT),)),
        ("192.0.2.7", "192.0.2.7", (TCP_ALL, UDP_ALL)),
        ("192.0.2.7/32:1-65535", "tcp://192.0.2.7", (TCP_ALL,)),
        ("100.64.0.0/10:443", "100.64.0.0/10:443", (("tcp", ((443, 443),), Depth.DIRECT),)),
        ("_srv.h.example:443", "_srv.h.example:443", (BY_NAME,)),
        ("tcp://h.example:1-65535", "tcp://h.example:1-65535", (TCP_ALL,)),
        ("!h.example:1-65535", "!h.example", (("tcp", ((1, 65535),), Depth.NAME), ("udp", ((1, 65535),), Depth.NAME))),
        ("!tcp://h.example", "!tcp://h.example", (TCP_ALL,)),
        ("!169.254.169.254", "!169.254.169.254", (TCP_ALL, UDP_ALL)),
        ("!0.0.0.0/0:25", "!0.0.0.0/0:25", (("tcp", ((25, 25),), Depth.DIRECT), ("udp", ((25, 25),), Depth.DIRECT))),
        ("!localhost", "!localhost", (("tcp", ((1, 65535),), Depth.NAME), ("udp", ((1, 65535),), Depth.NAME))),
    ],
)
def test_what_a_rule_opens(text, canonical, parts):
    rule = parse_rule(text)
    assert (rule.text, rule.parts) == (canonical, parts)
    assert rule.deny is text.startswith("!")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "empty", "host[:port]"),
        ("!", "empty", "host[:port]"),
        ("!!h.example", "more than one '!'", "one '!' denies"),
        ("https://user:secret@h.example/x", "credentials", "https://h.example"),
        ("user:secret@h.example:443", "credentials", "write h.example:443"),
        ("h.example:0", "'0' is not a port", "1 to 65535"),
        ("h.example:65536", "'65536' is not a port", "1 to 65535"),
        ("h.example:http", "'http' is not a port", "1 to 65535"),
        ("h.example:²", "is not a port", "1 to 65535"),
        ("h.example:80,x", "port 'x' in '80,x'", "1 to 65535"),
        ("h.example:", "'' is not a port", "1 to 65535"),
        ("h.example:90-80", "run backwards", "write 80-90"),
        ("h.example :443", "space", "without spaces"),
        ("h\0.example", "NUL", "take it out"),
        ("h\x07.example", "control character", "take it out"),
        ("h" * 3000, "3000 characters", "at most 2048"),
        ("10.*", "pattern of addresses", "10.0.0.0/8"),
        ("10.1.*.*:443", "pattern of addresses", "10.1.0.0/16"),
        ("10.*.1.*", "pattern of addresses", "write a network"),
        ("*", "allow everything", "*.example.com"),
        ("**:443", "allow everything", "*.example.com"),
        ("a.*.example", "stands where it cannot", "in front"),
        ("*api.example", "stands where it cannot", "in front"),
        ("*.*.example", "stands where it cannot", "in front"),
        ("*.1.2.3", "pattern of addresses", "10.0.0.0/8"),
        ("bücher.example", "not ASCII", "xn--bcher-kva.example"),
        ("faß.de", "not ASCII", "xn--fa-hia.de"),
        ("localhost", "loopback name", "no bottle"),
        ("*.localhost:8080", "loopback name", "no bottle"),
        ("metadata.google.internal", "metadata name", "no bottle"),
        ("agentmon.internal", "agentmon's own name", "answers inside every bottle"),
        ("127.0.0.1:8080", "is a loopback address", "127.0.0.0/8"),
        ("0.0.0.0/0", "covers unspecified addresses", "leave it out"),
        ("128.0.0.0/1", "covers link-local addresses", "leave it out"),
        ("169.254.169.254", "is a link-local address", "leave it out"),
        ("168.63.129.16", "is a metadata address", "leave it out"),
        ("100.100.100.200", "is a metadata address", "leave it out"),
        ("224.0.0.251", "multicast", "leave it out"),
        ("198.18.0.1", "is a probe address", "leave it out"),
        ("fe80::1%eth0", "has an interface in it", "link-local"),
        ("::1", "is a loopback address", "leave it out"),
        ("[::]:443", "is an unspecified address", "leave it out"),
        ("::ffff:198.51.100.1", "is an IPv4-mapped address", "write 198.51.100.1"),
        ("64:ff9b::7f00:1", "is an embedded IPv4 address", "leave it out"),
        ("2002:7f00:1::/48", "is an embedded IPv4 address", "leave it out"),
        ("fc00::/7", "covers metadata addresses", "leave it out"),
        ("::/0", "covers unspecified addresses", "leave it out"),
        ("127.1", "looks like an address", "in full"),
        ("0x7f.1:80", "looks like an address", "in full"),
        ("2130706433", "looks like an address", "in full"),
        ("010.0.0.1", "looks like an address", "in full"),
        ("example.com/path", "has a path", "https://example.com/path"),
        ("example.com:443/path", "has a path", "https://example.com/path"),
        ("tcp://h.example:80/x", "has a path", "https://"),
        ("example.com/24", "is not a network", "10.0.0.0/8"),
        ("ftp://h.example", "is not a scheme", "tcp://host:21"),
        ("wss://h.example", "is not a scheme", "https://"),
        ("gopher://h.example", "is not a scheme", "tcp://"),
        ("https://10.0.0.1", "needs a name", "tcp://10.0.0.1:443"),
        ("http://[2001:db8::1]", "needs a name", "tcp://[2001:db8::1]:80"),
        ("https://h.example:8443", "port 443 only", "tcp://h.example:8443"),
        ("http://h.example:8080", "port 80 only", "tcp://h.example:8080"),
        ("h.example:1-65535", "mixes 443 or 80", "tcp://h.example:1-65535"),
        ("tcp://h.example", "has no port", "tcp://h.example:PORT"),
        ("udp://h.example", "has no port", "udp://h.example:PORT"),
        ("10.0.0.1/8", "beyond its prefix length", "10.0.0.0/8"),
        ("10.0.0.0/33", "is not 0 to 32", "10.0.0.0/8"),
        ("2001:db8::/129", "is not 0 to 128", "[2001:db8::]/32"),
        ("[2001:db8::/32]:443", "inside the brackets", "[2001:db8::]/32:443"),
        ("[2001:db8::1", "no closing bracket", "[2001:db8::1]:443"),
        ("[2001:db8::1]x", "after the bracket", "[2001:db8::1]:443"),
        ("[h.example]:443", "no IPv6 address", "write h.example:443"),
        ("h.example:80:90", "neither host:port nor an IPv6", "brackets"),
        ("https://h.example/", "front page", "https://h.example/*"),
        ("https://h.example/a?b=c", "has '?' in it", "path only"),
        ("https://h.example/a#b", "has '#' in it", "path only"),
        ("https://h.example/ä", "not ASCII", "percent-encoded"),
        ("https://h.example/a/../b", "plain form", "'..'"),
        ("https://h.example/a\\b", "plain form", "backslashes"),
        (":443", "host is empty", "api.example.com"),
        ("a..example", "empty label", "extra dot"),
        ("-a.example", "hyphen", "hyphen"),
        ("a" * 64 + ".example", "64 characters", "at most 63"),
        (".".join(["a" * 60] * 5), "304 characters", "at most 253"),
        ("h$.example", "has '$' in it", "letters, digits"),
        (443, "a rule is text, not int", "quotes"),
    ],
)
def test_what_is_refused_and_what_to_write(text, message, hint):
    with pytest.raises(RuleError) as caught:
        parse_rule(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_credentials_are_never_repeated():
    with pytest.raises(RuleError) as caught:
        parse_rule("https://user:hunter2@h.example")
    assert "hunter2" not in caught.value.message + caught.value.hint


def test_a_rule_does_not_change_and_is_its_text():
    rule = parse_rule("https://h.example/v1/*")
    for act in (lambda: setattr(rule, "deny", True), lambda: delattr(rule, "deny")):
        with pytest.raises(AttributeError, match="does not change"):
            act()
    assert rule == parse_rule("https://H.example:443/v1/*")
    assert rule != parse_rule("!https://h.example/v1/*")
    assert rule != rule.text
    assert copy.deepcopy(rule) == rule
    assert repr(rule) == "Rule('https://h.example/v1/*')"


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("https://h.example", "h.example:443", True),
        ("!h.example", "h.example", True),
        ("tcp://h.example:22", "h.example:22", True),
        ("h.example", "h.example:443", False),
        ("https://h.example/a", "https://h.example/b", False),
    ],
)
def test_same_target(a, b, same):
    assert parse_rule(a).same_target(parse_rule(b)) is same


@pytest.mark.parametrize(
    ("wide", "narrow", "answer"),
    [
        ("*.example.com", "a.b.example.com:443", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "*.a.example.com", True),
        ("h.example", "https://h.example/v1", True),
        ("https://h.example/v1/*", "https://h.example/v1/a", True),
        ("https://h.example/v1/*", "h.example:443", False),
        ("10.0.0.0/8", "udp://10.1.0.0/16:53", True),
        ("10.0.0.0/8:53", "udp://10.1.0.0/16:53", False),
        ("10.0.0.0/8", "[2001:db8::]/32", False),
        ("10.0.0.0/8", "h.example", False),
    ],
)
def test_covers(wide, narrow, answer):
    a, b = parse_rule(wide), parse_rule(narrow)
    assert covers(a, b) is answer
    assert overlaps(a, b) or not answer


def test_overlaps_looks_at_ports_and_both_directions():
    assert overlaps(parse_rule("a.example.com:443"), parse_rule("*.example.com"))
    assert not overlaps(parse_rule("h.example:22"), parse_rule("h.example:23"))
    assert not overlaps(parse_rule("10.0.0.0/9"), parse_rule("10.128.0.0/9"))


@pytest.mark.parametrize(
    ("pattern", "path", "answer"),
    [
        ("/v1/*", "/v1/messages", True),
        ("/v1/*", "/v1/", True),
        ("/v1/*", "/v1", False),
        ("/v1", "/v1/x", False),
        ("/a*b*c", "/a1b2c", True),
        ("/a*b*c", "/a1c", False),
        ("/ab*ba", "/aba", False),
        ("/*", "/", True),
        ("/*x*", "/abc", False),
    ],
)
def test_path_matches(pattern, path, answer):
    assert path_matches(pattern, path) is answer


# ── properties ───────────────────────────────────────────────────────────────

labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12).filter(
    lambda s: s[0] not in "-" and s[-1] not in "-"
)
names = st.lists(labels, min_size=1, max_size=4).map(lambda parts: ".".join([*parts, "example"]))
hosts = st.one_of(names, names.map(lambda n: "*." + n))
port_lists = st.lists(
    st.tuples(st.integers(1, 65535), st.integers(0, 300)).map(lambda p: (p[0], min(p[0] + p[1], 65535))),
    min_size=1,
    max_size=3,
)
port_texts = port_lists.map(lambda pairs: text_of(tuple(pairs)))
networks = st.one_of(
    st.tuples(st.integers(0x0B000000, 0x63FFFFFF), st.integers(8, 32)).map(lambda t: _network4(*t)),
    st.integers(0, 2**96 - 1).map(lambda n: _address6(n)),
)
paths = (
    st.text("abcxyz0189-_.~%*", min_size=1, max_size=20).map(lambda s: "/" + s).filter(lambda s: s not in {"/.", "/.."})
)


def _network4(number: int, length: int) -> str:
    from ipaddress import IPv4Network

    return str(IPv4Network((number, length), strict=False))


def _address6(number: int) -> str:
    from ipaddress import IPv6Address

    return f"[{IPv6Address((0x2A00 << 112) | number)}]"


rule_texts = st.one_of(
    hosts,
    st.tuples(hosts, st.sampled_from(["443", "80", "22", "8000-8100", "80,443"])).map(":".join),
    hosts.map(lambda h: "https://" + h),
    st.tuples(hosts, paths).map(lambda t: f"https://{t[0]}{t[1]}"),
    st.tuples(st.sampled_from(["tcp", "udp"]), hosts, port_texts).map(lambda t: f"{t[0]}://{t[1]}:{t[2]}"),
    networks,
    st.tuples(networks, port_texts).map(":".join),
    st.tuples(st.sampled_from(["tcp", "udp"]), networks, port_texts).map(lambda t: f"{t[0]}://{t[1]}:{t[2]}"),
)


@given(rule_texts, st.booleans())
def test_canonical_text_round_trips(text, deny):
    rule = parse_rule("!" + text if deny else text)
    again = parse_rule(rule.text)
    assert again.text == rule.text
    for field in Rule.__slots__:
        assert getattr(again, field) == getattr(rule, field)


@given(st.one_of(st.text(), st.text("!*.:/[]@-0123456789abcdefx%,htps\0 ä")))
def test_any_text_is_a_rule_or_a_rule_error(text):
    try:
        rule = parse_rule(text)
    except RuleError as e:
        assert e.message
    else:
        assert parse_rule(rule.text) == rule


@given(port_lists, port_lists)
def test_port_sets(a, b):
    left, right = merged(a), merged(b)
    rest = without(left, right)
    assert parse_ports(text_of(left)) == left
    for port in {p for pair in (*a, *b) for p in (pair[0] - 1, *pair, pair[1] + 1)}:
        assert contains(rest, port) == (contains(left, port) and not contains(right, port))


@given(st.text("ab*/", max_size=12), st.text("ab/", max_size=16))
def test_path_matches_agrees_with_fnmatch(pattern, path):
    from fnmatch import fnmatchcase

    assert path_matches(pattern, path) == fnmatchcase(path, pattern)
