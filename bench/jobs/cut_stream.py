"""In a bottle: a paced stream, and on a line of stdin the call that spends the budget. One line of JSON on stdout.

Times are CLOCK_REALTIME nanoseconds, the ledger's clock. Standard library only.
"""

import json
import socket
import ssl
import sys
import threading
import time

HOST = "api.anthropic.com"
CONTEXT = ssl.create_default_context()


def ask(model: str, tokens: int, *, stream: bool) -> ssl.SSLSocket:
    body = {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": "hello"}], "stream": stream}
    text = json.dumps(body).encode()
    sock = CONTEXT.wrap_socket(socket.create_connection((HOST, 443), 20), server_hostname=HOST)
    head = (
        f"POST /v1/messages HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: sk-bench\r\nanthropic-version: 2023-06-01\r\n"
        f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    )
    sock.sendall(head.encode() + text)
    return sock


class Stream(threading.Thread):
    def __init__(self, model: str) -> None:
        super().__init__(daemon=True)
        self.sock = ask(model, 100, stream=True)
        self.going = threading.Event()
        self.seen = {"deltas": 0, "last_byte_ns": 0, "error_ns": 0, "end_ns": 0, "end": "eof"}

    def run(self) -> None:
        seen = self.seen
        while True:
            try:
                data = self.sock.recv(1 << 16)
            except OSError as error:
                data, seen["end"] = b"", type(error).__name__
            now = time.time_ns()
            if b"content_block_delta" in data:
                seen["deltas"] += data.count(b"event: content_block_delta")
                seen["last_byte_ns"] = now
                if seen["deltas"] >= 5:
                    self.going.set()
            if b"event: error" in data:
                seen["error_ns"] = now
            if not data:
                seen["end_ns"] = now
                self.going.set()
                return


def main() -> None:
    stream = Stream(sys.argv[1])
    stream.start()
    assert stream.going.wait(20)
    print("streaming", flush=True)
    sys.stdin.readline()
    sock = ask(sys.argv[2], 10, stream=False)
    sock.settimeout(10)
    status = sock.recv(1 << 16).split(b" ", 2)[1].decode()
    stream.join(10)
    print(json.dumps(stream.seen | {"status": status, "ended": not stream.is_alive()}), flush=True)
    sys.stdin.readline()


main()
