"""The servers of guard_net, one process: HTTP with the APIs' answers, XML-RPC, SMTP, FTP, DNS. Run as a script.

Prints "ready"; answers each line of stdin with the list of what has arrived since the last.
"""

import json
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD, EVIL, DNS, GOOD6 = "198.51.100.7", "203.0.113.5", "198.51.100.53", "2001:db8::7"
arrived: list[str] = []
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "hello"}],
    "usage": {"input_tokens": 1, "output_tokens": 1},
}  # fmt: skip
COMPLETION = {
    "id": "c_1", "object": "chat.completion", "created": 1, "model": "gpt-test",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip
XML = (
    "<?xml version='1.0'?><methodResponse><params><param>"
    "<value><string>hello</string></value></param></params></methodResponse>"
)
ANSWERS = {
    "EHLO": "250 mail", "HELO": "250 mail", "MAIL": "250 ok", "RCPT": "250 ok", "DATA": "354 go on", ".": "250 ok",
    "RSET": "250 ok", "USER": "230 in", "PASS": "230 in", "PWD": '257 "/hello"', "TYPE": "200 ok",
    "QUIT": "221 bye",
}  # fmt: skip


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        arrived.append(f"tcp {self.server.server_address[0]}:{self.server.server_address[1]}")
        super().setup()

    def do_GET(self) -> None:
        self.answer("hello", "text/plain")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith("/messages"):
            self.answer(json.dumps(MESSAGE), "application/json")
        elif self.path.endswith("/completions"):
            self.answer(json.dumps(COMPLETION), "application/json")
        else:
            self.answer(XML, "text/xml")

    def answer(self, text: str, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


class Lines(socketserver.StreamRequestHandler):
    """A greeting, and a fixed answer to each command: enough of SMTP and of FTP."""

    def handle(self) -> None:
        arrived.append(f"tcp {self.server.server_address[0]}:{self.server.server_address[1]}")
        self.wfile.write(b"220 hello\r\n")
        in_data = False
        for raw in self.rfile:
            word = raw.decode().split()[0].upper() if raw.strip() else ""
            if in_data and word != ".":
                continue
            in_data = word == "DATA"
            self.wfile.write(ANSWERS.get(word, "500 what").encode() + b"\r\n")
            if word == "QUIT":
                return


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        arrived.append(f"udp {self.server.server_address[0]}:{self.server.server_address[1]}")
        sock.sendto(data, self.client_address)


class Six(ThreadingHTTPServer):
    address_family = 10


class Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


for address in (GOOD, EVIL, "127.0.0.1"):
    servers = [ThreadingHTTPServer((address, port), Http) for port in (8080, 8081)]
    servers += [Tcp((address, port), Lines) for port in (2525, 2121)]
    servers += [socketserver.ThreadingUDPServer((address, 53), Echo)]
    if address == GOOD:
        servers += [Six((GOOD6, 8080), Http), socketserver.ThreadingUDPServer((DNS, 53), Echo)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
for _ in sys.stdin:
    seen, arrived[:] = list(arrived), []
    print(json.dumps(seen), flush=True)
