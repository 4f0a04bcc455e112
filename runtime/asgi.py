"""Agents behind HTTP: an ASGI application to mount in FastAPI or Starlette, or to serve by itself.

    POST /webhooks/NAME     another program's webhook, verified, as a message
    POST /wake              a Supabase Database Webhook on the stream, as a wake-up of the agents
    POST /drain             serverless: handle what is due, within a budget of time, and say what is left
    GET  /approval          the page of a signed link, whose buttons decide a request for approval
    POST /mcp               handlers as tools of language models, for those who bring RUNTIME_MCP_TOKEN
    GET  /healthz, /readyz  for orchestrators

Agents run in a worker beside the requests; serverless, only during a request. The variables RUNTIME_AGENTS,
RUNTIME_SOURCES and RUNTIME_SERVERLESS configure `runtime.asgi:app`.
"""

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import anyio

from runtime.agent.agent import Agent
from runtime.agent.decision_link import DecisionLinks
from runtime.agent.discovery import discover_with_sources
from runtime.agent.secrets import check_exposed, secrets_in
from runtime.agent.source import Source
from runtime.client.factories import open_store
from runtime.connection.environment import environment, non_blank
from runtime.errors import DeclarationError, RuntimeFault, SettingsError, StoreError, did_you_mean
from runtime.extras import needing
from runtime.message import Draft
from runtime.settings import Settings
from runtime.store import Sent, Store
from runtime.webhooks.receiver import Verifier, WebhookRefusal, verifier_of
from runtime.worker.serverless import Drains
from runtime.worker.worker import Worker

with needing("runtime.asgi", "serve"):
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import BaseRoute, Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from runtime.http_server import BodyRefused, read_body
    from runtime.wakeups.database_webhook import UNKNOWN_SECRET, DatabaseWebhook

if TYPE_CHECKING:
    from runtime.client.mcp.route import ToolsRoute

_log = logging.getLogger("runtime.asgi")
# Shorter than the timeouts of senders: GitHub's is 10 s.
_STORE_SECONDS = 8.0
_ASK_SECONDS = 2.0
_RETRY_AFTER = {"retry-after": "5"}
_SOURCE_FIELDS = frozenset(each.name for each in fields(Source))


class WebhookApp:
    """The ASGI application.

    A host application must run its `lifespan`, which a mounted application does not get by itself. Without it, webhooks
    are accepted but no worker runs.

    Args:
        agents: to run in this process.
        sources: of webhooks.
        settings: read from the environment by default.
        serverless: run no worker, but handle what is due whenever `/drain` or `/wake` is called; the settings' by
            default.
        variables: with the sources' secrets; the environment and `.env` by default.

    Raises:
        SettingsError: the secret of a source, of `/drain` or of `/mcp` is missing or wrong.
        DeclarationError: two sources share a name.
    """

    def __init__(
        self,
        agents: Iterable[Agent] = (),
        sources: Iterable[Source] = (),
        *,
        settings: Settings | None = None,
        serverless: bool | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings or Settings.find()
        self._verifiers = _verifiers(sources, environment() if variables is None else variables)
        worker = Worker(agents, self._settings) if (agents := list(agents)) else None
        is_serverless = self._settings.serverless if serverless is None else serverless
        self._worker = None if is_serverless else worker
        self._drains = Drains(agents, self._settings) if is_serverless and worker else None
        self._is_running = False
        patterns = [pattern for each in (worker.handlers if worker else []) for pattern in each.patterns]
        secret = non_blank(self._settings.webhook_secret)
        self._has_secret = secret is not None
        if self._drains is not None and secret is None:
            raise SettingsError(
                "Set RUNTIME_WEBHOOK_SECRET: callers of /drain must send it as `authorization: Bearer …`."
            )
        self._webhook = DatabaseWebhook(secret, patterns)
        self._store: Store | None = None
        self._opening = anyio.Lock()
        self._tools = _tools_route(self._settings)
        self._app = Starlette(
            routes=[
                Route("/webhooks/{name}", self._receive, methods=["POST"]),
                Route("/wake", self._wake, methods=["POST"]),
                Route("/drain", self._drain, methods=["POST"]),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                *_decision_routes(self._settings, self._open),
                *([] if self._tools is None else [Route("/mcp", self._tools)]),
            ],
            lifespan=self.lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and log it, without the query, which may hold secrets."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        finally:
            seconds = time.monotonic() - began
            _log.info("%s %s %d %.0f ms", scope["method"], ascii(scope["path"])[1:-1], status, seconds * 1000)

    @asynccontextmanager
    async def lifespan(self, host: object = None) -> AsyncIterator[None]:
        """Run the worker beside the requests. For FastAPI: `FastAPI(lifespan=webhooks.lifespan)`.

        If the worker ends with an error, the log and `/readyz` say so, and the host goes on.
        """
        async with self.serving_tools(), anyio.create_task_group() as tasks:
            tasks.start_soon(self._run_beside_host)
            try:
                yield
            finally:
                self.stop()
        await self.close()

    @asynccontextmanager
    async def serving_tools(self) -> AsyncIterator[None]:
        """Serve `/mcp` while this is entered, where RUNTIME_MCP_TOKEN is set; `lifespan` does."""
        async with nullcontext() if self._tools is None else self._tools.running():
            yield

    async def run(self) -> None:
        """Run the worker until `stop` is called; return at once if there is none.

        Raises:
            RuntimeFault: as for `Worker.run`.
        """
        if self._worker is not None:
            self._is_running = True
            try:
                await self._worker.run()
            finally:
                self._is_running = False

    def stop(self) -> None:
        """Let the worker take no new work, and end when its running handlers have ended."""
        if self._worker is not None:
            self._worker.stop()
        if self._drains is not None:
            self._drains.stop()

    async def close(self) -> None:
        """Close the connections."""
        store, self._store = self._store, None
        if store is not None:
            with anyio.CancelScope(shield=True):
                await store.close()

    async def _run_beside_host(self) -> None:
        try:
            await self.run()
        except RuntimeFault as fault:
            _log.error("the worker has ended; webhooks are still accepted: %s", fault)

    async def _receive(self, request: Request) -> Response:
        verifier = self._verifiers.get(request.path_params["name"])
        if verifier is None:
            return PlainTextResponse("There is no such source of webhooks.\n", 404)
        name = verifier.source.name
        try:
            body = await read_body(request, verifier.source.max_bytes)
        except BodyRefused as error:
            return _refused(name, WebhookRefusal(error.status, str(error)))
        verdict = verifier.judge(request.headers, body, now=time.time())
        if isinstance(verdict, WebhookRefusal):
            return _refused(name, verdict)
        try:
            sent = await self._send(verdict)
        except RuntimeFault as fault:
            _log.error("a webhook of %s could not be stored; its sender is asked to retry: %s", name, fault)
            return PlainTextResponse("The stream cannot be reached: send it again.\n", 503, _RETRY_AFTER)
        _log.debug("webhook of %s: message %d%s", name, sent.id, ", a duplicate" if sent.duplicate else "")
        return JSONResponse({"message": sent.id, "duplicate": sent.duplicate})

    async def _send(self, draft: Draft) -> Sent:
        """Store the message; returns when it is committed."""
        with anyio.move_on_after(_STORE_SECONDS):
            store = await self._open()
            return (await store.send([draft]))[0]
        raise StoreError(f"no answer within {_STORE_SECONDS:.0f} seconds.")

    async def _open(self) -> Store:
        async with self._opening:
            if self._store is None:
                self._store = await open_store(self._settings)
            return self._store

    async def _wake(self, request: Request) -> Response:
        if not self._has_secret:
            return PlainTextResponse("Set RUNTIME_WEBHOOK_SECRET, and send it with the webhook.\n", 403)
        if not self._webhook.knows_secret(request):
            return UNKNOWN_SECRET
        if self._drains is not None:
            woken: list[int | None] = []
            answer = await self._webhook.receive(request, woken.append)
            return await self._drain_with(self._drains) if woken else answer
        worker = self._worker
        if worker is None or not self._is_running:
            return PlainTextResponse("No worker runs in this process.\n", 503, _RETRY_AFTER)
        return await self._webhook.receive(request, lambda message: worker.wake("webhook", message))

    async def _drain(self, request: Request) -> Response:
        if not (self._has_secret and self._webhook.knows_secret(request)):
            return UNKNOWN_SECRET
        if self._drains is None:
            return PlainTextResponse("Not serverless: a worker runs here, or there are no agents.\n", 409)
        return await self._drain_with(self._drains)

    async def _drain_with(self, drains: Drains) -> Response:
        try:
            drained = await drains.drain()
        except RuntimeFault as fault:
            _log.error("nothing could be drained: %s", fault)
            return PlainTextResponse("The stream cannot be reached: call again.\n", 503, _RETRY_AFTER)
        if drained is None:
            return JSONResponse({"joined": True}, 202)
        _log.info("drained: %s", drained)
        return JSONResponse(asdict(drained))

    async def _healthz(self, request: Request) -> Response:
        """The process is alive: it answers."""
        return PlainTextResponse("alive\n")

    async def _readyz(self, request: Request) -> Response:
        """The database answers, and the worker, if there is one, looks for work."""
        health: dict[str, Any] = {"database": False}
        try:
            health["database"] = await (await self._open()).answers(_ASK_SECONDS)
        except RuntimeFault as fault:
            _log.error("the stream cannot be reached: %s", fault)
        is_ready = health["database"]
        if self._worker is not None:
            health["worker"] = self._worker.state if self._is_running else "stopped"
            is_ready = is_ready and self._is_running and self._worker.is_ready
        return JSONResponse(health, 200 if is_ready else 503)


def _decision_routes(settings: Settings, open_store: Callable[[], Awaitable[Store]]) -> list[BaseRoute]:
    """Return the routes of the page of signed links; none where the settings have no secret for them."""
    if (links := DecisionLinks.of(settings)) is None:
        return []
    with needing("RUNTIME_APPROVAL_SECRET", "dashboard"):
        from runtime.dashboard.pages.decision import DecisionPage
    return DecisionPage(links, open_store).routes


def _tools_route(settings: Settings) -> "ToolsRoute | None":
    """Return the route of tools; None where the settings have no token for it."""
    if (token := non_blank(settings.mcp_token)) is None:
        return None
    with needing("RUNTIME_MCP_TOKEN", "mcp"):
        from runtime.client.mcp.route import ToolsRoute
        from runtime.client.mcp.server import StreamServer
    check_exposed(token, "RUNTIME_MCP_TOKEN")
    return ToolsRoute(StreamServer(settings, secret=token), token)


def _refused(name: str, refusal: WebhookRefusal) -> Response:
    _log.warning("a webhook to %s was refused (%d): %s", name, refusal.status, refusal.why)
    return PlainTextResponse(f"{refusal.why}\n", refusal.status)


def _verifiers(sources: Iterable[Source], variables: Mapping[str, str]) -> dict[str, Verifier]:
    found: dict[str, Verifier] = {}
    for source in sources:
        if source.name in found:
            raise DeclarationError(f"Two sources are called {source.name!r}. Rename one of them.")
        found[source.name] = verifier_of(source, secrets_in(variables, source.secret))
    return found


def sources_in(settings: Settings) -> list[Source]:
    """Return the sources of RUNTIME_SOURCES.

    Raises:
        SettingsError: it is no list of objects, or one of them has an unknown field.
        DeclarationError: one of them makes no sense.
    """
    if not settings.sources:
        return []
    meant = ""
    try:
        described = json.loads(settings.sources)
        unknown = next((name for each in described for name in each if name not in _SOURCE_FIELDS), None)
        if unknown is None:
            return [Source(**each) for each in described]
        meant = f" A Source has no {unknown}{did_you_mean(unknown, _SOURCE_FIELDS) or '.'}"
    except (ValueError, TypeError):
        pass
    raise SettingsError(
        "RUNTIME_SOURCES is a JSON list of objects with the fields of a Source: "
        f'[{{"name": "github", "scheme": "github", "key": "github.{{event}}"}}].{meant}'
    )


def app_of_environment() -> ASGIApp:
    """Return the application that the environment configures."""
    settings = Settings.load()
    paths = [path.strip() for path in settings.agents.split(",") if path.strip()]
    agents, sources = discover_with_sources(paths) if paths else ([], [])
    return WebhookApp(agents, [*sources, *sources_in(settings)], settings=settings)


def __getattr__(name: str) -> ASGIApp:
    """Make `app` at its first use: importing this module reads no settings."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    app = globals()["app"] = app_of_environment()
    return app
