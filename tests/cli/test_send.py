"""`runtime send`: what is meant by VALUE, and what is refused before anything is sent."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import anyio
import pytest

from tests.cli.shell import Ended, Shell, error_line, usage_error
from tests.kernel.driver import Worker, connected


def sent_value(shell: Shell, *arguments: str, given: str = "") -> object:
    """Send a message and read its value back."""
    ended = shell.run("send", "task.output", *arguments, "--json", given=given)
    assert ended.code == 0
    read = json.loads(shell.run("read", "task.output", "-n", "1", "--json").stdout)
    assert read["id"] == json.loads(ended.stdout)["id"]
    return read["value"]


def test_json_is_json_and_any_other_text_is_a_string(shell: Shell) -> None:
    (shell.folder / "value.json").write_text('{"from": "a file"}')
    assert sent_value(shell) is None
    assert sent_value(shell, '{"a": [1, 2.5, "ü"]}') == {"a": [1, 2.5, "ü"]}
    assert sent_value(shell, "plain words") == "plain words"
    assert sent_value(shell, "42", "--text") == "42"
    assert sent_value(shell, "@value.json") == {"from": "a file"}
    assert sent_value(shell, "-", given="[1]\n") == [1]


def test_a_message_sent_again_under_its_dedup_key_is_said_to_be_there(shell: Shell) -> None:
    first = shell.run("send", "task.output", "1", "--dedup-key", "one", "--agent", "me", "--priority", "high")
    assert (first.code, first.stdout) == (0, "#1 task.output\n")
    again = shell.run("send", "task.output", "2", "--dedup-key", "one")
    assert again.code == 0
    assert again.stdout == "#1 was sent before under this dedup key; nothing was written\n"
    answer = shell.run("send", "task.output", "2", "--dedup-key", "one", "--json")
    assert json.loads(answer.stdout) == {
        "id": 1, "key": "task.output", "duplicate": True, "unheard": False,
    }  # fmt: skip


def test_a_message_that_goes_to_nobody_is_told_or_refused(shell: Shell, stack: Any) -> None:
    async def subscribe() -> None:
        async with connected(stack.admin_url) as connection:
            await Worker(connection).subscribe("a.one=task.output")

    anyio.run(subscribe)
    heard = shell.run("send", "task.output", "1", "--require-listener")
    assert heard == Ended(0, "#1 task.output\n", "")
    unheard = shell.run("send", "task.outptu", "1")
    assert (unheard.code, unheard.stdout) == (0, "#2 task.outptu\n")
    assert unheard.stderr.startswith(
        "No handler listens to task.outptu: #2 is stored, and no agent gets it. Did you mean task.output?"
    )
    assert unheard.stderr.count("\n") == 1
    assert json.loads(shell.run("send", "task.outptu", "--json").stdout)["unheard"] is True
    assert "no handler listens to task.outptu" in error_line(
        shell.run("send", "task.outptu", "1", "--require-listener")
    )


@pytest.mark.parametrize("key", ["", "Task output", "task..output", "task.*", "a.b.c.d.e.f.g.h.i"])
def test_a_bad_key_is_refused_with_what_a_key_looks_like(nowhere: Shell, key: str) -> None:
    assert "task.output" in error_line(nowhere.run("send", key, "1"))


@pytest.mark.parametrize("value", ['{"a": 1', "[1,", '"open'])
def test_what_looks_like_json_and_is_none_is_a_matter_of_usage(nowhere: Shell, value: str) -> None:
    assert "looks like JSON and is none" in usage_error(nowhere.run("send", "a", value))


def test_a_value_that_cannot_be_stored_is_refused(nowhere: Shell) -> None:
    assert "a number JSON does not have" in error_line(nowhere.run("send", "a", "NaN"))
    assert "NUL" in error_line(nowhere.run("send", "a", '{"a": "\\u0000"}'))
    assert "cannot be read" in usage_error(nowhere.run("send", "a", "@not-there"))
    assert "'--delay'" in usage_error(nowhere.run("send", "a", "1", "--delay", "soon"))
    assert "Missing argument" in usage_error(nowhere.run("send"))


def test_its_span_is_exported_before_it_ends(shell: Shell) -> None:
    posted: dict[str, bytes] = {}

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted[self.path] = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        ended = shell.run(
            "send", "task.output", "1", RUNTIME_TELEMETRY="true", OTEL_EXPORTER_OTLP_COMPRESSION="none",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
        )  # fmt: skip
        server.shutdown()
    assert ended.code == 0
    assert b"send task.output" in posted["/v1/traces"]
    assert b"messaging.client.sent.messages" in posted["/v1/metrics"]
    # The message carries the very trace that was exported.
    read = json.loads(shell.run("read", "task.output", "-n", "1", "--json").stdout)
    assert bytes.fromhex(read["headers"]["traceparent"].split("-")[1]) in posted["/v1/traces"]
