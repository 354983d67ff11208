"""Sends bytes as fast as the kernel takes them: `sender.py CERT BYTES`. Says "ready", serves until its stdin ends.

5201    plain TCP, from memory by sendfile(2)
5443    TLS by OpenSSL from one buffer; a hello for other.* is followed by plain bytes instead (no cryptography)
5202    accepts, nothing else
"""

import contextlib
import os
import socket
import ssl
import sys
import threading

CERT, BYTES = sys.argv[1], int(sys.argv[2])
PIECE = 1 << 24
MEMORY = os.memfd_create("zeros")
os.truncate(MEMORY, PIECE)
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CONTEXT.load_cert_chain(CERT)


def plain(sock: socket.socket) -> None:
    left = BYTES
    while left > 0:
        left -= os.sendfile(sock.fileno(), MEMORY, 0, min(left, PIECE))
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)


def tls(sock: socket.socket) -> None:
    if b"other." in sock.recv(4096, socket.MSG_PEEK):
        sock.recv(4096)
        plain(sock)
        return
    data = memoryview(bytes(1 << 20))
    with CONTEXT.wrap_socket(sock, server_side=True) as wrapped:
        for _ in range(BYTES // len(data)):
            wrapped.sendall(data)
        wrapped.shutdown(socket.SHUT_WR)  # of the TCP connection: no close_notify
        wrapped.recv(1)


def nothing(_sock: socket.socket) -> None:
    return


def listen(port: int, serve: object) -> None:
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)

    def one(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            serve(sock)

    def loop() -> None:
        while True:
            sock, _ = listener.accept()
            if serve is nothing:
                sock.close()
            else:
                threading.Thread(target=one, args=(sock,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()


listen(5201, plain)
listen(5443, tls)
listen(5202, nothing)
print("ready", flush=True)
sys.stdin.read()
