"""The gateway as one application: REST and Realtime behind one port, as a Supabase project's API is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.local.gateway.origins import LOOPBACK, Origins
from runtime.local.gateway.postgrest_errors import not_served
from runtime.local.gateway.realtime import Realtime
from runtime.local.gateway.rest import RestApi
from runtime.local.gateway.settings import GatewaySettings
from runtime.local.gateway.tokens import Tokens

_ELSEWHERE = {
    "auth": "Auth",
    "storage": "Storage",
    "functions": "Edge Functions",
    "graphql": "GraphQL",
    "pg": "Postgres Meta",
}


def make_app(settings: GatewaySettings) -> Starlette:
    """Return the application, not yet running."""
    tokens = Tokens(
        settings.jwt_secret.get_secret_value(),
        {
            settings.publishable_key.get_secret_value(): "anon",
            settings.secret_key.get_secret_value(): "service_role",
        },
        settings.signing_keys,
    )
    rest = RestApi(settings, tokens)
    realtime = Realtime(settings, tokens)

    async def health(_: Request) -> Response:
        is_up = await rest.is_up()
        return JSONResponse({"status": "ok" if is_up else "database away"}, 200 if is_up else 503)

    async def published_keys(_: Request) -> Response:
        return JSONResponse({"keys": tokens.published()}, headers={"cache-control": "public, max-age=10"})

    async def elsewhere(request: Request) -> Response:
        return not_served(_ELSEWHERE.get(request.path_params["service"], "This path"))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(realtime.run)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
                rest.close()

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/auth/v1/.well-known/jwks.json", published_keys),
            *rest.routes(),
            *realtime.routes(),
            Route("/{service}/{path:path}", elsewhere, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ],
        lifespan=lifespan,
        middleware=[
            Middleware(Origins, allowed=settings.allowed_origins),
            Middleware(
                CORSMiddleware,
                allow_origins=["null", *settings.allowed_origins],
                allow_origin_regex=LOOPBACK,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["Content-Range", "Preference-Applied"],
            ),
        ],
    )
