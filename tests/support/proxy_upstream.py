"""The outside world of the proxy's tests: an authority of its own, and a strict TLS server that answers by script."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.internet import http2

NAMES = (
    "api.anthropic.com", "api.openai.com", "chatgpt.com", "*.example.org", "generativelanguage.googleapis.com",
    "cloudcode-pa.googleapis.com", "us-x1-aiplatform.googleapis.com", "mine.openai.azure.com", "openrouter.ai",
    "api.mistral.ai", "bedrock-runtime.us-x-1.amazonaws.com", "bedrock-runtime.us-east-1.amazonaws.com",
    "us-east5-aiplatform.googleapis.com",
)  # fmt: skip


def own_ca(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """(CA file, server context) of an outside world with its own authority and one leaf for the names below."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "outside world")])

    def build(subject: x509.Name, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public)
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )  # fmt: skip

    ca = build(name, key.public_key()).add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(n) for n in NAMES]
    leaf = (
        build(x509.Name([]), leaf_key.public_key()).add_extension(x509.SubjectAlternativeName(names), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    ca_file, leaf_file = directory / "outside-ca.pem", directory / "outside-leaf.pem"
    ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    leaf_file.write_bytes(
        leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + leaf.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf_file)
    return ca_file, context


@dataclass
class Seen:
    """One request as the upstream got it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    raw_head: bytes = b""


Script = Callable[["Seen", asyncio.StreamWriter], Awaitable[None]]


class Upstream:
    """HTTP/1.1 over TLS (443) and plain (80) in a thread; `script` writes the whole answer itself, head and all."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        self.address = address
        self.seen: list[Seen] = []
        self.connections = 0
        self.aborted = threading.Event()  # a peer went away while a script was writing or waiting
        self.script: Script = reply(200, b"{}")
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._up.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def up() -> None:
            await asyncio.start_server(self._serve, self.address, 443, ssl=self._context)
            await asyncio.start_server(self._serve, self.address, 80)
            self._up.set()

        self._loop.run_until_complete(up())
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def call(self, work: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(work)

    def speak(self, *protocols: str) -> None:
        """What is offered from the next handshake on: "h2", "http/1.1"."""
        self._context.set_alpn_protocols(protocols)

    async def _told(self, method: str, target: str, headers: dict[str, str], body: bytes, writer: Any) -> None:
        """A request that came over HTTP/2."""
        self.seen.append(Seen(method, target, headers, body, b"HTTP/2"))
        await self.script(self.seen[-1], writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        tls = writer.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            await http2.Session(reader, writer, self._told, self.aborted.set).serve()
            return
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *rest = head.decode("latin1").split("\r\n")[:-2]
                method, target, _ = line.split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in rest)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if headers.get("transfer-encoding") == "chunked":
                    while size := int(await reader.readline(), 16):
                        body += await reader.readexactly(size)
                        await reader.readline()
                    await reader.readline()
                seen = Seen(method, target, headers, body, head)
                self.seen.append(seen)
                gone = asyncio.ensure_future(self._watch(reader))
                try:
                    await self.script(seen, writer)
                    await writer.drain()
                finally:
                    gone.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await gone
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, ValueError):  # EOF in a chunk's size
            self.aborted.set()
        finally:
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        while not reader.at_eof():
            await asyncio.sleep(0.002)
        self.aborted.set()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


def reply(status: int, body: bytes, headers: dict[str, str] | None = None) -> Script:
    """A whole answer with Content-Length."""

    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        lines = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
        head = "".join(f"{k}: {v}\r\n" for k, v in lines.items() if v)
        writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)

    return script


def chunked(parts: list[bytes | float | threading.Event], headers: dict[str, str] | None = None) -> Script:
    """An event stream in chunks; a number waits so long, an Event until it is set."""

    async def script(_seen: Seen, writer: asyncio.StreamWriter) -> None:
        lines = {"content-type": "text/event-stream", "transfer-encoding": "chunked"} | (headers or {})
        writer.write(
            ("HTTP/1.1 200 OK\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items() if v) + "\r\n").encode()
        )
        for part in parts:
            if isinstance(part, threading.Event):
                while not part.is_set():
                    await asyncio.sleep(0.002)
                    writer.write(b"")
            elif isinstance(part, float):
                await asyncio.sleep(part)
            else:
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
        writer.write(b"0\r\n\r\n")

    return script
