"""Texts reach their readers within moments, each character once and in order, whatever happens to who writes them."""

import logging
import os
import re
import sys
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from runtime import Agent, Context, Retry, TextPiece, connect
from runtime.client.stream import Stream
from runtime.errors import DeclarationError, InvalidValue, RuntimeFault, TextBroken
from tests.integration.conftest import connected, running, settled, until
from tests.integration.test_broadcast import WAYS, hears, settings_for
from tests.local.gateway.conftest import make_token
from tests.node import installed

pytestmark = pytest.mark.anyio

TOKENS = [f"wörd{number} 🌍 " for number in range(60)]
WHOLE = "".join(TOKENS)
ROOT = Path(__file__).parents[2]


def writer_agent(kill_within: int | None = None) -> Agent:
    """An agent that writes a text, and whose process is killed within its first attempt."""
    agent = Agent("writer")

    @agent.on("chat.asked", retry=Retry(attempts=2, first_seconds=0, cap_seconds=0))
    async def answer(question: str, context: Context) -> None:
        async with context.stream("answer") as out:
            for number, token in enumerate(TOKENS):
                await out.write(token)
                await anyio.sleep(0.02)
                if context.attempt == 1 and number == kill_within:
                    os.kill(os.getpid(), 9)

    return agent


PROGRAM = """
import anyio
from runtime import Worker
from tests.integration.test_texts import writer_agent
anyio.run(Worker([writer_agent(kill_within=50)]).run)
"""


async def follow(stream: Stream, message: int, into: list[TextPiece], **options: Any) -> None:
    """Follow the answer to its end."""
    async for piece in stream.follow(message, "answer", **options):
        into.append(piece)


def texts(pieces: list[TextPiece]) -> dict[int, str]:
    """The text of each beginning; fails where a piece does not follow on the one before."""
    found: dict[int, str] = {}
    for piece in pieces:
        assert piece.offset == len(found.get(piece.beginning, ""))
        assert piece.beginning == max(found, default=piece.beginning) or piece.offset == 0
        found[piece.beginning] = found.get(piece.beginning, "") + piece.text
    return found


@pytest.mark.parametrize("way", WAYS)
async def test_a_reader_gets_each_character_once_and_in_order_though_the_writer_is_killed(
    way: str, stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = settings_for(way, stack, lease_seconds=1, sweep_seconds=1)
    environment = {
        name: given for name, given in os.environ.items() if not name.startswith(("RUNTIME_", "SUPABASE_"))
    }
    environment |= {"RUNTIME_LEASE_SECONDS": "1", "RUNTIME_SWEEP_SECONDS": "1"} | (
        {"SUPABASE_URL": stack.api_url, "SUPABASE_SERVICE_ROLE_KEY": stack.service_role_key}
        if way == "realtime"
        else {"DATABASE_URL": stack.db_url}
    )
    early: list[TextPiece] = []
    late: list[TextPiece] = []
    async with connect(settings) as stream, connected(stack.admin_url) as database:
        async with (
            await anyio.open_process(
                [sys.executable, "-c", PROGRAM], env=environment, cwd=ROOT, stdout=None, stderr=None
            ) as process,
            anyio.create_task_group() as tasks,
        ):
            await until(lambda: settled(database, "writer.answer"))
            number = (await stream.send("chat.asked", "Why?")).id
            tasks.start_soon(follow, stream, number, early)
            await hears(caplog, 1)
            await process.wait()
            # What was stored is there for who comes now, and the rest is read on by who was there.
            assert texts(early)[1]
            assert WHOLE.startswith(texts(early)[1])
            known, before = early[-1], [*early]
            tasks.start_soon(
                partial(follow, stream, number, late, since=known.end, beginning=known.beginning)
            )
            async with running([writer_agent()], settings, live=False):
                await until(lambda: known.beginning + 1 in texts(early))
                with anyio.fail_after(60):
                    while len(texts(early)[2]) < len(WHOLE):
                        await anyio.sleep(0.01)
        # Who went on from a piece has missed nothing and got nothing twice.
        for pieces in (early, before + late):
            assert texts(pieces)[2] == WHOLE
        # Pieces come as they are written, and are stored about once a second.
        assert len([piece for piece in early if piece.beginning == 2]) > 5
        parts = await database.fetchval("select count(*) from stream_text_parts")
        assert 1 <= parts <= 8
        whole: list[TextPiece] = []
        await follow(stream, number, whole, since=7, beginning=2)
        assert "".join(piece.text for piece in whole) == WHOLE[7:]


async def test_a_text_goes_on_after_a_wait_begins_anew_where_it_differs_and_is_broken_with_its_attempt(
    stack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    agent, runs, tries = Agent("writer"), count(), count()
    settings = settings_for("notify", stack, notify=False, poll_slow_seconds=0.1)

    @agent.on("chat.waited")
    async def wait(question: str, context: Context) -> None:
        run = next(runs)
        async with context.stream("answer") as out:
            await out.write("one ")
            await out.write("two " if run < 2 else "deux ")
            assert out.length == (8 if run < 2 else 9)
            if run < 2:
                await context.wait_for(f"go.{run + 1}" if run == 0 else "go.2")
            await out.write("three")

    @agent.on("chat.asked", retry=Retry(attempts=2, first_seconds=0, cap_seconds=0))
    def fail(question: str, context: Context) -> None:
        with context.stream_blocking("answer") as out:
            out.write("a\0b\ud800")
            with pytest.raises(InvalidValue, match="already"), context.stream_blocking("answer"):
                pass
            if next(tries):
                raise ValueError("no ending")
        with pytest.raises(RuntimeFault, match="closed"):
            out.write("more")
        raise ValueError("closed, and failed after all")

    @agent.on("chat.batch", batch=2, within=0)
    async def many(values: list[str], context: Context) -> None:
        with pytest.raises(DeclarationError, match="batches"):
            context.stream("answer")

    async with (
        connect(settings) as stream,
        connected(stack.admin_url) as database,
        running([agent], settings, live=False),
    ):
        await until(lambda: settled(database, "writer.wait", "writer.fail"))
        number = (await stream.send("chat.waited", "Why?")).id
        waited: list[TextPiece] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, stream, number, waited)
            await until(lambda: texts(waited) == {1: "one two "})
            await until(
                lambda: database.fetchval(
                    "select exists (select from stream_texts where state = 'suspended')"
                )
            )
            assert next(runs) == 1
            await stream.send("go.1", None)
        # The run after the wait has written another text from its second word on.
        assert texts(waited) == {1: "one two ", 2: "one deux three"}

        number = (await stream.send("chat.asked", "Why?")).id
        await until(lambda: database.fetchval("select exists (select from runtime.dead_letters)"))
        failed: list[TextPiece] = []
        with pytest.raises(TextBroken, match="ends within"):
            await follow(stream, number, failed)
        assert texts(failed) == {2: "a\N{REPLACEMENT CHARACTER}b?"}
        # Nobody writes a text on this one.
        nothing: list[TextPiece] = []
        await follow(stream, (await stream.send("nobody.listens", 1)).id, nothing)
        assert nothing == []
        await stream.send("chat.batch", "x")
        await until(lambda: database.fetchval("select not exists (select from runtime.deliveries)"))
        assert await database.fetchval("select count(*) from runtime.dead_letters") == 1


PAGE = """
import { createClient } from '@supabase/supabase-js'
import WebSocket from 'ws'

const { URL, KEY, TOKEN, MESSAGE, WHOLE } = process.env
const client = createClient(URL, KEY, {
  auth: { persistSession: false, autoRefreshToken: false },
  realtime: { transport: WebSocket }, accessToken: async () => TOKEN,
})
await client.realtime.setAuth()
let open = 2, shown = '', times = 0
function page() {
  let last = ''
  follow(client, Number(MESSAGE), 'answer', (text, beginning) => {
    if (!WHOLE.startsWith(text) || !text.startsWith(last) || beginning !== 1) throw new Error(text)
    if (last === '') console.log('shows')
    last = text
    times += 1
    // Broadcasts come more often than the page asks.
    if (text === WHOLE && --open === 0) process.exit(times > 8 ? 0 : 1)
    if (text.length > 100 && shown === '') { shown = text; page() }
  })
}
page()
"""


@pytest.mark.own_stack
async def test_a_page_follows_a_text_under_row_level_security_and_so_it_does_after_a_reload(
    stack: Any, tmp_path: Path
) -> None:
    document = (ROOT / "docs/how-to/streaming-text.md").read_text()
    (policies,) = re.findall(r"```sql\n(.*?)```", document, re.S)
    (function,) = re.findall(r"```js\n(.*?)```", document, re.S)
    (tmp_path / "page.mjs").write_text(PAGE + function)
    (tmp_path / "node_modules").symlink_to(installed() / "node_modules")
    user = "11111111-1111-1111-1111-111111111111"
    agent, goes_on = Agent("writer"), anyio.Event()

    @agent.on("question.asked")
    async def answer(question: str, context: Context) -> None:
        async with context.stream("answer") as out:
            await out.write(TOKENS[0])
            await goes_on.wait()
            for token in TOKENS[1:]:
                await out.write(token)
                await anyio.sleep(0.02)

    settings = settings_for("realtime", stack)
    async with connect(settings) as stream, connected(stack.admin_url) as database:
        await database.execute(policies)
        await database.execute("grant select on realtime.messages to authenticated")
        async with running([agent], settings, live=False):
            await until(lambda: settled(database, "writer.answer"))
            message = (await stream.send("question.asked", "Why?", correlation_id=user)).id
            token = make_token(secret=stack.jwt_secret, role="authenticated", sub=user)
            environment = {
                **os.environ, "URL": stack.api_url, "KEY": stack.publishable_key, "TOKEN": token,
                "MESSAGE": str(message), "WHOLE": WHOLE,
            }  # fmt: skip
            async with await anyio.open_process(
                ["node", "page.mjs"], cwd=tmp_path, env=environment, stderr=None
            ) as process:
                assert process.stdout is not None
                with anyio.fail_after(60):
                    # What was stored before the page came.
                    assert await process.stdout.receive() == b"shows\n"
                    goes_on.set()
                    assert await process.wait() == 0
