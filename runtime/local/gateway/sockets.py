"""One WebSocket: frames and events strictly one after another, as in the real server.

Everything passes one mailbox: frames that came in and frames that shall go out. So a refused join, which
sleeps, holds up the whole socket, heartbeats and rows of other channels included: clients must bear that.
"""

import logging
import math
from typing import Final

import anyio
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect

from runtime.local.gateway.channels import Channel, Services
from runtime.local.gateway.frames import (
    BroadcastFrame,
    Frame,
    Version,
    compact,
    read_binary,
    read_text,
    write,
)
from runtime.local.gateway.token_refusals import JoinRefused, JoinUnserved, unserved

logger = logging.getLogger(__name__)

_MAX_MAILBOX_BYTES: Final = 50_000_000
_MAX_CHANNELS: Final = 100

_Incoming = tuple[Frame, BroadcastFrame | None, int]


class Socket:
    """One accepted WebSocket.

    Args:
        services: what all sockets share.
        websocket: accepted already.
        version: the protocol it speaks.
        token: what it was opened with; a join without a token of its own uses it.
        idle_seconds: without any frame from the client for so long, the socket is closed.
        refusal_seconds: how long a refused join holds up the socket.
    """

    def __init__(
        self,
        services: Services,
        websocket: WebSocket,
        version: Version,
        token: str,
        *,
        idle_seconds: float,
        refusal_seconds: float,
    ) -> None:
        self.version: Version = version
        self.token = token
        self._services = services
        self._websocket = websocket
        self._idle_seconds = idle_seconds
        self._refusal_seconds = refusal_seconds
        self._channels: dict[str, Channel] = {}
        self._mailbox, self._letters = anyio.create_memory_object_stream[str | bytes | _Incoming](math.inf)
        self._mailbox_bytes = 0
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Serve until either side closes, or the client reads too slowly."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._read)
                self._tasks.start_soon(self._work)
        finally:
            for channel in self._channels.values():
                channel.close()
            self._mailbox.close()
            self._letters.close()

    def push(self, frame: str | bytes) -> None:
        """Send a frame after all that were pushed before; never blocks."""
        self._post(frame, len(frame))

    def forget(self, channel: Channel) -> None:
        """The channel has closed itself."""
        if self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]

    def _post(self, letter: str | bytes | _Incoming, size: int) -> None:
        self._mailbox_bytes += size
        if self._mailbox_bytes > _MAX_MAILBOX_BYTES:
            logger.warning("A client reads too slowly; its socket is dropped")
            self._stop()
            return
        try:
            self._mailbox.send_nowait(letter)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            logger.debug("A frame came for a socket that is gone")

    def _stop(self) -> None:
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        while True:
            message = None
            with anyio.move_on_after(self._idle_seconds):
                message = await self._websocket.receive()
            if message is None:
                await self._websocket.close(1000)
                self._stop()
                return
            if message["type"] == "websocket.disconnect":
                self._stop()
                return
            if (text := message.get("text")) is not None:
                frame = read_text(text, self.version)
                if frame is not None:
                    self._post((frame, None, len(text)), len(text))
            elif self.version == "2.0.0":
                data: bytes = message.get("bytes") or b""
                push = read_binary(data)
                if push is not None:
                    self._post((*push, len(data)), len(data))

    async def _work(self) -> None:
        async for letter in self._letters:
            if isinstance(letter, tuple):
                frame, binary, size = letter
                self._mailbox_bytes -= size
                await self._take(frame, binary)
            else:
                self._mailbox_bytes -= len(letter)
                await self._transmit(letter)

    async def _transmit(self, frame: str | bytes) -> None:
        try:
            if isinstance(frame, str):
                await self._websocket.send_text(frame)
            else:
                await self._websocket.send_bytes(frame)
        except (WebSocketDisconnect, OSError):
            self._stop()

    async def _answer(self, frame: Frame, join_ref: str | None, status: str, response: str) -> None:
        payload = f'{{"status":"{status}","response":{response}}}'
        await self._transmit(write(self.version, join_ref, frame.ref, frame.topic, "phx_reply", payload))

    async def _take(self, frame: Frame, binary: BroadcastFrame | None) -> None:
        channel = self._channels.get(frame.topic)
        if frame.topic == "phoenix" and frame.event == "heartbeat":
            await self._answer(frame, None, "ok", "{}")
        elif frame.event == "phx_join" and frame.topic.startswith("realtime:"):
            await self._join(frame)
        elif frame.event == "phx_leave" and (channel is None or _is_of_another_join(frame, channel)):
            await self._answer(frame, frame.join_ref, "ok", "{}")
        elif channel is None:
            await self._answer(frame, None, "error", '{"reason":"unmatched topic"}')
        else:
            await self._pass_on(channel, frame, binary)

    async def _pass_on(self, channel: Channel, frame: Frame, binary: BroadcastFrame | None) -> None:
        match frame.event:
            case "phx_leave":
                channel.close()
                self.forget(channel)
                channel.reply(frame.ref, "ok")
                channel.push_close()
            case "access_token":
                await channel.refresh(frame.payload)
            case "broadcast":
                await channel.broadcast(frame.ref, frame.payload, binary)
            case "presence":
                channel.reply(frame.ref, "error", f'{{"reason":{compact(unserved("presence"))}}}')
            case _:
                # The real server also does this with unknown events.
                logger.debug("Event %s is ignored", frame.event)

    async def _join(self, frame: Frame) -> None:
        former = self._channels.pop(frame.topic, None)
        if former is not None:
            former.close()
        try:
            if len(self._channels) >= _MAX_CHANNELS:
                raise JoinRefused("ChannelRateLimitReached: Too many channels")
            channel = await Channel.join(self._services, self, frame)
        except JoinRefused as refusal:
            if not isinstance(refusal, JoinUnserved):
                await anyio.sleep(self._refusal_seconds)
            await self._answer(frame, frame.ref, "error", f'{{"reason":{compact(str(refusal))}}}')
        else:
            self._channels[frame.topic] = channel
            await self._answer(frame, frame.ref, "ok", channel.joined())
            channel.push_replayed()
            if self._tasks is not None:
                self._tasks.start_soon(channel.run)
        if former is not None:
            # The new reply first, then the old channel's end: a client that looks at topics only is fooled.
            former.push_close()


def _is_of_another_join(frame: Frame, channel: Channel) -> bool:
    """A leave that crossed a newer join of the same topic is about the channel before it."""
    return frame.join_ref is not None and frame.join_ref != channel.join_ref
