"""The HTTP port that tells Kubernetes and Prometheus how a worker is: healthz, readyz and metrics.

It is served in the runtime's own thread, so a handler that blocks its loop does not make the process look dead.
"""

import time

import anyio
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from runtime.errors import StoreError
from runtime.http_server import serve
from runtime.store import Store
from runtime.worker.dispatcher import Dispatcher
from runtime.worker.metrics import Metrics

_ASK_SECONDS = 2.0
# Waiting deliveries are counted row by row: not more often than this, however many programs scrape.
_STATS_SECONDS = 15.0


class HealthEndpoints:
    """Answers about one worker.

    Args:
        metrics: the counts so far.
        dispatcher: the dispatcher whose state is shown.
        store: the store that has to answer before the worker is ready.
    """

    def __init__(self, metrics: Metrics, dispatcher: Dispatcher, store: Store) -> None:
        self._metrics = metrics
        self._dispatcher = dispatcher
        self._store = store
        self._standing = metrics.watch(dispatcher)
        self._counted_at = -_STATS_SECONDS
        self._counting = anyio.Lock()

    async def run(self, host: str, port: int) -> None:
        """Answer until cancelled."""
        await serve("the port for metrics", host, port, self.app())

    def app(self) -> Starlette:
        """The HTTP application."""
        return Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._show_metrics),
            ]
        )

    async def _healthz(self, request: Request) -> Response:
        """The process is alive: it answers."""
        return PlainTextResponse("alive\n")

    async def _readyz(self, request: Request) -> Response:
        """The worker has subscribed, its agents have started, it does not end, and the database answers."""
        told = {
            "subscribed": self._dispatcher.ready.is_set(),
            "started": self._dispatcher.is_whole,
            "stopping": self._dispatcher.plan.stopping,
            "database": await self._store.answers(_ASK_SECONDS),
        }
        is_ready = told["subscribed"] and told["started"] and told["database"] and not told["stopping"]
        return JSONResponse(told, 200 if is_ready else 503)

    async def _show_metrics(self, request: Request) -> Response:
        await self._count()
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _count(self) -> None:
        """Count what waits, unless that was done just now; without the database there are no such figures."""
        async with self._counting:
            if time.monotonic() - self._counted_at < _STATS_SECONDS:
                return
            self._counted_at = time.monotonic()
            stats = {}
            with anyio.move_on_after(_ASK_SECONDS):
                try:
                    stats = await self._store.call("stream_stats", {})
                except StoreError:
                    # readyz and the worker's log report it; a scrape shows what is known without the database.
                    stats = {}
            self._standing.stats = stats
