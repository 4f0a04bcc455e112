"""What does a target get, and what becomes of a delivery by its answer? With a real server, stream and signatures."""

import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Event
from typing import Any

import anyio
import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from runtime import Agent, Message, Reject, Retry, connect
from runtime.agent.context import Context
from runtime.agent.decision_link import DecisionLinks
from runtime.errors import DeclarationError, PostFailed, SettingsError
from runtime.local.bootstrap import connected
from runtime.message import Draft
from runtime.testing import Harness
from runtime.webhooks.sender import (
    MAX_ANSWER_BYTES,
    TargetResponse,
    body_of,
    judged,
    trace_headers,
    webhook_id,
)
from runtime.webhooks.signatures import new_secret
from runtime.worker.worker import Worker
from tests.integration.test_odd_rows import READABLE, UNREADABLE
from tests.receiver import Answering, Received, Receiver, receiving

pytestmark = pytest.mark.anyio

SECRET = new_secret()
QUICK = Retry(attempts=3, first_seconds=0.01, cap_seconds=0.02)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT_SECRET", SECRET)


def out(url: str, **options: Any) -> Agent:
    """An agent that posts what is written under task.* there."""
    agent = Agent("out")
    agent.post("task.*", **{"to": url, "secret": "OUT_SECRET", "retry": QUICK, **options})
    return agent


@asynccontextmanager
async def posting(harness: Harness, target: Receiver, **options: Any) -> AsyncIterator[Worker]:
    """A worker that posts to the target."""
    async with harness.running(out(target.url, **options), webhooks_allow="127.0.0.0/8") as worker:
        yield worker


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds; fail after a while."""
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.005)


async def send_many(harness: Harness, count: int) -> None:
    """Write so many numbers at once."""
    async with connect(harness.settings) as stream:
        await stream.send_all([Draft("task.new", number) for number in range(count)])


async def test_g4_a_request_is_signed_and_tells_everything_and_its_answer_is_written(
    harness: Harness,
) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with receiving() as target:
        target.answer = lambda request: Answering(201, {"seen": request.value["n"]})
        async with posting(harness, target, emits="noted.it"):
            sent = await harness.send(
                "task.new", {"n": 12345678901234567890, "text": "ü ☃"}, headers={"traceparent": parent},
                correlation_id="order-7", agent="shop",
            )  # fmt: skip
            await harness.drain()
    [request] = target.received
    Webhook(SECRET).verify(request.body, dict(request.headers))
    assert request.headers["content-type"] == "application/json"
    assert request.headers["traceparent"] == parent
    body = json.loads(request.body)
    assert (body["type"], body["data"]) == ("task.new", {"n": 12345678901234567890, "text": "ü ☃"})
    assert (body["id"], body["agent"], body["subscription"]) == (sent.id, "shop", "out.post")
    assert (body["attempt"], body["correlation_id"], body["parent_id"]) == (1, "order-7", None)
    assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
    [written] = await harness.messages("noted.it")
    assert written.value == {"seen": 12345678901234567890}
    assert (written.agent, written.parent_id, written.correlation_id) == ("out", sent.id, "order-7")


async def test_the_id_stays_from_attempt_to_attempt_and_the_signature_is_made_anew(harness: Harness) -> None:
    def answer(_: Received) -> Answering:
        return Answering(500 if len(target.received) < 3 else 204)

    with receiving() as target:
        target.answer = answer
        async with posting(harness, target, emits="noted.it"):
            await harness.send("task.new", 1)
            await until(lambda: len(target.received) == 3)
            await harness.drain()
    assert len({request.webhook_id for request in target.received}) == 1
    assert [json.loads(request.body)["attempt"] for request in target.received] == [1, 2, 3]
    for request in target.received:
        Webhook(SECRET).verify(request.body, dict(request.headers))
    # An empty answer writes nothing.
    assert await harness.messages("noted.it") == []
    assert await harness.dead_letters() == []


async def test_g5_a_delivery_that_no_attempt_gets_through_is_a_dead_letter_and_can_be_redriven(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving() as target:
        target.answer = lambda _: Answering(500, b"the body of an error is nobody's business")
        agent = out(f"{target.url}?key=hush", emits="noted.it")
        async with harness.running(agent, webhooks_allow="127.0.0.0/8"):
            await harness.send("task.new", 1)
            with anyio.fail_after(60):
                while not (letters := await harness.dead_letters()):
                    await anyio.sleep(0.01)
            [letter] = letters
            assert letter["error"] == f"PostFailed: {target.url} answered 500."
            assert len(target.received) == 3
            assert "hush" not in json.dumps(letter)
            assert "hush" not in caplog.text
            assert "nobody's business" not in caplog.text


@pytest.mark.parametrize("status", [413, 415, 422])
async def test_a_message_that_is_never_taken_is_a_dead_letter_at_once(status: int, harness: Harness) -> None:
    with receiving() as target:
        target.answer = lambda _: Answering(status)
        async with posting(harness, target):
            await harness.send("task.new", 1)
            await harness.drain()
        [letter] = await harness.dead_letters()
    assert letter["reason"] == "rejected"
    assert len(target.received) == 1


async def test_a_target_that_is_gone_gets_nothing_more_until_it_is_resumed(harness: Harness) -> None:
    with receiving() as target:
        target.answer = lambda _: Answering(410)
        async with posting(harness, target, concurrency=1), connect(harness.settings) as stream:
            for number in range(3):
                await harness.send("task.new", number)
            with anyio.fail_after(60):
                while (await stream.operations.webhooks())[0]["state"] != "gone":
                    await anyio.sleep(0.01)
            asked = len(target.received)
            assert asked < 3
            target.answer = lambda _: Answering(200)
            await stream.operations.resume("out.post")
            await until(lambda: {0, 1, 2} == set(target.values[asked:]))
            await harness.drain()
        assert await harness.dead_letters() == []


async def test_a_target_that_asks_for_it_is_left_alone_and_no_attempt_is_spent(harness: Harness) -> None:
    with receiving() as target:
        target.answer = lambda _: Answering(429, headers={"retry-after": "1"})
        async with posting(harness, target, concurrency=1), connect(harness.settings) as stream:
            for number in range(5):
                await harness.send("task.new", number)
            await until(lambda: len(target.received) >= 2)
            [row] = await stream.operations.webhooks()
            assert row["failures"] == 0
            target.answer = lambda _: Answering(200)
            await until(lambda: len(set(target.values)) == 5)
            await harness.drain()
        attempts = [json.loads(request.body)["attempt"] for request in target.received]
    assert set(attempts) == {1}
    assert await harness.dead_letters() == []


async def test_a_message_that_always_fails_does_not_hold_up_the_others(harness: Harness) -> None:
    with receiving() as target:
        target.answer = lambda request: Answering(500 if request.value == "poison" else 200)
        retry = Retry(attempts=8, first_seconds=0.01, cap_seconds=0.02)
        async with posting(harness, target, retry=retry):
            await harness.send("task.new", "poison")
            await until(lambda: len(target.received) >= 8)
            for number in range(10):
                await harness.send("task.new", number)
            await harness.drain()
            assert set(range(10)) <= set(target.values)
        [letter] = await harness.dead_letters()
    # One message's failures say nothing of the target.
    assert letter["message"]["value"] == "poison"


async def test_while_it_is_not_known_whether_a_target_is_well_again_one_request_at_a_time_is_made(
    harness: Harness,
) -> None:
    running, most = 0, 0
    two_at_once = threading.Event()

    def answer(_: Received) -> Answering:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running > 1:
            two_at_once.set()
        # So that others could come beside it; those before the first rest do.
        two_at_once.wait(60)
        time.sleep(0.02)
        running -= 1
        return Answering(503)

    with receiving() as target:
        target.answer = answer
        async with posting(harness, target, concurrency=8), connected(harness._admin_url) as connection:
            await connection.execute(
                "update runtime.policy set webhook_rest_seconds = 0.2, webhook_longest_rest_seconds = 0.2"
            )
            await send_many(harness, 30)

            async def has_rested(times: int) -> None:
                with anyio.fail_after(60):
                    while await connection.fetchval("select rests from runtime.webhooks") < times:
                        await anyio.sleep(0.005)

            async def in_hand() -> int:
                held = "select count(*) from runtime.deliveries where lease is not null"
                count: int = await connection.fetchval(held)
                return count

            # What was under way when the first rest began has ended when no more than one is in hand.
            await has_rested(2)
            with anyio.fail_after(60):
                while await in_hand() > 1 or running > 1:
                    await anyio.sleep(0.005)
            before, most = most, 0
            await has_rested((await connection.fetchval("select rests from runtime.webhooks")) + 3)
            assert (before > 1, most) == (True, 1)
            target.answer = lambda _: Answering(200)
            await until(lambda: len(set(target.values)) == 30)
            await harness.drain()
    assert await harness.dead_letters() == []


async def test_r1_rows_that_python_cannot_hold_are_dead_letters_and_hold_up_no_other(
    harness: Harness,
) -> None:
    insert = "insert into public.consciousness_stream (key, value) values ('task.new', {})"
    with receiving() as target:
        async with posting(harness, target), connected(harness._admin_url) as connection:
            for value in (*UNREADABLE.values(), *READABLE.values()):
                await connection.execute(insert.format(value))
            await harness.send("task.new", "the last")
            await harness.drain(seconds=60)
    letters = await harness.dead_letters()
    assert len(letters) == len(UNREADABLE)
    assert all("which Python cannot read" in letter["error"] for letter in letters)
    assert len(target.values) == len(READABLE) + 1
    # Posts run at once, and arrive in any order.
    assert "the last" in target.values


@pytest.mark.parametrize(
    ("answering", "complaint"),
    [
        (Answering(200, b"<p>", {"content-type": "text/html"}), "with text/html, and its answer is written under"),
        (Answering(200, b"ok"), "with no content-type"),
        (Answering(200, b"{", {"content-type": "application/json"}), "with a body that is no JSON"),
        (Answering(200, b"x" * (MAX_ANSWER_BYTES + 1)), "answered with more than 1 MB"),
        (Answering(None), "broke the connection off"),
        (Answering(302, headers={"location": "http://127.0.0.1/"}), "a redirect, and none is followed"),
        (Answering(404), "answered 404."),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none_is_a_failure_that_says_why(
    answering: Answering, complaint: str, harness: Harness
) -> None:
    with receiving() as target:
        target.answer = lambda _: answering
        async with posting(harness, target, emits="noted.it", retry=Retry(attempts=1)):
            await harness.send("task.new", 1)
            await harness.drain()
        [letter] = await harness.dead_letters()
    assert complaint in letter["error"]
    assert await harness.messages("noted.it") == []


async def test_s7_a_broken_status_line_forges_nothing_in_the_error(harness: Harness) -> None:
    def answer_once() -> None:
        with listening, listening.accept()[0] as connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 \x1b[2J\x1b]0;forged\x07 all is well\r\n\r\n")

    listening = socket.create_server(("127.0.0.1", 0))
    answering = threading.Thread(target=answer_once)
    answering.start()
    agent = out(f"http://127.0.0.1:{listening.getsockname()[1]}/", retry=Retry(attempts=1))
    async with harness.running(agent, webhooks_allow="127.0.0.0/8"):
        await harness.send("task.new", 1)
        await harness.drain()
    answering.join(60)
    [letter] = await harness.dead_letters()
    assert "forged" in letter["error"]
    assert letter["error"].isprintable()


async def test_a_target_that_does_not_answer_in_time_or_is_not_there_is_a_failure_that_says_so(
    harness: Harness,
) -> None:
    with receiving() as target:
        pass
    async with posting(harness, target, retry=Retry(attempts=1)):
        await harness.send("task.new", 1)
        await harness.drain()
    with receiving() as target:
        released = Event()
        target.answer = lambda _: Answering(200 if released.wait(20) else 500)
        async with posting(harness, target, retry=Retry(attempts=1), timeout=0.2):
            await harness.send("task.new", 2)
            await harness.drain()
        released.set()
    away, slow = await harness.dead_letters()
    assert "cannot be reached" in away["error"]
    assert f"{target.url} did not answer within 0.2 s." in slow["error"]


def test_an_answer_decides_alone() -> None:
    def verdict(status: int, **headers: str) -> PostFailed:
        with pytest.raises(PostFailed) as caught:
            judged(
                TargetResponse(
                    status, {name.replace("_", "-"): value for name, value in headers.items()}, b""
                ),
                "x",
                None,
            )
        return caught.value

    assert verdict(500).kind == "message"
    assert verdict(400).kind == "message"
    assert verdict(401).kind == verdict(502).kind == verdict(503).kind == verdict(429).kind == "target"
    assert verdict(410).kind == "gone"
    assert (verdict(503, retry_after="7").kind, verdict(503, retry_after="7").seconds) == ("asked", 7)
    assert verdict(429, retry_after="999999").seconds == 3600
    assert verdict(429, retry_after="soon").kind == "target"
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < (verdict(429, retry_after=in_a_minute).seconds or 0) <= 60
    assert judged(TargetResponse(200, {}, b"whatever"), "x", None) is None
    assert judged(
        TargetResponse(200, {"content-type": "application/json; charset=utf-8"}, b"[1]"), "x", "y"
    ) == [1]
    assert (
        judged(TargetResponse(200, {"content-type": "application/cloudevents+json"}, b"null"), "x", "y")
        is None
    )
    with pytest.raises(Reject, match="422"):
        judged(TargetResponse(422, {}, b""), "x", None)


def test_an_id_names_the_message_and_the_subscription_and_holds_no_dot() -> None:
    written = datetime(2026, 11, 1, tzinfo=UTC)
    message: Message[Any] = Message(id=7, key="task.new", value=1, created_at=written)
    again: Message[Any] = Message(id=7, key="task.new", value=1, created_at=written + timedelta(days=1))
    ids = {webhook_id("a.b_c", message), webhook_id("a_b.c", message), webhook_id("a.b_c", again)}
    assert len(ids) == 3
    assert not any("." in each for each in ids)


def test_only_what_is_a_trace_context_becomes_a_header() -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert trace_headers({"traceparent": parent, "tracestate": "a=1"}) == {
        "traceparent": parent,
        "tracestate": "a=1",
    }
    for forged in (f"{parent}\r\nx-evil: 1", "nonsense", 7, None):
        assert trace_headers({"traceparent": forged}) == {}
    assert trace_headers({"traceparent": parent, "tracestate": "a=1\r\nx: 1"}) == {"traceparent": parent}


def test_a_body_is_json_however_odd_the_value() -> None:
    message: Message[Any] = Message(id=7, key="task.new", value={"a": [None, 1.5, "\u2028"]})
    assert json.loads(body_of(message, Context(message, "out.post")))["data"] == {"a": [None, 1.5, "\u2028"]}


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"to": "ftp://example.com/"}, "looks like https://example.com/hooks"),
        ({"to": "https:///hook"}, "looks like https://example.com/hooks"),
        ({"to": "https://example.com/a b"}, "looks like https://example.com/hooks"),
        ({"to": None}, "looks like https://example.com/hooks"),
        ({"secret": SECRET}, "does not belong into code"),
        ({"secret": "two words"}, "must name an environment variable"),
        ({"emits": "no key"}, "is not a key"),
        ({"concurrency": 0}, "must be a whole number of 1 or more"),
        ({"timeout": -1}, "must be a number of seconds, more than 0"),
        ({"dead_blocks": True}, "needs ordered=True"),
        ({"name": "a.b"}, "A handler's name"),
    ],
)  # fmt: skip
def test_a_declaration_that_makes_no_sense_is_refused_with_the_cure(
    options: dict[str, Any], cure: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        out("https://example.com/hook?key=hush", **options)
    assert cure in str(caught.value)
    assert SECRET not in str(caught.value)


async def test_a_target_that_names_requests_for_approval_gets_a_link_that_decides_and_no_other_does(
    harness: Harness,
) -> None:
    agent = Agent("out")
    secret = SecretStr("a-secret-that-signs-links-of-approvals")
    with receiving() as people, receiving() as log:
        agent.post("approval.requested", "task.new", to=people.url, secret="OUT_SECRET", name="people")
        agent.post("approval.*", to=log.url, secret="OUT_SECRET", name="log")
        links = {"approval_secret": secret, "public_url": "https://agents.example"}
        async with (
            harness.running(agent, webhooks_allow="127.0.0.0/8", **links),
            connect(harness.settings) as stream,
        ):
            await stream.send("approval.requested", {"title": "Refund it?"})
            await stream.send("task.new", 1)
            await until(lambda: len(people.received) == 2 and len(log.received) == 1)
            [request] = await stream.read("approval.requested")
    told = {body["type"]: body for body in (json.loads(each.body) for each in people.received)}
    page, _, token = told["approval.requested"]["decision_link"].partition("?token=")
    assert page == "https://agents.example/approval"
    link = DecisionLinks([secret.get_secret_value()], page).read(token, now=time.time())
    assert (link.identity, link.by) == (request.idempotency_key, None)
    assert "decision_link" not in told["task.new"]
    assert "decision_link" not in json.loads(log.received[0].body)


def test_a_secret_that_is_missing_or_none_stops_a_worker_before_it_begins(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = out("https://example.com/hook")
    monkeypatch.delenv("OUT_SECRET")
    with pytest.raises(
        SettingsError, match=r"out\.post signs with OUT_SECRET, and the environment does not hold it"
    ):
        Worker([agent], harness.settings)
    monkeypatch.setenv("OUT_SECRET", "open-sesame")
    with pytest.raises(SettingsError, match=r"OUT_SECRET, which out\.post signs with") as caught:
        Worker([agent], harness.settings)
    assert "open-sesame" not in str(caught.value)
