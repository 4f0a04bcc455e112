"""The whole desk over a real stream: the scripted model, no key, no network."""

from datetime import UTC, datetime

import pytest
from agents import intake, mailer, reporter, triage, writer

from runtime import Tick

from desk.messages import Mail

AGENTS = [module.agent for module in (intake, triage, writer, mailer, reporter)]
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
    async with harness.running(*AGENTS):
        sent = await harness.send("mail.received", MAIL)
        await harness.drain(seconds=60)
    [sorted_ticket] = await harness.assert_emitted("ticket.sorted")
    assert sorted_ticket.value["sorting"] == {"topic": "billing", "urgent": False}
    mail = (data / "outbox" / f"{sent.id}.txt").read_text()
    assert "To: ada@example.org\nSubject: Re: My invoice\n" in mail
    await harness.assert_emitted("reply.sent")
    await harness.assert_no_dead_letters()


async def test_an_urgent_reply_waits_for_a_person_and_goes_once(harness):
    async with harness.running(*AGENTS):
        sent = await harness.send("mail.received", MAIL.model_copy(update={"text": "Urgent: call me!"}))
        await harness.drain(seconds=60)
        await harness.assert_emitted("reply.held")
        assert await reported(harness) == [sent.id]
        # Two people approve, or one of them twice.
        await harness.send("reply.approved", sent.id)
        await harness.send("reply.approved", sent.id)
        await harness.drain(seconds=60)
        assert await reported(harness) == []
    await harness.assert_emitted("reply.sent")


async def test_a_model_that_answers_something_else_is_asked_three_times(harness, monkeypatch):
    async def chat(*_, **__):
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


async def reported(harness):
    """The tickets of a report: a timer's tick is a message, which a test may write itself."""
    tick = Tick(slot=datetime.now(UTC), schedule="reporter.report")
    await harness.send("timer.reporter.report", tick)
    await harness.drain(seconds=60)
    return (await harness.messages("desk.report"))[-1].value["open"]
