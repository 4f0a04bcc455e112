"""One channel: its join, its token, its subscriptions, its broadcasts and its end."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import anyio

from runtime.local.gateway.authorization import MissingPartition, TopicPolicies, identity_of
from runtime.local.gateway.bindings import BindingRefused, binding_id, inspect, read_binding
from runtime.local.gateway.changes import ChangeFeed
from runtime.local.gateway.database import DATABASE_FAULTS, Database
from runtime.local.gateway.frames import (
    MAX_BROADCAST_BYTES,
    BroadcastFrame,
    Frame,
    Version,
    compact,
    write,
    write_broadcast,
)
from runtime.local.gateway.hub import Hub
from runtime.local.gateway.messages import MessageFeed
from runtime.local.gateway.replay import read_replay, write_replayed
from runtime.local.gateway.subscriptions import SubscriptionRefused, resolve
from runtime.local.gateway.token_refusals import JoinRefused, JoinUnserved, join_refusal, refresh_refusal
from runtime.local.gateway.tokens import TokenError, Tokens

logger = logging.getLogger(__name__)

_TOKEN_CHECK_SECONDS: Final = 300.0
_RESUBSCRIBE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Services:
    """The services that all channels share."""

    tokens: Tokens
    database: Database
    policies: TopicPolicies
    changes: ChangeFeed
    messages: MessageFeed
    hub: Hub


class Wire(Protocol):
    """The socket that carries a channel."""

    version: Version
    token: str

    def push(self, frame: str | bytes) -> None:
        """Send a frame after all that were pushed before; never blocks."""

    def forget(self, channel: "Channel") -> None:
        """The channel has closed itself."""


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """The configuration of a join. Booleans may come as strings, as in the real server."""

    private: bool
    acknowledges: bool
    echoes: bool
    announces_replication: bool
    replay: Mapping[str, Any] | None
    has_presence: bool
    bindings: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, config: Any) -> Self:
        """Read `payload.config`.

        Raises:
            JoinRefused: an entry of `postgres_changes`, or a section, is of a shape the server crashes on.
        """
        config = config if isinstance(config, dict) else {}
        broadcast = {} if (section := config.get("broadcast")) is None else section
        presence = config.get("presence")
        bindings = config.get("postgres_changes") or []
        if not isinstance(broadcast, dict) or not isinstance(bindings, list):
            raise JoinRefused("UnknownErrorOnChannel: no function clause matching in Access.get/3")
        bindings = [entry for entry in bindings if entry is not None]
        for entry in bindings:
            if not isinstance(entry, dict):
                raise JoinRefused(f"UnknownErrorOnChannel: expected a map, got: {inspect(entry)}")
        return cls(
            private=_is_true(config.get("private")),
            acknowledges=_is_true(broadcast.get("ack")),
            echoes=_is_true(broadcast.get("self")),
            announces_replication=_is_true(broadcast.get("replication_ready")),
            replay=replay if isinstance(replay := broadcast.get("replay"), dict) else None,
            has_presence=isinstance(presence, dict) and _is_true(presence.get("enabled")),
            bindings=tuple(bindings),
        )


class Channel:
    """One joined topic of one socket. Made by `join`; then `run` serves it until `close`."""

    def __init__(self, services: Services, wire: Wire, frame: Frame, config: JoinConfig, token: str) -> None:
        self.topic = frame.topic
        self.name = frame.topic.removeprefix("realtime:")
        self.join_ref = frame.ref
        self.config = config
        self._services = services
        self._wire = wire
        self._token = token
        self._claims: dict[str, Any] = {}
        self._may_send: bool | None = None
        self._replayed: list[BroadcastFrame] = []
        self._renewed = anyio.Event()
        self._scope = anyio.CancelScope()

    @property
    def version(self) -> Version:
        """The protocol its socket speaks."""
        return self._wire.version

    @classmethod
    async def join(cls, services: Services, wire: Wire, frame: Frame) -> Self:
        """Check everything a join is checked for; from its return on broadcasts are heard.

        Raises:
            JoinRefused: with the reason the client is told.
        """
        if frame.topic == "realtime:":
            raise JoinRefused("TopicNameRequired: You must provide a topic name")
        token = frame.payload.get("access_token", frame.payload.get("user_token"))
        if not isinstance(token, str) or token.startswith("sb_"):
            token = wire.token
        channel = cls(services, wire, frame, JoinConfig.read(frame.payload.get("config")), token)
        try:
            channel._claims = services.tokens.verify(token)
        except TokenError as error:
            raise JoinRefused(join_refusal(error)) from error
        replay = channel.config.replay
        if replay is not None and not channel.config.private:
            raise JoinRefused("UnableToReplayMessages: Replay is not allowed for public channels")
        if channel.config.has_presence:
            raise JoinUnserved("presence")
        if channel.config.private:
            await channel._authorize()
            if replay is not None:
                channel._replayed = await read_replay(services.database, channel.name, replay)
        services.hub.add(channel.topic, channel.config.private, channel)
        return channel

    async def _authorize(self) -> None:
        try:
            may_listen = await self._services.policies.may_listen(self.name, identity_of(self._claims))
        except MissingPartition as error:
            raise JoinRefused(
                "MissingPartition: Realtime was unable to find the expected messages partition"
            ) from error
        except DATABASE_FAULTS as error:
            logger.warning("A private channel could not be authorized: %s", error)
            raise JoinRefused(
                "UnableToConnectToProject: Realtime was unable to connect to the project database"
            ) from error
        if not may_listen:
            raise JoinRefused(
                f"Unauthorized: You do not have permissions to read from this Channel topic: {self.name}"
            )

    def joined(self) -> str:
        """The response of the join reply, as JSON text: each binding with its id."""
        entries = (
            f'{{"id":{binding_id(entry)},{compact(entry)[1:]}' if entry else f'{{"id":{binding_id(entry)}}}'
            for entry in self.config.bindings
        )
        return f'{{"postgres_changes":[{",".join(entries)}]}}'

    async def run(self) -> None:
        """Serve the channel until it is closed or its token expires."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_expiry)
                if self.config.bindings:
                    tasks.start_soon(self._keep_subscribed)
                if self.config.announces_replication:
                    tasks.start_soon(self._announce_replication)

    def close(self) -> None:
        """End all subscriptions, without a message to the client."""
        self._services.hub.remove(self.topic, self.config.private, self)
        self._services.changes.unsubscribe(self)
        self._scope.cancel()

    def push(self, frame: str | bytes) -> None:
        """Send a frame as it is."""
        self._wire.push(frame)

    def push_replayed(self) -> None:
        """Send the replayed messages that the join asked for."""
        for broadcast in self._replayed:
            frame = write_replayed(self.version, self.join_ref, self.topic, broadcast)
            if frame is not None:
                self.push(frame)

    def has_replayed(self, message: str) -> bool:
        """Return whether this message of the database was replayed to it at its join."""
        return any(broadcast.meta["id"] == message for broadcast in self._replayed)

    def push_change(self, payload: str) -> None:
        """Send one `postgres_changes` payload, which is JSON text."""
        self.push(write(self.version, None, None, self.topic, "postgres_changes", payload))

    def reply(self, ref: str | None, status: str, response: str = "{}") -> None:
        """Answer a frame of the client; `response` is JSON text."""
        payload = f'{{"status":"{status}","response":{response}}}'
        self.push(write(self.version, self.join_ref, ref, self.topic, "phx_reply", payload))

    def push_close(self) -> None:
        """Tell the client that the channel is gone; its ref says which join it was."""
        self.push(write(self.version, self.join_ref, self.join_ref, self.topic, "phx_close", "{}"))

    def _push_system(self, extension: str, status: str, message: str) -> None:
        payload = (
            f'{{"message":{compact(message)},"status":"{status}",'
            f'"extension":"{extension}","channel":{compact(self.name)}}}'
        )
        self.push(write(self.version, self.join_ref, None, self.topic, "system", payload))

    def _fail(self, message: str) -> None:
        self._push_system("system", "error", message)
        self.push_close()
        self.close()
        self._wire.forget(self)

    async def refresh(self, payload: Mapping[str, Any]) -> None:
        """Take a new token: check it, authorize anew, subscribe anew.

        The same one, none at all or `sb_…` changes nothing.
        """
        token = payload.get("access_token")
        if not isinstance(token, str) or token.startswith("sb_") or token == self._token:
            return
        try:
            claims = self._services.tokens.verify(token)
        except TokenError as error:
            self._fail(refresh_refusal(error))
            return
        self._token, self._claims, self._may_send = token, claims, None
        if self.config.private:
            try:
                await self._authorize()
            except JoinRefused as refusal:
                self._fail(str(refusal).partition(": ")[2])
                return
        renewed, self._renewed = self._renewed, anyio.Event()
        renewed.set()

    async def broadcast(
        self, ref: str | None, payload: dict[str, Any], binary: BroadcastFrame | None
    ) -> None:
        """Pass a client's broadcast on to the others of the topic.

        Without the right to send to a private topic nothing happens, not even an acknowledgement.
        """
        if self.config.private:
            if self._may_send is None:
                try:
                    identity = identity_of(self._claims)
                    self._may_send = await self._services.policies.may_send(self.name, identity)
                except (MissingPartition, *DATABASE_FAULTS) as error:
                    logger.warning("A broadcast could not be authorized: %s", error)
            if not self._may_send:
                return
        text = compact(payload)
        size = len(text.encode()) if binary is None else len(binary.body)
        if size > MAX_BROADCAST_BYTES:
            if self.config.acknowledges:
                self.reply(ref, "error", '"payload_size_exceeded"')
            return
        self._services.hub.publish(
            self.topic,
            self.config.private,
            lambda version: (
                write(version, None, None, self.topic, "broadcast", text)
                if binary is None
                else write_broadcast(version, self.topic, binary)
            ),
            except_for=None if self.config.echoes else self,
        )
        if self.config.acknowledges:
            self.reply(ref, "ok")

    async def _watch_expiry(self) -> None:
        while "exp" in self._claims:
            left_seconds = float(self._claims["exp"]) - time.time()
            if left_seconds <= 0:
                self._fail(f"Token has expired {int(-left_seconds)} seconds ago")
                return
            with anyio.move_on_after(min(left_seconds, _TOKEN_CHECK_SECONDS)):
                await self._renewed.wait()

    async def _announce_replication(self) -> None:
        await self._services.messages.stream.wait_live()
        self._push_system("system", "ok", "Replication connection established")

    async def _keep_subscribed(self) -> None:
        while True:
            renewed = self._renewed
            try:
                await self._subscribe()
            except (BindingRefused, SubscriptionRefused) as refusal:
                # As with the real server: the channel stays, without rows, until it is joined afresh.
                self._services.changes.unsubscribe(self)
                self._push_system("postgres_changes", "error", str(refusal))
            else:
                self._push_system("postgres_changes", "ok", "Subscribed to PostgreSQL")
            await renewed.wait()

    async def _subscribe(self) -> None:
        bindings = [read_binding(entry) for entry in self.config.bindings]
        while True:
            try:
                async with self._services.database.connection() as connection:
                    subscriptions = await resolve(connection, bindings, identity_of(self._claims))
            except DATABASE_FAULTS as error:
                logger.warning("A subscription waits for the database: %s", error)
                await anyio.sleep(_RESUBSCRIBE_SECONDS)
            else:
                await self._services.changes.subscribe(self, subscriptions)
                return


def _is_true(value: Any) -> bool:
    return value is True or value == "true"
