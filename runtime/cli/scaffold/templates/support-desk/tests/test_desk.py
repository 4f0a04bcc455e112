"""The whole desk over a real stream: the scripted model, no key, no network."""

import sqlite3

import pytest
from agents import intake, ledger, mailer, triage, writer
from desk.messages import Mail

MODULES = (intake, triage, writer, mailer, ledger)
MAIL = Mail(sender="ada@example.org", subject="My invoice", text="Why is it so high?")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A folder of its own for each test, and no key of yours."""
    monkeypatch.setenv("DESK_DATA", str(tmp_path))
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    return tmp_path


async def test_a_mail_is_answered(harness, data):
    async with harness.running(*(module.agent for module in MODULES)):
        sent = await harness.send("mail.received", MAIL)
        await harness.drain(seconds=60)
    [sorted_ticket] = await harness.assert_emitted("ticket.sorted")
    assert sorted_ticket.value["sorting"] == {"topic": "billing", "urgent": False}
    mail = (data / "outbox" / f"{sent.id}.txt").read_text()
    assert "To: ada@example.org\nSubject: Re: My invoice\n" in mail
    await harness.assert_emitted("reply.sent")
    await harness.assert_no_dead_letters()


async def test_an_urgent_mail_waits_for_a_person_and_two_people_send_one_reply(harness, data):
    async with harness.running(*(module.agent for module in MODULES)):
        sent = await harness.send("mail.received", MAIL.model_copy(update={"text": "Urgent: call me!"}))
        await harness.drain(seconds=60)
        await harness.assert_emitted("reply.held")
        assert waiting(data) == [sent.id]
        for text in ("We call you at noon.", "We call you at one."):
            reply = {"ticket": sent.id, "to": "ada@example.org", "subject": "Re: My invoice", "text": text}
            await harness.send("reply.ready", reply, dedup_key=f"reply {sent.id}")
        await harness.drain(seconds=60)
    await harness.assert_emitted("reply.sent")
    assert "noon" in (data / "outbox" / f"{sent.id}.txt").read_text()
    assert waiting(data) == []


async def test_a_model_that_answers_something_else_is_asked_three_times(harness, monkeypatch):
    async def chat(*_):
        return "This looks like a question about an invoice."

    monkeypatch.setattr("desk.model.ScriptedModel.complete", chat)
    async with harness.running(intake.agent, triage.agent):
        await harness.send("mail.received", MAIL)
        for _ in range(3):
            await harness.drain(seconds=60)
            # Retries wait; here the wait is over at once.
            await harness.advance(3600)
        await harness.drain(seconds=60)
    [letter] = await harness.dead_letters("triage.sort")
    assert len(letter["attempts"]) == 3
    assert "JSON" in letter["error"]


def waiting(data):
    """The tickets of the ledger's report: a handler is a plain function, called with a stand-in."""
    with sqlite3.connect(data / "ledger.sqlite") as connection:
        return ledger.report(connection).open
