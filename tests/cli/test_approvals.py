"""What an operator types where handlers wait: for people's decisions, and for messages."""

import json
from typing import Any

import anyio
import pytest

from tests.cli.shell import Shell
from tests.kernel.driver import Worker, connected, insert


@pytest.fixture
def requests(stack: Any) -> list[int]:
    """The numbers of two requests for approval, whose handler waits for the decisions and for a payment."""

    async def make() -> list[int]:
        async with connected(stack.admin_url) as connection:
            worker = Worker(connection)
            await worker.subscribe("shop.refund=refund.wanted")
            await insert(connection, "refund.wanted", 7)
            [taken] = await worker.take()
            schema = {"type": "integer"}
            ids = [
                await insert(connection, "approval.requested", value, parent_id=taken.id)
                for value in (
                    {"title": "Refund \x1b[31mAda?", "details": {"order": 7}, "schema": schema},
                    {"title": "Two?"},
                )
            ]
            waits = [
                {"name": "approval.decided", "key": str(number), "occurrence": 1, "pattern": "approval.decided",
                 "filter": {"request": number}, "since": number}
                for number in ids
            ]  # fmt: skip
            waits.append(
                {"name": "payment.*", "key": "", "occurrence": 1, "pattern": "payment.*", "seconds": 7200}
            )
            await connection.fetchval(
                "select stream_wait(message => $1, subscription => $2, lease => $3, waits => $4)",
                taken.id, taken.subscription, taken.lease, waits,
            )  # fmt: skip
            return ids

    return anyio.run(make)


def test_an_operator_lists_and_decides_what_agents_ask_and_sees_what_waits(
    shell: Shell, requests: list[int]
) -> None:
    first, second = requests
    listed = shell.run("approvals", "list")
    assert (listed.code, "\x1b" in listed.stdout) == (0, False), listed
    assert f"{first}  Refund " in listed.stdout
    assert '{"order":7}' in listed.stdout.replace(" ", "")
    assert "--answer as" in listed.stdout
    waits = shell.run("waits", "shop.refund", "--json")
    found = [json.loads(line) for line in waits.stdout.splitlines()]
    assert [each["pattern"] for each in found] == ["approval.decided", "approval.decided", "payment.*"]
    approved = shell.run("approvals", "approve", str(first), "--answer", "50", "--why", "kind", "--by", "ada")
    assert (approved.code, approved.stdout) == (0, "approved\n"), approved
    late = shell.run("approvals", "reject", str(first))
    assert late.code == 1
    assert "ada has approved it already" in late.stderr
    rejected = shell.run("approvals", "reject", str(second), "--json")
    told = json.loads(rejected.stdout)
    assert (rejected.code, told["decided"], told["decision"]["approved"]) == (0, True, False)
    assert "Nothing waits for a decision." in shell.run("approvals", "list").stderr
    none = shell.run("approvals", "approve", "1")
    assert (none.code, "is no request for approval" in none.stderr) == (1, True), none
    table = shell.run("waits").stdout
    assert "payment.*" in table
    assert "approval.decided" not in table
