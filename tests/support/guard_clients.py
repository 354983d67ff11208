"""Clients of the standard library and of the index, each as a function of (host, port), run under the guard.

    python guard_clients.py NAME,…      imports them, under a guard; then, for each line of stdin,
    {"clients": […], "places": ["HOST:PORT", …], "allow": […]}     a fork of its own, held to `allow`, answers
    {HOST:PORT: {client: how it ended}}                            on one line; {} where the fork died

`itself`: EgressViolation reached the caller. `behind X`: the client raised X, with the violation in its chain or group.
"""

import asyncio
import importlib
import json
import os
import sys

from agentmon.guard import EgressGuard, EgressViolation


def tcp(host, port):
    import socket

    with socket.create_connection((host, port), timeout=5) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return s.recv(12).decode()


def connect_by_name(host, port):
    import socket

    with socket.socket() as s:
        s.settimeout(5)
        s.connect((host, port))
        return s.getpeername()[0]


def http_client(host, port):
    import http.client

    connection = http.client.HTTPConnection(host, port, timeout=5)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def urllib_request(host, port):
    import urllib.request

    return urllib.request.urlopen(f"http://{host}:{port}/", timeout=5).read().decode()


def smtp(host, port):
    import smtplib

    with smtplib.SMTP(host, 2525 if port == 8080 else port, timeout=5) as s:
        s.sendmail("a@example.com", "b@example.com", "hello")
        return "hello"


def ftp(host, port):
    import ftplib

    with ftplib.FTP() as f:
        f.connect(host, 2121 if port == 8080 else port, timeout=5)
        f.login()
        return f.pwd()


def xmlrpc(host, port):
    import xmlrpc.client

    return xmlrpc.client.ServerProxy(f"http://{host}:{port}/RPC2").say()


def dns_by_hand(host, port):
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.sendto(b"\0\1hello", (host, port))
        return s.recv(100)[2:].decode()


def dns_connected(host, port):
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((host, port))
        s.send(b"hello")
        return s.recv(100).decode()


def asyncio_streams(host, port):
    async def main():
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        line = await reader.readline()
        writer.close()
        return line.decode()

    return asyncio.run(main())


def asyncio_happy(host, port):
    async def main():
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, host, port, happy_eyeballs_delay=0.1
        )
        transport.close()
        return "hello"

    return asyncio.run(main())


def asyncio_datagram(host, port):
    async def main():
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=(host, port)
        )
        transport.close()
        return "hello"

    return asyncio.run(main())


def gevent_socket(host, port):
    import gevent
    from gevent import socket

    def dial():
        with socket.create_connection((host, port), timeout=5) as s:
            s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return s.recv(12).decode()

    task = gevent.Greenlet(dial)
    task.start()
    task.join()
    if task.exception is not None:
        raise task.exception
    return task.value


def requests_get(host, port):
    import requests

    return requests.get(f"http://{host}:{port}/", timeout=5).text


def urllib3_get(host, port):
    import urllib3

    return urllib3.PoolManager().request("GET", f"http://{host}:{port}/", timeout=5).data.decode()


def httpx_get(host, port):
    import httpx

    return httpx.get(f"http://{host}:{port}/", timeout=5).text


def httpx_async(host, port):
    import httpx

    async def main():
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://{host}:{port}/", timeout=5)).text

    return asyncio.run(main())


def aiohttp_get(host, port):
    import aiohttp

    async def main():
        async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}/") as answer:
            return await answer.text()

    return asyncio.run(main())


def anyio_tcp(host, port):
    import anyio

    async def main():
        async with await anyio.connect_tcp(host, port) as stream:
            await stream.send(b"GET / HTTP/1.0\r\n\r\n")
            return (await stream.receive()).decode()

    return anyio.run(main)


def anthropic_sdk(host, port):
    import anthropic

    client = anthropic.Anthropic(api_key="k", base_url=f"http://{host}:{port}", timeout=5)
    answer = client.messages.create(model="claude-test", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
    return answer.content[0].text


def anthropic_async(host, port):
    import anthropic

    async def main():
        async with anthropic.AsyncAnthropic(
            api_key="k", base_url=f"http://{host}:{port}", max_retries=0, timeout=5
        ) as client:
            hi = [{"role": "user", "content": "hi"}]
            answer = await client.messages.create(model="claude-test", max_tokens=9, messages=hi)
            return answer.content[0].text

    return asyncio.run(main())


def openai_async(host, port):
    import openai

    async def main():
        async with openai.AsyncOpenAI(
            api_key="k", base_url=f"http://{host}:{port}/v1", max_retries=0, timeout=5
        ) as client:
            hi = [{"role": "user", "content": "hi"}]
            answer = await client.chat.completions.create(model="gpt-test", messages=hi)
            return answer.choices[0].message.content

    return asyncio.run(main())


def openai_sdk(host, port):
    import openai

    client = openai.OpenAI(api_key="k", base_url=f"http://{host}:{port}/v1", timeout=5)
    answer = client.chat.completions.create(model="gpt-test", messages=[{"role": "user", "content": "hi"}])
    return answer.choices[0].message.content


STANDARD = {
    "socket": tcp, "connect by name": connect_by_name, "http.client": http_client, "urllib": urllib_request,
    "smtplib": smtp, "ftplib": ftp, "xmlrpc": xmlrpc, "asyncio streams": asyncio_streams,
    "asyncio happy eyeballs": asyncio_happy,
}  # fmt: skip
DATAGRAM = {"dns by hand": dns_by_hand, "dns connected": dns_connected, "asyncio datagram": asyncio_datagram}
PURE = {  # Python alone, or with compiled parts that they can do without
    "requests": requests_get, "urllib3": urllib3_get, "httpx": httpx_get, "httpx async": httpx_async,
    "aiohttp": aiohttp_get, "anyio": anyio_tcp,
}  # fmt: skip
COMPILED = {
    "gevent": gevent_socket,
    "anthropic": anthropic_sdk, "anthropic async": anthropic_async, "openai": openai_sdk, "openai async": openai_async,
}  # fmt: skip
CLIENTS = {**STANDARD, **DATAGRAM, **PURE, **COMPILED}


MODULES = {
    "http.client": "http.client", "urllib": "urllib.request", "smtplib": "smtplib", "ftplib": "ftplib",
    "xmlrpc": "xmlrpc.client", "requests": "requests", "urllib3": "urllib3", "httpx": "httpx", "aiohttp": "aiohttp",
    "anyio": "anyio", "gevent": "gevent.socket", "anthropic": "anthropic", "openai": "openai",
}  # fmt: skip


told: list[str] = []


def outcome(client, host, port):
    told.clear()
    try:
        value = client(host, port)
        return {"how": "ok", "value": str(value)}
    except EgressViolation as e:
        how, violation, text = "itself", e, str(e)
    except BaseException as e:  # noqa: BLE001 - how it ended is what is asked
        violation = EgressViolation.found_in(e)
        how, text = (f"behind {type(e).__name__}" if violation else f"error {type(e).__name__}"), str(e)
    more = {"host": violation.host, "address": violation.address, "reason": violation.reason} if violation else {}
    return {"how": how, "text": text, "refusals": len(told), **more}


def tried(clients, places, allow):
    EgressGuard.install(allow, on_blocked=lambda violation: told.append(violation.target))
    found = {}
    for place in places:
        host, _, port = place.rpartition(":")
        found[place] = {name: outcome(CLIENTS[name], host, int(port)) for name in clients}
    return found


if __name__ == "__main__":
    EgressGuard.install([])
    for name in sys.argv[1].split(","):
        importlib.import_module(MODULES.get(name, "socket"))
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                print(json.dumps(tried(**json.loads(line))), flush=True)
            except BaseException as e:  # noqa: BLE001 - the exit code tells
                print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print("{}", flush=True)
