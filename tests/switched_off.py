"""`python -m tests.switched_off [LABEL]…`: does a test notice when what prevents a known failure is missing?

Each row of "What failed once, and what prevents it now" in docs/reliability.md names a mechanism and its tests. Here
the mechanisms are switched off one by one, in a scratch copy of the project, and the tests with the row's label are run.
"""

# ruff: noqa: E501 - they are the lines of other files

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

ROOT = Path(__file__).parents[1]
_LONGEST_SECONDS = 180
_SQL = "supabase/migrations/20261101"
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "*.egg-info", "__pycache__", ".hypothesis", ".*_cache", "docs"
)


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism that can be switched off.

    Attributes:
        label: of its row, and in the names of its tests.
        what: is switched off.
        file: where it is.
        text: what stands there, once.
        instead: what stands there without the mechanism.
        tests: the files of its tests.
        chosen: which of their tests; those with the label by default.
    """

    label: str
    what: str
    file: str
    text: str
    instead: str
    tests: Sequence[str]
    chosen: str = ""


_KERNEL, _HOSTILE = "tests/kernel/", "tests/worker/execution/test_hostile.py"

MECHANISMS = (
    Mechanism("O1", "the lowest parked delivery is let go", f"{_SQL}001700_order_deliveries.sql",
              "n.ordered_key = ended.key and n.message_id < ended.below\n", "n.ordered_key = ended.key and false\n",
              [f"{_KERNEL}test_k9_order.py"]),
    Mechanism("O1", "a sweep heals the order", f"{_SQL}002400_send_heartbeats.sql",
              "    perform runtime.heal_order(me);\n", "", [f"{_KERNEL}test_k9_healing.py"]),
    Mechanism("O3", "no head is taken beside a lease of its key", f"{_SQL}001700_order_deliveries.sql",
              "          and not exists (\n              select from runtime.deliveries r\n"
              "              where r.subscription = wanted and r.ordered_key",
              "          and not exists (\n              select from runtime.deliveries r\n"
              "              where false and r.ordered_key", [f"{_KERNEL}test_k9_one_at_a_time.py"]),
    Mechanism("O2", "no message is put off for ever", f"{_SQL}000100_create_stream.sql",
              "or (isfinite(deliver_at) and deliver_at <", "or (true or deliver_at <",
              [f"{_KERNEL}test_limits_of_rows.py"]),
    Mechanism("R2", "short texts alone", f"{_SQL}000100_create_stream.sql", "check (length(agent) <= 255)",
              "check (true)", [f"{_KERNEL}test_limits_of_rows.py"]),
    Mechanism("R3", "headers are an object", f"{_SQL}000100_create_stream.sql", "jsonb_typeof(headers) = 'object'",
              "true", [f"{_KERNEL}test_limits_of_rows.py"]),
    Mechanism("R1", "markers for what Python cannot hold", "runtime/encoding/json.py",
              "        return _decode_with_care(text)\n    return", "        raise\n    return",
              ["tests/encoding/test_unreadable.py"]),
    Mechanism("R1", "no handler is called with a marker", "runtime/agent/signature.py",
              "if (found := find_unreadable(name, part)) is not None:",
              "if (found := find_unreadable(name, part)) is not None and not found:", ["tests/encoding/test_unreadable.py"]),
    Mechanism("R4", "an attempt emits so much", "runtime/agent/context.py", "MAX_EMITS = 50_000", "MAX_EMITS = 10**9",
              ["tests/worker/execution/test_emitting.py"]),
    Mechanism("R5", "pages pass over what is not old", f"{_SQL}003200_prune_messages.sql",
              "when cardinality(batch) > 0 or runtime.has_older(looked[max], horizon) then", "when cardinality(batch) > 0 then",
              [f"{_KERNEL}test_limits_of_rows.py"]),
    Mechanism("H1", "whatever a handler raises is its failure", "runtime/worker/execution/cancellation.py",
              "    return type(error) is KeyboardInterrupt and is_pressed(error)",
              "    return not isinstance(error, Exception)", [_HOSTILE], "whatever_a_handler_raises"),
    Mechanism("H1", "logs never raise", "runtime/worker/execution/loggers.py",
              "        except BaseException:  # noqa: BLE001 - a handler or filter", "        except OSError:  # a handler or filter",
              [_HOSTILE], "log_that_raises"),
    Mechanism("H1", "scopes that stay open are left", "runtime/worker/execution/cancellation.py",
              "while state.cancel_scope not in (scope, None):", "while False:", [_HOSTILE], "scope_that_is_left_open"),
    Mechanism("H2", "a child ends when it comes back", "runtime/worker/execution/fork.py",
              "        Generation.number += 1\n", "", [_HOSTILE], "h2_a_forked_child"),
    Mechanism("H2", "signals are held around a fork", "runtime/worker/execution/fork.py",
              "signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))",
              "signal.pthread_sigmask(signal.SIG_BLOCK, ())", ["tests/worker/execution/test_fork.py"]),
    Mechanism("H3", "a thread that runs on keeps its slot", "runtime/worker/execution/executor.py",
              "        self._rooms[handler.name] -= 1\n        room, limit", "        room, limit", [_HOSTILE], "h3"),
    Mechanism("H4", "the second signal ends the process", "runtime/worker/signals.py",
              "self._end_after(_HURRY_SECONDS, 128 + number, \"\")", "pass", ["tests/cli/test_signals.py"]),
    Mechanism("H5", "lines that nobody reads are dropped", "runtime/cli/streams.py",
              "                except OSError:\n                    if not self.goes_on:", "                except OSError:\n                    if True:",
              ["tests/cli/test_readers.py"], "a_worker_goes_on"),
    Mechanism("H1", "the worker's tasks are out of reach", "runtime/worker/event_loop.py",
              "            if is_of_handler.get():", "            if True:", [_HOSTILE], "out_of_a_handler_s_reach"),
    Mechanism("H6", "members of groups count", "runtime/agent/retry.py", "members = members_of(error)", "members = [error]",
              [_HOSTILE]),
    Mechanism("H7", "what cannot be written is final", "runtime/agent/retry.py",
              "_NEVER_RETRIED: Final = (InvalidPayload, InvalidValue,", "_NEVER_RETRIED: Final = (InvalidPayload,", [_HOSTILE]),
    Mechanism("H8", "no configuration silences the runtime", "runtime/worker/execution/loggers.py",
              "        return False\n", "        return True\n", [_HOSTILE]),
    Mechanism("L1", "locks are the database's state", "runtime/store/sqlstates.py", '    "55": "locked",\n', "",
              ["tests/store/test_fault_table.py"]),
    Mechanism("L2", "an empty exchange shows who is refused", "runtime/worker/exchanger.py",
              "if doubt is None and _is_loaded(look) and attempt >=", "if False and attempt >=",
              ["tests/integration/test_fronts.py"], "costs_its_own_delivery_alone and body"),
    Mechanism("L3", "the shape of answers", "runtime/store/shapes.py", "    if answer is None:\n        return None if",
              "    if True:\n        return None\n    if answer is None:\n        return None if",
              ["tests/store/test_fault_table.py"]),
    Mechanism("L5", "an idle connection is checked", "runtime/store/pool.py",
              "if idle_seconds <= _CHECK_AFTER_SECONDS:", "if True:", ["tests/store/test_pool.py"]),
    Mechanism("L6", "transaction ids of another cluster", f"{_SQL}001100_fan_out_messages.sql",
              "when invalid_parameter_value then\n    return true;", "when invalid_parameter_value then\n    return false;",
              [f"{_KERNEL}test_mending.py"]),
    Mechanism("L7", "the kernel's own rows come back", f"{_SQL}000500_create_policy.sql",
              "    insert into runtime.policy default values on conflict do nothing;\n", "", [f"{_KERNEL}test_mending.py"]),
    Mechanism("L8", "refused credentials are tried rarely", "runtime/connection/database.py",
              "if self.is_tried or now < self.shut_until:", "if False:", ["tests/store/test_pool.py"]),
    Mechanism("L9", "rates continue after a jump of the clock", f"{_SQL}002300_limit_subscriptions.sql",
              "where l.subscription = one.subscription and l.filled_at > clock_timestamp();", "where false;",
              [f"{_KERNEL}test_limits.py"]),
    Mechanism("L9", "heartbeats mend the clock", f"{_SQL}002400_send_heartbeats.sql",
              "    perform runtime.mend_clock();\n", "", [f"{_KERNEL}test_mending.py"]),
    Mechanism("L11", "less after what took long", "runtime/worker/exchange_bounds.py",
              "        if seconds > self._quick_seconds:\n            return\n", "", ["tests/worker/test_exchange_bounds.py"]),
    Mechanism("L12", "who left a call unanswered is called last", f"{_SQL}000800_wake_workers.sql",
              "order by c.standing, random()", "order by random()", [f"{_KERNEL}test_k15_announcing.py"]),
    Mechanism("L13", "declarations of the future give way", f"{_SQL}004100_mend_state.sql",
              "where s.declared_at > clock_timestamp();\n    update runtime.schedules", "where false;\n    update runtime.schedules",
              [f"{_KERNEL}test_k14_redeclaring.py"]),
    Mechanism("L13", "a key includes the time of writing", "runtime/message.py",
              'return f"{self.id}_{(self.created_at - _EPOCH) // _MICROSECOND:x}"', 'return f"{self.id}"', ["tests/test_message.py"]),
    Mechanism("N4", "API_URL counts for this machine alone", "runtime/connection/project.py",
              "(name == \"SUPABASE_URL\" or is_on_this_machine(text))", "True", ["tests/connection/test_project.py"]),
    Mechanism("N2", "this machine is reached directly", "runtime/connection/proxies.py",
              "    if is_on_this_machine(url):\n        return None\n", "", ["tests/connection/test_proxies.py"]),
    Mechanism("N4", "a key goes to the URL beside it", "runtime/connection/project.py",
              "    raise SettingsError(\n        f\"{name} is set in {source}", "    return other\n    raise SettingsError(\n        f\"{name} is set in {source}",
              ["tests/connection/test_project.py"]),
    Mechanism("S1", "a blank token is none", "runtime/dashboard/security.py",
              "object.__setattr__(self, \"token\", non_blank(self.token))", "pass", ["tests/agent/test_secrets.py"]),
    Mechanism("S1", "a short token is refused", "runtime/agent/secrets.py", "if len(secret) < MIN_EXPOSED_CHARACTERS:",
              "if False:", ["tests/agent/test_secrets.py"]),
    Mechanism("S4", "a blank secret is none", "runtime/connection/environment.py",
              "return text if any(character.isprintable() and not character.isspace() for character in text) else None",
              "return text", ["tests/agent/test_secrets.py"]),
    Mechanism("S2", "answers below answer. alone, in Python", "runtime/message.py", "given.startswith(ANSWERS) and ", "",
              ["tests/test_message.py"]),
    Mechanism("S2", "answers below answer. alone, in SQL", f"{_SQL}003700_answer_requests.sql",
              "where starts_with(m.headers ->> 'reply_to', 'answer.')", "where true", [f"{_KERNEL}test_requests.py"]),
    Mechanism("S3", "reserved dedup keys", f"{_SQL}001000_deduplicate_messages.sql",
              "select dedup_key ~ '^(tick|answer|failed|ask|webhook|decision) '", "select false",
              [f"{_KERNEL}test_k11_dedup.py"]),
    Mechanism("S5", "pages of the web are refused", "runtime/local/gateway/origins.py",
              "            if not self._is_let_in(origin):", "            if False:", ["tests/local/test_security.py"], "pages_of_the_web"),
    Mechanism("S7", "escapes are printed", "runtime/encoding/printable.py",
              "    return \"\".join(each if each.isprintable() else _escaped(each) for each in text)", "    return text",
              ["tests/cli/test_escapes.py"]),
    Mechanism("S7", "half-open connections end", "runtime/http_server.py",
              "            self.transport.abort()\n            return\n", "            pass\n", ["tests/test_http_server.py"]),
    Mechanism("S8", "an agent's token is refused", f"{_SQL}003200_prune_messages.sql",
              "    perform runtime.refuse_agent('prune the stream');\n", "", [f"{_KERNEL}test_permissions.py"]),
    Mechanism("V2", "a secret is refused", "runtime/encoding/readback.py",
              "    elif issubclass(kind, _SECRETS):\n", "    elif False:\n", ["tests/encoding/test_readback.py"]),
    Mechanism("V2", "keys with one text are refused", "runtime/encoding/readback.py",
              "if len(data) != dict.__len__(cast(Any, value)):", "if False:", ["tests/encoding/test_readback.py"]),
    Mechanism("V4", "what is passed on is awaited", "runtime/worker/execution/attempt.py",
              "        if result is None or not isinstance(result, Awaitable):", "        if True:", ["tests/agent/test_decorated.py"]),
    Mechanism("V5", "extreme figures are refused", "runtime/agent/retry.py", "MAX_ATTEMPTS: Final = 1_000_000_000",
              "MAX_ATTEMPTS: Final = 10**100", ["tests/agent/test_retry.py"]),
    Mechanism("V6", "iterators are refused", "runtime/encoding/parts.py",
              'return _refuse if hasattr(kind, "__next__") else _nothing', "return _nothing", ["tests/encoding/test_endless.py"]),
    Mechanism("T3", "nonces wait in a queue", "runtime/worker/plan.py", "            self._nonces.append(nonce)",
              "            self._nonces.clear()\n            self._nonces.append(nonce)", ["tests/worker/test_plan.py"]),
    Mechanism("T3", "a nonce is asked for again in time", "runtime/wakeups/phoenix.py",
              "                self._nonce_at = now + self.timings.nonce_deadline / 4\n", "", ["tests/wakeups/test_phoenix.py"]),
    Mechanism("T4", "a missing path is tried soon", "runtime/wakeups/realtime.py",
              "return min(self._timings.mend, self._timings.first_mend * 2.0 ** min(self._mends, 10))", "return self._timings.mend",
              ["tests/wakeups/test_realtime.py"], "t4_a_missing"),
    Mechanism("T5", "a kind of trouble is told once", "runtime/backoff.py", "        is_news = kind not in self._logged\n",
              "        is_news = True\n", ["tests/wakeups/test_realtime.py"], "t5_causes"),
)  # fmt: skip


def main(
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="[LABEL]…", help="Rows of the table; all by default.")
    ] = None,
) -> None:
    """Switch each mechanism off and run its tests, which must fail."""
    console = Console()
    unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="agent-runtime-switched-off-") as folder:
        scratch = Path(folder) / "project"
        shutil.copytree(ROOT, scratch, ignore=_LEFT_OUT)
        for mechanism in MECHANISMS:
            if labels and mechanism.label not in labels:
                continue
            path = scratch / mechanism.file
            text = path.read_text()
            path.write_text(text.replace(mechanism.text, mechanism.instead))
            noticed = _noticed(scratch, mechanism)
            path.write_text(text)
            unnoticed += not noticed
            console.print(
                f"{mechanism.label}: {mechanism.what}: {noticed or 'NOT NOTICED'}",
                soft_wrap=True,
                markup=False,
            )
    raise SystemExit(1 if unnoticed else 0)


def _noticed(scratch: Path, mechanism: Mechanism) -> str:
    """The first test that fails without the mechanism; empty if none does."""
    chosen = mechanism.chosen or f"test_{mechanism.label.lower()}_ or _{mechanism.label.lower()}_"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--no-header",
        "--tb=no",
        "-rfE",
        *mechanism.tests,
        "-k",
        chosen,
    ]
    environment = {**os.environ, "PYTHONPATH": str(scratch)}
    with subprocess.Popen(
        command, cwd=scratch, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        try:
            output, _ = running.communicate(timeout=_LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            return f"its tests do not end within {_LONGEST_SECONDS} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    if running.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {running.returncode}:\n{output[-3000:]}")
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else ""


if __name__ == "__main__":
    typer.run(main)
