"""The answers to requests that fail: a page, a line for a part of a page, or JSON."""

import logging
import traceback
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.dashboard.context import context_of
from runtime.encoding.printable import printable
from runtime.errors import StoreUnavailable
from runtime.tracebacks import name_of

_log = logging.getLogger("runtime.dashboard")
_PACKAGE: Final = Path(__file__).parent.parent
_FRAMES: Final = 4
_PATH_CHARACTERS: Final = 200
_FAILED: Final = "The dashboard failed here"
# Where not even a page with the strip of health can be rendered.
_BARE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Failed</title>
<link rel="stylesheet" href="/static/dashboard.css"><body class="refused"><main><h1>{what}</h1><p>{why}</p></main>"""


async def fault(request: Request, error: Exception) -> Response:
    """Answer with an error of the store, or with what is wrong with the request."""
    is_away = isinstance(error, StoreUnavailable)
    what = "The stream cannot be shown"
    return await _answer(request, 503 if is_away else 409, what, str(error), is_away=is_away)


async def refused(request: Request, error: Exception) -> Response:
    """Answer a request for what there is not, or by a method that it has not."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return await _answer(request, 404, "There is no such page", request.url.path)
    return await _answer(request, error.status_code, "This cannot be asked for", error.detail)


async def _answer(request: Request, status: int, what: str, why: str, *, is_away: bool = False) -> Response:
    if "hx-request" in request.headers:
        return PlainTextResponse(why if status == 409 or is_away else f"{what}: {why}", status)
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"error": why, "status": status}, status)
    return await context_of(request).page(
        "missing.html", active="", status=status, events="", what=what, why=why, is_away=is_away
    )


class ErrorPages:
    """Answers what no page expects, in the shape that was asked for, and logs where it was raised.

    Neither says more of the error than its class: its text may repeat a value or an address.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer it if that fails."""
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the viewer is told, and so is the log
            _log.error("the dashboard failed at %s: %s", _name_of(scope), _told(error))
            if has_begun:
                # The server cuts the answer off, so that nobody takes it for a whole one.
                return
            why = f"{name_of(type(error))}, at {_places(error)[0]}. The log of the dashboard says more."
            request = Request(scope, receive)
            try:
                response = await _answer(request, 500, _FAILED, why)
            except Exception as second:  # noqa: BLE001 - the page of the error has failed too
                _log.error("the dashboard failed at the page of this error: %s", _told(second))
                response = HTMLResponse(_BARE.format(what=_FAILED, why=why), 500)
            await response(scope, receive, send)


def _name_of(scope: Scope) -> str:
    """Return a request for the log, without its query, which may bear the token."""
    return printable(f"{scope['method']} {scope['path']}", _PATH_CHARACTERS)


def _told(error: BaseException) -> str:
    return f"{name_of(type(error))} at {', called from '.join(_places(error))}"


def _places(error: BaseException) -> list[str]:
    """Return where an error was raised, innermost first: `dashboard/pages/map.py:29 in map_page`."""
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    own = [
        each
        for place, each in enumerate(frames)
        if place == 0 or Path(each.filename).is_relative_to(_PACKAGE)
    ]
    return [f"{_short(each.filename)}:{each.lineno} in {each.name}" for each in own[:_FRAMES]]


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(_PACKAGE)) if path.is_relative_to(_PACKAGE) else path.name
