"""The page of a signed link: it shows one request for approval, and its buttons decide it.

Opening the link decides nothing, since mail scanners and the previews of chats open links too. A form proves itself by
the signature it was opened with: there is no cookie, so that no other site can send one.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl

import anyio
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from runtime.agent.approval import DECIDED, REQUESTED, deadline_of
from runtime.agent.decision_link import DecisionLink, DecisionLinks, is_name
from runtime.client.admin import Admin
from runtime.dashboard.context import FOLDER, make_templates
from runtime.dashboard.filters import pretty
from runtime.dashboard.pages.approvals import answer_of, wanted_of
from runtime.dashboard.samples import sample_of
from runtime.dashboard.security import STRICT_HEADERS
from runtime.errors import BadSignature, InvalidValue, Refused, RuntimeFault
from runtime.http_server import BodyRefused, read_body
from runtime.message import Message
from runtime.store import Store

_log = logging.getLogger("runtime.decisions")
_MAX_FORM_BYTES: Final = 256 * 1024
_MAX_WHY_CHARACTERS: Final = 2000
_STORE_SECONDS: Final = 8.0
_HEADERS: Final = {**STRICT_HEADERS, "cache-control": "no-store", "x-robots-tag": "noindex"}

Form = Mapping[str, str]


class DecisionPage:
    """The page and its routes.

    Args:
        links: reads what was signed.
        open_store: opens the stream, or returns it if it is open.
    """

    def __init__(self, links: DecisionLinks, open_store: Callable[[], Awaitable[Store]]) -> None:
        self._links = links
        self._open_store = open_store
        self._template = make_templates().get_template("decision.html")

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes: the page, its form, and the style sheets."""
        return [
            Route("/approval", self._show, methods=["GET"]),
            Route("/approval", self._decide, methods=["POST"]),
            Mount("/approval/static", StaticFiles(directory=FOLDER / "static")),
        ]

    async def _show(self, request: Request) -> HTMLResponse:
        token = request.query_params.get("token", "")
        # A server logs the query when the response begins, and it holds what may decide.
        request.scope["query_string"] = b""
        return await self._page(token, None)

    async def _decide(self, request: Request) -> HTMLResponse:
        try:
            body = await read_body(request, _MAX_FORM_BYTES)
            pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20, errors="strict")
        except BodyRefused as refusal:
            return self._notice(refusal.status, "This cannot be read", str(refusal))
        except ValueError:
            return self._notice(400, "This cannot be read", "Open the link again.")
        form = {name: text.strip() for name, text in pairs}
        return await self._page(form.get("token", ""), form)

    async def _page(self, token: str, form: Form | None) -> HTMLResponse:
        """Return the page of a link, after deciding if there is a form."""
        try:
            link = self._links.read(token, now=time.time())
        except BadSignature as fault:
            if fault.is_stale:
                return self._notice(410, "This link has expired", "Ask for another one.")
            return self._notice(403, "This link is not valid", "Copy it whole, or ask for another one.")
        try:
            with anyio.fail_after(_STORE_SECONDS):
                store = await self._open_store()
                asked = await store.get(link.request)
                if asked is None or not _is_asked(asked, link):
                    return self._notice(404, "This request is gone", "It was removed from the stream.")
                if form is None:
                    decision = await _decision_about(asked, store)
                    return self._request(asked, link, token, decision=decision)
                return await self._decided(asked, link, token, form, store)
        except (RuntimeFault, TimeoutError) as fault:
            _log.error(
                "the page of request %d could not be shown: %s", link.request, fault or "no answer in time"
            )
            return self._notice(503, "The stream cannot be reached", "Open the link again in a moment.")

    async def _decided(
        self, asked: Message[Any], link: DecisionLink, token: str, form: Form, store: Store
    ) -> HTMLResponse:
        """Decide as the form says, and return what came of it."""
        try:
            is_approved, answer, by, why = _checked(asked, link, form)
            told = await Admin(store).decide(asked.id, is_approved, answer=answer, by=by, why=why)
        except InvalidValue as fault:
            return self._request(asked, link, token, status=422, form=form, fault=str(fault))
        except Refused as fault:
            _log.error("the database refused the decision about request %d: %s", asked.id, fault)
            text = "The stream does not take this: nothing was decided."
            return self._request(asked, link, token, status=422, form=form, fault=text)
        if told["decided"]:
            _log.info("request %d was %s by a link", asked.id, "approved" if is_approved else "rejected")
            return self._request(asked, link, token, decision=told["decision"], is_new=True)
        return self._request(
            asked, link, token, status=410 if told["expired"] else 409, decision=told.get("decision")
        )

    def _request(
        self,
        asked: Message[Any],
        link: DecisionLink,
        token: str,
        *,
        status: int = 200,
        decision: Mapping[str, Any] | None = None,
        is_new: bool = False,
        form: Form | None = None,
        fault: str | None = None,
    ) -> HTMLResponse:
        """Return the page of a request: open with its form, decided, or over."""
        deadline = deadline_of(asked.value)
        is_over = decision is None and deadline is not None and deadline <= datetime.now(UTC)
        wanted = wanted_of(asked.value.get("schema"))
        return self._response(
            410 if is_over else status, heading="", text="", asked=asked.value, by_agent=asked.agent,
            since=asked.created_at.isoformat(), until=deadline and deadline.isoformat(), link=link, token=token,
            decision=decision, is_new=is_new, is_over=is_over, form=form or {}, fault=fault,
            sample=None if wanted is None else pretty(sample_of(wanted)),
        )  # fmt: skip

    def _notice(self, status: int, heading: str, text: str) -> HTMLResponse:
        """Return a page that tells nothing of any request."""
        return self._response(status, asked=None, heading=heading, text=text)

    def _response(self, status: int, **shown: Any) -> HTMLResponse:
        again = {"retry-after": "5"} if status == 503 else {}
        return HTMLResponse(self._template.render(**shown), status, headers={**_HEADERS, **again})


def _is_asked(found: Message[Any], link: DecisionLink) -> bool:
    """Whether a message is the request that the link was made for."""
    is_request = found.key == REQUESTED and isinstance(found.value, dict)
    return is_request and found.idempotency_key == link.identity


async def _decision_about(asked: Message[Any], store: Store) -> Mapping[str, Any] | None:
    """Return the decision about a request; None while there is none."""
    found = await store.read(DECIDED, correlation_id=asked.correlation, after=asked.id, limit=1000)
    for each in found:
        # Only the database can give this dedup_key: other rows under the key of decisions decide nothing.
        if each.parent_id == asked.id and each.dedup_key == f"decision {asked.id}":
            return {**each.value, "at": each.created_at.isoformat()}
    return None


def _checked(asked: Message[Any], link: DecisionLink, form: Form) -> tuple[bool, Any, str | None, str | None]:
    """Return whether the form approves, with which answer, by whom and why.

    Raises:
        InvalidValue: a field is missing or does not fit; nothing was decided.
    """
    if form.get("approved") not in ("yes", "no"):
        raise InvalidValue("Press Approve or Reject: nothing was decided.")
    by = link.by or form.get("by", "")
    if not is_name(by):
        raise InvalidValue(
            "Write your name in a line, so that others can see who decided: nothing was decided."
        )
    why = form.get("why", "")
    if len(why) > _MAX_WHY_CHARACTERS:
        raise InvalidValue(f"The reason has at most {_MAX_WHY_CHARACTERS} characters: nothing was decided.")
    is_approved = form["approved"] == "yes"
    wanted = wanted_of(asked.value.get("schema"))
    answer = answer_of(form.get("answer", ""), wanted) if is_approved and wanted is not None else None
    return is_approved, answer, by, why or None
