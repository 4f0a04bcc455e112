"""The routes of the dashboard."""

from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from runtime.dashboard.context import FOLDER, DashboardContext
from runtime.dashboard.error_pages import ErrorPages, fault, refused
from runtime.dashboard.events import events
from runtime.dashboard.pages import (
    agents,
    approvals,
    conversation,
    costs,
    dead,
    map,
    message,
    overview,
    stream,
    write,
)
from runtime.dashboard.security import Guard, Guarded
from runtime.errors import RuntimeFault


class _Number(IntegerConvertor):
    """The number of a row in a URL; a number with more digits than an id can have is no page."""

    regex = "[0-9]{1,18}"


class _LetterVerb(StringConvertor):
    """What can be done with dead letters."""

    regex = "redrive|discard"


register_url_convertor("number", _Number())
register_url_convertor("remedy", _LetterVerb())


def make_app(context: DashboardContext, guard: Guard) -> ASGIApp:
    """Return the dashboard as an ASGI application, behind its guard."""
    app = Starlette(
        routes=[
            Route("/", stream.stream_page),
            Route("/rows", stream.rows),
            Route("/first", stream.first),
            Route("/events", events),
            Route("/overview", overview.overview_page),
            Route("/overview/figures", overview.figures),
            Route("/agents", agents.agents_page),
            Route("/agents/table", agents.table),
            Route("/agents/{name}/pause", agents.pause, methods=["POST"]),
            Route("/agents/{name}/resume", agents.resume, methods=["POST"]),
            Route("/agents/{name}/remove", agents.remove, methods=["POST"]),
            Route("/agents/{name}/replay", agents.replay, methods=["POST"]),
            Route("/costs", costs.costs_page),
            Route("/costs/figures", costs.figures),
            Route("/map", map.map_page),
            Route("/map/drawing", map.drawing),
            Route("/conversation-thread", conversation.thread),
            Route("/conversation/{id:path}", conversation.conversation_page),
            Route("/export/{form}/{id:path}", conversation.export),
            Route("/message/{id:number}", message.message_page),
            Route("/message/{id:number}/story", message.story),
            Route("/message/{id:number}/deliver", message.deliver, methods=["POST"]),
            Route("/message/{id:number}/cancel", message.cancel, methods=["POST"]),
            Route("/approvals", approvals.approvals_page),
            Route("/approvals/open", approvals.open_requests),
            Route("/approvals/{id:number}", approvals.decide, methods=["POST"]),
            Route("/dead", dead.dead_page),
            Route("/dead/groups", dead.groups),
            Route("/dead/group/{what:remedy}", dead.change_group, methods=["POST"]),
            Route("/dead/{id:number}", dead.letter_page),
            Route("/dead/{id:number}/amend", dead.amend, methods=["POST"]),
            Route("/dead/{id:number}/{what:remedy}", dead.change_letter, methods=["POST"]),
            Route("/write", write.write_page),
            Route("/write/check", write.check, methods=["POST"]),
            Route("/write", write.send, methods=["POST"]),
            Mount("/static", StaticFiles(directory=FOLDER / "static")),
        ],
        exception_handlers={RuntimeFault: fault, HTTPException: refused},
        middleware=[Middleware(ErrorPages)],
    )
    app.state.context = context
    return Guarded(app, guard)
