"""POST /realtime/v1/api/broadcast: hands each message to the listeners of its topic."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.local.gateway.authorization import MissingPartition, TopicPolicies, identity_of
from runtime.local.gateway.database import DATABASE_FAULTS
from runtime.local.gateway.frames import (
    MAX_BROADCAST_BYTES,
    BroadcastFrame,
    Version,
    compact,
    read_json,
    write,
    write_broadcast,
)
from runtime.local.gateway.hub import Hub
from runtime.local.gateway.subscriptions import Identity
from runtime.local.gateway.tokens import TokenError, Tokens

_TOO_LARGE: Final = "Payload size exceeds tenant limit"


@dataclass(frozen=True, slots=True)
class HttpBroadcast:
    """The endpoint: `answer` is its handler."""

    tokens: Tokens
    policies: TopicPolicies
    hub: Hub

    async def answer(self, request: Request) -> Response:
        """202 and no body when all messages were taken; 401, 422 or 500 with JSON otherwise."""
        identity = self._identity(request)
        if identity is None:
            return JSONResponse({"message": "Unauthorized"}, status_code=401)
        try:
            body = read_json(await request.body())
        except ValueError:
            body = None
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not messages:
            return JSONResponse({"errors": {"messages": ["can't be blank"]}}, status_code=422)
        faults = [_faults(message) for message in messages]
        if any(faults):
            return JSONResponse({"errors": {"messages": faults}}, status_code=422)
        try:
            await self._publish(messages, identity)
        except (MissingPartition, *DATABASE_FAULTS) as error:
            return JSONResponse(
                {"message": f"A private topic could not be checked: {error}"}, status_code=500
            )
        return Response(status_code=202)

    async def answer_single(self, request: Request) -> Response:
        """The same for one message, whose body is the payload itself and may be binary; 403 without the right."""
        identity = self._identity(request)
        if identity is None:
            return JSONResponse({"message": "Unauthorized"}, status_code=401)
        name, event = request.path_params["topic"], request.path_params["event"]
        is_private = request.query_params.get("private") == "true"
        is_json = request.headers.get("content-type", "").startswith("application/json")
        body = await request.body()
        if len(body) > MAX_BROADCAST_BYTES:
            return JSONResponse({"errors": {"payload": [_TOO_LARGE]}}, status_code=422)
        try:
            if is_json:
                body = compact(read_json(body)).encode()
            if is_private and not await self.policies.may_send(name, identity):
                return JSONResponse({"message": "Unauthorized"}, status_code=403)
        except (ValueError, RecursionError):
            return JSONResponse({"errors": {"payload": ["can't be blank"]}}, status_code=422)
        except (MissingPartition, *DATABASE_FAULTS):
            return JSONResponse({"message": "Tenant database unavailable"}, status_code=422)
        topic = f"realtime:{name}"
        broadcast = BroadcastFrame(event, body, {}, is_json)
        self.hub.publish(topic, is_private, lambda version: write_broadcast(version, topic, broadcast))
        return Response(status_code=202)

    def _identity(self, request: Request) -> Identity | None:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        token = bearer if bearer and not bearer.startswith("sb_") else request.headers.get("apikey") or bearer
        try:
            return identity_of(self.tokens.verify(token))
        except TokenError:
            return None

    async def _publish(self, messages: list[dict[str, Any]], identity: Identity) -> None:
        may_send: dict[str, bool] = {}
        for message in messages:
            name, private = message["topic"], message.get("private") is True
            if private and name not in may_send:
                may_send[name] = await self.policies.may_send(name, identity)
            if private and not may_send[name]:
                continue  # refused in silence, as on a socket
            topic = f"realtime:{name}"
            payload = compact({"type": "broadcast", "event": message["event"], "payload": message["payload"]})
            self.hub.publish(topic, private, partial(_write, topic, payload))


def _write(topic: str, payload: str, version: Version) -> str:
    return write(version, None, None, topic, "broadcast", payload)


def _faults(message: Any) -> dict[str, list[str]]:
    if not isinstance(message, dict):
        return {"topic": ["can't be blank"], "event": ["can't be blank"], "payload": ["can't be blank"]}
    faults = {name: ["can't be blank"] for name in ("topic", "event") if not message.get(name)}
    faults |= {
        name: ["is invalid"]
        for name in ("topic", "event")
        if message.get(name) and not isinstance(message[name], str)
    }
    if not isinstance(message.get("payload"), dict):
        faults["payload"] = ["can't be blank"]
    elif len(compact(message["payload"])) > MAX_BROADCAST_BYTES:
        faults["payload"] = [_TOO_LARGE]
    return faults
