"""Requests that servers read in different ways: what they look like on the wire, by what they try.

`SMUGGLE` is what each tries to get past the judge: a request that no rule permits. The attacks are those of the
literature on request smuggling (CL.TE, TE.CL, TE.TE, CL.0, obs-fold, bare line ends, chunk extensions, targets),
written down for this host; RFC 9112 sections 2.2, 3.2, 5.1, 5.2, 6.1, 6.3 and 7.1 say what is wrong with each.
"""

from __future__ import annotations

HOST = "www.example.org"
EVIL = "evil.example.net"
SMUGGLE = f"GET /forbidden HTTP/1.1\r\nHost: {HOST}\r\nX-Evil: 1\r\n\r\n"
AWAY = f"GET /forbidden HTTP/1.1\r\nHost: {EVIL}\r\n\r\n"
_CHUNK = f"{len(SMUGGLE):x}\r\n{SMUGGLE}\r\n0\r\n\r\n"


def _post(*headers: str, body: str, line: str = "POST /ok/a HTTP/1.1", host: str = f"Host: {HOST}") -> bytes:
    return "\r\n".join([line, *([host] if host else []), *headers, "", body]).encode("latin1")


def _te(value: str, name: str = "Transfer-Encoding") -> bytes:
    """Chunked to whom reads it so; a length that ends before the smuggled request to whom does not."""
    return _post(f"{name}: {value}", "Content-Length: 5", body=f"0\r\n\r\n{SMUGGLE}")


CASES: dict[str, bytes] = {
    # two ways to tell the length
    "cl.te": _post(f"Content-Length: {5 + len(SMUGGLE)}", "Transfer-Encoding: chunked", body=f"0\r\n\r\n{SMUGGLE}"),
    "te.cl": _post("Transfer-Encoding: chunked", "Content-Length: 4", body=_CHUNK),
    "cl.cl": _post("Content-Length: 0", f"Content-Length: {len(SMUGGLE)}", body=SMUGGLE),
    "cl list": _post(f"Content-Length: 0, {len(SMUGGLE)}", body=SMUGGLE),
    "cl twice alike": _post("Content-Length: 0", "Content-Length: 0", body=SMUGGLE),
    "cl plus": _post("Content-Length: +0", body=SMUGGLE),
    "cl minus": _post("Content-Length: -1", body=SMUGGLE),
    "cl hex": _post(f"Content-Length: 0x{len(SMUGGLE):x}", body=SMUGGLE),
    "cl octal": _post("Content-Length: 010", body=SMUGGLE),
    "cl underscore": _post("Content-Length: 1_0", body=SMUGGLE),
    "cl space inside": _post("Content-Length: 1 0", body=SMUGGLE),
    "cl huge": _post("Content-Length: 99999999999999999999999", body=SMUGGLE),
    "cl arabic digits": _post("Content-Length: 5", body=SMUGGLE).replace(b": 5", ": ٥".encode()),
    "cl empty": _post("Content-Length: ", body=SMUGGLE),
    "cl in GET": _post(f"Content-Length: {len(SMUGGLE)}", body=SMUGGLE, line="GET /ok/a HTTP/1.1"),
    "cl.0": _post(f"Content-Length: {len(SMUGGLE)}", body=SMUGGLE),
    # ways to write chunked
    **{
        f"te {value!r}": _te(value)
        for value in (
            "xchunked", "chunked, identity", "identity, chunked", "chunked, chunked", "identity", "gzip, chunked",
            "Chunked", "chunked ", "\tchunked", "\x0bchunked", "chunked\x0b", "x: chunked", "'chunked'", '"chunked"',
            "chunked;q=1", "chunk", "", "chunked\x00", "\xa0chunked", ",chunked", "chunked,",
        )
    },
    "te name with a space": _te("chunked", "Transfer-Encoding "),
    "te name with a tab": _te("chunked", "Transfer-Encoding\t"),
    "te name underscored": _te("chunked", "Transfer_Encoding"),
    "te name after a space": _te("chunked", " Transfer-Encoding"),
    "te name with NUL": _te("chunked", "Transfer-Encoding\0"),
    "te name with a control": _te("chunked", "\x01Transfer-Encoding"),
    "te twice": _post("Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Content-Length: 4", body=_CHUNK),
    "te folded": _post("Transfer-Encoding:", " chunked", "Content-Length: 5", body=f"0\r\n\r\n{SMUGGLE}"),
    "te behind a bare LF": _post("X: y\nTransfer-Encoding: chunked", "Content-Length: 5", body=f"0\r\n\r\n{SMUGGLE}"),
    "te behind a bare CR": _post("X: y\rTransfer-Encoding: chunked", "Content-Length: 5", body=f"0\r\n\r\n{SMUGGLE}"),
    "te in HTTP/1.0": _post("Transfer-Encoding: chunked", body=_CHUNK, line="POST /ok/a HTTP/1.0"),
    "connection drops the length": _post("Connection: Content-Length", "Content-Length: 0", body=SMUGGLE),
    "connection drops the host": _post("Connection: close, Host", body="", line="GET /ok/a HTTP/1.1"),
    # chunks
    "chunk extension": _post("Transfer-Encoding: chunked", body=f"5;a=b\r\nhello\r\n0\r\n\r\n{SMUGGLE}"),
    "chunk extension with LF": _post("Transfer-Encoding: chunked", body=f"5;\nhello\r\n0\r\n\r\n{SMUGGLE}"),
    "chunk size 0x": _post("Transfer-Encoding: chunked", body=f"0x5\r\nhello\r\n0\r\n\r\n{SMUGGLE}"),
    "chunk size plus": _post("Transfer-Encoding: chunked", body=f"+5\r\nhello\r\n0\r\n\r\n{SMUGGLE}"),
    "chunk size minus": _post("Transfer-Encoding: chunked", body=f"-5\r\nhello\r\n0\r\n\r\n{SMUGGLE}"),
    "chunk size underscore": _post("Transfer-Encoding: chunked", body=f"0_5\r\nhello\r\n0\r\n\r\n{SMUGGLE}"),
    "chunk size overflows": _post("Transfer-Encoding: chunked", body=f"{'f' * 17}5\r\nhello\r\n0\r\n\r\n{SMUGGLE}"),
    "chunk size empty": _post("Transfer-Encoding: chunked", body=f"\r\nhello\r\n0\r\n\r\n{SMUGGLE}"),
    "chunk ends in LF": _post("Transfer-Encoding: chunked", body=f"5\nhello\n0\n\n{SMUGGLE}"),
    "chunk without its end": _post("Transfer-Encoding: chunked", body=f"5\r\nhelloXX0\r\n\r\n{SMUGGLE}"),
    "chunk with spaces": _post("Transfer-Encoding: chunked", body=f"5 \r\nhello\r\n 0\r\n\r\n{SMUGGLE}"),
    "trailers": _post("Transfer-Encoding: chunked", body=f"0\r\nHost: {EVIL}\r\nContent-Length: 9\r\n\r\n{SMUGGLE}"),
    "trailers folded": _post("Transfer-Encoding: chunked", body=f"0\r\nX: a\r\n {SMUGGLE}\r\n\r\n"),
    # heads
    "obs-fold": _post("X: a", " b", body="", line="GET /ok/a HTTP/1.1"),
    "folded first header": f"GET /ok/a HTTP/1.1\r\n Host: {EVIL}\r\nHost: {HOST}\r\n\r\n".encode(),
    "bare LF head": f"GET /ok/a HTTP/1.1\nHost: {HOST}\n\n{AWAY}".encode(),
    "NUL in a value": _post("X: a\0b", body="", line="GET /ok/a HTTP/1.1"),
    "NUL in a name": _post("X\0: a", body="", line="GET /ok/a HTTP/1.1"),
    "no colon": _post("nonsense", body="", line="GET /ok/a HTTP/1.1"),
    "empty name": _post(": value", body="", line="GET /ok/a HTTP/1.1"),
    "value with a bare CR": _post("X: a\rHost: evil", body="", line="GET /ok/a HTTP/1.1"),
    "blank lines before": f"\r\n\r\nGET /ok/a HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(),
    "space before the method": f" GET /ok/a HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(),
    "tabs in the line": f"GET\t/ok/a\tHTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(),
    "two spaces": f"GET  /ok/a  HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(),
    "four words": f"GET /ok/a /forbidden HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(),
    "no version": f"GET /ok/a\r\nHost: {HOST}\r\n\r\n{AWAY}".encode(),
    "version 0.9": b"GET /forbidden\r\n\r\n",
    "version 2.0": f"GET /ok/a HTTP/2.0\r\nHost: {HOST}\r\n\r\n".encode(),
    "version 1.1x": f"GET /ok/a HTTP/1.1x\r\nHost: {HOST}\r\n\r\n{SMUGGLE}".encode(),
    "method with a line end": f"GET\r\n/forbidden HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(),
    "method with odd letters": f"G\xcbT /ok/a HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode("latin1"),
    # hosts
    "no host": b"GET /ok/a HTTP/1.1\r\n\r\n",
    "two hosts": _post(f"Host: {EVIL}", body="", line="GET /ok/a HTTP/1.1"),
    "two hosts, the other first": _post(f"Host: {HOST}", body="", line="GET /ok/a HTTP/1.1", host=f"Host: {EVIL}"),
    "host with user": _post(body="", line="GET /ok/a HTTP/1.1", host=f"Host: {HOST}@{EVIL}"),
    "host list": _post(body="", line="GET /ok/a HTTP/1.1", host=f"Host: {HOST}, {EVIL}"),
    "host with a path": _post(body="", line="GET /ok/a HTTP/1.1", host=f"Host: {EVIL}/{HOST}"),
    "host with NUL": _post(body="", line="GET /ok/a HTTP/1.1", host=f"Host: {HOST}\0.{EVIL}"),
    "host name with a space": _post(body="", line="GET /ok/a HTTP/1.1", host=f"Host : {EVIL}"),
    "forwarded host": _post(f"X-Forwarded-Host: {EVIL}", f"X-Host: {EVIL}", body="", line="GET /forbidden HTTP/1.1"),
    # targets
    "absolute, elsewhere": _post(body="", line=f"GET http://{EVIL}/ok/a HTTP/1.1"),
    "absolute, same host, forbidden": _post(body="", line=f"GET http://{HOST}/forbidden HTTP/1.1"),
    "absolute with user": _post(body="", line=f"GET http://{HOST}@{EVIL}/ok/a HTTP/1.1"),
    "absolute, odd scheme": _post(body="", line=f"GET gopher://{EVIL}/ok/a HTTP/1.1"),
    "absolute, backslash": _post(body="", line=f"GET http://{HOST}\\@{EVIL}/ok/a HTTP/1.1"),
    "network path": _post(body="", line=f"GET //{EVIL}/forbidden HTTP/1.1"),
    "asterisk": _post(body="", line="OPTIONS * HTTP/1.1"),
    "connect": f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: {EVIL}\r\n\r\n".encode(),
    "connect with our host": f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n{AWAY}".encode(),
    "dot segments": _post(body="", line="GET /ok/../forbidden HTTP/1.1"),
    "encoded dots": _post(body="", line="GET /ok/%2e%2e/forbidden HTTP/1.1"),
    "encoded slash": _post(body="", line="GET /ok/..%2fforbidden HTTP/1.1"),
    "twice encoded": _post(body="", line="GET /ok/%252e%252e/forbidden HTTP/1.1"),
    "backslash": _post(body="", line="GET /ok\\..\\forbidden HTTP/1.1"),
    "semicolon": _post(body="", line="GET /ok/..;/forbidden HTTP/1.1"),
    "fragment": _post(body="", line="GET /forbidden#/ok/a HTTP/1.1"),
    "target with CRLF": _post(body="", line=f"GET /ok/a HTTP/1.1\r\nHost: {EVIL}\r\nX: "),
    "target not ASCII": _post(body="", line="GET /ok/\xff HTTP/1.1"),
    # other protocols
    "h2c": _post(
        "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", body=AWAY,
        line="GET /ok/a HTTP/1.1",
    ),
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "upgrade to TLS": _post("Connection: Upgrade", "Upgrade: TLS/1.0", body=AWAY, line="GET /ok/a HTTP/1.1"),
    "websocket with a request behind it": _post(
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eHh4",
        body=SMUGGLE, line="GET /ok/a HTTP/1.1",
    ),
    "expectation": _post("Expect: 100-continue", "Content-Length: 0", body=SMUGGLE),
    "unknown expectation": _post("Expect: 200-ok", "Content-Length: 5", body=f"xxxxx{SMUGGLE}"),
    "pipelined": b"".join(
        (_post(body="", line="GET /ok/a HTTP/1.1"), SMUGGLE.encode(), _post(body="", line="GET /ok/b HTTP/1.1"))
    ),
    "TLS inside": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "nothing but NULs": bytes(4096),
    "endless line": b"GET /ok/" + b"a" * 300_000,
    "smuggled in a header": _post(f"X: a\r\n\r\n{SMUGGLE}", body="", line="GET /ok/a HTTP/1.1"),
}  # fmt: skip
