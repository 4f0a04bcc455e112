"""What does POST /realtime/v1/api/broadcast do? Hands each message to the listeners of its topic."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.local.gateway.authorization import MissingPartition, TopicPolicies, identity_of
from runtime.local.gateway.database import DATABASE_FAULTS
from runtime.local.gateway.frames import Version, compact, write
from runtime.local.gateway.hub import Hub
from runtime.local.gateway.subscriptions import Identity
from runtime.local.gateway.tokens import TokenError, Tokens


@dataclass(frozen=True, slots=True)
class HttpBroadcast:
    """The endpoint: `answer` is its handler."""

    tokens: Tokens
    policies: TopicPolicies
    hub: Hub

    async def answer(self, request: Request) -> Response:
        """202 and no body when all messages were taken; 401, 422 or 500 with JSON otherwise."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        token = bearer if bearer and not bearer.startswith("sb_") else request.headers.get("apikey") or bearer
        try:
            identity = identity_of(self.tokens.verify(token))
        except TokenError:
            return JSONResponse({"message": "Unauthorized"}, status_code=401)
        try:
            body = await request.json()
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
    if not isinstance(message.get("payload"), dict):
        faults["payload"] = ["can't be blank"]
    return faults
