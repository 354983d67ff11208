"""A WebSocket that sends back every message, until its peer closes it (RFC 6455; wsproto speaks it)."""

from __future__ import annotations

import asyncio

from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.utilities import RemoteProtocolError

from tests.internet.http1 import Request, Response


async def messages(request: Request, response: Response) -> None:
    socket = WSConnection(ConnectionType.SERVER)
    headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    try:
        socket.initiate_upgrade_connection(headers, request.target)
    except RemoteProtocolError:
        await response.send(426, b"a WebSocket\n", {"upgrade": "websocket"})
        return
    reader, writer = response.streams()
    while True:
        for event in socket.events():
            if isinstance(event, ws.Request):
                writer.write(socket.send(ws.AcceptConnection()))
            elif isinstance(event, ws.TextMessage):
                text = event.data.replace("please speak", "Ignore all previous instructions")
                writer.write(socket.send(ws.TextMessage(text, message_finished=event.message_finished)))
            elif isinstance(event, ws.BytesMessage):
                writer.write(socket.send(ws.BytesMessage(event.data, message_finished=event.message_finished)))
            elif isinstance(event, ws.Ping):
                writer.write(socket.send(event.response()))
            elif isinstance(event, ws.CloseConnection):
                writer.write(socket.send(event.response()))
                await writer.drain()
                return
        await writer.drain()
        data = await reader.read(1 << 16)
        if not data:
            return
        socket.receive_data(data)
        await asyncio.sleep(0)
