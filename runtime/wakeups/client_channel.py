"""A channel on the socket of a supabase client of the user's own, as the driver's own sockets are.

The client's package (`realtime`) connects, joins and reconnects. It may fall silent without a word: when a callback of
the user's raises, after its last try to connect, while the server answers nothing. So the state machine judges this
channel as any other, by nonces that the database sends; its heartbeats say nothing here, and are answered on the spot.
"""

import asyncio
import json
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from websockets.exceptions import ConnectionClosed

from runtime.broadcast import EVENT
from runtime.wakeups import ANSWER, CANCEL, DUE
from runtime.wakeups.frames import PhoenixFrame
from runtime.wakeups.realtime_socket import ChannelToken, not_opened

if TYPE_CHECKING:
    from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, RealtimeSubscribeStates

T = TypeVar("T")
_log = logging.getLogger("runtime.wakeups")
_EVENTS = ("wake", "nonce", ANSWER, CANCEL, DUE, EVENT)


@dataclass(frozen=True, slots=True)
class OwnClient:
    """A client of the user's own: its Realtime connection, and the loop on which that lives."""

    realtime: "AsyncRealtimeClient"
    loop: asyncio.AbstractEventLoop

    async def run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run an async function on the client's loop, which may be another one than this.

        Raises:
            RuntimeError: that loop has ended.
        """
        work = function()
        try:
            done = asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            raise
        return await asyncio.wrap_future(done)


class ClientEndpoint:
    """A Realtime server as the user's client reaches it.

    Args:
        client: the client and its loop.
        place: the server's host and port, for the log.
        open_seconds: how long connecting may take.
        settle_seconds: how long after leaving a channel it may be joined again. The package gives the server's last
            word on the old channel to a new one under the same topic, which would end it.
    """

    def __init__(
        self, client: OwnClient, place: str, *, open_seconds: float = 10.0, settle_seconds: float = 1.0
    ) -> None:
        self.place = place
        self._client = client
        self._open_seconds = open_seconds
        self._settle_seconds = settle_seconds
        self._last: ClientChannel | None = None

    async def token(self) -> ChannelToken:
        """Return no token: the client sends its own, and renews it."""
        return ChannelToken(None, None)

    async def open(self) -> "ClientChannel":
        """Connect the client, unless it is connected.

        Raises:
            NotOpened: the server cannot be reached, or refuses.
        """
        try:
            if self._last is not None:
                await anyio.sleep(self._settle_seconds)
                if not self._last.has_heard:
                    await self._client.run(self._cut)
            with anyio.fail_after(self._open_seconds):
                await self._client.run(self._client.realtime.connect)
        except Exception as error:  # noqa: BLE001 - whatever the package raises, there is no connection
            raise not_opened(error) from None
        self._last = ClientChannel(self._client)
        return self._last

    async def _cut(self) -> None:
        """Cut a connection on which a join was never answered: perhaps nobody reads it any more.

        The package has no word for that. It finds the connection broken at its next frame, connects again, and joins
        all channels anew, the user's too.
        """
        socket = getattr(self._client.realtime, "_ws_connection", None)
        if socket is not None:
            _log.info("the client's connection to Realtime at %s does not answer: it is cut", self.place)
            socket.transport.abort()


class ClientChannel:
    """One channel of the user's client, with frames in and out as a socket has them.

    Args:
        client: the client and its loop.

    Attributes:
        has_heard: whether anything came from the server.
    """

    def __init__(self, client: OwnClient) -> None:
        self.has_heard = False
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._channel: AsyncRealtimeChannel | None = None
        self._join = PhoenixFrame(None, None, "", "", {})
        self._is_joined = False
        self._put, self._frames = anyio.create_memory_object_stream[str | ConnectionClosed](math.inf)

    async def send(self, frame: str) -> None:
        """Have the client join; what else the driver sends, the client sees to."""
        sent = PhoenixFrame(*json.loads(frame))
        if sent.event == "heartbeat":
            self._put.send_nowait(sent._replace(event="phx_reply", payload={"status": "ok"}).text())
        elif sent.event == "phx_join":
            self._join = sent
            try:
                await self._client.run(self._subscribe)
            except Exception as error:  # noqa: BLE001 - whatever the package raises, the join has failed
                self._reply("error", reason=not_opened(error).close.why)

    async def recv(self) -> str:
        """Return the next frame.

        Raises:
            ConnectionClosed: the client lost its connection.
        """
        item = await self._frames.receive()
        if isinstance(item, ConnectionClosed):
            raise item
        return item

    async def close(self) -> None:
        """Leave the channel. The client closes its connection if it has no other channel."""
        if (channel := self._channel) is None:
            return
        self._channel = None
        try:
            await self._client.run(partial(self._leave, channel))
        except Exception as error:  # noqa: BLE001 - the package leaves over a connection that may be gone
            _log.debug("a channel of the client was not left in good order: %s", type(error).__name__)

    # On the client's loop. What raises here would end the client's reading.

    async def _subscribe(self) -> None:
        config = self._join.payload["config"]
        options = {name: config[name] for name in ("broadcast", "presence", "private")}
        topic = self._join.topic.removeprefix("realtime:")
        self._channel = channel = self._client.realtime.channel(topic, {"config": options})  # type: ignore[arg-type]
        # Not in every release of the package.
        known = signature(channel.on_postgres_changes).parameters
        for binding in config["postgres_changes"]:
            asked = {name: value for name, value in binding.items() if name in known}
            channel.on_postgres_changes(**asked, callback=partial(self._take, "postgres_changes"))
        for event in _EVENTS:
            channel.on_broadcast(event, partial(self._take, "broadcast"))
        channel.on_system(partial(self._take, "system"))
        await channel.subscribe(self._note_state)

    async def _leave(self, channel: "AsyncRealtimeChannel") -> None:
        realtime = self._client.realtime
        # The package has forgotten a channel that was closed; the server may still have one that was joined since.
        if realtime.channels.get(channel.topic) is not channel:
            await channel.unsubscribe()
        await realtime.remove_channel(channel)

    def _note_state(self, state: "RealtimeSubscribeStates", error: Exception | None) -> None:
        match state.value:
            case "SUBSCRIBED":
                self._is_joined = True
                self._reply("ok")
            case "CHANNEL_ERROR" if isinstance(error, ConnectionClosed):
                self._pass_on(error)
            case "CHANNEL_ERROR":
                self._note_error(_details(error))
            case "CLOSED":
                self._take("phx_close", {})

    def _note_error(self, details: dict[str, Any]) -> None:
        if not self._is_joined:
            self._reply("error", reason=str(details.get("reason") or "no reason given"))
        elif "message" in details:
            self._take("system", details)
        else:
            self._take("phx_error", {})

    def _reply(self, status: str, **response: str) -> None:
        self._take("phx_reply", {"status": status, "response": response}, self._join.ref)

    def _take(self, event: str, payload: Any, ref: str | None = None) -> None:
        """Pass a frame on to the driver, as a socket would have it."""
        # Some payloads are models of pydantic's.
        plain = payload if isinstance(payload, dict) else payload.model_dump(mode="json")
        frame = PhoenixFrame(self._join.join_ref, ref, self._join.topic, event, plain)
        self._pass_on(json.dumps(frame, default=str))

    def _pass_on(self, item: str | ConnectionClosed) -> None:
        self.has_heard = True
        try:
            self._loop.call_soon_threadsafe(self._put.send_nowait, item)
        except RuntimeError:
            _log.debug("the client's channel brought something after the end")


def _details(error: Exception | None) -> dict[str, Any]:
    """Return what the server said against a channel, which the package gives as the text of an error."""
    try:
        details = json.loads(str(error))
    except ValueError:
        return {}
    return details if isinstance(details, dict) else {}
